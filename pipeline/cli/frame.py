"""Around every command: errors become one paragraph and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback

import typer

from pipeline.cli.app import app
from pipeline.cli.options import rank
from pipeline.errors import MissingObject, RecipeError, TerrashardError, TryAgain

#: Exit codes of what is no error of ours: an interrupt (128 + SIGINT), and the system's refusals.
INTERRUPTED, EDIT, TRY_AGAIN = 130, RecipeError.exit_code, TryAgain.exit_code

#: What an installation for curation alone lacks, and the extra that brings it.
_OF_EXTRAS = {
    **dict.fromkeys(("torch", "torchvision", "timm", "safetensors", "sklearn"), "pretrain"),
    "ee": "earthengine",
}


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


def _name() -> str:
    """Return what messages begin with."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return "terrashard" if ranks == 1 else f"terrashard (process {rank()} of {ranks})"


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
