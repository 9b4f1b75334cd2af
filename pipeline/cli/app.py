"""The command line itself, to which the other modules add their commands."""

from __future__ import annotations

from typing import Annotated

import typer

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
