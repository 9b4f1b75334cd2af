"""Run the command `serve`: a simulated archive on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.simulate.faults import Faults
from pipeline.simulate.server import ArchiveServer


def run_serve(
    folder: Path, *, port: int, faults: Faults | None = None, say: Callable[[str], None]
) -> None:
    """Serve an archive until the process is interrupted.

    Raises
    ------
    RecipeError
        The folder holds no archive, or the port is taken.
    """
    with ArchiveServer(folder, port=port, faults=faults) as server:
        say(f"Serving {folder} at {server.url}; interrupt to stop.")
        try:
            server.wait()
        except KeyboardInterrupt:
            say(f"Stopped after {server.requests} requests for files.")
