"""Products that are compared with an imaging spectrometer, clouds and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.products.catalogue import load_product
from pipeline.raster.response import responses

CELL_PX = 16


@pytest.fixture
def compared(rig: Any) -> Any:
    """A spectrometer of three bands, and a broad band beside it that its first two make up."""
    _set_bands(rig.folder / "image.toml", {"a": (500, 10), "b": (510, 10), "wide": (700, 10)})
    beside = rig.folder / "beside.toml"
    _set_bands(beside, {"a": (505, 6), "b": (900, 20), "wide": (1400, 20)})
    beside.write_text("scale = 0.001\n" + beside.read_text())
    rig.wishes[0] |= {"max_cloud_fraction": 1.0}
    follower = {"id": "beside.toml", "follows": "image.toml", "compare_with": "image.toml"}
    rig.wishes.append({**rig.wishes[0], **follower})
    return rig


def _set_bands(product: Path, bands: dict[str, tuple[int, int]]) -> None:
    text = product.read_text()
    for name, (centre_nm, width_nm) in bands.items():
        facts = f'name = "{name}", wavelength_nm = {centre_nm}, fwhm_nm = {width_nm},'
        text = text.replace(f'name = "{name}",', facts)
    product.write_text(text)


def clouds(rows: slice, columns: slice) -> np.ndarray:
    codes = np.ones((64, 64), "uint8")
    codes[rows, columns] = 2
    return codes


def test_clouds_of_either_are_left_out_of_both(compared: Any) -> None:
    compared.scene("image/d1/t1", classes=clouds(slice(0, 5), slice(0, 16)))
    compared.scene("beside/d1/t1", classes=clouds(slice(0, 16), slice(12, 16)))
    compared.patch(0, [["image/d1/t1"]])
    compared.patch(0, [["beside/d1/t1"]], product="beside", group="image")
    assert compared.extract().written == 2
    rows = compared.ledger()
    assert rows[0, "image", 0, "2021-07"].residual == []
    found = rows[0, "beside", 0, "2021-07"].residual
    clear = np.zeros((CELL_PX, CELL_PX), bool)
    clear[5:, :12] = True
    reference = compared.truth("image/d1/t1", 0)[:, clear].mean(axis=1)
    own = compared.truth("beside/d1/t1", 0)[0, clear].mean() * 0.001
    products = [load_product(str(compared.folder / f"{n}.toml")) for n in ("image", "beside")]
    weights = responses(products[0].bands, products[1].bands)[0]
    assert found[0] == pytest.approx(own - weights @ reference / weights.sum())
    assert np.isnan(found[1:]).all()  # the spectrometer sees nothing there
    # Of the whole patches, clouds and all, it would be something else.
    whole = [compared.truth(f"{n}/d1/t1", 0).mean(axis=(1, 2)) for n in ("image", "beside")]
    assert abs(found[0] - (whole[1][0] * 0.001 - weights @ whole[0])) > 1


def test_without_common_clear_ground_nothing_is_said(compared: Any) -> None:
    compared.scene("image/d1/t1", classes=clouds(slice(0, 8), slice(0, 16)))
    compared.scene("beside/d1/t1", classes=clouds(slice(8, 16), slice(0, 16)))
    compared.patch(0, [["image/d1/t1"]])
    compared.patch(0, [["beside/d1/t1"]], product="beside", group="image")
    compared.extract()
    assert np.isnan(compared.ledger()[0, "beside", 0, "2021-07"].residual).all()
