"""Does pretraining on the demo's simulated EnMAP learn the arrangement of the ground?

Run: `python -m benchmarks.features` (hours on two cores; `--locations`, `--steps`, `--backbone`,
`--batch` and `--seeds` make it smaller). Each seed draws an encoder and trains it twice with each
of MoCo v2, DINO and Barlow Twins, equally long: on the patches, and on the same patches with their
pixels shuffled, which keeps every spectrum and destroys every shape. Frozen features of unshuffled
windows are then probed, beside those of the encoder as it was drawn (same seed, hence paired),
statistics of the image, and random filters. The classes of the demo are arrangements of fields.

All runs use AdamW at one rate: they are too short for the schedules of the papers. Differences are
of macro accuracy in points, with the 95 % interval of Student's t over the seeds, and the number of
seeds in which they are above 0.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats

from pipeline.evaluate.baselines import FILTERS, RandomFilters, image_statistics
from pipeline.evaluate.features import (
    Describe,
    EncoderFeatures,
    Features,
    describe_windows,
    read_windows,
)
from pipeline.evaluate.probes import Parts, accuracy, knn, linear
from pipeline.evaluate.windows import PARTS, Windows, check_parts, cut_windows
from pipeline.pretrain.backbones import EncoderShape, build_encoder
from pipeline.pretrain.batches import Batch, Stored, stream
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.order import times_or_views
from pipeline.pretrain.train import build_run, choose_device, train
from pipeline.recipe import LoadedRecipe, Pretrain, load_recipe
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset

PRODUCT, LABELS = "enmap-l2a", "simulated-labels"
METHODS = {"moco": "MoCo v2", "dino": "DINO", "barlow": "Barlow Twins"}
#: What the runs have in common, and what a short run needs beside it.
COMMON: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "clip": 3.0}
SHORT: dict[str, dict[str, Any]] = {
    "moco": {"queue": 512, "momentum": 0.99},
    "dino": {"prototypes": 256, "teacher_momentum": 0.98, "local_crops": 2},
    "barlow": {"projector_width": 256},
}
NEIGHBOURS = 5

#: Features of every seed: (kind, seed) to accuracy of kNN and of the linear probe.
Scores = dict[tuple[str, int], tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """How much is done."""

    locations: int
    steps: int
    batch: int
    seeds: int
    backbone: str


def main(arguments: list[str] | None = None) -> int:
    """Train, probe and print; return an exit code."""
    size = _parse(arguments)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        loaded = demo()
        simulate_shards(open_store(folder), loaded, locations=size.locations)
        dataset = open_dataset(folder)
        asked = loaded.recipe.evaluate
        if asked is None or loaded.recipe.pretrain is None:
            raise ValueError("the demo has no [pretrain] or no [evaluate] table")
        windows = cut_windows(
            dataset.patches(PRODUCT),
            dataset.patches(LABELS),
            window_px=asked.window_px,
            min_label_fraction=asked.min_label_fraction,
            ignore=loaded.products[LABELS].ignore_class,
            static=True,
        )
        check_parts(windows)
        crop_px = loaded.recipe.pretrain.crop_px or dataset.patches(PRODUCT).shape[-1]
        scores = measure(size, dataset, windows, crop_px)
    counts = ", ".join(f"{len(windows.of(part))} {part}" for part in PARTS)
    print(
        f"\n{size.seeds} seeds, {size.backbone}, {size.steps} steps of {size.batch}, "
        f"{size.locations} locations; windows: {counts}; {time.monotonic() - began_s:.0f} s\n"
    )
    print(*table(scores, size.seeds), sep="\n")
    return 0


def demo() -> LoadedRecipe:
    """Return the demo's recipe with what is asked for here: two products, more to choose by."""
    loaded = load_recipe("demo")
    wanted = tuple(wish for wish in loaded.recipe.product if wish.id in (PRODUCT, LABELS))
    split = loaded.recipe.split.model_copy(update={"train": 0.5, "val": 0.2, "test": 0.3})
    changes = {"product": wanted, "split": split}
    return LoadedRecipe(loaded.recipe.model_copy(update=changes), loaded.folder)


def measure(size: Size, dataset: Dataset, windows: Windows, crop_px: int) -> Scores:
    """Return the accuracy of every kind of features for every seed."""
    device = choose_device("auto")
    reader = dataset.patches(PRODUCT)
    mean, std, _ = dataset.statistics(PRODUCT)
    normaliser = Normaliser(mean.tolist(), std.tolist(), float(reader.fill)).to(device)
    learned = dataset.sel(product=PRODUCT, split="train").patches(PRODUCT)
    shape = EncoderShape(size.backbone, len(reader.bands), crop_px, patch_px=8)
    scores: Scores = {}
    for seed in range(size.seeds):
        drawn = build_encoder(shape, seed=seed).to(device)
        kinds: dict[str, Describe] = {"random": EncoderFeatures(drawn, crop_px)}
        for method in METHODS:
            for kind in (method, f"{method} shuffled"):
                encoder = pretrain(
                    size, method, seed, learned, shape, normaliser, shuffle=kind != method
                )
                kinds[kind] = EncoderFeatures(encoder, crop_px)
                print(f"seed {seed}: {kind}", file=sys.stderr, flush=True)
        kinds["image statistics"] = image_statistics
        some = windows.some("train", FILTERS, seed=seed)
        seen = read_windows(reader, some, normaliser, device=device, threads=2)
        images = torch.cat([view.image for view in seen])
        kinds["random filters"] = RandomFilters(images, seed=seed)
        found = describe_windows(reader, windows, normaliser, kinds, device=device)
        scores |= {(kind, seed): probe(values, windows) for kind, values in found.items()}
    return scores


