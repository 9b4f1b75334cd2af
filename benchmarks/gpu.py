"""What training costs on a GPU: models, the spectral adapter, and every method, in one table.

Run: `python -m benchmarks.gpu` on a machine with a GPU; it ends within nine minutes and needs no
geospatial library: it makes its own shards from the simulated truth. `--small` runs all of it in
about a minute on a CPU, which proves everything but the figures.

Models are trained with MoCo v2 in bfloat16. Their rate is taken three times: from shards, from one
batch that stays on the device, and of the loader alone; the first should be near the lesser of the
other two. Operations are those that torch counts in one step, over the device's peak; what the
adapter computes twice is counted twice. The adapter is compared with the three Conv3d that define
it, both under the same autocast, forward and backward. Every method then takes its steps by the
command's own code, from shards, with checkpoints and health.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import sys
import tempfile
import time
import typing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.pretrain import checkpoint
from pipeline.pretrain.data.batches import Batch, stream
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.order import times_or_views
from pipeline.pretrain.encoders.backbones import EncoderShape
from pipeline.pretrain.encoders.spectral import SpectralAdapter
from pipeline.pretrain.logs import Meter, Rates
from pipeline.pretrain.train import Run, build_run, train
from pipeline.recipe import LoadedRecipe, Pretrain, Recipe
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset

ENMAP, SENTINEL, LABELS = "enmap-l2a", "sentinel-2-l1c", "simulated-labels"
#: Nothing is begun after so many seconds, and what still runs after so many is broken off: that
#: leaves time to print within nine minutes.
LAST_START_S = 7 * 60
LAST_END_S = 8 * 60 + 30
#: Dense bfloat16 operations per second, from NVIDIA's data sheets.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}

RECIPE: dict[str, Any] = {
    "name": "gpu",
    "sample": {"strategy": "grid", "region": [15.0, 51.8, 15.3, 52.1]},
    "slots": {
        "kind": "windows",
        "windows": [
            {"name": "april", "start": "2023-04-01", "end": "2023-05-01"},
            {"name": "june", "start": "2023-05-01", "end": "2023-07-01"},
        ],
    },
    "product": [
        {"id": ENMAP, "provider": "simulated", "url": "http://127.0.0.1"},
        {"id": SENTINEL, "provider": "simulated", "url": "http://127.0.0.1", "follows": ENMAP},
        {"id": LABELS, "provider": "simulated", "url": "http://127.0.0.1"},
    ],
}
for _wish in RECIPE["product"][1:]:
    _wish["allow_unmasked"] = True


@dataclass(frozen=True)
class Model:
    """An encoder and what it is fed."""

    title: str
    backbone: str
    product: str
    crop_px: int
    patch_px: int
    batch: int


@dataclass(frozen=True)
class Size:
    """How much of everything is done."""

    locations: int
    cell_px: int
    models: tuple[Model, ...]
    steps: int
    """Measured, after a tenth as many to warm up."""
    adapter: tuple[int, int]
    """Images, and their edge."""
    adapter_repeats: int
    method: dict[str, Any]
    """What all methods have in common."""


FULL = Size(
    locations=32,
    cell_px=128,
    models=(
        Model("SpecViT-S, 202 bands, 128 px", "spec_vit_small", ENMAP, 128, 4, 64),
        Model("SpecRN50, 202 bands, 128 px", "spec_resnet50", ENMAP, 128, 4, 128),
        Model("ViT-S/16, 13 bands, 224 px", "vit_small", SENTINEL, 224, 16, 256),
    ),
    steps=50,
    adapter=(64, 128),
    adapter_repeats=20,
    method={"backbone": "vit_small", "steps": 200, "batch_size": 64, "crop_px": 64, "patch_px": 8},
)
SMALL = Size(
    locations=12,
    cell_px=64,
    models=(
        Model("SpecViT-T, 202 bands, 8 px", "spec_vit_tiny", ENMAP, 8, 4, 4),
        Model("SpecRN18, 202 bands, 8 px", "spec_resnet18", ENMAP, 8, 4, 4),
        Model("ViT-T/16, 13 bands, 32 px", "vit_tiny", SENTINEL, 32, 16, 4),
    ),
    steps=2,
    adapter=(2, 8),
    adapter_repeats=2,
    method={"backbone": "vit_tiny", "steps": 2, "batch_size": 4, "crop_px": 16, "patch_px": 8}
    | {"projector_width": 32, "prototypes": 32, "queue": 32, "local_crops": 2, "windows": 2},
)

#: What a method needs beside `Size.method`.
NEEDS: dict[str, dict[str, Any]] = {
    "decur": {"more_products": [SENTINEL], "pairs": "products", "backbone": "resnet18"},
    "barlow_pixels": {"crop_px": 9, "backbone": "resnet18"},
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    samples_per_s: float | None = None
    gb_per_s: float | None = None
    flop_use: float | None = None
    memory_gb: float | None = None
    note: str = ""

    def __str__(self) -> str:
        cells = (
            self.what,
            _number(self.samples_per_s),
            _number(self.gb_per_s),
            "" if self.flop_use is None else f"{100 * self.flop_use:.1f} %",
            _number(self.memory_gb),
            self.note,
        )
        return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; return an exit code."""
    parser = argparse.ArgumentParser(description="What training costs on a GPU.")
    parser.add_argument("--small", action="store_true", help="All of it, small, on the CPU.")
    small = parser.parse_args(arguments).small
    if not small and not torch.cuda.is_available():
        print("There is no GPU here; `--small` runs the same on the CPU, for its own sake.")
        return 0
    device = torch.device("cpu" if small else "cuda")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in measure(SMALL if small else FULL, Path(folder), device):
            print(row.what, row.note, file=sys.stderr, flush=True)
            rows.append(row)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"\n{name}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | samples/s | GB/s decoded | FLOP use | peak memory, GB | |")
    print("|---|---|---|---|---|---|")
    print(*rows, sep="\n")
    return int(any(row.note.startswith("failed") for row in rows))


