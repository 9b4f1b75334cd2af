"""What is classified: square windows of images, each with the majority class of its labels.

Or, of labels in groups (the 19 of BigEarthNet that CORINE's 44 classes make), with the set of
groups that it holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RecipeError
from pipeline.recipe import Evaluate, LoadedRecipe

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
    """Class code; -1 where a window has a set of groups instead."""
    location: Numbers
    """Number of the location: windows of one location are alike and never stand in two parts."""
    part: NDArray[np.str_]
    """`train`, `val` or `test`, from the version's index."""
    edge_px: int
    """Edge of every window."""
    groups: tuple[str, ...] = ()
    """Names of the class groups; none: each window has one class."""
    holds: Numbers | None = None
    """Shape (window, group): 1 where a window holds a group, else 0."""

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
        columns = ["patch", "y_px", "x_px", "label", "location", "part"]
        columns += [] if self.holds is None else ["holds"]
        return replace(self, **{name: getattr(self, name)[numbers] for name in columns})


def cut_windows(
    images: PatchReader,
    labels: PatchReader,
    *,
    window_px: int | None,
    min_label_fraction: float,
    ignore: int | None,
    static: bool,
    groups: Mapping[str, Collection[int]] | None = None,
    min_group_fraction: float = 0.0,
    threads: int = 2,
) -> Windows:
    """Tile every labelled patch with windows and give each its majority class, or its groups.

    Parameters
    ----------
    images, labels : PatchReader
        Of one version. A patch is labelled by the label patch of its location and slot or, where
        there is none and labels do not change (`static`), by one of its location.
    window_px : int or None
        Edge in image pixels; None: the whole patch. What is left over at the edges is not used.
    min_label_fraction : float
        Windows whose majority class covers less are left out; with `groups`, those of which less
        is labelled.
    ignore : int or None
        Code that means unlabelled.
    static : bool
    groups : mapping of str to collection of int, or None
        Class groups, by the codes of each. Windows that hold none of them are left out.
    min_group_fraction : float
        Share of a window that a group must cover to be held; 0: one pixel is enough.
    threads : int
        Decoding threads.

    Raises
    ------
    RecipeError
        The window does not fit the patches or their labels.
    """
    size_px = images.shape[-1]
    edge_px = size_px if window_px is None else window_px
    label_edge_px = label_edge(edge_px, size_px, labels.shape[-1])
    image_rows, label_rows = _pairs(images.rows, labels.rows, static=static)
    tiles = size_px // edge_px
    distinct, where = np.unique(label_rows, return_inverse=True)
    tables = [np.empty((0, tiles, tiles, *([] if groups is None else [len(groups)])), np.int64)]
    for start in range(0, len(distinct), CHUNK):
        bands, mask = labels.read(distinct[start : start + CHUNK], threads=threads)
        tiled = _Tiled.cut(bands, mask, label_edge_px, tiles, ignore)
        if groups is None:
            tables.append(tiled.majority(min_label_fraction))
        else:
            tables.append(tiled.held(groups.values(), min_label_fraction, min_group_fraction))
    table = np.concatenate(tables)[where]
    pair, row, column = np.nonzero(table >= 0 if groups is None else (table > 0).any(axis=3))
    found, patch = table[pair, row, column], image_rows[pair]
    return Windows(
        patch=patch,
        y_px=row * edge_px,
        x_px=column * edge_px,
        label=found if groups is None else np.full(len(found), -1),
        location=np.asarray(images.sample_row, dtype=np.int64)[patch],
        part=np.asarray(images.rows["split"].to_pylist(), dtype=str)[patch],
        edge_px=edge_px,
        groups=() if groups is None else tuple(groups),
        holds=None if groups is None else found,
    )


def check_parts(windows: Windows) -> None:
    """Make sure that every part can be learned from, chosen on, or tested on.

    Raises
    ------
    RecipeError
        A part has no windows, only one class, or only windows that hold the same groups.
    """
    for part in PARTS:
        numbers = windows.of(part)
        if windows.holds is None:
            found = "" if len(numbers) else "no labelled windows"
            classes = np.unique(windows.label[numbers])
            if len(classes) == 1:
                found = f"only class {classes[0]}"
        else:
            some = np.ptp(windows.holds[numbers], axis=0).any() if len(numbers) else False
            found = "" if some else "no two windows that hold other groups"
        if found:
            raise RecipeError(
                f"the part {part!r} of the split has {found}, so no probe can be judged; lower "
                "`evaluate.min_label_fraction`, use smaller windows, collect more labelled "
                "locations or, in a new root, change `split` (smaller `block_km`, other shares): "
                "a root's split is frozen."
            )


