"""Found scenes wait on disk until all catalogues have answered: there may be millions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import Scene, Unusable
from pipeline.stages.search.newest import Newest, deduplicate
from pipeline.store.tables import from_rows

#: Scenes in memory at once, and in one table of the root.
_CHUNK_ROWS = 100_000


class Spool:
    """Takes scenes one by one and gives them back in chunks, without duplicates.

    Parameters
    ----------
    known, preferred, kinds : mapping
        What is in the root, and who is preferred: see `Newest`.
    chunk_rows : int
        Scenes of a chunk.
    """

    def __init__(
        self,
        known: Mapping[str, tuple[str, str]],
        preferred: Mapping[str, Sequence[str]] | None = None,
        kinds: Mapping[tuple[str, str], str] | None = None,
        *,
        chunk_rows: int = _CHUNK_ROWS,
    ) -> None:
        self.newest = Newest(known, preferred, kinds)
        self._chunk_rows = chunk_rows
        self._waiting: list[Scene] = []
        self._files: list[Path] = []
        self._folder = tempfile.TemporaryDirectory(prefix="terrashard-search-")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def add(self, row: Scene) -> None:
        """Take a scene."""
        self.newest.note(row)
        self._waiting.append(row)
        if len(self._waiting) >= self._chunk_rows:
            self._put_away(from_rows(self._waiting, Scene))
            self._waiting = []

    def add_all(self, scenes: pa.Table) -> None:
        """Take a table of scenes."""
        self.newest.note_all(scenes)
        self._put_away(scenes)

    def scenes(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield all that came so far, duplicates among it."""
        for path in self._files:
            yield pq.read_table(path, columns=None if columns is None else list(columns))
        waiting = from_rows(self._waiting, Scene)
        yield waiting if columns is None else waiting.select(list(columns))

    def chunks(self) -> Iterator[tuple[pa.Table, list[Unusable]]]:
        """Yield what is new and what is a duplicate, chunk by chunk; call it when all is in."""
        for scenes in self.scenes():
            yield deduplicate(scenes, self.newest)

    def _put_away(self, scenes: pa.Table) -> None:
        path = Path(self._folder.name) / f"{len(self._files)}.parquet"
        pq.write_table(scenes, path, compression="zstd")
        self._files.append(path)
