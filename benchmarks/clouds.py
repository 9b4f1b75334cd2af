"""How far do cloud masks agree with what others say of the same pixels?

Run: `python -m benchmarks.clouds` (seconds). Two scenes, looked for in ../shared/data:

- The mask made from an image (`pipeline.raster.thresholds`) against one drawn by hand: 512 x 512
  pixels of Sentinel-2 at the top of the atmosphere, six bands, without the cirrus band. Beside it
  what costs nothing: calling all clear, brightness alone with the numbers that the method's own
  cloud test has, and brightness alone with the threshold that suits this very scene best, which
  nobody knows beforehand. `shadow` pixels are drawn apart: they count as clear, are left out, or
  count as cloudy (the method finds no shadow).
- The decoding of delivered quality layers (SCL) against what the same product says elsewhere: its
  cloud probability of 50 % and more, and the cloud share in its metadata. That is no measure of
  Sen2Cor, only of the decoding.

One scene each: the figures say that a method works, not how well it does on the whole Earth.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.products.catalogue import load_product
from pipeline.products.model import LEGEND
from pipeline.raster.blocks import open_asset
from pipeline.raster.lattice import Window
from pipeline.raster.masks import FILL, decode, fractions
from pipeline.raster.thresholds import classify
from pipeline.sources.bytes.http import open_source
from pipeline.sources.providers import load_provider

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
#: Codes of the drawn mask; 1 and 3 are clear.
SHADOW, CLOUD = 0, 4
#: The classes of the common legend that Sen2Cor's cloud share counts.
CLOUDY = ("cloud", "thin-cloud")

Where = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """Of a yes or no for each pixel with a reference; each 0 to 1."""

    overall: float
    """Share of the pixels with the same answer."""
    recall: float
    """Share of the reference's clouds that are found."""
    precision: float
    """Share of the found clouds that are the reference's; NaN where none is found."""
    f1: float
    """Harmonic mean of the two."""


def agreement(found: Where, reference: Where) -> Agreement:
    """Compare two masks of one shape."""
    hits = np.count_nonzero(found & reference)
    said, true = np.count_nonzero(found), np.count_nonzero(reference)
    return Agreement(
        overall=float((found == reference).mean()),
        recall=hits / true,
        precision=hits / said if said else float("nan"),
        f1=2 * hits / (said + true),
    )


def guesses(image: NDArray[np.float32], cloud: Where) -> dict[str, Where]:
    """Return what each method calls cloud.

    Parameters
    ----------
    image : float array, shape (y, x, band)
        Reflectance: blue, green, red, NIR, SWIR at 1.6 and 2.2 µm.
    cloud : bool array, shape (y, x)
        The reference, for the threshold that knows it.
    """
    blue, _, red, nir, swir16, _ = np.moveaxis(image, -1, 0)
    brightness = image[..., :3].mean(axis=-1)
    steps = np.arange(0.05, 0.80, 0.005)
    best = max(steps, key=lambda step: agreement(brightness > step, cloud).f1)
    return {
        "thresholds of the image": classify(blue, red, nir, swir16) == LEGEND["cloud"],
        "all clear": np.zeros(cloud.shape, dtype=bool),
        "bright: blue > 0.15 or red > 0.18": (blue > 0.15) | (red > 0.18),
        f"bright: visible mean > {best:.3f}, the best here": brightness > best,
    }


def against_the_drawn() -> list[str]:
    """Return the rows of the first table."""
    with np.load(DATA / "cloud-mask" / "sentinel2.npz") as file:
        image, drawn = file["img"], file["msk"][..., 0]
    cloud, shadow = drawn == CLOUD, drawn == SHADOW
    rows = []
    for name, found in guesses(image, cloud).items():
        for how, kept, true in (
            ("clear", np.ones_like(shadow), cloud),
            ("left out", ~shadow, cloud),
            ("cloudy", np.ones_like(shadow), cloud | shadow),
        ):
            made = agreement(found[kept], true[kept])
            rows.append(f"| {name} | {how} {_cells(made)}")
    return rows


def of_the_decoding() -> list[str]:
    """Return the rows of the second table."""
    folder = next((DATA / "sentinel-2" / "T29UNU").glob("*.SAFE"))
    scl = _read(next(folder.glob("GRANULE/*/IMG_DATA/R20m/*_SCL_20m.jp2")))
    probability = _read(next(folder.glob("GRANULE/*/QI_DATA/MSK_CLDPRB_20m.jp2")))
    codes = decode({"scl": scl}, load_product("sentinel-2-l2a"))
    seen = codes != FILL
    likely = probability[seen] >= 50
    rows = []
    for names in (("cloud",), CLOUDY):
        found = np.isin(codes[seen], [LEGEND[name] for name in names])
        rows.append(f"| {' and '.join(names)} {_cells(agreement(found, likely))}")
    stated = ET.parse(folder / "MTD_MSIL2A.xml").getroot().findtext(".//Cloud_Coverage_Assessment")
    share = fractions(codes, CLOUDY).cloudy
    if stated is None or share is None:
        raise ValueError(f"{folder.name} states no cloud share, or its SCL is empty.")
    rows.append("")
    rows.append(f"Cloud share: {100 * share:.6f} % decoded, {float(stated):.6f} % in the metadata.")
    return rows


def _read(path: Path) -> NDArray[Any]:
    with open_asset(
        open_source(load_provider("local")), str(path), driver=("JP2OpenJPEG",)
    ) as file:
        whole = Window(0, 0, file.width, file.height)
        pixels: NDArray[Any] = file.read([1], [whole], fill=0)[0][0]
        return pixels


def _cells(made: Agreement) -> str:
    numbers = (made.overall, made.recall, made.precision, made.f1)
    return "".join(f"| {'-' if np.isnan(n) else f'{n:.3f}'} " for n in numbers) + "|"


def main() -> int:
    """Print both tables; return an exit code."""
    if not DATA.is_dir():
        print("no ../shared/data beside the project: nothing to compare with")
        return 0
    print("| against the drawn mask | shadow is | overall | recall | precision | F1 |")
    print("|---|---|---|---|---|---|")
    print("\n".join(against_the_drawn()))
    print("\n| SCL, against a cloud probability of 50 % | overall | recall | precision | F1 |")
    print("|---|---|---|---|---|")
    print("\n".join(of_the_decoding()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