def labels_of(loaded: LoadedRecipe, judged: Evaluate) -> str:
    """Return the label product that windows are judged by; `RecipeError` if there is none such."""
    labels = [key for key, product in loaded.products.items() if product.kind == "labels"]
    if judged.labels not in labels:
        raise RecipeError(
            f"`evaluate.labels` is {judged.labels!r}, but the label products of recipe "
            f"{loaded.name} are: {', '.join(labels) or 'none'}."
        )
    return judged.labels


def label_edge(edge_px: int, size_px: int, label_size_px: int) -> int:
    """Return the edge of a window in pixels of the labels.

    Parameters
    ----------
    edge_px : int
        The same in pixels of the image.
    size_px, label_size_px : int
        Edge of the patches of both, which cover the same ground.

    Raises
    ------
    RecipeError
        It does not fit the patch, or is no whole number of label pixels.
    """
    step_px = size_px // math.gcd(size_px, label_size_px)
    if not 1 <= edge_px <= size_px or edge_px % step_px:
        allowed = f"1 to {size_px}" if step_px == 1 else f"multiples of {step_px} up to {size_px}"
        raise RecipeError(
            f"`evaluate.window_px` is {edge_px}; patches have {size_px} pixels of the image and "
            f"{label_size_px} of the labels: allowed are {allowed}."
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


@dataclass(frozen=True)
class _Tiled:
    """Labels of patches, cut into windows: arrays of shape (patch, row, y, column, x)."""

    codes: NDArray[Any]
    seen: NDArray[np.bool_]
    """Whether a pixel is labelled."""

    @classmethod
    def cut(
        cls,
        bands: NDArray[Any],
        mask: NDArray[np.uint8],
        edge_px: int,
        tiles: int,
        ignore: int | None,
    ) -> _Tiled:
        """Cut label patches into `tiles` windows along each edge.

        Parameters
        ----------
        bands : array, shape (patch, 1, y, x)
        mask : uint8 array, shape (patch, y, x)
            0 where there are no labels.
        edge_px : int
            Edge of a window in label pixels.
        tiles : int
        ignore : int or None
        """
        span = edge_px * tiles
        codes = bands[:, 0, :span, :span]
        seen = (mask[:, :span, :span] != 0) & np.isfinite(codes)
        if ignore is not None:
            seen &= codes != ignore
        shape = (-1, tiles, edge_px, tiles, edge_px)
        return cls(codes.reshape(shape), seen.reshape(shape))

    def majority(self, least: float) -> Numbers:
        """Return the majority class of each window, shape (patch, row, column); -1: there is none.

        Of equals the lowest code wins; it must cover a share of `least` of the window.
        """
        best = np.zeros_like(self._count(self.seen))
        label = np.full_like(best, -1)
        for code in np.unique(self.codes[self.seen]):
            count = self._count(self.seen & (self.codes == code))
            label[count > best] = int(code)
            best = np.maximum(best, count)
        label[best < least * self._pixels] = -1
        return label

    def held(
        self, groups: Collection[Collection[int]], least: float, least_of_group: float
    ) -> Numbers:
        """Return which groups each window holds, 0 or 1, shape (patch, row, column, group).

        Nothing is held by windows of which a smaller share than `least` is labelled.
        """
        counts = [self._count(self.seen & np.isin(self.codes, list(group))) for group in groups]
        count = np.stack(counts, axis=-1)
        held = (count > 0) & (count >= least_of_group * self._pixels)
        held &= (self._count(self.seen) >= least * self._pixels)[..., None]
        return held.astype(np.int64)

    @property
    def _pixels(self) -> int:
        return int(np.prod(self.codes.shape[2::2]))

    @staticmethod
    def _count(hits: NDArray[np.bool_]) -> Numbers:
        counted: Numbers = hits.sum(axis=(2, 4), dtype=np.int64)
        return counted
