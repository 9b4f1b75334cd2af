"""Tasks on a Dask cluster: a local one that starts and stops here, or one that is running.

The only module that imports Dask. The scheduler sees a function, one small item and one small
result for each task; pixels never pass through it.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

import dask
from distributed import Client, KilledWorker, LocalCluster
from distributed.client import ClosedClientError
from tornado.ioloop import PeriodicCallback

from pipeline.errors import RecipeError, TryAgain
from pipeline.ports import Outcome

#: Workers that may die under one task before the task is given back as an error. Death is often
#: not the task's fault (a machine taken away, a neighbour's memory).
DEATHS_ALLOWED = 3
#: Items handed out for each worker. None waits at a worker: the death of a worker counts against
#: all that wait there, and next to a task that kills every worker they would be given up with it.
HANDED_PER_WORKER = 1
#: How long to wait for a scheduler that was named.
CONNECT_S = 30
#: How often it is made sure that the workers of a local cluster, or the scheduler, are there.
LOOK_AFTER_S = 5.0
#: For the C library of a worker, before it starts: large pages for its heap, so that the memory of
#: a patch or a decoded block is not cleared in pieces of 4 KiB. Source: glibc manual, "Memory
#: Allocation Tunables"; a library that does not know it ignores it.
_TUNABLES = "glibc.malloc.hugetlb=1"
#: What an address of a scheduler looks like.
_ADDRESS = re.compile(r"(?:(?:tcp|tls)://)?[^/\s]+:\d{1,5}")


class DaskEngine:
    """Runs items on worker processes, one at a time in each.

    Parameters
    ----------
    workers : int or None
        Local worker processes; None: one for each core. Not with `scheduler`.
    scheduler : str or None
        Address of a running scheduler, `tcp://host:8786`; None: start a local cluster.

    May be entered again while it is entered; the cluster lives until the outermost exit.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        if scheduler is not None and workers is not None:
            raise RecipeError(
                "a running scheduler brings its own workers: leave --workers out with --scheduler."
            )
        if scheduler is not None and not _ADDRESS.fullmatch(scheduler):
            raise RecipeError(
                f"{scheduler!r} is no address of a Dask scheduler, such as `tcp://host:8786`."
            )
        self.announce: Callable[[str], object] | None = None
        """Called once with the dashboard's address, in words."""
        self._wanted = workers
        self._scheduler = scheduler
        self._depth = 0
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None

    def __enter__(self) -> Self:
        if self._depth == 0:
            try:
                self._start()
            except BaseException:
                self._stop()
                raise
        self._depth += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._stop()

    @property
    def workers(self) -> int:
        """How many tasks can run at once (at least 1: workers of a cluster may still be coming)."""
        if self._client is None:
            return self._wanted or os.cpu_count() or 1
        return max(sum(int(threads) for threads in self._client.nthreads().values()), 1)

    @property
    def address(self) -> str:
        """Address of the scheduler."""
        return str(self._connected().scheduler_info()["address"])

    @property
    def dashboard(self) -> str:
        """URL of the scheduler's dashboard; empty if it serves none."""
        return str(self._connected().dashboard_link or "")

    def worker_pids(self) -> list[int]:
        """Return the process ids of the workers as they are now."""
        return sorted(self._connected().run(os.getpid).values())

    def run(
        self, function: Callable[[Any], Any], items: Iterable[Any], *, in_flight: int | None = None
    ) -> Iterator[Outcome]:
        """Yield outcomes as they come; items are asked for only when there is room for them.

        A task whose worker died is given to another one; after more than `DEATHS_ALLOWED` deaths
        the outcome is a `TryAgain` (`worker-died`). Leaving the iteration early cancels what has
        not been started.

        Raises
        ------
        TryAgain
            The scheduler is gone (`scheduler-died`), and with it what was in work.
        """
        client = self._connected()
        room = in_flight or HANDED_PER_WORKER * self.workers
        source = iter(items)
        given: dict[Any, tuple[Any, Any]] = {}
        finished: SimpleQueue[Any] = SimpleQueue()

        def hand_out() -> None:
            for item in itertools.islice(source, room - len(given)):
                future = client.submit(function, item, pure=False)
                given[future.key] = (future, item)
                future.add_done_callback(finished.put)

        with _connection():
            try:
                hand_out()
                while given:
                    future = _first(finished, client)
                    _, item = given.pop(future.key)
                    yield _outcome(item, future)
                    hand_out()
            finally:
                client.cancel([future for future, _ in given.values()], force=True)

    def _connected(self) -> Client:
        if self._client is None:
            raise RuntimeError("the engine is used as a context manager: `with engine: ...`")
        return self._client

    def _start(self) -> None:
        if self._scheduler is None:
            with _interrupts_wait():
                self._cluster = _local_cluster(self._wanted or os.cpu_count() or 1)
        try:
            self._client = Client(self._cluster or self._scheduler, timeout=CONNECT_S)
        except OSError as error:
            raise TryAgain(
                f"no Dask scheduler answered at {self._scheduler} within {CONNECT_S} s; is the "
                "address right, and is it running? If so, run the same command again.",
                failure="no-scheduler",
            ) from error
        if self.announce is not None:
            self.announce(f"Dask dashboard: {self.dashboard}")

    def _stop(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()
        self._client = self._cluster = None


def _local_cluster(workers: int) -> LocalCluster:
    """Start worker processes that are replaced when they die.

    Their nannies do that, but for one that dies while its nanny still waits for it to start: that
    one is left dead (distributed 2026.8). The cluster forgets it after a while, and scaling to
    the same number then starts another.
    """
    settings = {
        "distributed.scheduler.allowed-failures": DEATHS_ALLOWED,
        "distributed.nanny.pre-spawn-environ.GLIBC_TUNABLES": _TUNABLES,
    }
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            # What goes wrong in a task, an interrupt, and a worker that is replaced are told by us.
            silence_logs=logging.CRITICAL,
        )
    looking_after = PeriodicCallback(lambda: cluster.scale(workers), LOOK_AFTER_S * 1000)
    cluster.periodic_callbacks["workers"] = looking_after  # the cluster stops it when it closes
    loop: Any = cluster.loop
    loop.add_callback(looking_after.start)
    return cluster


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Put an interrupt off, for a cluster that is stopped while it starts cannot be closed.

    Threads and processes that start meanwhile never see one: a terminal interrupts workers too, and
    each would say so. They end when the cluster is closed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = threading.Event()
    resource_tracker.ensure_running()  # else the first process that starts lets interrupts in again
    handler = signal.signal(signal.SIGINT, lambda *_: came.set())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # one that waited comes now
        signal.signal(signal.SIGINT, handler)
    if came.is_set():
        raise KeyboardInterrupt


def _first(finished: SimpleQueue[Any], client: Client) -> Any:
    """Wait for the first finished future; of a lost scheduler some would never finish."""
    while True:
        try:
            return finished.get(timeout=LOOK_AFTER_S)
        except Empty:
            if client.status in ("closing", "closed"):
                raise ClosedClientError from None


@contextmanager
def _connection() -> Iterator[None]:
    """Say in our words that the scheduler went away."""
    try:
        yield
    except ClosedClientError as error:
        raise TryAgain(
            "the Dask scheduler is gone; what is committed stays: run the same command again.",
            failure="scheduler-died",
        ) from error


def _outcome(item: Any, future: Any) -> Outcome:
    """Turn a finished future into an outcome, and let go of it."""
    if future.status == "finished":
        outcome = Outcome(item, result=future.result())
    else:
        error = future.exception() if future.status == "error" else None
        if error is None or isinstance(error, KilledWorker):
            error = TryAgain(
                f"{DEATHS_ALLOWED + 1} workers died under the task, or it was {future.status}; "
                "a worker that runs out of memory dies so: use fewer workers or smaller shards",
                failure="worker-died",
            )
        outcome = Outcome(item, error=error)
    future.release()
    return outcome
