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
    weights = _mixture(seen).reshape(len(MATERIALS), -1).astype(np.float32)
    # exact in float32 in any order: sums of whole numbers stay below 2**24
    mixed = (table.astype(np.float32) @ weights).astype(np.int32) >> 8
    values = mixed.reshape(len(bands), *seen.place.shape)
    grain = _grain(seen)
    for layer, band in zip(values, bands, strict=True):
        layer += _band_noise(grain, product, band)
    return values


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


def _mixture(seen: View) -> npt.NDArray[np.int32]:
    """Return the shares of all materials as seen from above, in 256ths, shape (material, y, x)."""
    weights = seen.land.weights.astype(np.int32)
    layers = ((seen.snow, "snow"), (seen.sky.cirrus, "cirrus"), (seen.sky.cloud, "cloud"))
    for share, material in layers:
        if material == "cirrus":  # shadows lie on the ground and the snow, below the sky
            weights = np.where(seen.sky.shadow, weights * _SHADE >> 8, weights)
        if share.any():
            weights = weights * (OPAQUE - share.astype(np.int32)) >> 8
            weights[MATERIALS.index(material)] += share
    return weights


def _grain(seen: View) -> npt.NDArray[np.uint32]:
    """Return 32 random bits per pixel and acquisition hour: the seed of the sensor's noise."""
    place, hour = seen.place, weather_hour(seen.when)
    bits = hash64(place.seed, place.zone, 80, hour, place.n_m[:, None], place.x_m)
    return (bits >> np.uint64(32)).astype(np.uint32)


def _band_noise(
    grain: npt.NDArray[np.uint32], product: Product, band: Band
) -> npt.NDArray[np.int32]:
    """Return the noise of one band, -3 to 4 digital numbers: top bits of an odd multiple."""
    name = f"{product.id}/{band.name}".encode()
    odd = (hash64(81, *name) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
    return (grain * odd >> np.uint32(29)).astype(np.int32) - 3