def measure(size: Size, folder: Path, device: torch.device) -> Iterator[Row]:
    """Yield every line of the table; what fails or comes too late says so in its own line."""
    began_s = time.monotonic()
    loaded = recipe(size)
    report = simulate_shards(open_store(folder / "root"), loaded, locations=size.locations)
    spent_s = time.monotonic() - began_s
    yield Row("making shards", note=f"{report.patches} patches in {spent_s:.0f} s")
    dataset = open_dataset(folder / "root")
    work: list[tuple[str, Callable[[], Row]]] = [
        (model.title, lambda model=model: _model(size, model, dataset, device))  # type: ignore[misc]
        for model in size.models
    ]
    work.append(("adapter", lambda: _adapter(size, device)))
    work += [
        (name, lambda name=name: _method(size, name, folder, device))  # type: ignore[misc]
        for name in methods()
    ]
    for title, job in work:
        spent_s = time.monotonic() - began_s
        if spent_s > LAST_START_S:
            yield Row(title, note="not run: out of time")
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            with limited(LAST_END_S - spent_s):
                row = job()
        except Exception as error:
            # One line of the table; the others are still worth having.
            row = Row(title, note=f"failed: {' '.join(str(error).split())[:200]}")
        yield row
    yield Row("all", note=f"{time.monotonic() - began_s:.0f} s")


