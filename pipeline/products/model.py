"""What a product file may say: the tables of its TOML, checked."""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.errors import RecipeError

#: Codes of the common mask legend, the same for every product (design, section 6).
LEGEND = {
    "fill": 0,
    "land": 1,
    "water": 2,
    "snow": 3,
    "thin-cloud": 4,
    "cloud": 5,
    "cloud-shadow": 6,
    "defective": 7,
    "valid": 8,
}
LegendName = Literal[
    "fill", "land", "water", "snow", "thin-cloud", "cloud", "cloud-shadow", "defective", "valid"
]

#: Collections of Earth Engine whose images no other provider has: Sentinel-1 GRD, which it corrects
#: for terrain. `sentinel-1-grd` is not, and `sentinel-1-rtc` is gamma nought.
_CORRECTED = "COPERNICUS/S1_GRD"

#: Stored where a product delivered nothing, in signed 16-bit arrays.
FILL_INT16 = -32768


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )


class Lattice(_Strict):
    """Where the pixel edges of a product lie in a UTM zone."""

    id: str
    """Short name, part of every cell id: `s2r10`."""
    pixel_m: float = Field(gt=0)
    """Pixel size in metres, in x and y."""
    x_phase_m: float
    """Easting of any pixel edge, modulo `pixel_m`."""
    y_phase_north_m: float
    """Northing of any pixel edge north of the equator, modulo `pixel_m`."""
    y_phase_south_m: float
    """The same south of it, with the northing counted from the equator (negative)."""


class Band(_Strict):
    """One band of a product as delivered."""

    name: str
    """Name in the data set, unique in the product."""
    index: int = Field(default=1, ge=1)
    """1-based position in its asset, where one asset holds several bands."""
    part: str | None = None
    """Which of several files with many bands holds it (a detector's); a provider's `assets` say
    which file a part is. None: the one that `*` names."""
    wavelength_nm: float | None = None
    """Centre wavelength in nanometres; None for labels and radar."""
    fwhm_nm: float | None = None
    """Full width at half maximum in nanometres."""
    pixel_m: float = Field(gt=0)
    """Pixel size in metres, as delivered (about, where the product's own grid is in degrees)."""
    inset_m: float = Field(default=0, ge=0)
    """How far the edges of its file lie inside those of the other bands' files: Landsat's grids of
    15 and 30 m share pixel centres, not corners."""
    unit: str | None = None
    """Unit of the physical value where it is not the product's (UCUM): `K` for thermal bands."""
    saturated_bit: int | None = Field(default=None, ge=0, le=31)
    """Which bit is set where this band is saturated, in the quality layer of the rule with
    `saturated = true`; None: it has none."""
    default: bool = True
    """Whether `bands = "default"` takes it."""


class MaskLayer(_Strict):
    """One quality layer, as one delivered raster band."""

    name: str
    """Name used by the rules below; a provider's `assets` say which file it is."""
    pixel_m: float = Field(gt=0)
    """Native pixel size in metres."""
    index: int = Field(default=1, ge=1)
    """1-based band in its asset."""
    shift_bits: int = Field(default=0, ge=0, le=31)
    """Where its value is packed in `mask_native` (value << shift_bits, layers or-ed together)."""
    width_bits: int = Field(default=8, ge=1, le=32)
    """How many bits its value needs; a delivered value that does not fit is an error."""
    optional: bool = False
    """A scene without it is still usable (the rules that name it never match)."""
    per_band: bool = False
    """One raster band for each image band, in the image's order: it counts defective values, takes
    no part in the rules, and is not packed into `mask_native`."""


class MaskRule(_Strict):
    """One line of the order of precedence: the first rule that matches a pixel decides it."""

    layer: str
    values: tuple[int, ...] | None = None
    """Matches these values ..."""
    bits: int | None = None
    """... or any of these bits ..."""
    saturated: bool = False
    """... or the `saturated_bit` of any band that the recipe stores: of what is saturated in other
    bands alone nothing is lost."""
    code: LegendName
    """What a matching pixel becomes in the common legend."""

    @model_validator(mode="after")
    def _one_test(self) -> MaskRule:
        if (self.values is not None) + (self.bits is not None) + self.saturated != 1:
            raise ValueError("a mask rule has one of `values`, `bits` and `saturated = true`")
        return self


