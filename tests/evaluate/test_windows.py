"""Windows carry the majority class of their own ground, and their location's part."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import RecipeError
from pipeline.evaluate.windows import PARTS, check_parts, cut_windows
from pipeline.store.reader import open_dataset


def readers(published):
    dataset = open_dataset(published.store)
    return dataset.patches("image"), dataset.patches("labels")


def cut(published, *, window_px=8, least=0.5, ignore=0, static=True):
    return cut_windows(
        *readers(published),
        window_px=window_px,
        min_label_fraction=least,
        ignore=ignore,
        static=static,
    )


def test_every_window_has_the_majority_of_its_own_label_pixels(published):
    images, labels = readers(published)
    windows = cut(published, window_px=4)
    row_of = {name: i for i, name in enumerate(labels.rows["location"].to_pylist())}
    codes = labels.read(slice(None))[0][:, 0]
    names = images.rows["location"].to_pylist()
    for k in range(len(windows)):
        y, x = windows.y_px[k] // 2, windows.x_px[k] // 2
        inside = codes[row_of[names[windows.patch[k]]], y : y + 2, x : x + 2]
        values, counts = np.unique(inside[inside > 0], return_counts=True)
        assert windows.label[k] == values[counts.argmax()]


def test_static_labels_serve_every_time_and_dated_ones_their_own(published):
    images, _ = readers(published)
    assert len(cut(published)) == 4 * len(images)
    first = sum(slot == "2021-01" for slot in images.rows["slot"].to_pylist())
    assert len(cut(published, static=False)) == 4 * first


def test_labels_of_the_slot_go_before_those_of_another_time(published_yearly):
    images, labels = readers(published_yearly)
    windows = cut(published_yearly, static=True)
    codes = labels.read(slice(None))[0][:, 0]
    keys = ("location", "slot")
    places = [
        list(zip(*(r.rows[k].to_pylist() for k in keys), strict=True)) for r in (images, labels)
    ]
    own = {place: codes[row] for row, place in enumerate(places[1])}
    wanted = [
        own[places[0][patch]][y // 2 + 3, x // 2 + 3]
        for patch, y, x in zip(windows.patch, windows.y_px, windows.x_px, strict=True)
    ]
    assert windows.label.tolist() == wanted
    slots = np.array(images.rows["slot"].to_pylist())[windows.patch]
    assert set(slots) == {"2021-01", "2021-02"}


def test_unlabelled_pixels_count_against_the_majority(published):
    # One of 4 x 4 label pixels of each patch's first window is unlabelled, every tenth of 16.
    whole = cut(published)
    strict = cut(published, least=1.0)
    assert len(strict) == len(whole) * 3 / 4
    assert len(cut(published, least=15 / 16)) == len(whole)


def test_a_class_that_is_not_ignored_counts(published):
    assert 0 in cut(published, window_px=2, ignore=None).label


def test_no_location_stands_in_two_parts(published):
    windows = cut(published)
    members = [set(windows.location[windows.of(part)]) for part in PARTS]
    assert all(members)
    assert sum(map(len, members)) == len(set.union(*members))


@pytest.mark.parametrize(
    ("window_px", "message"), [(17, "patches have 16 pixels"), (3, "multiples of 2 up to 16")]
)
def test_a_window_must_fit_patches_and_labels(published, window_px, message):
    with pytest.raises(RecipeError, match=message):
        cut(published, window_px=window_px)


def test_what_is_left_over_at_the_edges_is_not_used(published):
    windows = cut(published, window_px=6)
    assert set(windows.x_px) == set(windows.y_px) == {0, 6}


def test_parts_without_two_classes_cannot_be_judged(published):
    windows = cut(published)
    check_parts(windows)
    for part in PARTS:
        one = np.where(windows.part == part, 1, windows.label)
        with pytest.raises(RecipeError, match=f"'{part}' of the split has only class 1"):
            check_parts(replaced(windows, label=one))
        away = np.where(windows.part == part, "elsewhere", windows.part)
        with pytest.raises(RecipeError, match=f"'{part}' of the split has no labelled windows"):
            check_parts(replaced(windows, part=away))


def replaced(windows, **columns):
    from dataclasses import replace

    return replace(windows, **columns)
