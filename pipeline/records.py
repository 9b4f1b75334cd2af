"""The rows of every table: what one arrow of the flow carries.

Each class is the row type of one table; `pipeline.store.tables` derives the Arrow schema from it
and `schemas/` holds its JSON Schema. Stages pass whole Arrow tables of these rows, because there
are millions; the classes are for reading, for single rows, and the one definition of columns.

A column with a default is younger than the others: in tables without it, every row has the default.
Times are UTC. `geometry` columns are WKB polygons in longitude, latitude (OGC:CRS84).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import ConfigDict

_DOCSTRINGS = ConfigDict(use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One cell of ground: a row of `locations/`."""

    __pydantic_config__ = _DOCSTRINGS

    location: str
    """Cell id, its position: `<zone>-<lattice>-<size_px>-<col>-<row>`, for example
    `33N-s2r10-264-00152-02121`. Rows count away from the equator. Free cells
    (`snap = "scene"`) have `p` before the numbers, which then count pixels from the lattice
    origin to the corner nearest the origin."""
    index: int
    """Index of the draw that took the cell (a pure function of seed and index)."""
    zone: str
    """UTM zone and hemisphere, `33N`; the MGRS zone with the Norway and Svalbard exceptions."""
    epsg: int
    """326xx north, 327xx south of the equator."""
    x_min_m: float
    """Easting of the western edge."""
    y_max_m: float
    """Northing of the northern edge, in `epsg`."""
    size_m: float
    """Edge of the cell in metres."""
    lon_deg: float
    """Longitude of the centre."""
    lat_deg: float
    """Latitude of the centre."""
    stratum: str
    """What the draw belongs to: a city, `land`, a point's name, a scene; may be empty."""
    geometry: bytes
    """Outline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One file of a scene."""

    name: str
    """Asset key in the catalogue."""
    href: str
    """Unsigned address; absolute path for the `local` provider."""
    size_bytes: int | None
    """Length, where the catalogue states it."""
    checksum: str | None
    """Multihash (hex), where the catalogue states it (`file:checksum`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One usable item of a product: a row of `scenes/`."""

    __pydantic_config__ = _DOCSTRINGS

    scene: str
    """Identity: `<product>/<datatake>/<tile>`; a reprocessed scene keeps it."""
    product: str
    provider: str
    item: str
    """Item id in the catalogue."""
    datatake: str
    """Acquisition it is part of; scenes of one datatake may be mosaicked."""
    tile: str
    acquired: datetime
    """Time of acquisition (start, where the catalogue gives a span)."""
    baseline: str
    """Processing baseline or processor version; empty if unknown."""
    offset_add: int
    """Added to every delivered value that is not nodata (0: nothing to remove)."""
    cloud_percent: float | None
    """0 to 100 as the catalogue states it; None: unknown."""
    sun_elevation_deg: float | None
    epsg: int
    """CRS of the pixels."""
    x_min_m: float
    """Bounds of the pixels in `epsg`, outer edges."""
    y_min_m: float
    x_max_m: float
    y_max_m: float
    geometry: bytes
    """Footprint of what was seen, as the catalogue states it."""
    assets: list[Asset]
    """Only those that the product's bands and mask layers need."""
    facts: str = "{}"
    """What else the catalogue states, as a JSON object by the product file's words (`facts`):
    `{"orbit_direction":"descending","relative_orbit":125}`. Text is in lower case."""
    band_indexes: list[int] = field(default_factory=list)
    """For each band of the product, in its order, the 1-based position in its file, 0 if the file
    does not have it. Empty: the positions of the product file hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """A catalogue item that cannot be used: a row of `scenes/*.unusable.parquet`."""

    __pydantic_config__ = _DOCSTRINGS

    product: str
    provider: str
    item: str
    reason: str
    """Named class: `no-assets`, `no-crs`, `no-geometry`, `bad-value`, `other-collection`,
    `outside-query`, `not-as-required`, `duplicate`, `refused-href`, `no-datetime`, ..."""
    detail: str
    """What was found, cut to 200 characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPatch:
    """One wanted patch: a row of `plans/` (the lock), even without candidates.

    The rows of one location, slot and `group` stand and fall together, and so do their candidates:
    candidate k of a follower accompanies candidate k of its leader.
    """

    __pydantic_config__ = _DOCSTRINGS

    shard: int
    """Number of the shard in this plan, from 0."""
    sample: int
    """Position of the location in the shard, from 0."""
    time: int
    """Position of the slot among the product's slots of that location in the shard, from 0."""
    location: str
    product: str
    slot: str
    """Slot id: `2021-JJA`, `2021-07`, a window's name; with `all`, `<datatake>`."""
    group: str
    """Product that leads it (its own id if it leads)."""
    candidates: list[list[str]]
    """Ranked from best: for each candidate the scenes (ids) of one acquisition, mosaicked in this
    order. Empty: nothing was found, and the patch is rejected with `no-candidate`."""
    epsg: int
    """The cell, repeated here so that a plan needs no other table: see `Location`."""
    x_min_m: float
    y_max_m: float
    size_m: float
    lon_deg: float
    lat_deg: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What was read: one file at its first read."""

    href: str
    etag: str | None
    """Entity tag; for local files size and modification time are enough."""
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """Why something is unsuitable: a value, not an error."""

    reason: Literal[
        "no-candidate",
        "cloudy",
        "not-seen",
        "unmasked",
        "other-zone",
        "off-lattice",
        "offset-contradiction",
        "with-group",
    ]
    """`not-seen`: too few valid pixels. `offset-contradiction`: the scene's pixels contradict what
    its catalogue says of the processing offset. `with-group`: a leader or follower was rejected."""
    detail: str = ""


#: What the dark pixels of a patch's scenes said of the processing offset.
OffsetAudit = Literal["passed", "silent", "none", ""]
#: What became of a wanted patch.
State = Literal["written", "rejected", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerRow:
    """What became of one wanted patch: a row of a commit record.

    Over the newest revisions, planned = written + rejected + failed.
    """

    __pydantic_config__ = _DOCSTRINGS

    sample: int
    time: int
    location: str
    product: str
    slot: str
    state: State
    reason: str
    """Of a rejection (`Rejected.reason`) or failure (its class); empty if written."""
    detail: str
    """For a person; never a secret."""
    rank: int
    """Candidate that was taken, from 0; -1 if none."""
    scenes: list[str]
    """Its scene ids."""
    acquired: datetime | None
    clear_fraction: float | None
    """Share of seen pixels that are not `cloudy` in the recipe's sense."""
    valid_fraction: float | None
    """Share of pixels that were seen."""
    mask_source: str
    """What decided the mask: `product` (its quality layers), a method that made it from the image
    where there are none (`toa-thresholds`), or `none`; of several scenes the least of these."""
    offset_audit: OffsetAudit
    """What the darkest pixels of its scenes said of the processing offset that the catalogue
    states: `passed` (they agree), `silent` (the scene is too bright to tell), or `none` (nobody
    could look: no overview, as at Earth Engine, or no such file); of several scenes the least of
    these. Empty: the product has no offset, or nothing was written."""
    absent_bands: list[str]
    """Wanted bands that hold only nodata in this patch though the patch was seen."""
    defective_fraction: float | None
    """Share of band values that the product's per-band quality layer marks, where it has one."""
    saturated_count: int
    """Values clipped or delivered as saturated."""
    shift_x_px: float
    """Sub-pixel shift from the cell to the product's lattice, in stored pixels, east and south."""
    shift_y_px: float
    resampling: str
    """`none`, `repeat` (coarser band, whole factor), or the method: the recipe's, or `nearest` or
    `bilinear` of a product that is warped; `gcp-` before it where only ground control points say
    where the pixels are, `rpc-` where a camera does, so that what is high is displaced."""
    pixel_digest: str
    """sha256 (hex) of the stored pixels and mask, uncompressed; empty if not written."""
    count: list[int]
    """Per stored band, over pixels that are not fill: number of values ..."""
    mean: list[float]
    """... their mean in stored units ..."""
    m2: list[float]
    """... sum of squared deviations from it (Chan et al. 1979, mergeable) ..."""
    minimum: list[float]
    maximum: list[float]
    residual: list[float] = field(default_factory=list)
    """Where the recipe compares the product with an imaging spectrometer: mean of each stored band
    minus what the spectrometer's bands, weighted by the band's response, say it should be, in the
    product's unit, both over the ground that is clear in both patches; NaN where the spectrometer
    does not see the band, or no ground is. Else empty."""
    sources: list[Source]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """One written patch of a published version: a row of `versions/*/index.parquet`."""

    __pydantic_config__ = _DOCSTRINGS

    row: int
    """Number of the sample (location) in the version, from 0."""
    location: str
    product: str
    slot: str
    shard: str
    """Shard name and revision, e.g. `p000001-s00042/r1`."""
    sample: int
    time: int
    scenes: list[str]
    acquired: datetime
    split: Literal["train", "val", "test"]
    clear_fraction: float
    valid_fraction: float
    mask_source: str
    """What decided the mask, as in the ledger."""
    absent_bands: list[str]
    residual: list[float]
    """How far it lies from an imaging spectrometer, as in the ledger; metadata of the file say of
    what kind the bands' responses are (`terrashard:residual`)."""
    pixel_digest: str
    epsg: int
    x_min_m: float
    y_max_m: float
    lon_deg: float
    lat_deg: float
    geometry: bytes
    """Outline of the cell."""
    facts: list[str] = field(default_factory=list)
    """What the catalogue states of each of the `scenes`, as in the scenes table: a JSON object."""


#: Row type of every table, by the name of its schema file.
TABLES: dict[str, type] = {
    "location": Location,
    "scene": Scene,
    "unusable": Unusable,
    "planned-patch": PlannedPatch,
    "ledger-row": LedgerRow,
    "index-row": IndexRow,
}
