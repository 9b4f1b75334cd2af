"""Both engines do the same; the Dask one also survives the death of its workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.engine.dask import DaskEngine
from pipeline.engine.serial import SerialEngine
from pipeline.errors import GiveUp, RecipeError
from pipeline.ports import Engine


def square_or_fail(number: int) -> int:
    if number == 3:
        raise GiveUp("three is right out", failure="gone")
    return number * number


def die_once(item: tuple[str, int]) -> int:
    """Kill the process that runs it, the first time."""
    mark = Path(item[0])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item[1]


@pytest.fixture(scope="module")
def dask_engine() -> Iterator[DaskEngine]:
    with DaskEngine(workers=1) as engine:
        yield engine


@pytest.fixture(params=["serial", "dask"])
def engine(request: pytest.FixtureRequest, dask_engine: DaskEngine) -> Engine:
    return SerialEngine() if request.param == "serial" else dask_engine


def test_every_item_has_one_outcome(engine: Engine) -> None:
    outcomes = {o.item: o for o in engine.run(square_or_fail, range(6), in_flight=2)}
    assert sorted(outcomes) == [0, 1, 2, 3, 4, 5]
    assert {k: o.result for k, o in outcomes.items() if k != 3} == {0: 0, 1: 1, 2: 4, 4: 16, 5: 25}
    error = outcomes[3].error
    assert isinstance(error, GiveUp)
    assert (error.failure, str(error)) == ("gone", "three is right out")


def test_items_are_asked_for_lazily_and_may_grow(engine: Engine) -> None:
    queue = [1, 2]

    def growing() -> Iterator[int]:
        while queue:
            yield queue.pop(0)

    results = []
    for outcome in engine.run(square_or_fail, growing(), in_flight=1):
        results.append(outcome.result)
        if outcome.item == 2:
            queue.append(5)
    assert results == [1, 4, 25]


def test_the_number_in_flight_is_bounded(engine: Engine) -> None:
    asked = []

    def watched() -> Iterator[int]:
        for number in (1, 2, 4, 5, 6):
            asked.append(number)
            yield number

    for done, _ in enumerate(engine.run(square_or_fail, watched(), in_flight=2), start=1):
        assert len(asked) <= done + 2


def test_a_worker_s_death_is_not_the_task_s(dask_engine: DaskEngine, tmp_path: Path) -> None:
    (outcome,) = dask_engine.run(die_once, [(str(tmp_path / "died"), 7)])
    assert outcome.result == 7


def test_entering_again_keeps_the_cluster(dask_engine: DaskEngine) -> None:
    address = dask_engine.address
    with dask_engine:
        assert dask_engine.address == address
    assert dask_engine.workers == 1
    assert dask_engine.dashboard.startswith("http://127.0.0.1:")
    deadline = time.monotonic() + 20
    while not dask_engine.worker_pids() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert dask_engine.worker_pids()


def test_workers_and_a_scheduler_exclude_each_other() -> None:
    with pytest.raises(RecipeError, match="--workers"):
        DaskEngine(workers=2, scheduler="tcp://127.0.0.1:1")
