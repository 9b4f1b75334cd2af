"""Limits that all workers of a run on one machine keep together, through locked files.

Each request takes a place and a turn that no other process has. The system lets go of a lock when
its process ends, however it ends, so a worker that is killed takes nothing with it. Workers on
several machines do not see each other: each machine has the share of its workers.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import struct
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock

#: How long to wait before looking again for a free place, at most.
_LOOK_AGAIN_S = 0.01
#: How often the workers on this machine are counted.
_COUNT_AGAIN_S = 1.0
_STATE = struct.Struct("<5d")


@dataclass(slots=True)
class Pace:
    """When the next request may be made; times by the monotonic clock, which processes share."""

    tokens: float = 1.0
    """Requests that may be made at once."""
    filled_at: float = 0.0
    quiet_until: float = 0.0
    """A server asked for a pause."""
    failures: float = 0.0
    """Failed requests in a row that speak of the provider as a whole."""
    down_until: float = 0.0


class Alone:
    """What one process has for itself: a share of the limits that nobody else can touch.

    Parameters
    ----------
    share : float
        Of the run's limits, 0 to 1.
    concurrency : int
        Of the whole run.
    """

    def __init__(self, share: float, concurrency: int) -> None:
        self.part = share  #: Of the run's limits, 0 to 1.
        self.places = max(1, int(concurrency * share))  #: Requests that may be in flight.
        self._pace = Pace()
        self._lock = Lock()
        self._places = BoundedSemaphore(self.places)

    @contextmanager
    def pace(self) -> Iterator[Pace]:
        """Hold the pace; nobody else reads or changes it meanwhile."""
        with self._lock:
            yield self._pace

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places; wait until there is one."""
        with self._places:
            yield


class Together:
    """What all processes of a run on this machine have together.

    Parameters
    ----------
    run : str
        Name of the run: of all its workers the same.
    provider : str
    share : float
        One worker's part of the run's limits, 0 to 1.
    concurrency : int
        Of the whole run.

    Raises
    ------
    OSError
        Files cannot be made or locked in the folder for temporary files.
    """

    def __init__(self, run: str, provider: str, *, share: float, concurrency: int) -> None:
        self.places = concurrency  #: Requests that may be in flight, if all workers are here.
        self._share = share
        self._folder = _folder(run, provider)
        self._state = os.open(self._folder / "pace", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._member = _open(self._folder / f"worker-{os.getpid()}")
        fcntl.flock(self._member, fcntl.LOCK_SH)  # shared: threads may each have a lease
        self._lock = Lock()
        self._part, self._counted_at = share, -_COUNT_AGAIN_S
        weakref.finalize(self, _close, self._state, self._member)

    @property
    def part(self) -> float:
        """Part of the run's limits that this machine's workers have."""
        now = time.monotonic()
        if now - self._counted_at >= _COUNT_AGAIN_S:
            self._counted_at = now
            workers = sum(_held(path) for path in self._folder.glob("worker-*"))
            self._part = min(1.0, self._share * max(1, workers))
        return self._part

    @contextmanager
    def pace(self) -> Iterator[Pace]:
        """Hold the pace; nobody else reads or changes it meanwhile."""
        with self._lock:  # one file description has one lock, whatever the number of threads
            fcntl.flock(self._state, fcntl.LOCK_EX)
            try:
                data = os.pread(self._state, _STATE.size, 0)
                pace = Pace(*_STATE.unpack(data)) if len(data) == _STATE.size else Pace()
                yield pace
                os.pwrite(self._state, _STATE.pack(*astuple(pace)), 0)
            finally:
                fcntl.flock(self._state, fcntl.LOCK_UN)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Hold one of the places; wait until there is one."""
        handle = self._wait()
        try:
            yield
        finally:
            os.close(handle)

    def _wait(self) -> int:
        while True:
            places = list(range(max(1, int(self.places * self.part))))
            random.shuffle(places)
            for number in places:
                handle = _open(self._folder / f"place-{number}")
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                else:
                    return handle
            time.sleep(random.uniform(0, _LOOK_AGAIN_S))


def lease(run: str, provider: str, *, share: float, concurrency: int) -> Alone | Together:
    """Return what this worker shares with the others of its run; alone if there are no others."""
    if not run or share >= 1:
        return Alone(share, concurrency)
    try:
        return Together(run, provider, share=share, concurrency=concurrency)
    except OSError:
        return Alone(share, concurrency)  # a file system without locks


def _folder(run: str, provider: str) -> Path:
    """Return a folder that only this user's processes of this run use."""
    name = hashlib.sha256(f"{run}\t{provider}".encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"terrashard-{os.getuid()}" / name
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    if folder.parent.is_symlink() or folder.parent.stat().st_uid != os.getuid():
        raise PermissionError(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _close(*handles: int) -> None:
    for handle in handles:
        os.close(handle)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _held(path: Path) -> bool:
    """Whether a process holds a lock on a file."""
    handle = _open(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(handle)
