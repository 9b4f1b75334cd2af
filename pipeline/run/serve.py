"""Run the command `serve`: a simulated archive on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.simulate.faults import Faults
from pipeline.simulate.server import ArchiveServer


def run_serve(
    folder: Path, *, port: int, faults: float = 0.0, seed: int = 0, say: Callable[[str], None]
) -> None:
    """Serve an archive until the process is interrupted.

    Parameters
    ----------
    faults : float
        Share of requests that meet a passing fault of any kind, 0 to 1.
    seed : int
        Which of them do.

    Raises
    ------
    RecipeError
        The folder holds no archive, or the port is taken.
    """
    with ArchiveServer(folder, port=port, faults=Faults(rate=faults, seed=seed)) as server:
        say(f"Serving {folder} at {server.url}; interrupt to stop.")
        try:
            server.wait()
        except KeyboardInterrupt:
            failed = f", {server.dice.thrown.total()} faults" if faults else ""
            say(f"Stopped after {server.requests} requests for files{failed}.")
