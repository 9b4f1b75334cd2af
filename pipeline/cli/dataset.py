"""Around a data set: account for it, heal it, hold it to what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.options import (
    RecipeArg,
    RootOption,
    SchedulerOption,
    SerialOption,
    WorkersOption,
    make_engine,
    open_recipe,
    say,
)


@app.command(epilog="Example: terrashard status demo")
def status(recipe: RecipeArg, root: RootOption = None) -> None:
    """Account for every patch: written, rejected, failed, pending."""
    from pipeline.run.status import run_status

    loaded, store = open_recipe(recipe, root)
    say(run_status(loaded, store))


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

    loaded, store = open_recipe(recipe, root)
    with Progress() as progress:
        engine = make_engine(workers, scheduler, serial, progress)
        report = run_retry(loaded, store, engine, classes=only, progress=progress)
    say(report)


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

    loaded, store = open_recipe(recipe, root)
    say(run_verify(loaded, store, share=share, seed=seed, files=files))


@app.command(epilog="Example: terrashard schemas schemas")
def schemas(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to write to.")],
) -> None:
    """Write the JSON Schemas of recipes, product files and tables."""
    from pipeline.run.schemas import write_schemas

    for path in write_schemas(folder):
        typer.echo(str(path))
