"""Both engines do the same; the Dask one also survives the death of its workers."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.engine.dask import DaskEngine
from pipeline.engine.serial import SerialEngine
from pipeline.errors import GiveUp, RecipeError, TryAgain
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


def die_always(number: int) -> int:
    """Kill whoever takes number 0, at once: its nanny is still busy with starting it."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


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


@pytest.mark.slow
def test_a_task_that_kills_every_worker_takes_no_other_with_it(dask_engine: DaskEngine) -> None:
    outcomes = {o.item: o for o in dask_engine.run(die_always, range(4))}
    error = outcomes.pop(0).error
    assert isinstance(error, TryAgain)
    assert error.failure == "worker-died"
    assert {item: o.result for item, o in outcomes.items()} == {1: 1, 2: 2, 3: 3}


def test_a_scheduler_that_goes_away_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.engine.dask.CONNECT_S", 2)
    monkeypatch.setattr("pipeline.engine.dask.LOOK_AFTER_S", 0.5)
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    command += ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "Scheduler at:" in line)
        with DaskEngine(scheduler=line.split()[-1]) as engine:
            outcomes = engine.run(square_or_fail, _after_one(process.kill), in_flight=2)
            with pytest.raises(TryAgain, match="scheduler is gone"):
                # There is no worker, so what was handed out would wait for ever.
                list(outcomes)


def _after_one(act: Callable[[], object]) -> Iterator[int]:
    yield 1
    act()
    yield from itertools.count(4)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:x", "http://127.0.0.1:8786", ""])
def test_what_is_no_address_of_a_scheduler_is_refused(address: str) -> None:
    with pytest.raises(RecipeError, match="no address of a Dask scheduler"):
        DaskEngine(scheduler=address)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.engine.dask.CONNECT_S", 0.5)
    with (
        pytest.raises(TryAgain, match=r"no Dask scheduler answered at tcp://127\.0\.0\.1:1 "),
        DaskEngine(scheduler="tcp://127.0.0.1:1"),
    ):
        pass


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


def test_an_interrupt_while_workers_start_waits_until_they_can_be_stopped(monkeypatch):
    from pipeline.engine import dask as module

    closed = []

    class Cluster:
        def close(self) -> None:
            closed.append(self)

    def start(_: int) -> Cluster:
        os.kill(os.getpid(), signal.SIGINT)
        return Cluster()

    monkeypatch.setattr(module, "_local_cluster", start)
    with pytest.raises(KeyboardInterrupt), DaskEngine(workers=1):
        pass
    assert len(closed) == 1
