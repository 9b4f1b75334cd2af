"""Run the command `serve`: a simulated archive on the loopback interface."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pipeline.simulate.service.faults import Faults
from pipeline.simulate.service.server import ArchiveServer

#: Beside the archive: the key of the account that its Earth Engine knows, of the last start.
EARTH_ENGINE_KEY = "earth-engine-key.json"


def run_serve(
    folder: Path,
    *,
    port: int,
    earth_engine: int | None = None,
    faults: float = 0.0,
    seed: int = 0,
    say: Callable[[str], None],
) -> None:
    """Serve an archive until the process is interrupted.

    Parameters
    ----------
    earth_engine : int or None
        Port on which it is served as Earth Engine would, too; 0: any free one. None: it is not.
    faults : float
        Share of requests that meet a passing fault of any kind, 0 to 1.
    seed : int
        Which of them do.

    Raises
    ------
    RecipeError
        The folder holds no archive, a port is taken, or the extra `earthengine` is not installed.
    """
    wrong = Faults(rate=faults, seed=seed)
    with ExitStack() as stack:
        server = stack.enter_context(ArchiveServer(folder, port=port, faults=wrong))
        say(f"Serving {folder} at {server.url}; interrupt to stop.")
        if earth_engine is not None:
            _serve_earth_engine(stack, folder, earth_engine, wrong, say)
        try:
            server.wait()
        except KeyboardInterrupt:
            failed = f", {server.dice.thrown.total()} faults" if faults else ""
            say(f"Stopped after {server.requests} requests for files{failed}.")


def _serve_earth_engine(
    stack: ExitStack, folder: Path, port: int, faults: Faults, say: Callable[[str], None]
) -> None:
    from pipeline.simulate.earthengine.endpoint import EarthEngineServer
    from pipeline.sources.earthengine.login import KEY

    earth = stack.enter_context(EarthEngineServer(folder, port=port, faults=faults))
    key = (folder / EARTH_ENGINE_KEY).resolve()
    earth.accounts.write_key(key)
    say(f"Serving it as Earth Engine at {earth.url}; its account: export {KEY}={key}")
