"""The truth: what a perfect processor would deliver for a place, a time and a band.

Everything here is integer arithmetic on hashes and small tables, so the same call gives the same
numbers on any machine, for one pixel or for a whole scene. An extraction that is off by a pixel,
by a day or by one digital number does not match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from math import cos, pi

import numpy as np
import numpy.typing as npt

from pipeline.products.catalogue import LEGEND, Band, Product, lattice
from pipeline.simulate.clouds import OPAQUE, Sky, sky, weather_hour
from pipeline.simulate.landscape import WHOLE, Landscape, landscape
from pipeline.simulate.noise import Integers, Place, hash64
from pipeline.simulate.spectra import MATERIALS, spectra

#: Share of the light that reaches the ground in a cloud's shadow, in 256ths.
_SHADE = 105
#: Bands mixed in one matrix product: keeps the intermediate small.
_BANDS_AT_ONCE = 16


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
    """Return the harmonised values of some bands at some points.

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
        Reflectance x 10,000 without any offset, wherever on Earth a sensor looked: swath edges and
        nodata are the business of `pipeline.simulate.scenes`.
    """
    wanted = [product.band(name) for name in bands]
    values = np.empty((len(wanted), *place.shape), np.int32)
    for pixel_m in {band.pixel_m for band in wanted}:
        chosen = [i for i, band in enumerate(wanted) if band.pixel_m == pixel_m]
        seen = view(pixel_centres(place, product, pixel_m), when)
        values[chosen] = band_values(seen, product, [wanted[i] for i in chosen])
    return values


def legend_codes(product: Product, place: Place, when: datetime) -> npt.NDArray[np.uint8]:
    """Return the common mask legend at some points, shape (y, x).

    As in `reflectance`, a point takes the code of the pixel of the product's (first) mask layer
    that contains it.
    """
    pixel_m = product.mask_layers[0].pixel_m
    return codes(view(pixel_centres(place, product, pixel_m), when))


def pixel_centres(place: Place, product: Product, pixel_m: float) -> Place:
    """Return the centres of the product's pixels of that size that contain each point."""
    grid, size = lattice(product.lattice), round(pixel_m)
    phases = np.where(
        place.n_m >= 0, round(grid.y_phase_north_m) % size, round(grid.y_phase_south_m) % size
    )
    x_m = _snapped(place.x_m, round(grid.x_phase_m) % size, size)
    return Place(place.zone, x_m, _snapped(place.n_m, phases, size), place.seed)


def codes(seen: View) -> npt.NDArray[np.uint8]:
    """Return the common mask legend of a view; cloud before shadow before veil before ground."""
    code = np.where(seen.land.water, LEGEND["water"], LEGEND["land"])
    code[seen.snowy] = LEGEND["snow"]
    code[(seen.sky.cirrus_class >= 2) | seen.sky.haze] = LEGEND["thin-cloud"]
    code[seen.sky.shadow] = LEGEND["cloud-shadow"]
    code[seen.sky.covered] = LEGEND["cloud"]
    return code.astype(np.uint8)


def band_values(seen: View, product: Product, bands: Sequence[Band]) -> npt.NDArray[np.int32]:
    """Return the harmonised values of bands of one pixel size, shape (band, y, x)."""
    south = seen.place.n_m < 0
    if south.any() and not south.all():  # seasons differ north and south of the equator
        split = int(np.argmax(south))
        halves = [_rows(seen, slice(0, split)), _rows(seen, slice(split, None))]
        return np.concatenate([band_values(half, product, bands) for half in halves], axis=1)
    table = spectra(
        [_wavelength(product, band) for band in bands],
        [band.fwhm_nm for band in bands],
        seen.when,
        south=bool(south.all()),
    )
    materials, weights = _mixture(seen)
    table = table[:, materials]
    shares = table.astype(np.float32)
    grain = _grain(seen)
    values = np.empty((len(bands), grain.size), np.int32)
    for start in range(0, len(bands), _BANDS_AT_ONCE):
        some = slice(start, start + _BANDS_AT_ONCE)
        # exact in float32 in any order: sums of whole numbers stay below 2**24
        values[some] = shares[some] @ weights
    values >>= 8
    for layer, band in zip(values, bands, strict=True):
        layer += _band_noise(grain.ravel(), product, band)
    return values.reshape(len(bands), *seen.place.shape)


def _snapped(points: Integers, phase: Integers | int, size: int) -> Integers:
    return (points - phase) // size * size + phase + size // 2


def _wavelength(product: Product, band: Band) -> float:
    if band.wavelength_nm is None:
        raise ValueError(f"band {band.name} of {product.id} has no wavelength to simulate")
    return band.wavelength_nm


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
