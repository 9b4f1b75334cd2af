"""Soak test: the same bytes at the end, whatever the archive did on the way.

A small archive is simulated, and searched, planned and extracted once undisturbed: that is the
reference. Then, once for each seed:

- every passing fault at once, signatures that expire among them, at a rate of 20 % of all requests,
  from the search on: every shard object and every commit record must be the reference's, byte for
  byte;
- lasting faults on some files besides: every patch that did not fail must have the reference's row,
  and after the repair `retry` must end at the reference's shard objects.

A few items lack a file, in the reference too: they must be counted, and leave no trace otherwise.
Pauses and time-outs are shortened, so that hours of a bad network pass in seconds; how often a
request is repeated is not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from pipeline.engine.serial import SerialEngine
from pipeline.ports import ObjectStore
from pipeline.recipe import LoadedRecipe, Recipe
from pipeline.records import Unusable
from pipeline.run.extract import run_extract
from pipeline.run.plan import run_plan
from pipeline.run.retry import run_retry
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.simulate.archive import make_archive
from pipeline.simulate.delivery.orbits import SMALL
from pipeline.simulate.service.catalogue import ITEMS
from pipeline.simulate.service.faults import Fault, Faults
from pipeline.simulate.service.guards import TOKENS
from pipeline.simulate.service.server import ArchiveServer
from pipeline.sources.providers import providers
from pipeline.store import layout
from pipeline.store.commit import newest, read_commit
from pipeline.store.objects import open_store
from pipeline.store.tables import read_all
from pipeline.watch.progress import Progress

RATE = 0.2
REGION = (15.02, 51.9, 15.045, 51.915)
START, END = date(2023, 4, 1), date(2023, 6, 1)
ORBITS = {
    "enmap-l2a": replace(
        SMALL["enmap-l2a"], swath_m=2400, track_m=2000, frame_m=2400, frame_step_m=2200
    ),
    "sentinel-2-*": replace(SMALL["sentinel-2-*"], swath_m=3000, track_m=2500, square_m=2000),
}
SHELVES = {"enmap-l2a": "dlr", "sentinel-2-l2a": "planetary-computer", "simulated-labels": "labels"}
#: Whose addresses are signed, under the provider's own name.
SIGNED = "planetary-computer"
#: One item in so many lacks its first file.
BARE_EVERY = 12
#: What may last: a failure of the file, of the login, of the network.
LASTING: tuple[Fault, ...] = (
    *("html", "missing", "forbidden", "expired", "corrupt"),
    *("throttled-bare", "server-error", "reset", "truncated", "wrong-length"),
)
#: A client's pause after the first failure, the longest it waits for an answer, and how long the
#: server stays silent where it stalls; the other delays are the server's too.
PAUSE_S, TIMEOUT_S, STALL_S, LATENCY_S = 0.001, 1.0, 1.2, 0.005
#: So many failures in a row make a provider count as down: never here, where all there is to read
#: may be two files that fail for good.
FAILURES_IN_A_ROW = 10_000
#: Items of a page: few, so that a search has several pages.
PAGE_SIZE = 4

Row = dict[str, Any]


@dataclass(slots=True)
class Soak:
    """One archive behind an address that stays, its recipe, and what it comes to undisturbed."""

    folder: Path
    port: int = 0
    bare: tuple[str, ...] = ()
    """Ids of the items that lack a file."""
    objects: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, ...], Row] = field(default_factory=dict)
    thrown: Counter[str] = field(default_factory=Counter)
    passed: Counter[str] = field(default_factory=Counter)
    """Those of `thrown` that were met without lasting ones."""
    failed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def begin(cls, folder: Path) -> Soak:
        """Make the archive and the reference."""
        make_archive(
            folder / "archive",
            products=list(SHELVES),
            region=REGION,
            start=START,
            end=END,
            orbits=ORBITS,
        )
        soak = cls(folder, bare=_some_items(folder / "archive"))
        with soak.served() as server:
            soak.port = int(server.url.rpartition(":")[2])
            store = soak.extracted("reference")
        soak.objects, soak.rows = objects(store), rows(store)
        return soak

    def served(self, faults: Faults | None = None) -> ArchiveServer:
        """Return the server of the archive, with what goes wrong."""
        items = dict.fromkeys(self.bare, "missing-asset")
        faults = replace(faults or Faults(), items={**items, **(faults.items if faults else {})})
        return ArchiveServer(self.folder / "archive", faults=faults, port=self.port)

    def loaded(self) -> LoadedRecipe:
        """Return the recipe, at the server's address."""
        url = f"http://127.0.0.1:{self.port}"
        wish = {"max_cloud_fraction": 0.3, "allow_unmasked": True}
        values = {
            "name": "soak",
            "sample": {"strategy": "grid", "region": REGION},
            "cell": {"lattice": "enmap30", "size_px": 16},
            "slots": {"kind": "months", "start": START, "end": END},
            "product": [
                {
                    "id": key,
                    "provider": at if at == SIGNED else "simulated",
                    "url": f"{url}/{at}",
                    **wish,
                }
                for key, at in SHELVES.items()
            ],
            "shards": {"shard_mb": 2},
        }
        return LoadedRecipe(Recipe.model_validate(values), self.folder)

    def extracted(self, root: str) -> ObjectStore:
        """Sample, search, plan and extract into a new root, which is returned."""
        os.environ["PC_SDK_SAS_URL"] = f"http://127.0.0.1:{self.port}/{TOKENS}"
        loaded, store = self.loaded(), open_store(self.folder / root)
        run_sample(loaded, store)
        run_search(loaded, store)
        run_plan(loaded, store)
        with Progress(live=False) as progress:
            run_extract(
                loaded, store, SerialEngine(), progress=progress, accept_failures=True, pause_s=0
            )
        return store

    def passing(self, seed: int) -> str | None:
        """Meet every passing fault at once; return what went wrong, if anything."""
        with self.served(_faults(seed)) as server:
            store = self.extracted(f"passing-{seed}")
            self.thrown += server.dice.thrown
            self.passed += server.dice.thrown
        if lost := set(self.bare) - without_files(store):
            return f"items without a file are not counted: {sorted(lost)}"
        return _differences(objects(store), self.objects)

    def lasting(self, seed: int) -> str | None:
        """Meet lasting faults besides, repair, and retry; return what went wrong, if anything."""
        with self.served(_faults(seed, self._spoilt(seed))) as server:
            store = self.extracted(f"lasting-{seed}")
            self.thrown += server.dice.thrown
        found = rows(store)
        failed = {key: row["reason"] for key, row in found.items() if row["state"] == "failed"}
        self.failed.update(failed.values())
        if found.keys() != self.rows.keys():
            return "other patches than the reference's are accounted for"
        wrong = [k for k, row in found.items() if k not in failed and row != self.rows[k]]
        if wrong:
            return f"{len(wrong)} patches that did not fail are not the reference's: {wrong[:3]}"
        with self.served(), Progress(live=False) as progress:
            run_retry(self.loaded(), store, SerialEngine(), progress=progress, pause_s=0)
        return _differences(healed(store), healed(open_store(self.folder / "reference")))

    def _spoilt(self, seed: int) -> dict[str, Fault]:
        """Choose three of the files that the reference read, and what is wrong with each."""
        hrefs = {source["href"] for row in self.rows.values() for source in row["sources"]}
        paths = sorted(href.partition("/files/")[2] for href in hrefs)
        rng = np.random.default_rng(seed)
        kinds = rng.choice(len(LASTING), 3, replace=False)
        chosen = rng.choice(len(paths), 3, replace=False)
        return {paths[at]: LASTING[kind] for at, kind in zip(chosen, kinds, strict=True)}