class MaskBands(_Strict):
    """The bands that a mask method looks at, by name."""

    blue: str
    red: str
    nir: str
    swir16: str
    """Near 1.6 µm."""
    cirrus: str | None = None
    """Near 1.38 µm, where water vapour hides the ground; None: thin cirrus is not looked for."""


class MaskMethod(_Strict):
    """How the mask of a scene without quality layers is made from its image."""

    method: Literal["toa-thresholds"]
    """`toa-thresholds`: reflectance at the top of the atmosphere against published thresholds
    (`pipeline.raster.thresholds`); finds clouds, snow and water, but no shadow."""
    bands: MaskBands

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the bands that must be read, each once."""
        return tuple(dict.fromkeys(name for _, name in self.bands if name is not None))


class BandAsset(_Strict):
    """Which file of a provider holds a band or mask layer at which pixel size."""

    asset: str
    """Asset key in the provider's items."""
    pixel_m: float | None = None
    """Pixel size of that file; None: the band's native one."""


class Offset(_Strict):
    """A number added to delivered values by the processor, to be removed exactly."""

    from_baseline: str
    """First processing baseline that has it (compared as numbers, part by part)."""
    add: int
    """What must be added to a delivered value to remove it: -1000 for Sentinel-2 from 04.00."""


class DarkObject(_Strict):
    """Where the darkest pixels of a scene lie in one band, by which an offset is seen in them.

    As reflectances. What is darkest depends on the level: at the top of the atmosphere the air
    scatters blue light over water and shadow alike, at the surface it was taken off.
    """

    bands: tuple[str, ...] = Field(min_length=1)
    """The band to look at: the first of these that a scene has."""
    least: float
    """From here ..."""
    most: float
    """... to below here lie the dark objects of a scene that has some."""
    never_below: float
    """Below it lies the dark object of no scene, whatever it shows."""

    @model_validator(mode="after")
    def _ascend(self) -> DarkObject:
        if not self.never_below <= self.least < self.most:
            raise ValueError("`never_below`, `least` and `most` of a dark object must ascend")
        return self


class FileBand(_Strict):
    """One band of a file, as a table of its processor's has it."""

    index: int = Field(ge=1)
    """1-based position in the file."""
    wavelength_nm: float = Field(gt=0)
    """Centre wavelength in nanometres."""
    fwhm_nm: float = Field(gt=0)
    """Full width at half maximum in nanometres."""


class BandTable(_Strict):
    """Which bands a file holds in which order, by the processor that wrote it.

    It is for scenes that do not state their own table. Nothing is known of a processor that no
    entry covers: its scenes are not used unless they state theirs.
    """

    from_baseline: str
    """First processing baseline that has it (compared as numbers, part by part)."""
    to_baseline: str | None = None
    """Last one that is known to have it; None: all later ones."""
    bands: tuple[FileBand, ...] = ()
    """Empty: files have the product's `bands` at the `index` given there."""
    bands_csv: str | None = None
    """CSV beside the file with the columns of `FileBand`, in place of `bands`."""


