"""What commands share: options, and how a recipe, a root and an engine are made of them."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.ports import Engine, ObjectStore
    from pipeline.recipe import LoadedRecipe


def _in_utc(value: datetime | None) -> datetime | None:
    """Dates on the command line are UTC, as all times are."""
    return None if value is None else value.replace(tzinfo=UTC)


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


def rank() -> int:
    """Return which of the processes that `torchrun` started this is, from 0."""
    return int(os.environ.get("RANK", "0"))


def open_recipe(recipe: str, root: str | None) -> tuple[LoadedRecipe, ObjectStore]:
    from pipeline.recipe import load_recipe
    from pipeline.store.objects import open_store

    loaded = load_recipe(recipe)
    return loaded, open_store(root if root is not None else f"data/{loaded.name}")


def make_engine(workers: int | None, scheduler: str | None, serial: bool, progress: Any) -> Engine:
    if serial:
        if workers is not None or scheduler is not None:
            raise RecipeError("--serial runs in this process: leave --workers and --scheduler out.")
        from pipeline.engine.serial import SerialEngine

        return SerialEngine()
    from pipeline.engine.dask import DaskEngine

    engine = DaskEngine(workers=workers, scheduler=scheduler)
    engine.announce = progress.note
    return engine


def say(report: Any) -> None:
    from pipeline.watch.tell import tell

    typer.echo(tell(report))