def objects(store: ObjectStore) -> dict[str, str]:
    """Return the sha256 of every shard object and commit record, by key."""
    keys = [key for folder in (layout.SHARDS, layout.COMMITS) for key in store.list(folder)]
    return {key: hashlib.sha256(store.get(key)).hexdigest() for key in keys}


def healed(store: ObjectStore) -> dict[str, str]:
    """Return the sha256 of the objects of each shard's newest revision, whichever that is."""
    return {
        f"{shard}/{key}": digest
        for shard, revision in newest(store).items()
        for key, (digest, _) in read_commit(store, shard, revision).objects.items()
    }


def rows(store: ObjectStore) -> dict[tuple[str, ...], Row]:
    """Return every row of the newest ledgers, by location, product and slot."""
    return {
        (row["location"], row["product"], row["slot"]): row
        for shard, revision in newest(store).items()
        for row in read_commit(store, shard, revision).ledger.to_pylist()
    }


def without_files(store: ObjectStore) -> set[str]:
    """Return the ids of the items that the search could not use because they lack a file."""
    found = read_all(store, layout.SCENES, Unusable, suffix="unusable").to_pylist()
    return {row["item"] for row in found if row["reason"] == "no-assets"}


def _some_items(archive: Path) -> tuple[str, ...]:
    """Return the ids of some items of each sensor."""
    made = json.loads((archive / ITEMS).read_text())["providers"]
    return tuple(
        item["id"]
        for shelf in sorted(set(SHELVES.values()) - {"labels"})
        for collection in made[shelf].values()
        for item in collection["items"][::BARE_EVERY]
    )


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Shorten the clients' pauses, time-outs and pages, never the number of their attempts."""
    changes = {"timeout_s": TIMEOUT_S, "page_size": PAGE_SIZE}
    quick = providers()["simulated"].model_copy(update=changes)
    signed = quick.model_copy(update={"name": SIGNED, "sign": SIGNED})
    with (
        mock.patch.dict(providers(), {"simulated": quick, SIGNED: signed}),
        mock.patch.dict(os.environ),
        mock.patch("pipeline.sources.limits.FIRST_PAUSE_S", PAUSE_S),
        mock.patch("pipeline.sources.limits.FAILURES_IN_A_ROW", FAILURES_IN_A_ROW),
        mock.patch("pipeline.sources.stac.io._LONGEST_PAUSE_S", PAUSE_S),
        mock.patch("pipeline.sources.stac.io.FIRST_PAUSE_S", PAUSE_S),
    ):
        yield


