"""The recipe's own tables: where, when and what. Defaults live here and nowhere else."""

from __future__ import annotations

from datetime import date
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from pipeline.products.catalogue import fact_value
from pipeline.recipe.base import EXTENT, Strict
from pipeline.recipe.training import Evaluate, Pretrain

# --- where -----------------------------------------------------------------------------------


class _Sample(Strict):
    count: int = Field(default=1000, ge=1, json_schema_extra=EXTENT)
    """How many locations are wanted. More of them never move the earlier ones."""
    complete: bool = False
    """Whether they must be complete, every product in every slot: then more are drawn, in rounds,
    until `count` are, and a version holds the first `count` complete ones."""
    max_draws: int | None = Field(default=None, ge=1, json_schema_extra=EXTENT)
    """With `complete`: draws made at most, over all rounds; None: 10 times `count`."""

    def draws_allowed(self) -> int:
        """Return how many draws may be made in all, where places must be complete."""
        return 10 * self.count if self.max_draws is None else self.max_draws

    @model_validator(mode="after")
    def _limited(self) -> Self:
        if self.max_draws is not None and not self.complete:
            raise ValueError("has `max_draws`, which belongs to `complete = true`")
        if self.max_draws is not None and self.max_draws < self.count:
            raise ValueError(
                f"`max_draws` {self.max_draws} cannot give `count` {self.count} locations"
            )
        return self


class Cities(_Sample):
    """Gaussian around populated places (SSL4EO-S12 and SSL4EO-L, in metres instead of degrees)."""

    strategy: Literal["cities"]
    largest: int = Field(default=10_000, ge=1)
    """Only the so many most populous places (GeoNames)."""
    spread_km: float = Field(default=50, gt=0)
    """Standard deviation in each direction, in kilometres on the ground."""
    choice: Literal["uniform", "population"] = "uniform"
    """Each place alike, or in proportion to its population."""


class Uniform(_Sample):
    """Equal-area on the sphere."""

    strategy: Literal["uniform"]
    land_only: bool = False
    """Keep draws on land only (a coarse land mask; coastal water passes)."""
    region: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees; west > east crosses the antimeridian."""


class Grid(Strict):
    """Every cell of a region."""

    strategy: Literal["grid"]
    region: tuple[float, float, float, float]
    """west, south, east, north in degrees."""


class Scenes(Strict):
    """Every cell that the found scenes cover: tile what exists (SpectralEarth)."""

    strategy: Literal["scenes"]
    product: str
    """Whose scenes are tiled."""
    region: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees of the search; None: the world (or the whole folder)."""
    min_cover_fraction: float = Field(default=1.0, gt=0, le=1)
    """Least share of a cell that one datatake's scenes must cover."""


class Points(Strict):
    """The cells that hold a user's points."""

    strategy: Literal["points"]
    path: str
    """GeoJSON, GeoParquet or CSV (columns lon, lat), relative to the recipe."""


Sample = Annotated[Cities | Uniform | Grid | Scenes | Points, Field(discriminator="strategy")]


class Cell(Strict):
    """The unit of ground: a tile of the fixed tiling of a lattice."""

    lattice: str
    """Lattice id (`terrashard products` lists them)."""
    size_px: int = Field(ge=1, le=8192)
    """Edge in pixels of that lattice."""
    snap: Literal["lattice", "scene"] = "lattice"
    """`lattice`: tiles of the fixed tiling, so revisits coincide. `scene`: pixel-aligned cells
    centred on the draws, or tiling each scene from its own corner."""


# --- when ------------------------------------------------------------------------------------


