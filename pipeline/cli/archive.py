"""A simulated archive: make it and serve it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.options import say


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
    say(report)


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
