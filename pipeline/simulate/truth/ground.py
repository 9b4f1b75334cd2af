"""The truth: what a perfect processor would deliver for a place, a time and a band.

Everything here is integer arithmetic on hashes and small tables, so the same call gives the same
numbers on any machine, for one pixel or for a whole scene. An extraction that is off by a pixel,
by a day or by one digital number does not match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatch
from math import cos, pi
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipeline.products.catalogue import lattice
from pipeline.products.model import LEGEND, Band, Product
from pipeline.simulate.truth.clouds import OPAQUE, Sky, sky, weather_hour
from pipeline.simulate.truth.landscape import COVERS, WHOLE, Landscape, covers, landscape
from pipeline.simulate.truth.noise import Integers, Place, hash64
from pipeline.simulate.truth.spectra import (
    ABOVE_AIR,
    MATERIALS,
    echoes,
    spectra,
    temperatures,
    through_air,
)

#: Share of the light that reaches the ground in a cloud's shadow, in 256ths.
_SHADE = 105
#: Bands mixed in one matrix product: keeps the intermediate small.
_BANDS_AT_ONCE = 16
#: How warm shade is, in hundredths of a kelvin; how much colder each unit of height is, in 1/256.
_SHADE_TEMPERATURE, _LAPSE = 28_000, 3
#: Products that show the ground through the air.
_TOP_OF_ATMOSPHERE = ("*-l1c", "*-toa")

Kind = Literal["reflectance", "temperature", "backscatter", "height", "class"]
#: What one count of `band_values` is, in the unit of its kind. Backscatter: mixture x speckle.
STEP: dict[Kind, float] = {
    "reflectance": 1e-4,
    "temperature": 1e-2,
    "backscatter": 1e-4 / WHOLE**2,
    "height": 1 / 64,
    "class": 1,
}


def kind_of(product: Product, band: Band) -> Kind:
    """Return what a band measures, by what its product file says of it."""
    if product.kind == "labels":
        return "class"
    unit = band.unit or product.unit
    if unit in ("K", "m"):
        return "temperature" if unit == "K" else "height"
    return "backscatter" if band.wavelength_nm is None else "reflectance"


@dataclass(frozen=True, slots=True)
class View:
    """A place at a time: ground, snow and sky at pixel centres."""

    place: Place
    when: datetime
    land: Landscape
    sky: Sky
    snow: npt.NDArray[np.uint16]
    """Share of snow in 256ths, shape (y, x)."""

    @property
    def snowy(self) -> npt.NDArray[np.bool_]:
        """Where snow hides the ground."""
        return self.snow >= WHOLE // 2


def view(place: Place, when: datetime, *, land: Landscape | None = None) -> View:
    """Look at a place; `land` saves computing the unchanging part again."""
    land = landscape(place) if land is None else land
    return View(place, when, land, sky(place, when), _snow(place, land, when))


def reflectance(
    product: Product, bands: Sequence[str], place: Place, when: datetime
) -> npt.NDArray[np.int32]:
    """Return the true values of some bands at some points, in counts of `STEP`.

    A point takes the value of the band's own pixel that contains it, evaluated at that pixel's
    centre: so for a patch stored at 10 m whose 20 m bands are repeated, pass the centres of the
    stored pixels.

    Parameters
    ----------
    product : Product
    bands : sequence of str
    place : Place
        Any points, in whole metres.
    when : datetime
        Acquisition; the truth changes from hour to hour (weather) and day to day (seasons).

    Returns
    -------
    int32 array, shape (band, y, x)
        Reflectance x 10,000 without any offset (hundredths of a kelvin, ...), wherever on Earth a
        sensor looked: swath edges and nodata are for `pipeline.simulate.delivery.scenes`.
    """
    wanted = [product.band(name) for name in bands]
    values = np.empty((len(wanted), *place.shape), np.int32)
    for pixel_m, inset_m in {(band.pixel_m, band.inset_m) for band in wanted}:
        chosen = [i for i, b in enumerate(wanted) if (b.pixel_m, b.inset_m) == (pixel_m, inset_m)]
        seen = view(pixel_centres(place, product, pixel_m, inset_m), when)
        values[chosen] = band_values(seen, product, [wanted[i] for i in chosen])
    return values


def legend_codes(product: Product, place: Place, when: datetime) -> npt.NDArray[np.uint8]:
    """Return the common mask legend at some points, shape (y, x).

    As in `reflectance`, a point takes the code of the pixel of the product's (first) mask layer
    that contains it.
    """
    pixel_m = product.mask_layers[0].pixel_m
    return codes(view(pixel_centres(place, product, pixel_m), when))


def pixel_centres(place: Place, product: Product, pixel_m: float, inset_m: float = 0) -> Place:
    """Return the centres of the product's pixels of that size that contain each point.

    A product without a lattice has no pixels of its own in a zone: the points themselves.
    """
    if product.lattice is None:
        return place
    grid = lattice(product.lattice)
    phase_n_m = np.where(place.n_m >= 0, grid.y_phase_north_m, grid.y_phase_south_m)
    x_m = _snapped(place.x_m, np.asarray(grid.x_phase_m + inset_m), pixel_m)
    return Place(place.zone, x_m, _snapped(place.n_m, phase_n_m + inset_m, pixel_m), place.seed)


def codes(seen: View) -> npt.NDArray[np.uint8]:
    """Return the common mask legend of a view; cloud before shadow before veil before ground."""
    code = np.where(seen.land.water, LEGEND["water"], LEGEND["land"])
    code[seen.snowy] = LEGEND["snow"]
    code[(seen.sky.cirrus_class >= 2) | seen.sky.haze] = LEGEND["thin-cloud"]
    code[seen.sky.shadow] = LEGEND["cloud-shadow"]
    code[seen.sky.covered] = LEGEND["cloud"]
    return code.astype(np.uint8)


def band_values(seen: View, product: Product, bands: Sequence[Band]) -> npt.NDArray[np.int32]:
    """Return the true values of bands of one grid in counts of `STEP`, shape (band, y, x)."""
    south = seen.place.n_m < 0
    if south.any() and not south.all():  # seasons differ north and south of the equator
        split = int(np.argmax(south))
        halves = [_rows(seen, slice(0, split)), _rows(seen, slice(split, None))]
        return np.concatenate([band_values(half, product, bands) for half in halves], axis=1)
    kinds = {kind_of(product, band) for band in bands}
    if len(kinds) > 1:
        values = np.empty((len(bands), *seen.place.shape), np.int32)
        for kind in kinds:
            chosen = [i for i, band in enumerate(bands) if kind_of(product, band) == kind]
            values[chosen] = band_values(seen, product, [bands[i] for i in chosen])
        return values
    match kinds.pop():
        case "reflectance":
            return _reflected(seen, product, bands, south=bool(south.all()))
        case "temperature":
            return _emitted(seen, product, bands, south=bool(south.all()))
        case "backscatter":
            return _echoed(seen, bands)
        case "height":
            return seen.land.height[None].astype(np.int32)
        case "class":
            return class_codes(product, seen.land)[None].astype(np.int32)


def class_codes(product: Product, land: Landscape) -> npt.NDArray[np.uint8]:
    """Return the classes of a label product, shape (y, x)."""
    if product.bands[0].name == "arrangement":
        return land.arrangement
    table = np.array([_class_of(product, cover) for cover in COVERS], np.uint8)
    return table[covers(land)]


def _class_of(product: Product, cover: str) -> int:
    """Return the code of the first class whose name has a word for a cover."""
    for word in COVERS[cover]:
        for code, name in product.classes.items():
            if word in name.lower():
                return int(code)
    return product.ignore_class or 0


def _reflected(
    seen: View, product: Product, bands: Sequence[Band], *, south: bool
) -> npt.NDArray[np.int32]:
    centres = [band.wavelength_nm for band in bands if band.wavelength_nm is not None]
    table = spectra(centres, [band.fwhm_nm for band in bands], seen.when, south=south)
    added = np.zeros(len(bands), np.int32)
    if any(fnmatch(product.id, pattern) for pattern in _TOP_OF_ATMOSPHERE):
        through, added = through_air(np.array(centres))
        high = np.isin(MATERIALS, ABOVE_AIR)
        table = np.where(high, table, np.rint(table * through[:, None])).astype(np.int32)
    materials, weights = _mixture(seen)
    return _noisy(_mixed(table[:, materials], weights) + added[:, None], seen, product, bands)


def _emitted(
    seen: View, product: Product, bands: Sequence[Band], *, south: bool
) -> npt.NDArray[np.int32]:
    materials, weights = _mixture(seen)
    warm = temperatures(seen.when, south=south)[materials]
    shade = WHOLE - weights.sum(axis=0, dtype=np.float32)
    table = np.concatenate([warm, [_SHADE_TEMPERATURE]])[None]
    values = _mixed(table, np.concatenate([weights, shade[None]]))
    values = values - (seen.land.height.reshape(1, -1) * _LAPSE >> 8)
    return _noisy(np.repeat(values, len(bands), axis=0), seen, product, bands)


def _echoed(seen: View, bands: Sequence[Band]) -> npt.NDArray[np.int32]:
    """Return radar echoes: clouds do not matter; snow and ground do, times the speckle."""
    bare = WHOLE - seen.snow.astype(np.int32)
    weights = np.stack([*(seen.land.weights * bare >> 8), seen.snow]).reshape(
        len(MATERIALS) + 1, -1
    )
    values = np.empty((len(bands), *seen.place.shape), np.int32)
    for layer, band in zip(values, bands, strict=True):
        echo = echoes(crossed=band.name in ("VH", "HV"))
        table = np.append(echo, echo[MATERIALS.index("snow")])
        mixture = (table @ weights.astype(np.int64)).reshape(seen.place.shape)
        layer[:] = mixture * _speckle(seen, band)
    return values


#: Quantiles of the exponential distribution with mean 1, in 256ths: one look of a radar.
_ONE_LOOK = np.rint(-WHOLE * np.log((np.arange(256) + 0.5) / 256)).astype(np.int64)
_LOOKS = 4


def _speckle(seen: View, band: Band) -> Integers:
    """Return what speckle makes of a power, in 256ths: the mean of four looks (the real: 4.4)."""
    place, name = seen.place, int.from_bytes(band.name.encode()[:4], "big")
    hour = weather_hour(seen.when)
    bits = hash64(place.seed, place.zone, 82, name, hour, place.n_m[:, None], place.x_m)
    looks = [_ONE_LOOK[(bits >> np.uint64(8 * i)) & np.uint64(255)] for i in range(_LOOKS)]
    total: Integers = sum(looks[1:], looks[0])
    return total // _LOOKS


def _mixed(table: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Return the mixture of what materials look like: table (band, material), weights in 256ths."""
    shares = table.astype(np.float32)
    values = np.empty((len(table), weights.shape[1]), np.int32)
    for start in range(0, len(table), _BANDS_AT_ONCE):
        some = slice(start, start + _BANDS_AT_ONCE)
        # exact in float32 in any order: sums of whole numbers stay below 2**24
        values[some] = shares[some] @ weights
    values >>= 8
    return values


