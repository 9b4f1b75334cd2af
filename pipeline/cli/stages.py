"""The stages, each a command, and all of them in order."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.options import (
    CutoffOption,
    DeviceOption,
    ModelOption,
    RecipeArg,
    RootOption,
    SchedulerOption,
    SerialOption,
    WorkersOption,
    make_engine,
    open_recipe,
    rank,
    say,
)


@app.command(epilog="Example: terrashard sample demo --root data/demo")
def sample(recipe: RecipeArg, root: RootOption = None) -> None:
    """Choose the places: write the locations table."""
    from pipeline.run.sample import run_sample

    loaded, store = open_recipe(recipe, root)
    say(run_sample(loaded, store))


@app.command(epilog="Example: terrashard search demo --root data/demo")
def search(
    recipe: RecipeArg,
    root: RootOption = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Count scenes by provider and month, and what each lacks; write nothing.",
        ),
    ] = False,
) -> None:
    """Find what exists there: write the scenes table (metadata only)."""
    from pipeline.run.compare import run_compare
    from pipeline.run.search import run_search

    loaded, store = open_recipe(recipe, root)
    say(run_compare(loaded, store) if compare else run_search(loaded, store))


@app.command(epilog="Example: terrashard plan demo --dry-run --mbit-per-s 200")
def plan(
    recipe: RecipeArg,
    root: RootOption = None,
    cutoff: CutoffOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what it would cost; write nothing.")
    ] = False,
    mbit_per_s: Annotated[
        float,
        typer.Option(min=0.001, metavar="MBIT", help="Bandwidth for the estimate of time."),
    ] = 100,
) -> None:
    """Lock what goes into which shard: write a plan (no network)."""
    from pipeline.run.plan import run_plan

    loaded, store = open_recipe(recipe, root)
    report = run_plan(loaded, store, cutoff=cutoff, dry_run=dry_run, mbit_per_s=mbit_per_s)
    say(report)


@app.command(epilog="Example: terrashard extract demo --workers 2")
def extract(
    recipe: RecipeArg,
    root: RootOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    serial: SerialOption = False,
    accept_failures: Annotated[
        bool,
        typer.Option(
            "--accept-failures",
            help="Commit a shard even if over half of its patches failed for good.",
        ),
    ] = False,
) -> None:
    """Read pixels and write shards; run it again to resume."""
    from pipeline.run.extract import run_extract
    from pipeline.watch.progress import Progress

    loaded, store = open_recipe(recipe, root)
    with Progress() as progress:
        engine = make_engine(workers, scheduler, serial, progress)
        report = run_extract(
            loaded, store, engine, progress=progress, accept_failures=accept_failures
        )
    say(report)


@app.command(epilog="Example: terrashard publish demo")
def publish(recipe: RecipeArg, root: RootOption = None) -> None:
    """Make a version of what was written: index, statistics, splits."""
    from pipeline.run.publish import run_publish

    loaded, store = open_recipe(recipe, root)
    say(run_publish(loaded, store))


@app.command(epilog="Example: terrashard pretrain demo --name my-moco --device cpu")
def pretrain(
    recipe: RecipeArg,
    root: RootOption = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name of the model. [default: of its settings]"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Do not resume a checkpoint.")] = False,
    device: DeviceOption = "auto",
    log: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Follow the run in csv, tensorboard or wandb."),
    ] = None,
    log_folder: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where such logs go, on this machine.")
    ] = Path("logs"),
) -> None:
    """Learn from a published version; run it again to resume.

    Of the processes that `torchrun` starts, the first one alone writes and reports.
    """
    from pipeline.run.pretrain import run_pretrain
    from pipeline.watch.progress import Progress

    loaded, store = open_recipe(recipe, root)
    with nullcontext() if rank() else Progress() as progress:
        report = run_pretrain(
            loaded,
            store,
            name=name,
            resume=not fresh,
            device=device,
            progress=progress,
            logs=log or (),
            log_folder=log_folder,
        )
    if not rank():
        say(report)


@app.command(epilog="Example: terrashard evaluate demo --model my-moco")
def evaluate(
    recipe: RecipeArg,
    root: RootOption = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Probe what was learned, beside baselines on the same split."""
    from pipeline.run.evaluate import run_evaluate
    from pipeline.watch.progress import Progress

    loaded, store = open_recipe(recipe, root)
    with Progress() as progress:
        report = run_evaluate(loaded, store, model=model, device=device, progress=progress)
    say(report)


@app.command(epilog="Example: terrashard embed demo --model my-moco --dtype float16")
def embed(
    recipe: RecipeArg,
    root: RootOption = None,
    model: ModelOption = None,
    product: Annotated[
        str | None,
        typer.Option(metavar="PRODUCT", help="Whose patches. [default: the model's own product]"),
    ] = None,
    dtype: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the features: float32 or float16.")
    ] = "float32",
    device: DeviceOption = "auto",
) -> None:
    """Write features of every patch (GeoParquet); resumes."""
    from pipeline.run.embed import run_embed
    from pipeline.watch.progress import Progress

    loaded, store = open_recipe(recipe, root)
    with Progress() as progress:
        report = run_embed(
            loaded,
            store,
            model=model,
            product=product,
            dtype=dtype,
            device=device,
            progress=progress,
        )
    say(report)


@app.command(epilog="Example: terrashard export demo my-moco-folder --model my-moco --onnx")
def export(
    recipe: RecipeArg,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write.")],
    root: RootOption = None,
    model: ModelOption = None,
    product: Annotated[
        str | None,
        typer.Option(help="DeCUR: the product whose encoder it is. [default: the first]"),
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write model.onnx too, and compare its features.")
    ] = False,
) -> None:
    """Take a model out: a folder for timm and the Hugging Face Hub."""
    from pipeline.run.export import run_export

    loaded, store = open_recipe(recipe, root)
    say(run_export(loaded, store, folder, model=model, product=product, onnx=onnx))


@app.command(epilog="Example: terrashard run demo --root data/demo --until publish")
def run(
    recipe: RecipeArg,
    root: RootOption = None,
    until: Annotated[
        str | None, typer.Option(metavar="STAGE", help="Last stage to run. [default: all]")
    ] = None,
    cutoff: CutoffOption = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    serial: SerialOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Run every stage of the recipe; run it again to resume."""
    from pipeline.run.everything import run_everything
    from pipeline.watch.progress import Progress

    loaded, store = open_recipe(recipe, root)
    with Progress() as progress:
        engine = make_engine(
            workers, scheduler, serial, progress
        )  # options are refused before work
        for stage, report in run_everything(
            loaded,
            store,
            engine=lambda: engine,
            until=until,
            cutoff=cutoff,
            device=device,
            progress=progress,
        ):
            typer.echo(f"== {stage}")
            say(report)
