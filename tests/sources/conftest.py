"""A simulated Earth Engine over a very small archive, and who may ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

Serve = Callable[..., Any]


@pytest.fixture(scope="session")
def small_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentinel-2 tiles of about 220 pixels on a few days."""
    from pipeline.simulate.archive import make_archive
    from pipeline.simulate.delivery.orbits import SMALL

    key = next(key for key in SMALL if key.startswith("sentinel-2"))
    orbit = replace(SMALL[key], swath_m=6000, track_m=5500, square_m=2000, cycle_days=20)
    folder = tmp_path_factory.mktemp("earth") / "archive"
    make_archive(
        folder,
        products=["sentinel-2-l2a"],
        region=(15.02, 51.9, 15.045, 51.915),
        start=date(2023, 4, 1),
        end=date(2023, 6, 1),
        orbits={key: orbit},
    )
    return folder


@contextmanager
def endpoints(archive: Path, keys: Path) -> Iterator[Serve]:
    """Return what starts an endpoint and gives this process the key to it."""
    from pipeline.simulate.earthengine.endpoint import EarthEngineServer

    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        def serve(**values: Any) -> EarthEngineServer:
            server = stack.enter_context(EarthEngineServer(archive, **values))
            key = keys / f"{server.url.rpartition(':')[2]}.json"
            server.accounts.write_key(key)
            patch.setenv("TERRASHARD_EARTH_ENGINE_KEY", str(key))
            patch.delenv("TERRASHARD_EARTH_ENGINE_PROJECT", raising=False)
            return server

        yield serve


@pytest.fixture(scope="session")
def endpoints_of() -> Callable[[Path, Path], Any]:
    """Return `endpoints`, for files that have an archive of their own."""
    return endpoints


@pytest.fixture
def earth(small_archive: Path, tmp_path: Path) -> Iterator[Serve]:
    """Return what starts an endpoint for one test."""
    with endpoints(small_archive, tmp_path) as serve:
        yield serve


@pytest.fixture(scope="module")
def lasting_earth(small_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Return what starts an endpoint for the tests of one file."""
    with endpoints(small_archive, tmp_path_factory.mktemp("keys")) as serve:
        yield serve


@pytest.fixture(scope="session")
def call() -> Callable[..., dict[str, Any]]:
    """Return what makes a call of a function, as a node of an Earth Engine expression."""

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        nodes = {
            key: value if isinstance(value, dict) else {"constantValue": value}
            for key, value in arguments.items()
        }
        return {"functionInvocationValue": {"functionName": name, "arguments": nodes}}

    return call


@pytest.fixture(scope="session")
def unfolded() -> Callable[[dict[str, Any]], Any]:
    """Return what puts the values that an expression refers to in their place."""

    def unfolded(expression: dict[str, Any]) -> Any:
        def put(node: Any) -> Any:
            if isinstance(node, dict):
                if set(node) == {"valueReference"}:
                    return put(expression["values"][node["valueReference"]])
                return {key: put(value) for key, value in node.items()}
            return [put(item) for item in node] if isinstance(node, list) else node

        return put(expression["values"][expression["result"]])

    return unfolded
