"""Learn from a published version without labels; run it again and it goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint, ranks
from pipeline.pretrain.data.batches import Share, stream
from pipeline.pretrain.data.joint import Joint
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.order import (
    InTurn,
    Picks,
    all_products,
    pairs_of_products,
    times_or_views,
)
from pipeline.pretrain.encoders.released import Released
from pipeline.pretrain.logs import Journal, open_sinks
from pipeline.pretrain.methods.decur import DeCUR
from pipeline.pretrain.model import Model
from pipeline.pretrain.train import (
    NOTHING,
    Run,
    build_run,
    check_parts,
    choose_device,
    last_health,
    train,
)
from pipeline.recipe import LoadedRecipe, Pretrain
from pipeline.run.describe import (
    describe,
    products_of,
    quantities_of,
    released_of,
    settings_of,
)
from pipeline.run.labelled import labelled_part
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset
from pipeline.watch.progress import Progress

#: What a run cannot change between its beginning and going on.
COMPARED = (
    *(
        "identity",
        "digest",
        "product",
        "shape",
        "settings",
        "mean",
        "std",
        "others",
        "second",
        "origin",
    ),
)


@dataclass(frozen=True, slots=True)
class PretrainReport:
    """What a run learned, and how healthy it is."""

    model: str
    """Name."""
    folder: str
    """Key of its newest checkpoint: weights, model card and log."""
    version: int
    """Published version it learned from."""
    steps: int
    resumed_from: int
    """Step it went on from; equal to `steps` if there was nothing left to do."""
    locations: int
    patches: int
    paired_fraction: float
    """Share of locations that have at least two times: the others are paired with themselves."""
    transductive: bool
    """Whether it saw the validation and test parts too (without labels)."""
    loss: float
    embedding_std: float
    mean_cosine: float
    effective_rank: float
    collapsed: bool
    """Whether the embeddings look like one point (`pipeline.pretrain.monitors`)."""


def run_pretrain(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    name: str | None = None,
    resume: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
    logs: Sequence[str] = (),
    log_folder: Path = Path("logs"),
) -> PretrainReport:
    """Train the recipe's model on the newest version, from its newest checkpoint if there is one.

    Parameters
    ----------
    loaded : LoadedRecipe
        With a `[pretrain]` table.
    store : ObjectStore
        The root.
    name : str or None
        Of the model; None: one that tells method, backbone, version and settings.
    resume : bool
        False: drop earlier checkpoints of that name and begin anew.
    device : str
        `auto`, `cpu`, `cuda`.
    progress : Progress or None
    logs : sequence of str
        Where rows go as they are measured, beside the log in each checkpoint: see
        `pipeline.pretrain.logs.SINKS`.
    log_folder : Path
        On this machine, for what logs write.

    Raises
    ------
    RecipeError
        The recipe does not fit the data, or the name belongs to another run.
    """
    settings = settings_of(loaded)
    check_parts(settings, ranks.launched())
    dataset = open_dataset(store)
    readers = {
        product: _reader(dataset, product, transductive=settings.transductive)
        for product in products_of(loaded)
    }
    released = released_of(loaded, dataset)
    model = describe(loaded, dataset, name=name, released=released)
    if released is not None and not settings.steps:
        return _as_released(store, model, released, readers[model.product])
    place = ranks.join(choose_device(device))
    first = ranks.rank() == 0
    inputs = model.inputs
    if model.second is not None:
        inputs[model.second.product] = model.second.input
    normalisers = {
        product: Normaliser(own.mean, own.std, own.fill, quantities_of(readers[product])).to(place)
        for product, own in inputs.items()
    }
    second = None if model.second is None else model.second.shape
    labels = labelled_part(loaded, dataset, model, normalisers[model.product], place)
    weights = None if released is None else released.encoder.state_dict()
    run = build_run(
        settings, model.shape, place, second=second, classes=labels.classes, weights=weights
    )
    if resume:
        _resume(store, model, run)
    elif first:
        for step in checkpoint.steps(store, model.name):
            checkpoint.drop(store, model.name, step)
    started = run.step
    ranks.agree(started, "the step to go on from")
    if progress is not None:
        progress.start("pretrain", settings.steps - started)
    wanted = logs if first else ()
    shown = settings.model_dump(mode="json")
    sinks = open_sinks(wanted, log_folder, run=model.name, start=started, settings=shown)
    with Journal(sinks, progress) as journal, ranks.company():
        batches = stream(
            readers,
            _picks(settings, readers, run.method.views),
            start=started,
            stop=settings.steps,
            threads=settings.threads,
            requests=settings.requests,
            device=place,
            share=Share(ranks.rank(), ranks.size()),
        )
        train(
            run,
            journal.watch(batches),
            settings=settings,
            shape=model.shape,
            second=second,
            joint=_joint(model, readers),
            normalisers=normalisers,
            support=labels.support,
            validate=labels.check,
            checkpoint=lambda run: _save(store, model, run) if first else None,
            after_step=lambda run: journal.after_step(run.step, run.log),
        )
    report = _report(model, run, readers[model.product], started)
    if report.collapsed and progress is not None:
        progress.note(
            f"pretrain: embeddings look collapsed (deviation {report.embedding_std:.2f}, mean "
            f"cosine {report.mean_cosine:.2f}); see models/{model.name}/"
        )
    return report


def _reader(dataset: Dataset, product: str, *, transductive: bool) -> PatchReader:
    if transductive:
        return dataset.patches(product)
    splits = set(dataset.sel(product=product).index["split"].unique().to_pylist())
    if "train" not in splits:
        raise RecipeError(
            f"version {dataset.version.number} has no {product} patch in the training part; "
            "collect more locations, or change `split` (smaller `block_km`, a larger `train`)."
        )
    return dataset.sel(product=product, split="train").patches(product)


def _picks(settings: Pretrain, readers: Mapping[str, PatchReader], views: int) -> Picks:
    """Return what each step is made of."""
    if settings.pairs == "products":
        paired = pairs_of_products(readers, batch_size=settings.batch_size, seed=settings.seed)
        return paired if settings.method == "decur" else InTurn(paired)
    choose = all_products if settings.joint else times_or_views
    return choose(
        readers,
        views=views,
        times=settings.pairs == "times",
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _joint(model: Model, readers: Mapping[str, PatchReader]) -> Joint | None:
    """Return what each image is made of, where it shows several products."""
    settings = model.settings
    if not settings.joint:
        return None
    size_px = readers[model.product].shape[-1]
    return Joint(model.shape.sensors[: len(readers)], size_px, settings.modality_dropout)


def _resume(store: ObjectStore, model: Model, run: Run) -> None:
    """Bring a run to its newest checkpoint, if it has one and is the same run."""
    known = checkpoint.steps(store, model.name)
    if not known:
        return
    found = checkpoint.load(store, model.name, known[-1])
    for field in COMPARED:
        old, new = getattr(found, field), getattr(model, field)
        # Of a run from before these were kept.
        if field in ("others", "second") and not old:
            continue
        if field == "settings":
            free = {"threads", "requests", "checkpoint_every"}
            old, new = old.model_dump(exclude=free), new.model_dump(exclude=free)
        if old != new:
            what = f"other {field}"
            if field == "settings":
                what = ", ".join(f"another `pretrain.{key}`" for key in old if old[key] != new[key])
            raise RecipeError(
                f"model {model.name!r} in {store.url} was begun with {what}; give this run another "
                "name (`--name`), or begin it anew (`--fresh`)."
            )
    run.restore(*checkpoint.load_state(store, found))


def _save(store: ObjectStore, model: Model, run: Run) -> None:
    reached = model.model_copy(update={"step": run.step})
    method = run.method
    second = method.second_encoder if isinstance(method, DeCUR) else None
    checkpoint.save(store, reached, method.encoder, run.state(), run.log_csv(), second=second)


def _as_released(
    store: ObjectStore, model: Model, released: Released, reader: PatchReader
) -> PretrainReport:
    """Keep released weights as a model of this root, without a step of training."""
    if not checkpoint.steps(store, model.name):
        checkpoint.save(store, model, released.encoder, {}, "")
    elif checkpoint.load(store, model.name, 0).origin != model.origin:
        raise RecipeError(f"model {model.name!r} in {store.url} has other weights; name this one.")
    return _report(model, None, reader, 0)


def _report(model: Model, run: Run | None, reader: PatchReader, started: int) -> PretrainReport:
    _, times = np.unique(reader.sample_row, return_counts=True)
    measured = NOTHING if run is None else last_health(run)
    return PretrainReport(
        model=model.name,
        folder=checkpoint.folder(model.name, 0 if run is None else run.step),
        version=model.version,
        steps=0 if run is None else run.step,
        resumed_from=started,
        locations=len(times),
        patches=len(reader),
        paired_fraction=float((times > 1).mean()),
        transductive=model.settings.transductive,
        loss=math.nan if run is None else run.log[-1]["loss"],
        embedding_std=measured.std,
        mean_cosine=measured.cosine,
        effective_rank=measured.rank,
        collapsed=measured.collapsed,
    )