class Response(_Strict):
    """How a band sees light of each wavelength, as it was measured."""

    band: str
    """Name of the band."""
    platform: str
    """Satellite on which it was measured."""
    datatake: str = ""
    """What the datatakes of that satellite begin with. A scene of a satellite without a response of
    its own takes the first of each band; sisters differ a little."""
    start_nm: float = Field(gt=0)
    """Wavelength of the first value in nanometres."""
    step_nm: float = Field(gt=0)
    """From one value to the next."""
    values: tuple[float, ...] = Field(min_length=3)
    """Relative responses; in a CSV separated by blanks."""

    @field_validator("values", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(value.split()) if isinstance(value, str) else value


class Calibration(_Strict):
    """How delivered numbers become physical ones, where every scene has coefficients of its own."""

    method: Literal["landsat-toa", "sentinel-1-sigma0", "enmap-radiance"]
    """`landsat-toa`: reflectance and brightness temperature at the top of the atmosphere, by the
    scene's MTL.json (`pipeline.raster.landsat`). `sentinel-1-sigma0`: sigma nought in dB, by the
    calibration table of each polarisation (`pipeline.raster.sentinel1`). `enmap-radiance`: radiance
    at the sensor by the scene's METADATA.XML (`pipeline.raster.enmap`)."""
    file: str
    """Name of the file with the coefficients; a provider's `assets` say which it is."""
    per_band: bool = False
    """Each band has a file of its own, named by `file`, a space, and the band."""
    noise: str | None = None
    """`sentinel-1-sigma0`: name of the file with the noise table, by which the noise along the
    borders of scenes by old processors is told; each band has one of its own."""


class ProviderFacts(_Strict):
    """How one provider serves this product: names only; URL and limits are in providers.toml."""

    collection: str
    """Collection id in its catalogue; for `local`, the kind of folder: `safe`, `enmap-folder` or
    `geotiff`."""
    like: str | None = None
    """Another provider of the same product, whose names hold for every key not given here."""
    assets: dict[str, tuple[BandAsset, ...]] = {}
    """Band or mask layer name to the files that hold it. The key `*` serves every band without an
    entry of its own (one file with all bands), and the name of a part every band of it. A layer
    that each part has for itself is named by both: `pixelmask vnir`."""
    properties: dict[str, str] = {}
    """Our word to the item's property (`id`: the item's id; `=text`: a constant): acquired,
    datatake, tile, baseline, cloud_percent, sun_elevation_deg, sun_zenith_deg, offset_applied (has
    the provider removed the offset?), offset_add (what the metadata say must be added)."""
    facts: dict[str, str] = {}
    """Further facts of a scene that it states, in the same way: `quality = "enmap:overallQuality"`.
    They are kept with each scene, and a recipe's `require` chooses by them."""
    patterns: dict[str, str] = {}
    """Our word to the regular expression that cuts its value out of the property: its groups,
    joined by `_`."""
    offset_applied: bool | None = None
    """Whether this provider has already removed the offset: True, False, or None when only the
    item's `offset_applied` property says so."""
    baseline_kind: str = ""
    """What its baselines count, where that is not what they count at the product's other providers:
    `processing-date`. Only baselines of one kind say which of two processings is the newer."""
    only: dict[str, str] = {}
    """Item property (or `id`) to a regular expression that all of its value must fit. Items that do
    not are of another product: one collection may hold several sensors."""
    codes: dict[str, int] = {}
    """Labels only: the code that this provider delivers (as text) to the product's own. Empty: they
    are the same. A code that is not here is an error."""

    def entries(self, band: Band) -> tuple[BandAsset, ...]:
        """Return the files that may hold a band: by its name, its part, or as all others."""
        return self.assets.get(band.name) or self.assets.get(band.part or "*", ())

    def marks(self, layer: str, part: str | None) -> tuple[BandAsset, ...]:
        """Return the files that may hold a layer for the bands of a part."""
        return self.assets.get(f"{layer} {part}") or self.assets.get(layer, ())


class Product(_Strict):
    """A sensor at a processing level: everything the code needs to know about it."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    kind: Literal["image", "labels"] = "image"
    """`labels`: class codes, one band, nearest only, never scaled."""
    temporal: Literal["dated", "static", "yearly"] = "dated"
    """`static`: one acquisition serves every slot (terrain). `yearly`: a map of a year, which
    serves the slots that it is nearest to."""
    lattice: str | None = None
    """Lattice of its finest band (lattices.toml). None: it lies on no UTM lattice (degrees,
    another map projection, radar geometry), and `warp` brings it onto the pixels of each cell."""
    warp: Literal["nearest", "bilinear"] | None = None
    """How, for a product without a lattice. Codes cannot be averaged: labels take the nearest."""
    geolocation: Literal["grid", "gcp", "rpc"] = "grid"
    """`gcp`: files have no grid, only ground control points, and no terrain correction: what lies
    h metres above the points' surface is displaced by h / tan(incidence angle). `rpc`: files lie in
    sensor geometry, and the scene's coefficients say where each band sees a place at the mean
    height of the ground: what lies h metres above that is displaced by h x tan(view angle)."""
    stored_dtype: Literal["int16", "uint16", "uint8", "float32"] = "int16"
    """Type in the shards."""
    nodata: float | None = None
    """Delivered value that means nothing was seen; None: none is set aside."""
    saturated: float | None = None
    """Delivered value that means saturated."""
    scale: float = 1.0
    """Physical value = stored * scale + offset."""
    offset: float = 0.0
    unit: str = "1"
    """Unit of the physical value (UCUM; `1` for reflectance)."""
    settling_days: float = 0
    """How long after its end a window may still gain scenes."""
    bands: tuple[Band, ...] = ()
    bands_csv: str | None = None
    """CSV beside the file with the columns of `Band`, for imaging spectrometers."""
    responses: tuple[Response, ...] = ()
    """Measured responses of some of its bands."""
    responses_csv: str | None = None
    """CSV beside the file with the columns of `Response`, in place of `responses`."""
    band_tables: tuple[BandTable, ...] = ()
    """Tables of other processors, in ascending order, for files whose bands are not always the same
    or not always in the same order. Empty: they are."""
    mask_layers: tuple[MaskLayer, ...] = ()
    mask_rules: tuple[MaskRule, ...] = ()
    mask_default: LegendName = "valid"
    """What no rule matched."""
    mask: MaskMethod | None = None
    """What decides where a scene has none of the quality layers; None: nothing does."""
    offsets: tuple[Offset, ...] = ()
    dark_objects: tuple[DarkObject, ...] = ()
    """Of bands far apart in wavelength, which must all say the same of an offset; whether a recipe
    stores them is no matter. Empty: whether a file has the offset is not audited."""
    calibration: Calibration | None = None
    providers: dict[str, ProviderFacts] = {}
    """Provider name (an entry of providers.toml) to its names for this product."""
    classes: dict[str, str] = {}
    """Labels only: code (as text) to class name."""
    colours: dict[str, str] = {}
    """Labels only: code (as text) to the colour of its maps, `#rrggbb`."""
    groups: dict[str, tuple[int, ...]] = {}
    """Labels only: name of a class group to the codes that make it, for sets of labels
    (`evaluate.task = "multi-label"`). Codes may be in no group."""
    ignore_class: int | None = None
    """Labels only: the code that means unlabelled."""
    sources: tuple[str, ...] = Field(min_length=1)
    """Where the numbers come from."""
    terms: str = ""
    """Terms under which its data may be used, and where they are; empty: not known here. Those of
    the owner hold, whatever stands here."""
    attribution: str = ""
    """What is to be said beside what is made of them. Words are the terms' where they give any."""

    @model_validator(mode="after")
    def _sound(self) -> Product:
        if (self.lattice is None) == (self.warp is None):
            raise ValueError("has either `lattice`, or `warp` because it lies on none")
        if self.kind == "labels" and self.warp not in (None, "nearest"):
            raise ValueError('is of class codes: `warp` must be "nearest"')
        if self.warp is not None and self.mask_layers and self.geolocation != "rpc":
            raise ValueError(
                "has `warp` and `mask_layers`: quality layers are brought onto cells in sensor "
                'geometry alone (`geolocation = "rpc"`)'
            )
        own = self.calibration is not None and self.calibration.method == "enmap-radiance"
        if self.geolocation == "rpc" and (self.warp is None or not own):
            raise ValueError(
                'has `geolocation = "rpc"`, which needs `warp` and the `calibration.method` that '
                'reads the coefficients, "enmap-radiance"'
            )
        if self.mask is not None:
            self._can_be_masked(self.mask)
        self._can_be_audited()
        if any(rule.saturated for rule in self.mask_rules) and not self.saturated_bits():
            raise ValueError("has a mask rule with `saturated` and no band with a `saturated_bit`")
        corrected = self.providers.get("earth-engine")
        if corrected is not None and corrected.collection.startswith(_CORRECTED):
            self._stands_alone(corrected.collection)
        if set(self.colours) - set(self.classes):
            raise ValueError("has `colours` of codes that are not in `classes`")
        grouped = [code for codes in self.groups.values() for code in codes]
        if strange := {str(code) for code in grouped} - set(self.classes):
            raise ValueError(
                f"has `groups` of {', '.join(sorted(strange))}, which `classes` does not name"
            )
        if self.ignore_class in grouped or len(set(grouped)) < len(grouped):
            raise ValueError("has `groups` with a code twice, or with the one for unlabelled")
        for name, facts in self.providers.items():
            if strange := {str(code) for code in facts.codes.values()} - set(self.classes):
                raise ValueError(
                    f"has `providers.{name}.codes` for {', '.join(sorted(strange))}, which "
                    "`classes` does not name"
                )
        return self

    def _stands_alone(self, collection: str) -> None:
        """Raise `ValueError` if others serve it too: their images are of another processing."""
        others = [name for name in self.providers if name != "earth-engine"]
        if others:
            raise ValueError(
                f"has Earth Engine's {collection}, which is corrected for terrain, and "
                f"`providers.{others[0]}`: the two must not mix, and are products of their own"
            )

    def _can_be_audited(self) -> None:
        """Raise `ValueError` if its dark objects cannot be looked at, or are too few."""
        there = {band.name for band in self.bands}
        absent = [name for dark in self.dark_objects for name in dark.bands if name not in there]
        if absent:
            raise ValueError(f"has no such bands for `dark_objects`: {', '.join(absent)}")
        if len(self.dark_objects) == 1:
            raise ValueError("has `dark_objects` in one band alone, where a bright scene deceives")

    def _can_be_masked(self, mask: MaskMethod) -> None:
        """Raise `ValueError` if the product does not hold what its mask method looks at."""
        there = {band.name for band in self.bands}
        absent = [f"{word} = {name!r}" for word, name in mask.bands if name and name not in there]
        if absent:
            raise ValueError(
                f"has no such bands for `mask.method = {mask.method!r}`: {', '.join(absent)}"
            )
        if self.kind == "labels" or self.unit != "1" or self.calibration or self.warp:
            raise ValueError(
                f"has `mask.method = {mask.method!r}`, which needs reflectance on a lattice: an "
                "image with unit 1, without `calibration` and without `warp`"
            )

    def saturated_bits(self, bands: Collection[str] | None = None) -> int:
        """Return the saturation bits of some bands, or-ed; None: of all."""
        bits = 0
        for band in self.bands:
            if band.saturated_bit is not None and (bands is None or band.name in bands):
                bits |= 1 << band.saturated_bit
        return bits

    def coefficients(self, band: str) -> tuple[str, ...]:
        """Return the names of the files with a band's coefficients; none if it needs none."""
        if self.calibration is None:
            return ()
        own = self.calibration.per_band
        name = f"{self.calibration.file} {band}" if own else self.calibration.file
        return (name, f"{self.calibration.noise} {band}") if self.calibration.noise else (name,)

    def band(self, name: str) -> Band:
        """Return the band of that name, or raise `RecipeError` naming what exists."""
        if (found := self.by_name.get(name)) is not None:
            return found
        names = [band.name for band in self.bands]
        known = ", ".join(names) if len(names) <= 20 else f"{names[0]}, {names[1]} ... {names[-1]}"
        raise RecipeError(f"product {self.id} has no band {name!r}; it has: {known}.")

    @property
    def conditions(self) -> str:
        """Return terms and attribution as one paragraph; says so where no terms are known."""
        said = f" Say: {self.attribution}." if self.attribution else ""
        return f"{self.terms or 'terms not known here'}.{said}"

    @cached_property
    def by_name(self) -> dict[str, Band]:
        """Its bands."""
        return {band.name: band for band in self.bands}

    @property
    def class_groups(self) -> dict[str, tuple[int, ...]]:
        """Return what sets of labels are made of: the groups or, without them, the classes."""
        alone: dict[str, tuple[int, ...]] = {}
        for code, name in self.classes.items():
            if int(code) != self.ignore_class:
                alone[name] = (*alone.get(name, ()), int(code))
        return self.groups or alone

    @property
    def fill(self) -> float:
        """What the shards hold where nothing was seen."""
        if self.stored_dtype == "int16":
            return FILL_INT16
        if self.stored_dtype == "float32":
            return float("nan")
        return 0 if self.ignore_class is None else self.ignore_class
