"""The front door: one command per stage, and no decisions.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import MissingObject, RecipeError, TerrashardError, TryAgain

if TYPE_CHECKING:
    from pipeline.ports import Engine, ObjectStore
    from pipeline.recipe import LoadedRecipe

app = typer.Typer(
    name="terrashard",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"max_content_width": 100},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Curate EnMAP, Sentinel and Landsat archives into Zarr shards, and pretrain on them.",
    epilog="Stages in order: sample, search, plan, extract, publish, pretrain, evaluate. "
    "Exit codes: 0 done, 2 edit the recipe, 65 stored facts contradict, 69 gave up, 75 try again. "
    "With --debug anywhere on the line an error comes with its traceback.",
)

#: Exit codes of what is no error of ours: an interrupt (128 + SIGINT), and the system's refusals.
INTERRUPTED, EDIT, TRY_AGAIN = 130, RecipeError.exit_code, TryAgain.exit_code

#: What an installation for curation alone lacks, and the extra that brings it.
_OF_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "timm", "safetensors", "sklearn"), "pretrain"),
    "ee": "earthengine",
}


def _in_utc(value: datetime | None) -> datetime | None:
    """Dates on the command line are UTC, as all times are."""
    return None if value is None else value.replace(tzinfo=UTC)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"terrashard {version('terrashard')}")
        raise typer.Exit


@app.callback()
def _frame(
    version: Annotated[  # it is shown, and the command ends, before any other
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


RecipeArg = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A TOML file, or a built-in recipe's name.")
]
RootOption = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="URL",
        help="Where the data set lives: a folder, s3://, gs:// or az://. [default: data/<name>]",
    ),
]
CutoffOption = Annotated[
    datetime | None,
    typer.Option(
        metavar="DATE",
        formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
        callback=_in_utc,
        help="Plan only slots that were closed by then (UTC): 2024-06-30. [default: all]",
    ),
]
SchedulerOption = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A running Dask scheduler, e.g. tcp://scheduler:8786."),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Local worker processes. [default: one per core]"),
]
SerialOption = Annotated[
    bool, typer.Option("--serial", help="No workers: run in this process (debugging).")
]
DeviceOption = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, or cuda.")]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the model. [default: the recipe's own]"),
]


# --- the stages ------------------------------------------------------------------------------


@app.command(epilog="Example: terrashard sample demo --root data/demo")
def sample(recipe: RecipeArg, root: RootOption = None) -> None:
    """Choose the places: write the locations table."""
    from pipeline.run.sample import run_sample

    loaded, store = _open(recipe, root)
    _say(run_sample(loaded, store))


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

    loaded, store = _open(recipe, root)
    _say(run_compare(loaded, store) if compare else run_search(loaded, store))


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

    loaded, store = _open(recipe, root)
    report = run_plan(loaded, store, cutoff=cutoff, dry_run=dry_run, mbit_per_s=mbit_per_s)
    _say(report)


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

    loaded, store = _open(recipe, root)
    with Progress() as progress:
        engine = _engine(workers, scheduler, serial, progress)
        report = run_extract(
            loaded, store, engine, progress=progress, accept_failures=accept_failures
        )
    _say(report)


@app.command(epilog="Example: terrashard publish demo")
def publish(recipe: RecipeArg, root: RootOption = None) -> None:
    """Make a version of what was written: index, statistics, splits."""
    from pipeline.run.publish import run_publish

    loaded, store = _open(recipe, root)
    _say(run_publish(loaded, store))


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

    loaded, store = _open(recipe, root)
    with nullcontext() if _rank() else Progress() as progress:
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
    if not _rank():
        _say(report)


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

    loaded, store = _open(recipe, root)
    with Progress() as progress:
        report = run_evaluate(loaded, store, model=model, device=device, progress=progress)
    _say(report)


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

    loaded, store = _open(recipe, root)
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
    _say(report)


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

    loaded, store = _open(recipe, root)
    _say(run_export(loaded, store, folder, model=model, product=product, onnx=onnx))


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

    loaded, store = _open(recipe, root)
    with Progress() as progress:
        engine = _engine(workers, scheduler, serial, progress)  # options are refused before work
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
            _say(report)


# --- around the recipe -----------------------------------------------------------------------


@app.command(epilog="Example: terrashard check my-recipe.toml")
def check(
    recipe: RecipeArg,
    stages: Annotated[
        bool, typer.Option("--stages", help="Print only the stages, in order.")
    ] = False,
) -> None:
    """Validate a recipe and print it resolved, defaults included."""
    from pipeline.recipe import load_recipe
    from pipeline.run.check import check_recipe, resolved

    loaded = load_recipe(recipe)
    check_recipe(loaded)
    typer.echo(" ".join(loaded.stages()) if stages else resolved(loaded))


@app.command(epilog="Example: terrashard init demo my-recipe.toml")
def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A built-in recipe (see `terrashard recipes`).")
    ],
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write. [default: <name>.toml]")
    ] = None,
) -> None:
    """Copy a built-in recipe to start from; never overwrites."""
    from pipeline.run.check import copy_recipe

    typer.echo(f"wrote {copy_recipe(name, path)}")


@app.command(epilog="Example: terrashard recipes")
def recipes() -> None:
    """List the built-in recipes."""
    from pipeline.recipe import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:<24} {load_recipe(name).recipe.description}")


@app.command(epilog="Example: terrashard products sentinel-2-l2a")
def products(
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="Show one product's bands.")
    ] = None,
) -> None:
    """List the products, or show one: bands, mask rules, providers."""
    from pipeline.run.check import describe_product, list_products

    typer.echo(describe_product(product) if product else list_products())


# --- around a data set -----------------------------------------------------------------------


@app.command(epilog="Example: terrashard status demo")
def status(recipe: RecipeArg, root: RootOption = None) -> None:
    """Account for every patch: written, rejected, failed, pending."""
    from pipeline.run.status import run_status

    loaded, store = _open(recipe, root)
    _say(run_status(loaded, store))


@app.command(epilog="Example: terrashard retry demo --only timeout --only throttled")
def retry(
    recipe: RecipeArg,
    root: RootOption = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Failure classes to try again. [default: all]"),
    ] = None,
    workers: WorkersOption = None,
    scheduler: SchedulerOption = None,
    serial: SerialOption = False,
) -> None:
    """Try the failed patches again: a new revision of their shards."""
    from pipeline.run.retry import run_retry
    from pipeline.watch.progress import Progress

    loaded, store = _open(recipe, root)
    with Progress() as progress:
        engine = _engine(workers, scheduler, serial, progress)
        report = run_retry(loaded, store, engine, classes=only, progress=progress)
    _say(report)


@app.command(epilog="Example: terrashard verify demo --share 0.05")
def verify(
    recipe: RecipeArg,
    root: RootOption = None,
    share: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Share of patches read again from their source."
        ),
    ] = 0.01,
    seed: Annotated[int, typer.Option(metavar="N", help="Which patches are drawn.")] = 0,
    files: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="So many source files are fetched whole and held to their catalogue's checksum.",
        ),
    ] = 0,
) -> None:
    """Hash the shards, add the ledger up, read some patches again."""
    from pipeline.run.verify import run_verify

    loaded, store = _open(recipe, root)
    _say(run_verify(loaded, store, share=share, seed=seed, files=files))


@app.command(epilog="Example: terrashard schemas schemas")
def schemas(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to.")],
) -> None:
    """Write the JSON Schemas of recipes, product files and tables."""
    from pipeline.run.schemas import write_schemas

    for path in write_schemas(folder):
        typer.echo(str(path))


# --- a simulated archive ---------------------------------------------------------------------


@app.command(epilog="Example: terrashard simulate data/simulated-archive")
def simulate(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder to write to.")],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="Whose products, region and period.")
    ] = "demo",
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="LOCATIONS",
            help="Write a published data set of so many locations instead of scenes.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another planet.")] = 0,
) -> None:
    """Make an archive in which the truth of every pixel is known."""
    from pipeline.run.simulate import run_simulate
    from pipeline.watch.progress import Progress

    with Progress() as progress:
        report = run_simulate(folder, recipe=recipe, shards=shards, seed=seed, progress=progress)
    _say(report)


@app.command(epilog="Example: terrashard serve data/simulated-archive --port 8790")
def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An archive made by `simulate`.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0: any free one.")
    ] = 8790,
    earth_engine: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="N", help="Serve it as Earth Engine, too, at this port."
        ),
    ] = None,
    faults: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="Share of requests that fail.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Which of them.")] = 0,
) -> None:
    """Serve a simulated archive on loopback: STAC search and files."""
    from pipeline.run.serve import run_serve

    run_serve(
        folder, port=port, earth_engine=earth_engine, faults=faults, seed=seed, say=typer.echo
    )


# --- the frame -------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error becomes one paragraph and an exit code.

    `--debug` anywhere on the line shows the traceback too.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    try:
        app(args=arguments, prog_name="terrashard")
    except SystemExit as ended:
        if ended.code == INTERRUPTED:  # typer makes an interrupt an exit
            typer.echo(f"{_name()}: stopped; run the same command again to go on.", err=True)
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, code = _explain(error)
        typer.echo(f"{_name()}: {text}", err=True)
        sys.exit(code)


def _rank() -> int:
    """Return which of the processes that `torchrun` started this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def _name() -> str:
    """Return what messages begin with."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return "terrashard" if ranks == 1 else f"terrashard (process {_rank()} of {ranks})"


def _explain(error: Exception) -> tuple[str, int]:
    """Return one paragraph and the exit code of what ended a command."""
    if isinstance(error, TerrashardError | MissingObject):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        text = f"{name}{error.strerror or error}."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE):
            return f"{text} Make room, then run the same command again to go on.", TRY_AGAIN
        return text, EDIT
    package = (getattr(error, "name", None) or "").split(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in _OF_EXTRAS:
        return (
            f"this command needs the package {package}, which is not installed here; it comes with "
            f"the extra `{_OF_EXTRAS[package]}`, and with all others in requirements/all.txt.",
            EDIT,
        )
    what = " ".join(str(error).split())[:300]
    return (
        f"this is a fault of the program: {type(error).__name__}: {what}. What is committed "
        "stays; `--debug` shows where it happened.",
        1,
    )


def _open(recipe: str, root: str | None) -> tuple[LoadedRecipe, ObjectStore]:
    from pipeline.recipe import load_recipe
    from pipeline.store.objects import open_store

    loaded = load_recipe(recipe)
    return loaded, open_store(root if root is not None else f"data/{loaded.name}")


def _engine(workers: int | None, scheduler: str | None, serial: bool, progress: Any) -> Engine:
    if serial:
        if workers is not None or scheduler is not None:
            raise RecipeError("--serial runs in this process: leave --workers and --scheduler out.")
        from pipeline.engine.serial import SerialEngine

        return SerialEngine()
    from pipeline.engine.dask import DaskEngine

    engine = DaskEngine(workers=workers, scheduler=scheduler)
    engine.announce = progress.note
    return engine


def _say(report: Any) -> None:
    from pipeline.watch.tell import tell

    typer.echo(tell(report))
