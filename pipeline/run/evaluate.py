"""Probe a trained encoder on labels of the same version, beside baselines on the same split."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from pipeline.errors import RecipeError
from pipeline.evaluate.baselines import FILTERS, RandomFilters, image_statistics
from pipeline.evaluate.features import (
    Describe,
    EncoderFeatures,
    describe_windows,
    read_windows,
)
from pipeline.evaluate.report import (
    Evaluation,
    confuse,
    count_locations,
    count_windows,
    judge,
    majority_accuracy,
    markdown,
)
from pipeline.evaluate.scores import MODEL
from pipeline.evaluate.windows import PARTS, Windows, check_parts, labels_of
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint
from pipeline.pretrain.train import choose_device
from pipeline.recipe import Evaluate, LoadedRecipe
from pipeline.run.describe import model_name
from pipeline.run.few_labels import classify_with_few
from pipeline.run.labelled import windows_of
from pipeline.run.trained import Trained, open_trained
from pipeline.store import layout
from pipeline.store.reader import open_dataset
from pipeline.watch.progress import Progress


def run_evaluate(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    model: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a model at its newest checkpoint, on the version it was trained on.

    The report is written beside the model, as JSON and as a table.

    Parameters
    ----------
    loaded : LoadedRecipe
        With an `[evaluate]` table.
    store : ObjectStore
        The root.
    model : str or None
        Name; None: the one that the recipe's `[pretrain]` makes of the newest version.
    device : str
        `auto`, `cpu`, `cuda`.
    progress : Progress or None

    Raises
    ------
    RecipeError
        No such model or labels, or the split leaves a part without two classes.
    """
    settings = _settings(loaded)
    described = checkpoint.load(store, model or model_name(loaded, open_dataset(store)))
    dataset = open_dataset(store, version=described.version)
    place = choose_device(device)
    trained = open_trained(loaded, store, dataset, described, settings.product, place)
    windows = windows_of(loaded, dataset, trained.reader, settings)
    check_parts(windows)
    if progress is not None:
        progress.start("evaluate", len(windows))
    features = describe_windows(
        trained.reader,
        windows,
        trained.normaliser,
        _kinds(trained, windows, place, settings.seed),
        device=place,
        done=(lambda _: None) if progress is None else progress.advance,
    )
    judged = judge(features, windows, k=settings.knn, seed=settings.seed)
    classes = loaded.products[settings.labels].classes
    few = classify_with_few(
        store,
        trained.model,
        settings,
        trained.reader,
        trained.normaliser,
        windows,
        features,
        {MODEL: trained.encoder, "untrained": trained.untrained().to(place)},
    )
    report = Evaluation(
        model=described.name,
        step=described.step,
        version=described.version,
        digest=described.digest,
        product=trained.product,
        new_product=trained.new,
        labels=settings.labels,
        transductive=described.settings.transductive,
        window_px=windows.edge_px,
        sizes={part: len(windows.of(part)) for part in PARTS},
        windows=count_windows(windows, classes),
        locations=count_locations(windows),
        confusion=confuse(judged.said, windows, classes),
        majority=majority_accuracy(windows),
        resampled=judged.resampled,
        results=judged.results,
        comparisons=judged.comparisons,
        few=few,
    )
    return _write(store, report, settings)


def _settings(loaded: LoadedRecipe) -> Evaluate:
    settings = loaded.recipe.evaluate
    if settings is None:
        raise RecipeError(
            f"recipe {loaded.name} has no [evaluate] table; add one with `labels`, the id of a "
            "label product of the recipe."
        )
    labels_of(loaded, settings)
    return settings


def _kinds(
    trained: Trained, windows: Windows, device: torch.device, seed: int
) -> dict[str, Describe]:
    """Return the model's features and those of every baseline, all of the same pixels."""
    untrained = trained.untrained().to(device)
    sample = windows.some("train", FILTERS, seed=seed)
    seen = list(read_windows(trained.reader, sample, trained.normaliser, device=device, threads=2))
    image_px, how = trained.shape.image_px, trained.model.settings
    return {
        MODEL: EncoderFeatures.trained(trained.encoder, image_px, how),
        "untrained": EncoderFeatures.trained(untrained, image_px, how),
        "image-statistics": image_statistics,
        "random-filters": RandomFilters(torch.cat([view.image for view in seen]), seed=seed),
    }


def _write(store: ObjectStore, report: Evaluation, settings: Evaluate) -> Evaluation:
    """Write the report under a name that tells what was asked, and of which checkpoint."""
    asked = json.dumps([settings.model_dump(mode="json"), report.step], sort_keys=True)
    digest = hashlib.sha256(asked.encode()).hexdigest()[:6]
    key = layout.model(report.model, f"evaluation/{report.labels}-{report.step:08d}-{digest}")
    report = replace(report, path=f"{key}.json")
    store.put(f"{key}.md", markdown(report).encode())
    store.put(report.path, layout.dump_json(report.to_json()))
    return report
