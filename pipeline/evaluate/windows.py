"""What is classified: square windows of images, each with the majority class of its labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeError

if TYPE_CHECKING:
    from pipeline.store.patches import PatchReader

Numbers = NDArray[np.int64]

#: Parts of a version, as its index names them.
PARTS = ("train", "val", "test")

#: Label patches read at a time.
CHUNK = 256


@dataclass(frozen=True)
class Windows:
    """Windows, all arrays of shape (window,), sorted by patch."""

    patch: Numbers
    """Row of the image reader."""
    y_px: Numbers
    """Upper edge in the patch, in pixels of the image."""
    x_px: Numbers
    """Left edge."""
    label: Numbers
    """Class code."""
    location: Numbers
    """Number of the location: windows of one location are alike and never stand in two parts."""
    part: NDArray[np.str_]
    """`train`, `val` or `test`, from the version's index."""
    edge_px: int
    """Edge of every window."""

    def __len__(self) -> int:
        return len(self.patch)

    def of(self, part: str) -> Numbers:
        """Return the numbers of the windows of one part."""
        return np.flatnonzero(self.part == part)

    def some(self, part: str, count: int, *, seed: int) -> Windows:
        """Draw windows of one part, all of them if there are not so many."""
        numbers = self.of(part)
        if len(numbers) > count:
            random = np.random.default_rng(seed)
            numbers = np.sort(random.choice(numbers, count, replace=False))
        return self.at(numbers)

    def at(self, numbers: Numbers) -> Windows:
        """Return the windows of these numbers, ascending."""
        columns = ("patch", "y_px", "x_px", "label", "location", "part")
        return replace(self, **{name: getattr(self, name)[numbers] for name in columns})


def cut_windows(
    images: PatchReader,
    labels: PatchReader,
    *,
    window_px: int | None,
    min_label_fraction: float,
    ignore: int | None,
    static: bool,
    threads: int = 2,
) -> Windows:
    """Tile every labelled patch with windows and give each its majority class.

    Parameters
    ----------
    images, labels : PatchReader
        Of one version. A patch is labelled by the label patch of its location and slot or, where
        there is none and labels do not change (`static`), by one of its location.
    window_px : int or None
        Edge in image pixels; None: the whole patch. What is left over at the edges is not used.
    min_label_fraction : float
        Windows whose majority class covers less are left out.
    ignore : int or None
        Code that means unlabelled.
    static : bool
    threads : int
        Decoding threads.

    Raises
    ------
    RecipeError
        The window does not fit the patches or their labels.
    """
    size_px = images.shape[-1]
    edge_px = size_px if window_px is None else window_px
    label_edge_px = _label_edge(edge_px, size_px, labels.shape[-1])
    image_rows, label_rows = _pairs(images.rows, labels.rows, static=static)
    distinct, where = np.unique(label_rows, return_inverse=True)
    majority = np.concatenate(
        [
            _majority(
                *labels.read(distinct[start : start + CHUNK], threads=threads),
                label_edge_px,
                size_px // edge_px,
                min_label_fraction,
                ignore,
            )
            for start in range(0, len(distinct), CHUNK)
        ]
        or [np.empty((0, 0, 0), np.int64)]
    )[where]
    pair, row, column = np.nonzero(majority >= 0)
    patch = image_rows[pair]
    return Windows(
        patch=patch,
        y_px=row * edge_px,
        x_px=column * edge_px,
        label=majority[pair, row, column],
        location=np.asarray(images.sample_row, dtype=np.int64)[patch],
        part=np.asarray(images.rows["split"].to_pylist(), dtype=str)[patch],
        edge_px=edge_px,
    )


def check_parts(windows: Windows) -> None:
    """Make sure that every part can be learned from, chosen on, or tested on.

    Raises
    ------
    RecipeError
        A part has no windows, or only one class.
    """
    for part in PARTS:
        classes = np.unique(windows.label[windows.of(part)])
        if len(classes) < 2:
            found = f"only class {classes[0]}" if len(classes) else "no labelled windows"
            raise RecipeError(
                f"the part {part!r} of the split has {found}, so no probe can be judged; change "
                "`split` (smaller `block_km`, other shares), lower `evaluate.min_label_fraction`, "
                "use smaller windows, or collect more labelled locations."
            )


def _label_edge(edge_px: int, size_px: int, label_size_px: int) -> int:
    if not 1 <= edge_px <= size_px:
        raise RecipeError(
            f"`evaluate.window_px` is {edge_px}, but the patches have {size_px} pixels."
        )
    if edge_px * label_size_px % size_px:
        raise RecipeError(
            f"`evaluate.window_px` is {edge_px} of {size_px} image pixels, which is not a whole "
            f"number of the {label_size_px} label pixels of a patch; choose another."
        )
    return edge_px * label_size_px // size_px


def _pairs(images: Any, labels: Any, *, static: bool) -> tuple[Numbers, Numbers]:
    """Return the rows of labelled image patches and, beside them, of their labels."""
    own = _first_rows(labels, ("location", "slot"))
    any_slot = _first_rows(labels, ("location",)) if static else {}
    places = zip(images["location"].to_pylist(), images["slot"].to_pylist(), strict=True)
    wanted = [own.get(place, any_slot.get(place[:1])) for place in places]
    found = [(row, label) for row, label in enumerate(wanted) if label is not None]
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _first_rows(rows: Any, keys: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    """Return the number of the first row of every key."""
    first: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(zip(*(rows[name].to_pylist() for name in keys), strict=True)):
        first.setdefault(key, row)
    return first


def _majority(
    bands: NDArray[Any],
    mask: NDArray[np.uint8],
    edge_px: int,
    tiles: int,
    least: float,
    ignore: int | None,
) -> Numbers:
    """Return the majority class of each window of label patches, -1 where there is none.

    Parameters
    ----------
    bands : array, shape (patch, 1, y, x)
    mask : uint8 array, shape (patch, y, x)
        0 where there are no labels.
    edge_px : int
        Edge of a window in label pixels.
    tiles : int
        Windows along each edge of a patch.
    least : float
        Least share of a window that its majority class must cover. Of equals the lowest code wins.
    ignore : int or None

    Returns
    -------
    int array, shape (patch, row, column)
    """
    span = edge_px * tiles
    codes = bands[:, 0, :span, :span]
    seen = (mask[:, :span, :span] != 0) & np.isfinite(codes)
    if ignore is not None:
        seen &= codes != ignore
    best = np.zeros((len(codes), tiles, tiles), dtype=np.int64)
    label = np.full_like(best, -1)
    for code in np.unique(codes[seen]):
        hits = (seen & (codes == code)).reshape(-1, tiles, edge_px, tiles, edge_px)
        count = hits.sum(axis=(2, 4))
        label[count > best] = int(code)
        best = np.maximum(best, count)
    label[best < least * edge_px**2] = -1
    return label
