"""The ledger rows of a shard: what became of every planned patch, written from what was decided."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pipeline.records import LedgerRow, PlannedPatch, Source
from pipeline.stages.extract import Trial
from pipeline.task.bands import Finished, Pick
from pipeline.task.read import Reader


def written(pick: Pick, finished: Finished, reader: Reader, *, residual: list[float]) -> LedgerRow:
    """Return the row of a patch that is stored."""
    moments = finished.moments
    return replace(
        _blank(pick.patch),
        state="written",
        rank=pick.trial.rank,
        scenes=[scene.scene for scene in pick.scenes],
        acquired=pick.scenes[0].acquired,
        clear_fraction=finished.seen.clear,
        valid_fraction=finished.seen.valid,
        mask_source=finished.mask_source,
        offset_audit=pick.offset_audit,
        absent_bands=list(finished.absent_bands),
        defective_fraction=finished.defective_fraction,
        saturated_count=finished.saturated_count,
        shift_x_px=pick.places[0].shift_x_px,
        shift_y_px=pick.places[0].shift_y_px,
        resampling=finished.resampling,
        pixel_digest=finished.encoded.digest,
        count=moments.count.tolist(),
        mean=moments.mean.tolist(),
        m2=moments.m2.tolist(),
        minimum=moments.minimum.tolist(),
        maximum=moments.maximum.tolist(),
        residual=residual,
        sources=_sources(finished, reader),
    )


def not_written(trial: Trial) -> list[LedgerRow]:
    """Return the rows of a group that failed, or that no candidate served."""
    if trial.failure is not None:
        return [
            replace(
                _blank(patch),
                state="failed",
                reason=trial.failure.failure,
                detail=trial.failure.detail,
            )
            for patch in trial.members
        ]
    verdicts = [(patch, trial.verdict(patch)) for patch in trial.members]
    return [
        replace(_blank(patch), state="rejected", reason=why.reason, detail=why.detail)
        for patch, why in verdicts
    ]


def known_sources(rows: Iterable[LedgerRow]) -> dict[str, Source]:
    """Return the files that the written patches of an earlier revision were read from, by href."""
    return {source.href: source for row in rows for source in row.sources}


def _sources(finished: Finished, reader: Reader) -> list[Source]:
    found = {reader.source(scene, asset) for scene, asset in finished.files}
    return sorted((s for s in found if s is not None), key=lambda source: source.href)


def _blank(patch: PlannedPatch) -> LedgerRow:
    return LedgerRow(
        sample=patch.sample,
        time=patch.time,
        location=patch.location,
        product=patch.product,
        slot=patch.slot,
        state="rejected",
        reason="",
        detail="",
        rank=-1,
        scenes=[],
        acquired=None,
        clear_fraction=None,
        valid_fraction=None,
        mask_source="none",
        offset_audit="",
        absent_bands=[],
        defective_fraction=None,
        saturated_count=0,
        shift_x_px=0.0,
        shift_y_px=0.0,
        resampling="none",
        pixel_digest="",
        count=[],
        mean=[],
        m2=[],
        minimum=[],
        maximum=[],
        residual=[],
        sources=[],
    )
