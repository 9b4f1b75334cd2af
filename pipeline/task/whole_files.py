"""Fetch source files whole, and hold them to the checksums that their catalogues state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import GiveUp
from pipeline.ports import ObjectStore, PixelSource
from pipeline.records import Asset, LedgerRow, Scene
from pipeline.sources.bytes.checksum import check_file, parse_checksum
from pipeline.store import layout
from pipeline.store.commit import read_commit
from pipeline.store.tables import to_rows
from pipeline.task.lock import read_lock
from pipeline.task.shard import Source, sources_of


@dataclass(frozen=True, slots=True)
class WholeFile:
    """A file that written patches were read from, and that has a checksum."""

    scene: Scene
    asset: Asset
    source_of: Callable[[Scene], Source]

    def check(self) -> str:
        """Fetch it, and return why it is not as stated; empty if it is.

        Raises
        ------
        TryAgain, GiveUp
            It cannot be read.
        """
        source = self.source_of(self.scene)
        if isinstance(source, PixelSource):
            return ""
        try:
            check_file(source, self.asset.href, self.asset.checksum)
        except GiveUp as error:
            if error.failure != "corrupt":
                raise
            return str(error)
        return ""


def whole_files(store: ObjectStore, shard: str, revision: int, *, run: str) -> Sequence[WholeFile]:
    """Return the files of a shard's written patches that have a checksum, each once, by address.

    `run` is that of `ShardOrder`.
    """
    rows = to_rows(read_commit(store, shard, revision).ledger, LedgerRow)
    read = {source.href for row in rows if row.state == "written" for source in row.sources}
    lock = read_lock(store, *layout.parse_shard(shard))
    source_of = sources_of(lock.loaded, 1.0, run)
    found = {
        asset.href: WholeFile(scene, asset, source_of)
        for scene in lock.scenes.values()
        for asset in scene.assets
        if asset.href in read and parse_checksum(asset.checksum) is not None
    }
    return [found[href] for href in sorted(found)]