@contextmanager
def limited(limit_s: float) -> Iterator[None]:
    """Break off what takes longer, between two steps of Python, with `TimeoutError`."""

    def end(*_: object) -> None:
        raise TimeoutError(f"broken off after {limit_s:.0f} s: out of time")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def recipe(size: Size, **pretrain: Any) -> LoadedRecipe:
    """Return the recipe of the shards, with settings for a run if there are any."""
    cell = {"lattice": "enmap30", "size_px": size.cell_px}
    # Every cell is a block of its own: nothing is judged here.
    split = {"block_km": size.cell_px * 0.03, "train": 0.7, "val": 0.15, "test": 0.15}
    labels = {"labels": LABELS, "window_px": size.cell_px // 4, "min_label_fraction": 0.3}
    tables = {**RECIPE, "cell": cell, "split": split, "evaluate": labels}
    if pretrain:
        tables["pretrain"] = pretrain
    return LoadedRecipe(Recipe.model_validate(tables), Path())


def methods() -> list[str]:
    """Return the names of all methods."""
    return list(typing.get_args(Pretrain.model_fields["method"].annotation))


# --- models ----------------------------------------------------------------------------------


def _model(size: Size, model: Model, dataset: Dataset, device: torch.device) -> Row:
    reader = dataset.patches(model.product)
    warm, steps = max(size.steps // 10, 1), size.steps
    settings = Pretrain(
        backbone=model.backbone,
        batch_size=model.batch,
        crop_px=model.crop_px,
        patch_px=model.patch_px,
        steps=1_000_000,
        health_every=1_000_000,
        checkpoint_every=1_000_000,
        stop_collapsed=False,
        precision=_precision(device),
        threads=torch.get_num_threads(),
    )
    shape = EncoderShape(model.backbone, len(reader.bands), model.crop_px, model.patch_px)
    run = build_run(settings, shape, device)
    mean, std, _ = dataset.statistics(model.product)
    normaliser = Normaliser(mean.tolist(), std.tolist(), float(reader.fill)).to(device)

    def learn(batches: Iterable[Batch]) -> None:
        _train(run, batches, settings, shape, {model.product: normaliser})

    shards = _stream(reader, model, settings, run.method.views, device, warm + steps)
    learn(islice(shards, warm))
    streamed = _timed(shards, learn, device)
    alone = _stream(reader, model, settings, run.method.views, device, warm + steps)
    for _ in islice(alone, warm):
        pass
    decoded = _timed(alone, lambda batches: [None for _ in batches], device)
    kept = next(_stream(reader, model, settings, run.method.views, device, 1))
    memory = _timed(repeat(kept, steps), learn, device)
    with FlopCounterMode(display=False) as counter:
        learn([kept])
    operations = counter.get_total_flops() / model.batch
    bound = min(memory.samples_per_s, decoded.samples_per_s)
    peak = _peak_flops(device)
    return Row(
        model.title,
        streamed.samples_per_s,
        streamed.decoded_gb_per_s,
        operations * streamed.samples_per_s / peak if peak else None,
        streamed.device_gb or None,
        f"{streamed.samples_per_s / bound:.2f} of the lesser of {memory.samples_per_s:.0f}/s in "
        f"memory and {decoded.samples_per_s:.0f}/s decoded ({decoded.decoded_gb_per_s:.2g} GB/s); "
        f"{operations / 1e9:.1f} GFLOP a sample",
    )


def _stream(
    reader: PatchReader,
    model: Model,
    settings: Pretrain,
    views: int,
    device: torch.device,
    steps: int,
) -> Iterator[Batch]:
    picks = times_or_views(
        {model.product: reader}, views=views, times=True, batch_size=model.batch, seed=0
    )
    return stream(
        {model.product: reader},
        picks,
        start=0,
        stop=steps,
        threads=settings.threads,
        device=device,
    )


def _train(
    run: Run,
    batches: Iterable[Batch],
    settings: Pretrain,
    shape: EncoderShape,
    normalisers: dict[str, Normaliser],
) -> None:
    train(
        run,
        batches,
        settings=settings,
        shape=shape,
        normalisers=normalisers,
        checkpoint=lambda _: None,
        after_step=lambda _: None,
    )


def _timed(
    batches: Iterable[Batch], use: Callable[[Iterable[Batch]], object], device: torch.device
) -> Rates:
    """Return the rates at which batches are used up."""
    _settle(device)
    meter = Meter()
    use(meter.watch(batches))
    _settle(device)
    return meter.rates()


# --- the spectral adapter ----------------------------------------------------------------------


def _adapter(size: Size, device: torch.device) -> Row:
    """Compare the adapter with its definition; the best of eager and compiled each."""
    count, edge_px = size.adapter
    adapter = SpectralAdapter(202).to(device).train()
    image = torch.randn(count, 202, edge_px, edge_px, device=device)
    compiler = "inductor" if device.type == "cuda" else "aot_eager"
    found: dict[str, list[tuple[float, float, str]]] = {"ours": [], "Conv3d": []}
    for name, function in (("ours", adapter.forward), ("Conv3d", adapter.plain)):
        for how in ("eager", "compiled"):
            call: Any = function
            if how == "compiled":
                call = torch.compile(function, backend=compiler)
            seconds, memory_gb = _forward_backward(call, image, device, size.adapter_repeats)
            found[name].append((seconds, memory_gb, how))
    (ours_s, ours_gb, ours_how), (conv_s, conv_gb, conv_how) = (min(v) for v in found.values())
    bound_s = _byte_bound_s(image, device)
    memory = f", memory {ours_gb / conv_gb:.2f} x" if conv_gb else ""
    return Row(
        f"adapter, {count} x 202 x {edge_px} x {edge_px}",
        count / ours_s,
        memory_gb=ours_gb or None,
        note=f"{conv_s / ours_s:.2f} x Conv3d{memory} ({ours_how} against {conv_how}); "
        f"{bound_s / ours_s:.2f} of its byte bound",
    )


def _forward_backward(
    function: Callable[[Tensor], Tensor], image: Tensor, device: torch.device, repeats: int
) -> tuple[float, float]:
    """Return the median seconds of a forward and backward pass, and its most memory in GB."""
    image = image.clone().requires_grad_()

    def once() -> None:
        with torch.autocast(device.type, torch.bfloat16, _precision(device) == "bf16"):
            features = function(image)
        features.float().square().mean().backward()  # type: ignore[no-untyped-call]

    for _ in range(3 if device.type == "cuda" else 1):
        once()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    spans = []
    for _ in range(repeats):
        _settle(device)
        began_s = time.perf_counter()
        once()
        _settle(device)
        spans.append(time.perf_counter() - began_s)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return statistics.median(spans), memory / 1e9


def _byte_bound_s(image: Tensor, device: torch.device) -> float:
    """Return how long it takes to move what the adapter must, at the rate of a plain copy.

    `pipeline.pretrain.encoders.spectral_rows` keeps 1,232 values a pixel of 202 bands for the
    backward pass: each is written and read once, in two bytes.
    """
    block = torch.empty(256 * 2**20 if device.type == "cuda" else 2**20, device=device)
    other = torch.empty_like(block)
    spans = []
    for _ in range(5):
        _settle(device)
        began_s = time.perf_counter()
        other.copy_(block)
        _settle(device)
        spans.append(time.perf_counter() - began_s)
    bytes_per_s = 2 * block.nbytes / min(spans)
    pixels = image.shape[0] * image.shape[2] * image.shape[3]
    return pixels * 1232 * 2 * 2 / bytes_per_s


# --- methods -----------------------------------------------------------------------------------


def _method(size: Size, name: str, folder: Path, device: torch.device) -> Row:
    given = {**size.method, **NEEDS.get(name, {}), "method": name, "product": ENMAP}
    given |= {
        "precision": _precision(device),
        "threads": torch.get_num_threads(),
        "stop_collapsed": False,
    }
    store = open_store(folder / "root")
    began_s = time.monotonic()
    report = run_pretrain(recipe(size, **given), store, name=f"{name}-run", device=device.type)
    spent_s = time.monotonic() - began_s
    _, log = checkpoint.load_state(store, checkpoint.load(store, report.model))
    first = float(log.splitlines()[1].split(",")[1])
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    health = "collapsed" if report.collapsed else "healthy"
    if not math.isfinite(report.loss):
        raise ValueError(f"the loss is {report.loss}")
    return Row(
        f"{name}, {given['backbone']}, {report.steps} steps",
        report.steps * given["batch_size"] / spent_s,
        memory_gb=memory,
        note=f"loss {first:.3g} to {report.loss:.3g}, {health}, effective rank "
        f"{report.effective_rank:.0f}, {spent_s:.0f} s with everything",
    )


# --- the rest ----------------------------------------------------------------------------------


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """Return what is fast there: a CPU without bfloat16 units would take minutes."""
    return "bf16" if device.type == "cuda" else "fp32"


def _peak_flops(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
