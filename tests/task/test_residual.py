"""How far patches of two sensors are apart on ground that both saw clear."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.products.model import LEGEND
from pipeline.task.residual import clear_in_both, shared_means

LAND, CLOUD, WATER = LEGEND["land"], LEGEND["cloud"], LEGEND["water"]


def test_ground_is_clear_where_every_pixel_of_both_is() -> None:
    fine, coarse = np.full((6, 6), LAND, "uint8"), np.full((2, 2), WATER, "uint8")
    fine[0, 0] = CLOUD  # one of nine pixels over the first coarse one
    coarse[1, 1] = LEGEND["fill"]
    on_fine, on_coarse = clear_in_both(fine, coarse)
    assert on_coarse.tolist() == [[False, True], [True, False]]
    assert on_fine.tolist() == np.kron([[0, 1], [1, 0]], np.ones((3, 3))).astype(bool).tolist()


def test_pixels_that_are_no_multiple_of_one_another_meet_on_a_coarser_grid() -> None:
    thirds, halves = np.full((6, 6), LAND, "uint8"), np.full((4, 4), LAND, "uint8")
    halves[0, 0] = CLOUD
    on_thirds, on_halves = clear_in_both(thirds, halves)
    assert (~on_thirds).sum() == 9
    assert (~on_halves).sum() == 4


@pytest.mark.parametrize("code", ["cloud", "thin-cloud", "cloud-shadow", "defective", "fill"])
def test_what_is_hidden_is_not_clear(code: str) -> None:
    mask = np.full((2, 2), LEGEND[code], "uint8")
    assert not clear_in_both(mask, np.full((2, 2), LAND, "uint8"))[0].any()


def test_means_leave_out_what_the_bands_lack() -> None:
    stored = np.arange(8, dtype="int16").reshape(2, 2, 2)
    fill = np.zeros((2, 2, 2), bool)
    fill[1] = True
    codes = np.array([[LAND, LAND], [LEGEND["defective"], LAND]], "uint8")
    where = np.array([[True, True], [True, False]])
    found = shared_means(stored, fill, codes, where)
    assert found.count.tolist() == [2, 0]
    assert found.mean.tolist() == [0.5, 0.0]