def _noisy(
    values: npt.NDArray[np.int32], seen: View, product: Product, bands: Sequence[Band]
) -> npt.NDArray[np.int32]:
    """Add the sensor's noise, and give the values their shape (band, y, x)."""
    grain = _grain(seen).ravel()
    for layer, band in zip(values, bands, strict=True):
        layer += _band_noise(grain, product, band)
    return values.reshape(len(bands), *seen.place.shape)


def _snapped(points: Integers, edge_m: npt.NDArray[np.float64], pixel_m: float) -> Integers:
    centres = np.floor((points - edge_m) / pixel_m) * pixel_m + edge_m + pixel_m / 2
    return centres.astype(np.int64)


def _rows(seen: View, rows: slice) -> View:
    """Return some rows of a view."""
    land, above = seen.land, seen.sky
    return View(
        Place(seen.place.zone, seen.place.x_m, seen.place.n_m[rows], seen.place.seed),
        seen.when,
        Landscape(
            land.weights[:, rows], land.arrangement[rows], land.water[rows], land.height[rows]
        ),
        Sky(
            above.cloud[rows],
            above.cirrus[rows],
            above.cirrus_class[rows],
            above.haze[rows],
            above.shadow[rows],
        ),
        seen.snow[rows],
    )


def _snow(place: Place, land: Landscape, when: datetime) -> npt.NDArray[np.uint16]:
    """Return the share of snow: high ground in winter, never on water."""
    day = when.timetuple().tm_yday
    lines = [round(62_000 - 26_000 * cos(2 * pi * (day + half - 20) / 365)) for half in (0, 182)]
    line = np.where(place.n_m < 0, lines[1], lines[0])[:, None]
    share = np.clip((land.height - line) // 24, 0, 225)
    return np.where(land.water, 0, share).astype(np.uint16)


def _mixture(seen: View) -> tuple[list[int], npt.NDArray[np.float32]]:
    """Return which materials are in view, and their shares in 256ths as seen from above.

    Returns
    -------
    materials : list of int
        Indices into `MATERIALS`.
    shares : float32 array, shape (material, pixel)
        Whole numbers; what is missing to 256 is shade.
    """
    above = seen.sky
    through_cloud = OPAQUE - above.cloud.astype(np.int32)
    through_sky = (OPAQUE - above.cirrus.astype(np.int32)) * through_cloud >> 8
    # shadows lie on the ground and on the snow, below the sky
    light = np.where(above.shadow, through_sky * _SHADE >> 8, through_sky)
    bare = (WHOLE - seen.snow.astype(np.int32)) * light >> 8
    shares = {
        index: layer * bare >> 8 for index, layer in enumerate(seen.land.weights) if layer.any()
    }
    veils = {
        "snow": seen.snow * light >> 8,
        "cirrus": above.cirrus * through_cloud >> 8,
        "cloud": above.cloud,
    }
    shares |= {MATERIALS.index(name): share for name, share in veils.items() if share.any()}
    stacked = np.empty((len(shares), seen.land.water.size), np.float32)
    for row, share in zip(stacked, shares.values(), strict=True):
        row[:] = share.ravel()
    return list(shares), stacked


def _grain(seen: View) -> npt.NDArray[np.uint32]:
    """Return 32 random bits per pixel and acquisition hour: the seed of the sensor's noise."""
    place, hour = seen.place, weather_hour(seen.when)
    bits = hash64(place.seed, place.zone, 80, hour, place.n_m[:, None], place.x_m)
    return (bits >> np.uint64(32)).astype(np.uint32)


def _band_noise(
    grain: npt.NDArray[np.uint32], product: Product, band: Band
) -> npt.NDArray[np.int32]:
    """Return the noise of one band, 0 or 1 digital number: the top bit of an odd multiple.

    Less than real sensors have, for the archive's size; enough that no two values repeat at will.
    """
    name = f"{product.id}/{band.name}".encode()
    odd = (hash64(81, *name) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    return (grain * odd >> np.uint32(31)).astype(np.int32)
