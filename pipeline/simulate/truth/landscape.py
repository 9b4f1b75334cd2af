"""What stands where: the part of the truth that does not change with time.

Rivers and lakes, forest, settlements, and farmland whose fields are *arranged* in one of five
ways. The arrangement is the class a model is asked for. Every arrangement is made of the same two
crops in equal shares, and which two is drawn independently, so the mean, variance and histogram
of a farmland window say nothing about its class: only what lies beside what does. (A simulated
task whose labels are the dominant material is solved by image statistics and shows nothing.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.simulate.truth.noise import Integers, Place, below, smooth_noise, tiled
from pipeline.simulate.truth.spectra import MATERIALS

#: Label codes of the arrangements; 0 is everything else.
ARRANGEMENTS = ("none", "stripes", "checker", "blobs", "rings", "random")

#: Edge of the regions of one arrangement, in metres: several cells of a demo wide.
REGION_M = 4800
#: Edge of the areas that share two crops; no multiple of it is one of the regions.
PAIR_M = 3400
#: Weights of the linear mixture add up to this; what is missing is shade.
WHOLE = 256

_PAIRS = (
    ("cereal", "maize"),
    ("maize", "dry-soil"),
    ("grass", "moist-soil"),
    ("rapeseed", "maize"),
    ("cereal", "dry-soil"),
    ("grass", "maize"),
)
#: Directions (a, b) of the first axis of a region's fields, all of length 5: (a x + b n) / 5.
_DIRECTIONS = np.array([(5, 0), (0, 5), (3, 4), (4, -3)])


#: What covers the ground, and the words by which the class of a label product is found, the
#: most fitting first.
COVERS = {
    "water": ("open water", "permanent water", "water"),
    "broadleaf": ("deciduous", "broad-leaved", "tree", "forest"),
    "conifer": ("evergreen", "coniferous", "tree", "forest"),
    "town": ("developed, medium", "developed/med", "discontinuous urban", "built", "developed"),
    "maize": ("corn", "irrigated arable", "cultivated", "crop"),
    "cereal": ("winter wheat", "irrigated arable", "cultivated", "crop"),
    "rapeseed": ("rape", "canola", "irrigated arable", "cultivated", "crop"),
    "grass": ("pasture", "grassland", "grass"),
    "soil": ("fallow", "barren", "bare", "irrigated arable", "cultivated"),
}


@dataclass(frozen=True, slots=True)
class Landscape:
    """The unchanging ground of some pixels.

    Attributes
    ----------
    weights : uint16 array, shape (material, y, x)
        Share of each material of `spectra.MATERIALS` in 256ths; what is missing to 256 is shade.
    arrangement : uint8 array, shape (y, x)
        Index into `ARRANGEMENTS`.
    water : bool array, shape (y, x)
    height : int32 array, shape (y, x)
        0 to 65535: where snow comes first.
    """

    weights: npt.NDArray[np.uint16]
    arrangement: npt.NDArray[np.uint8]
    water: npt.NDArray[np.bool_]
    height: npt.NDArray[np.int32]


def landscape(place: Place) -> Landscape:
    """Compute the ground at pixel centres; a pure function of place."""
    height = 3 * smooth_noise(place, 1, 9600) + smooth_noise(place, 2, 1700) >> 2
    river = np.abs(smooth_noise(place, 3, 14_000) - 32768) < 420 + (
        smooth_noise(place, 4, 2500) >> 7
    )
    water = (height < 11_500) | river
    forest = ~water & (smooth_noise(place, 5, 4200) + (smooth_noise(place, 6, 500) >> 2) > 53_500)
    town = (
        ~water
        & ~forest
        & (smooth_noise(place, 7, 3600) + (smooth_noise(place, 8, 400) >> 3) > 57_000)
    )
    field = ~(water | forest | town)
    arrangement, crop = _fields(place)
    weights = np.zeros((len(MATERIALS), *place.shape), np.uint16)
    light = _light(place)
    _put(weights, "water", water, WHOLE - (smooth_noise(place, 9, 1900) >> 11))
    _put(weights, "silt", water, smooth_noise(place, 9, 1900) >> 11)
    _forest(weights, place, forest, light)
    _town(weights, place, town, light)
    for name in sorted({name for pair in _PAIRS for name in pair}):
        _put(weights, name, field & (crop == MATERIALS.index(name)), light)
    return Landscape(weights, np.where(field, arrangement, 0).astype(np.uint8), water, height)


def covers(land: Landscape) -> npt.NDArray[np.uint8]:
    """Return what covers each pixel: an index into `COVERS`, shape (y, x)."""
    material = {name: land.weights[MATERIALS.index(name)] > 0 for name in MATERIALS}
    masks = {
        **{name: material[name] for name in ("broadleaf", "conifer", "maize", "cereal")},
        **{name: material[name] for name in ("rapeseed", "grass")},
        "soil": material["dry-soil"] | material["moist-soil"],
        "town": material["roof"] | material["asphalt"],  # its gardens belong to it
        "water": land.water,
    }
    cover = np.zeros(land.water.shape, np.uint8)
    for name, where in masks.items():
        cover[where] = list(COVERS).index(name)
    return cover


def _put(
    weights: npt.NDArray[np.uint16],
    material: str,
    where: npt.NDArray[np.bool_],
    share: npt.NDArray[np.integer],
) -> None:
    layer = weights[MATERIALS.index(material)]
    layer[where] = np.broadcast_to(share, where.shape)[where]


def _light(place: Place) -> npt.NDArray[np.int32]:
    """Return how much of a pixel is lit: relief and crop density, 205 to 256."""
    return WHOLE - (smooth_noise(place, 10, 800) >> 11) - (smooth_noise(place, 11, 2600) >> 12)


def _forest(
    weights: npt.NDArray[np.uint16],
    place: Place,
    forest: npt.NDArray[np.bool_],
    light: npt.NDArray[np.int32],
) -> None:
    needles = smooth_noise(place, 12, 900) > 32768
    _put(weights, "conifer", forest & needles, light)
    _put(weights, "broadleaf", forest & ~needles, light)


def _town(
    weights: npt.NDArray[np.uint16],
    place: Place,
    town: npt.NDArray[np.bool_],
    light: npt.NDArray[np.int32],
) -> None:
    """Mix roofs, asphalt and gardens, plot by plot of 30 m."""
    plot = tiled(place, 13, 30, 128)
    _put(weights, "roof", town, plot)
    _put(weights, "asphalt", town, (light - plot) * 5 // 8)
    _put(weights, "grass", town, (light - plot) * 3 // 8)


# --- fields ---------------------------------------------------------------------------------------


def _fields(place: Place) -> tuple[Integers, Integers]:
    """Return arrangement and crop (index of its material) of each pixel.

    Arrangements follow each other in a Latin square with knight's moves (column + 2 row modulo
    5), so that any area of five regions by five holds all of them equally often.
    """
    column, row = _warped(place, REGION_M, channel=20)
    phase = int(below(5, place.seed, place.zone, 21))
    arrangement = (column + 2 * row + phase) % 5 + 1
    pair = below(len(_PAIRS), place.seed, place.zone, 22, *_warped(place, PAIR_M, channel=23))
    crops = np.array([[MATERIALS.index(name) for name in pair] for pair in _PAIRS])
    return arrangement, crops[pair, _second_crop(place, arrangement).astype(np.int64)]


def _warped(place: Place, size_m: int, *, channel: int) -> tuple[Integers, Integers]:
    """Return the column and row of a square tiling with natural, wavy borders."""
    east = (smooth_noise(place, channel, 1500) - 32768) // 90
    north = (smooth_noise(place, channel + 100, 1500) - 32768) // 90
    return (place.x_m + east) // size_m, (place.n_m[:, None] + north) // size_m


def _second_crop(place: Place, arrangement: Integers) -> npt.NDArray[np.bool_]:
    """Return where the second crop of the pair stands: half of any arrangement's area."""
    turn = _DIRECTIONS[tiled(place, 24, REGION_M, len(_DIRECTIONS))].astype(np.int64)
    east, north = place.x_m, place.n_m[:, None]
    u = (turn[..., 0] * east + turn[..., 1] * north) // 1050
    v = (turn[..., 0] * north - turn[..., 1] * east) // 1050
    patterns = {
        "stripes": u & 1,
        "checker": (u + v) & 1,
        "blobs": smooth_noise(place, 25, 420) > 32768,
        "rings": _rings(place),
        "random": tiled(place, 26, 90, 2),
    }
    second = np.zeros(place.shape, np.bool_)
    for code, name in enumerate(ARRANGEMENTS[1:], start=1):
        np.copyto(second, patterns[name] > 0, where=arrangement == code)
    return second


def _rings(place: Place) -> Integers:
    """Return rings around the centres of squares of 960 m, every second square inverted at random.

    Radii 180, 270 and 433 m: disc and outer ring together cover half of the square.
    """
    side = 960
    east = place.x_m % side - side // 2
    north = place.n_m % side - side // 2
    squared = east * east + (north * north)[:, None]
    ring = np.searchsorted(np.array([180**2, 270**2, 433**2]), squared)
    return (ring + tiled(place, 27, side, 2)) & 1