def pretrain(
    size: Size,
    method: str,
    seed: int,
    reader: PatchReader,
    shape: EncoderShape,
    normaliser: Normaliser,
    *,
    shuffle: bool,
) -> torch.nn.Module:
    """Return an encoder that learned from the training part."""
    settings = Pretrain.model_validate(
        {
            **COMMON,
            **SHORT[method],
            "method": method,
            "backbone": shape.backbone,
            "seed": seed,
            "steps": size.steps,
            "warmup_steps": size.steps // 10,
            "batch_size": size.batch,
            "stop_collapsed": False,
        }
    )
    device = normaliser.mean.device
    run = build_run(settings, shape, device)
    readers = {PRODUCT: reader}
    picks = times_or_views(
        readers, views=run.method.views, times=True, batch_size=size.batch, seed=seed
    )
    batches: Iterable[Batch] = stream(
        readers, picks, start=0, stop=size.steps, threads=2, device=device
    )
    train(
        run,
        shuffled(batches, seed) if shuffle else batches,
        settings=settings,
        shape=shape,
        normalisers={PRODUCT: normaliser},
        checkpoint=lambda _: None,
        after_step=lambda _: None,
    )
    return run.method.encoder


def shuffled(batches: Iterable[Batch], seed: int) -> Iterator[Batch]:
    """Put the pixels of every patch in random order, all bands and the mask alike."""
    random = torch.Generator().manual_seed(seed)
    for batch in batches:
        new = {id(stored): _shuffle(stored, random) for stored in batch}
        yield tuple(new[id(stored)] for stored in batch)


def _shuffle(stored: Stored, random: torch.Generator) -> Stored:
    count, bands, height, width = stored.bands.shape
    draws = torch.rand(count, height * width, generator=random)
    order = draws.argsort(dim=1).to(stored.bands.device)
    values = stored.bands.flatten(2).gather(2, order.unsqueeze(1).expand(-1, bands, -1))
    mask = stored.mask.flatten(1).gather(1, order)
    return Stored(values.view_as(stored.bands), mask.view_as(stored.mask), stored.product)


def probe(values: Features, windows: Windows) -> tuple[float, float]:
    """Return the macro accuracy of kNN and of the linear probe."""
    train_part, val, test = (windows.of(part) for part in PARTS)
    parts = Parts.standardised(values, windows.label, train_part, val, test)
    truth = windows.label[test]
    found = (knn(parts, NEIGHBOURS), linear(parts).predicted)
    return accuracy(found[0], truth)[1], accuracy(found[1], truth)[1]


def table(scores: Mapping[tuple[str, int], tuple[float, float]], seeds: int) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| features | kNN % | linear % | linear minus random encoder | minus shuffled |"
    yield "|---|---|---|---|---|"
    for method, title in METHODS.items():
        cells = _accuracies(scores, method, seeds)
        for other in ("random", f"{method} shuffled"):
            differences = [scores[method, s][1] - scores[other, s][1] for s in range(seeds)]
            cells.append(paired(differences))
        yield f"| {title} | {' | '.join(cells)} |"
    others = {f"{method} shuffled": f"{title}, shuffled" for method, title in METHODS.items()}
    others |= {"random": "random encoder", "image statistics": "image statistics"}
    others |= {"random filters": "random filters (RCF)"}
    for kind, title in others.items():
        yield f"| {title} | {' | '.join(_accuracies(scores, kind, seeds))} | | |"


def paired(differences: list[float]) -> str:
    """Return mean, interval and number of differences above 0, in points.

    Examples
    --------
    >>> paired([0.1, 0.1, 0.1])
    '+10.0 (+10.0 to +10.0), 3 of 3'
    """
    points = [100 * difference for difference in differences]
    mean, above = statistics.fmean(points), sum(point > 0 for point in points)
    tally = f"{above} of {len(points)}"
    if len(points) < 2:
        return f"{mean:+.1f}, {tally}"
    half = stats.t.ppf(0.975, len(points) - 1) * statistics.stdev(points) / len(points) ** 0.5
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f}), {tally}"


def _accuracies(
    scores: Mapping[tuple[str, int], tuple[float, float]], kind: str, seeds: int
) -> list[str]:
    cells = []
    for probe_number in (0, 1):
        percents = [100 * scores[kind, seed][probe_number] for seed in range(seeds)]
        spread = f" ± {statistics.stdev(percents):.1f}" if seeds > 1 else ""
        cells.append(f"{statistics.fmean(percents):.1f}{spread}")
    return cells


def _parse(arguments: list[str] | None) -> Size:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--locations", type=int, default=160)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--backbone", default="resnet18")
    return Size(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
