"""What is sent to a worker and what comes back: a few hundred bytes each way."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass, field

from pipeline.store.layout import shard_name


def new_run() -> str:
    """Return a name for a run that no other has; it is never stored."""
    return f"{os.uname().nodename}-{os.getpid()}-{time.monotonic_ns()}"


@dataclass(frozen=True, slots=True)
class ShardOrder:
    """Build one revision of one shard."""

    root: str
    """URL of the data set."""
    plan: int
    shard: int
    final: bool = False
    """Whether passing failures are now written to the ledger; before, nothing is committed."""
    revision: int = 1
    """From 2 on: what the revision before wrote is copied, and its failures are tried again."""
    run: str = ""
    """Of all orders of one run the same, of two runs never: what a worker remembers of sources
    (limits, tags, whether a provider is down) holds for one run."""
    threads: int = 1
    """Cores that are this worker's own: files decoded and patches encoded at the same time."""
    share: float = 1.0
    """This worker's part of each provider's limits."""
    accept_failures: bool = False
    """Whether to commit even if over half of the patches failed."""
    classes: tuple[str, ...] = ()
    """From revision 2 on: failure classes that are tried again; none named: all."""

    @property
    def name(self) -> str:
        """Name of the shard: `p000001-s00042`."""
        return shard_name(self.plan, self.shard)


@dataclass(slots=True)
class ShardReport:
    """What became of a shard."""

    shard: str
    committed: bool = False
    written: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Patches by reason."""
    failed: Counter[str] = field(default_factory=Counter)
    """Patches by failure class; of a shard that was not committed, what would have been."""
    passing: str = ""
    """Why nothing was committed, for a person; empty if it was."""
    circuit_open: bool = False
    """Whether a provider is down, so that further shards need not be tried."""
    bytes: int = 0
    """Size of the objects written."""
    blocks_touched: int = 0
    """Distinct compressed blocks that the windows lie in ..."""
    blocks_decoded: int = 0
    """... and how many were decoded: each once, so the two are equal."""
    requests: int = 0
    bytes_read: int = 0
    """Of source files; other tasks of a process that read at the same time count too."""