class Window(Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    start: date
    """First day."""
    end: date
    """Day after the last."""

    @model_validator(mode="after")
    def _forward(self) -> Window:
        _check_order(self.start, self.end)
        return self


class Windows(Strict):
    """Dated windows, one slot each."""

    kind: Literal["windows"]
    windows: tuple[Window, ...] = Field(min_length=1, json_schema_extra=EXTENT)

    @model_validator(mode="after")
    def _distinct(self) -> Windows:
        names = [window.name for window in self.windows]
        if len(set(names)) < len(names):
            raise ValueError(f"every window needs a name of its own (found {', '.join(names)})")
        return self


class _Period(Strict):
    start: date = Field(json_schema_extra=EXTENT)
    """First day of the period."""
    end: date = Field(json_schema_extra=EXTENT)
    """Day after the last."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        _check_order(self.start, self.end)
        return self


def _check_order(start: date, end: date) -> None:
    if start >= end:
        raise ValueError(f"`start` {start} must be before `end` {end}, the day after the last")


class Seasons(_Period):
    """Meteorological seasons (DJF, MAM, JJA, SON) inside the period, one slot each."""

    kind: Literal["seasons"]


class Months(_Period):
    """Calendar months inside the period, one slot each."""

    kind: Literal["months"]


class All(_Period):
    """Every acquisition in the period is a slot of its own."""

    kind: Literal["all"]


Slots = Annotated[Windows | Seasons | Months | All, Field(discriminator="kind")]


# --- what ------------------------------------------------------------------------------------

CloudCode = Literal["thin-cloud", "cloud", "cloud-shadow", "snow"]


class Between(Strict):
    """Bounds of a fact that is a number."""

    at_least: float | None = None
    at_most: float | None = None


#: What may be required of a fact: one of some values, or a number between bounds.
Required = Between | tuple[int | float | str, ...]


def _required(word: str, wanted: Any) -> Required:
    """Return what is required of a fact, written in one way: values as facts are kept
    (`pipeline.products.catalogue.fact_value`), each once and in order.

    Raises `ValueError` naming the fact, what was found, and what is allowed.
    """
    if isinstance(wanted, Between):
        return wanted
    if isinstance(wanted, dict):
        return _bounds(word, wanted)
    values = wanted if isinstance(wanted, list | tuple) else ()
    finite = [v for v in values if not isinstance(v, float) or isfinite(v)]
    plain = [value for value in map(fact_value, finite) if value is not None]
    if not plain or len(plain) < len(values):
        raise ValueError(
            f"has {wanted!r} for `{word}`; allowed are a list of numbers and texts, or bounds: "
            "`{ at_least = 0, at_most = 20 }`"
        )
    return tuple(sorted(set(plain), key=lambda value: (isinstance(value, str), str(value))))


def _bounds(word: str, wanted: dict[str, Any]) -> Between:
    bounds = [value for value in wanted.values() if value is not None]
    sound = all(type(value) in (int, float) and isfinite(value) for value in bounds)
    if not bounds or not sound or set(wanted) - set(Between.model_fields):
        raise ValueError(
            f"has {wanted!r} for `{word}`; a table has `at_least`, `at_most` or both, with numbers"
        )
    between = Between(**wanted)
    low, high = between.at_least, between.at_most
    if low is not None and high is not None and low > high:
        raise ValueError(f"asks `{word}` to be {told(between)}, which nothing is")
    return between


def admits(wanted: Required, value: float | str) -> bool:
    """Whether a fact (`pipeline.products.catalogue.fact_value`) is as it is required to be."""
    if not isinstance(wanted, Between):
        return value in wanted
    if isinstance(value, str):
        return False
    low, high = wanted.at_least, wanted.at_most
    return (low is None or low <= value) and (high is None or value <= high)


def told(wanted: Required) -> str:
    """Return what is required in words."""
    if not isinstance(wanted, Between):
        return ", ".join(map(str, wanted))
    bounds = (("at least", wanted.at_least), ("at most", wanted.at_most))
    return " and ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


class ProductWish(Strict):
    """One product of the data set: where it comes from and when a patch of it is good enough."""

    id: str
    """Built-in product, or the path of a product file of your own, relative to the recipe."""
    provider: str | tuple[str, ...] = "local"
    """An entry of providers.toml (`terrashard products` lists who serves what), or several in
    order: a later one gives only scenes that no earlier one has, or has in an older baseline (where
    the baselines of the two can be compared: those of Landsat at Earth Engine cannot)."""
    url: str | dict[str, str] | None = Field(default=None, json_schema_extra=EXTENT)
    """STAC API, static catalogue or stac-geoparquet files to use in place of the provider's own
    URL; with several providers a table: `{ earth-search = "scenes.parquet" }`."""
    path: str | None = Field(default=None, json_schema_extra=EXTENT)
    """Folder of product folders for `provider = "local"`, relative to the recipe."""
    bands: tuple[str, ...] | Literal["default", "all"] = "default"
    """Band names, or the product file's own choice, or every band."""
    pixel_m: float | None = None
    """Stored pixel size in metres; None: the cell lattice's if it is the product's too, else the
    finest wanted band's."""
    resampling: Literal["nearest", "average"] | None = None
    """Allowed when a band's pixels do not fit the stored ones exactly; None: refuse."""
    choice: Literal["least-cloudy", "nearest", "newest"] = "least-cloudy"
    """Order of a slot's candidates; `nearest` is to the slot's middle, or to the leader."""
    candidates: int = Field(default=3, ge=1, le=64)
    """How many ranked candidates a slot keeps for fall-back."""
    max_cloud_percent: float = Field(default=100, ge=0, le=100)
    """Scenes above this catalogue value are not candidates (unknown counts as 100)."""
    require: dict[str, Required] = Field(default={})
    """What else the catalogue must state of a scene, by the product file's words for it
    (`terrashard products PRODUCT` lists them as facts): one of some values, as in
    `{ orbit_direction = ["descending"] }`, or a number within bounds, as in
    `{ haze_percent = { at_most = 20 } }`. A scene of which it is not stated is not taken."""
    min_sun_elevation_deg: float = 0
    """Scenes below this are not candidates (night scenes are never cloud-free)."""
    max_cloud_fraction: float = Field(default=1.0, ge=0, le=1)
    """Largest share of seen pixels of a patch that may be cloudy."""
    cloudy: tuple[CloudCode, ...] = ("thin-cloud", "cloud", "cloud-shadow")
    """Which codes of the common legend count as cloudy."""
    min_valid_fraction: float = Field(default=1.0, ge=0, le=1)
    """Least share of a patch's pixels that must have been seen."""
    allow_unmasked: bool = False
    """Whether a scene may be used whose clouds nothing tells, neither quality layers nor the
    product's `mask` method (written with mask 8, `valid`)."""
    contained: bool = True
    """Whether one datatake's footprints must contain the whole cell."""
    follows: str | None = None
    """Product whose acquisition this one accompanies: they stand and fall together."""
    within_days: float = Field(default=0, ge=0)
    """Largest distance in time to the leader, in days (0: the same acquisition, by datatake)."""
    slots: tuple[str, ...] | None = Field(default=None, min_length=1, json_schema_extra=EXTENT)
    """Names of the windows in which it is wanted, where products belong to different years; None:
    all of them. A product that follows another is wanted where its leader is."""
    compare_with: str | None = Field(default=None, json_schema_extra=EXTENT)
    """Imaging spectrometer of the same recipe that this product accompanies: of every patch that is
    extracted then, a version's index says how far each band lies from the spectrometer's."""

    @field_validator("require", mode="before")
    @classmethod
    def _written_once(cls, wanted: Any) -> Any:
        if not isinstance(wanted, dict):
            return wanted
        return {word: _required(str(word), value) for word, value in wanted.items()}

    @field_validator("provider")
    @classmethod
    def _plain(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        """One provider is written in one way, so that a list of one changes no identity."""
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    @property
    def providers(self) -> tuple[str, ...]:
        """Every wanted provider, the preferred one first."""
        return (self.provider,) if isinstance(self.provider, str) else self.provider

    def url_of(self, provider: str) -> str | None:
        """Return what replaces the URL of one of the wanted providers, if anything does."""
        return self.url.get(provider) if isinstance(self.url, dict) else self.url

    @model_validator(mode="after")
    def _sound(self) -> ProductWish:
        self._providers_fit()
        if self.follows is None and self.within_days:
            raise ValueError("has `within_days`, which belongs to a product that `follows` another")
        if self.follows is not None and self.slots is not None:
            raise ValueError(
                "has `slots`, but it `follows` another product, whose slots are its own"
            )
        if not self.bands:
            raise ValueError('`bands` is empty: name some, or write "default" or "all"')
        if self.pixel_m is not None and self.pixel_m <= 0:
            raise ValueError(f"`pixel_m` is {self.pixel_m:g}; a pixel has more than 0 metres")
        return self

    def _providers_fit(self) -> None:
        listed = self.providers
        if len(set(listed)) < len(listed) or not listed:
            raise ValueError("`provider` names at least one entry of providers.toml, each once")
        if "local" in listed and self.path is None:
            raise ValueError("needs `path`, the folder of product folders, or another `provider`")
        if self.path is not None and "local" not in listed:
            raise ValueError(
                f'has `path`, which belongs to `provider = "local"`; `provider` is '
                f"{', '.join(listed)}"
            )
        if isinstance(self.url, str) and len(listed) > 1:
            raise ValueError(
                "has one `url` for several providers: write a table, "
                f'`url = {{ {listed[0]} = "..." }}`'
            )
        if isinstance(self.url, dict) and (others := sorted(set(self.url) - set(listed))):
            raise ValueError(
                f"has a `url` for {', '.join(others)}; `provider` lists: {', '.join(listed)}"
            )


class Shards(Strict):
    """How patches are grouped and packed."""

    shard_mb: float = Field(default=512, gt=0)
    """Uncompressed size of a shard, in 10^6 bytes."""
    codec: Literal["zstd", "lz4"] = "zstd"
    """`zstd` (bit-shuffled) is smaller; `lz4` (LZ4HC, byte-shuffled) is 10 to 50 % larger and is
    decoded two to four times faster, for training that waits for its data."""
    compression_level: int = Field(default=1, ge=0, le=9)
    """Of the codec; zstd's 1 takes half the time of 3 for a few percent more bytes."""


class Split(Strict):
    """Spatial blocks, dealt to the parts by a hash of their position."""

    block_km: float = Field(default=50, gt=0)
    """Edge of a block in kilometres; a block never straddles two parts."""
    train: float = Field(default=0.8, ge=0, le=1)
    val: float = Field(default=0.1, ge=0, le=1)
    test: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError("`train`, `val` and `test` must add up to 1")
        return self


# --- all of it -------------------------------------------------------------------------------


class Recipe(Strict):
    """A data set, and what is trained on it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Lower-case name, the default folder of the data set."""
    description: str = ""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and splits."""
    sample: Sample
    cell: Cell
    slots: Slots
    product: tuple[ProductWish, ...] = Field(min_length=1)
    shards: Shards = Shards()
    split: Split = Split()
    pretrain: Pretrain | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        ids = [wish.id for wish in self.product]
        for wish in self.product:
            if ids.count(wish.id) > 1:
                raise ValueError(f"product {wish.id!r} is listed twice")
            leader = next((w for w in self.product if w.id == wish.follows), None)
            if wish.follows is not None and (leader is None or leader.follows or leader is wish):
                leaders = ", ".join(
                    w.id for w in self.product if w.follows is None and w is not wish
                )
                raise ValueError(
                    f"{wish.id!r} follows {wish.follows!r}, which is not one of: "
                    f"{leaders or '(there is no other)'}"
                )
            self._slots_exist(wish)
            self._comparable(wish)
        if (
            isinstance(self.sample, _Sample)
            and self.sample.complete
            and isinstance(self.slots, All)
        ):
            raise ValueError(
                '`sample.complete` needs slots of a known number; `slots.kind = "all"` has none'
            )
        if isinstance(self.sample, Scenes) and self.sample.product not in ids:
            raise ValueError(
                f"`sample.product` {self.sample.product!r} is not one of: {', '.join(ids)}"
            )
        return self

    def _slots_exist(self, wish: ProductWish) -> None:
        if wish.slots is None:
            return
        if not isinstance(self.slots, Windows):
            raise ValueError(f'{wish.id!r} has `slots`; that needs `slots.kind = "windows"`')
        known = [window.name for window in self.slots.windows]
        for name in wish.slots:
            if name not in known:
                raise ValueError(
                    f"{wish.id!r} names the slot {name!r}, which is not one of: {', '.join(known)}"
                )

    def _comparable(self, wish: ProductWish) -> None:
        """The two must stand and fall together, or there is nothing to compare."""
        group = wish.follows or wish.id
        partners = [w.id for w in self.product if w is not wish and (w.follows or w.id) == group]
        if wish.compare_with is not None and wish.compare_with not in partners:
            raise ValueError(
                f"{wish.id!r} has `compare_with` {wish.compare_with!r}; it can be compared with "
                f"what it follows or what follows it: {', '.join(partners) or '(nothing)'}"
            )
