"""Does pretraining on the demo's simulated EnMAP learn the arrangement of the ground?

Run: `OMP_NUM_THREADS=1 python -m benchmarks.features --results features.csv`. Each seed draws an
encoder and trains it twice with each of MoCo v2, DINO and Barlow Twins, equally long: on the
patches, and on the same patches with their pixels shuffled, which keeps every spectrum and destroys
every shape. Frozen features of unshuffled windows are then probed, beside those of the encoder as
it was drawn (same seed, hence paired), statistics of the image, and random filters. The classes of
the demo are arrangements of fields.

So that a run takes a minute of one core (DINO: four), the demo is made smaller: cells of 32 pixels,
each a window; a few bands, evenly spaced; a ResNet of one block a stage, a quarter as wide.
As timm builds it, and hence the product, the last norm of each of its blocks starts at 0: as drawn,
it sees little of its neighbours. Beside it stands one whose norms start at 1: harder to beat.

All runs use AdamW: they are too short for the schedules of the papers. Settings were chosen in
another world with another seed (`--world 1 --first-seed 100`), which are left out. Differences are
of macro accuracy in points, with the 95 % interval of Student's t over the seeds, and the number of
seeds in which they are above 0; the data set and its test windows are the same for all seeds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet

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
from pipeline.pretrain.data.batches import Batch, Stored
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.order import Picks, times_or_views
from pipeline.pretrain.encoders.backbones import RESNETS, EncoderShape, build_encoder
from pipeline.pretrain.train import build_run, choose_device, train
from pipeline.recipe import LoadedRecipe, Pretrain, load_recipe
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset

PRODUCT, LABELS = "enmap-l2a", "simulated-labels"
METHODS = {"barlow": "Barlow Twins", "moco": "MoCo v2", "dino": "DINO"}
#: What the runs have in common, and what a short run needs beside it: averages that follow within
#: tens of steps, and no small crops for DINO, which would show less than one field.
COMMON: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 2e-3, "clip": 3.0}
SHORT: dict[str, dict[str, Any]] = {
    "moco": {"queue": 512, "momentum": 0.99},
    "dino": {"learning_rate": 5e-4, "prototypes": 256, "teacher_momentum": 0.98, "local_crops": 0},
    "barlow": {"projector_width": 256, "warmup_steps": 0},
}
NEIGHBOURS = 5
#: Multiple of `--steps` that a method takes: DINO, whose teacher follows slowly, learned on after
#: the number that is enough for the others.
STEPS = {"dino": 2}
#: Edge of the cells, the training crops and the windows.
SIZE_PX = 32
#: Edge of the training crops. The areas that methods cut, 20 to 100 % of a cell, then show fields
#: at 0.75 to 1.7 times their size, and windows are seen at their own.
CROP_PX = 24
#: Names of the small encoder, and of the same with residual blocks that are open from the start.
NARROW, OPEN = "narrow", "narrow_open"

#: Features of every seed: (kind, seed) to accuracy of kNN and of the linear probe.
Scores = dict[tuple[str, int], tuple[float, float]]


@dataclass(frozen=True)
class Size:
    """How much is done."""

    locations: int
    bands: int
    steps: int
    batch: int
    seeds: int
    first_seed: int
    world: int
    backbone: str
    results: Path | None
    """Table that every score is added to at once; those in it are not computed again."""


@dataclass(frozen=True)
class Material:
    """What encoders learn from and are judged on."""

    reader: PatchReader
    windows: Windows
    normaliser: Normaliser
    shape: EncoderShape
    learned: PatchReader
    """The training part."""
    bands: torch.Tensor
    """Of the training part, as stored: decoded once."""
    mask: torch.Tensor


def main(arguments: list[str] | None = None) -> int:
    """Train, probe and print; return an exit code."""
    size = _parse(arguments)
    _lend_narrow()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        loaded = demo(size.bands)
        simulate_shards(open_store(folder), loaded, locations=size.locations, seed=size.world)
        material = prepare(size, open_dataset(folder), loaded)
        scores = measure(size, material)
    counts = ", ".join(f"{len(material.windows.of(part))} {part}" for part in PARTS)
    print(
        f"\n{size.seeds} seeds, {size.backbone}, {size.steps} steps of {size.batch}, "
        f"{size.locations} locations, {size.bands} bands; windows: {counts}; "
        f"{time.monotonic() - began_s:.0f} s\n"
    )
    print(*table(scores, size.first_seed, size.seeds), sep="\n")
    return 0


def demo(bands: int) -> LoadedRecipe:
    """Return the demo's recipe with what is asked for here: few bands, small cells, more to judge.

    Parameters
    ----------
    bands : int
        Of EnMAP, evenly spaced in the order of storage.
    """
    loaded = load_recipe("demo")
    known = loaded.bands(PRODUCT)
    some = tuple(known[(2 * n + 1) * len(known) // (2 * bands)] for n in range(bands))
    wanted = tuple(
        wish.model_copy(update={"bands": some}) if wish.id == PRODUCT else wish
        for wish in loaded.recipe.product
        if wish.id in (PRODUCT, LABELS)
    )
    changes = {
        "product": wanted,
        "split": loaded.recipe.split.model_copy(update={"train": 0.5, "val": 0.2, "test": 0.3}),
        "cell": loaded.recipe.cell.model_copy(update={"size_px": SIZE_PX}),
    }
    return LoadedRecipe(loaded.recipe.model_copy(update=changes), loaded.folder)


def prepare(size: Size, dataset: Dataset, loaded: LoadedRecipe) -> Material:
    """Read the training part into memory, and cut the windows."""
    asked = loaded.recipe.evaluate
    if asked is None:
        raise ValueError("the demo has no [evaluate] table")
    reader = dataset.patches(PRODUCT)
    windows = cut_windows(
        reader,
        dataset.patches(LABELS),
        window_px=SIZE_PX,
        min_label_fraction=asked.min_label_fraction,
        ignore=loaded.products[LABELS].ignore_class,
        static=True,
    )
    check_parts(windows)
    device = choose_device("auto")
    mean, std, _ = dataset.statistics(PRODUCT)
    learned = dataset.sel(product=PRODUCT, split="train").patches(PRODUCT)
    bands, mask = learned.read(slice(None))
    return Material(
        reader,
        windows,
        Normaliser(mean.tolist(), std.tolist(), float(reader.fill)).to(device),
        EncoderShape(size.backbone, len(reader.bands), CROP_PX, patch_px=8),
        learned,
        torch.from_numpy(bands).to(device),
        torch.from_numpy(mask).to(device),
    )


def measure(size: Size, material: Material) -> Scores:
    """Return the accuracy of every kind of features for every seed, cheap ones first, then seed by
    seed, so that what is there when a run is cut off is paired."""
    scores = _known(size.results)
    seeds = range(size.first_seed, size.first_seed + size.seeds)
    cheap = ["random", "random open", "image statistics", "random filters"]
    trained = [kind for method in METHODS for kind in (method, f"{method} shuffled")]
    order = [*itertools.product(seeds, cheap), *itertools.product(seeds, trained)]
    for seed, kind in order:
        if (kind, seed) in scores:
            continue
        began_s = time.monotonic()
        describe = _describe(size, material, kind, seed)
        scores[kind, seed] = score(material, describe)
        _keep(size.results, kind, seed, scores[kind, seed], time.monotonic() - began_s)
    return scores


def _describe(size: Size, material: Material, kind: str, seed: int) -> Describe:
    """Return what makes features of one kind, trained if it is one of `METHODS`."""
    device = material.normaliser.mean.device
    if kind == "image statistics":
        return image_statistics
    if kind == "random filters":
        some = material.windows.some("train", FILTERS, seed=seed)
        seen = read_windows(material.reader, some, material.normaliser, device=device, threads=2)
        return RandomFilters(torch.cat([view.image for view in seen]), seed=seed)
    if kind in ("random", "random open"):
        shape = replace(material.shape, backbone=OPEN) if kind != "random" else material.shape
        return EncoderFeatures(build_encoder(shape, seed=seed).to(device), SIZE_PX)
    method = kind.removesuffix(" shuffled")
    encoder = pretrain(size, method, seed, material, shuffle=kind != method)
    return EncoderFeatures(encoder, SIZE_PX)


def score(material: Material, describe: Describe) -> tuple[float, float]:
    """Return the macro accuracy of kNN and of the linear probe on the test windows."""
    device = material.normaliser.mean.device
    found = describe_windows(
        material.reader, material.windows, material.normaliser, {"": describe}, device=device
    )
    return probe(found[""], material.windows)


def pretrain(
    size: Size, method: str, seed: int, material: Material, *, shuffle: bool
) -> torch.nn.Module:
    """Return an encoder that learned from the training part."""
    steps = round(size.steps * STEPS.get(method, 1))
    settings = Pretrain.model_validate(
        {
            **COMMON,
            **SHORT[method],
            "method": method,
            "seed": seed,
            "steps": steps,
            "warmup_steps": steps // 10,
            "batch_size": size.batch,
            "stop_collapsed": False,
        }
    )
    run = build_run(settings, material.shape, material.normaliser.mean.device)
    run.method.to(memory_format=torch.channels_last)
    readers = {PRODUCT: material.learned}
    picks = times_or_views(
        readers, views=run.method.views, times=True, batch_size=size.batch, seed=seed
    )
    batches = in_memory(material, picks, steps)
    train(
        run,
        shuffled(batches, seed) if shuffle else batches,
        settings=settings,
        shape=material.shape,
        normalisers={PRODUCT: material.normaliser},
        checkpoint=lambda _: None,
        after_step=lambda _: None,
    )
    return run.method.encoder


def in_memory(material: Material, picks: Picks, steps: int) -> Iterator[Batch]:
    """Yield the batches of all steps; views of the same patches are the same object."""
    for step in range(steps):
        found: dict[int, Stored] = {}
        picked = picks.picks(step)
        for pick in picked:
            if id(pick) not in found:
                rows = torch.from_numpy(pick.numbers).to(material.bands.device)
                found[id(pick)] = Stored(material.bands[rows], material.mask[rows], PRODUCT)
        yield tuple(found[id(pick)] for pick in picked)


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


def table(scores: Scores, first_seed: int, count: int) -> Iterator[str]:
    """Yield the lines of two tables: accuracies, and what methods differ by from others."""
    seeds = range(first_seed, first_seed + count)
    titles = METHODS | {f"{method} shuffled": f"{METHODS[method]}, shuffled" for method in METHODS}
    titles |= {"random": "random encoder", "random open": "random encoder, open blocks"}
    titles |= {"image statistics": "image statistics", "random filters": "random filters (RCF)"}
    yield "| features | kNN % | linear % |"
    yield "|---|---|---|"
    for kind, title in titles.items():
        yield f"| {title} | {' | '.join(_accuracies(scores, kind, seeds))} |"
    yield ""
    yield "| method, probe | minus random encoder | minus shuffled | minus open blocks |"
    yield "|---|---|---|---|"
    for (method, title), probe_number in itertools.product(METHODS.items(), (1, 0)):
        cells = []
        for other in ("random", f"{method} shuffled", "random open"):
            pairs = [(scores[method, s], scores[other, s]) for s in seeds]
            cells.append(paired([a[probe_number] - b[probe_number] for a, b in pairs]))
        yield f"| {title}, {('kNN', 'linear')[probe_number]} | {' | '.join(cells)} |"


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


def _accuracies(scores: Scores, kind: str, seeds: range) -> list[str]:
    cells = []
    for probe_number in (0, 1):
        percents = [100 * scores[kind, seed][probe_number] for seed in seeds]
        spread = f" ± {statistics.stdev(percents):.1f}" if len(percents) > 1 else ""
        cells.append(f"{statistics.fmean(percents):.1f}{spread}")
    return cells


def _known(results: Path | None) -> Scores:
    """Return what an earlier run of the same settings left."""
    if results is None or not results.exists():
        return {}
    with results.open(newline="") as file:
        rows = [(kind, *numbers) for kind, *numbers in csv.reader(file)]
    return {(kind, int(seed)): (float(k), float(line)) for kind, seed, k, line, _ in rows}


def _keep(
    results: Path | None, kind: str, seed: int, found: tuple[float, float], taken_s: float
) -> None:
    """Write a row: kind, seed, accuracy of kNN and of the linear probe, seconds."""
    row = (kind, seed, *found, round(taken_s, 1))
    print(*row, file=sys.stderr, flush=True)
    if results is not None:
        with results.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


def _lend_narrow() -> None:
    """Let `NARROW` and `OPEN` name encoders like any other in this process."""

    def narrow(wanted: dict[str, Any], *, closed: bool) -> ResNet:
        block: Any = BasicBlock  # annotated by timm as an instance
        return ResNet(
            block,
            (1, 1, 1, 1),
            num_classes=wanted["num_classes"],
            in_chans=wanted["in_chans"],
            stem_type="deep",  # replaced for crops this small; as wide as the first stage
            stem_width=8,
            channels=(16, 32, 64, 128),
            zero_init_last=closed,
        )

    @register_model
    def narrow_closed(pretrained: bool = False, **wanted: Any) -> ResNet:  # noqa: ARG001
        return narrow(wanted, closed=True)

    @register_model
    def narrow_open(pretrained: bool = False, **wanted: Any) -> ResNet:  # noqa: ARG001
        return narrow(wanted, closed=False)

    RESNETS.update({NARROW: "narrow_closed", OPEN: "narrow_open"})


def _parse(arguments: list[str] | None) -> Size:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--locations", type=int, default=6400)
    parser.add_argument("--bands", type=int, default=9)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--world", type=int, default=0)
    parser.add_argument("--backbone", default=NARROW)
    parser.add_argument("--results", type=Path)
    return Size(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