def _faults(seed: int, permanent: dict[str, Fault] | None = None) -> Faults:
    return Faults(
        rate=RATE,
        seed=seed,
        permanent=permanent or {},
        latency_s=LATENCY_S,
        stall_s=STALL_S,
    )


def _differences(found: dict[str, str], expected: dict[str, str]) -> str | None:
    if found == expected:
        return None
    other = sorted(key for key in found.keys() | expected if found.get(key) != expected.get(key))
    return f"{len(other)} of {len(expected)} objects differ: {', '.join(other[:3])}"


def main() -> int:
    """Soak for some seeds and print the table; return how many went wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    wanted = parser.parse_args()
    began_s, wrong = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, hurried():
        soak = Soak.begin(Path(folder))
        for seed in range(wanted.first, wanted.first + wanted.seeds):
            for name, trial in (("passing", soak.passing), ("lasting", soak.lasting)):
                trouble = trial(seed)
                if trouble:
                    print(f"seed {seed}, {name} faults: {trouble}", file=sys.stderr, flush=True)
                wrong += bool(trouble)
    thrown = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.thrown.items()))
    failed = ", ".join(f"{kind} {count}" for kind, count in sorted(soak.failed.items()))
    print(
        "| what | figure |\n|---|---|\n"
        f"| patches, shard objects and commits of the reference | {len(soak.rows)}, "
        f"{len(soak.objects)} |\n"
        f"| seeds, each with passing and with lasting faults | {wanted.seeds} |\n"
        f"| faults thrown | {soak.thrown.total()} ({thrown}) |\n"
        f"| patches that failed until the repair | {soak.failed.total()} ({failed}) |\n"
        f"| runs that ended with other bytes | {wrong} of {2 * wanted.seeds} |\n"
        f"| seconds | {time.monotonic() - began_s:.0f} |"
    )
    return wrong


if __name__ == "__main__":
    sys.exit(main())
