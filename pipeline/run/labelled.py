"""Labels that pretraining looks at: a few for a method that learns from them, some to check on it.

What is learned from is of the training part alone, whatever else is seen without labels; what is
checked on is of the validation part. The test part is left to `terrashard evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import RecipeError
from pipeline.evaluate.features import EncoderFeatures, describe_windows
from pipeline.evaluate.few_labels import draw_support
from pipeline.evaluate.probes import Parts, accuracy, knn
from pipeline.evaluate.windows import Windows, cut_windows
from pipeline.pretrain.data.batches import Stored
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.model import Model
from pipeline.pretrain.sending import send
from pipeline.pretrain.train import Run, Support
from pipeline.recipe import Evaluate, LoadedRecipe, Pretrain
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset

#: Windows of either part that a check looks at, at most: it is made while the device waits.
MOST_CHECKED = 1000

#: Windows of the labelled support that are kept in memory, decoded, if all of them together take no
#: more than this; else those of a step are read while the one before goes on.
MOST_KEPT_BYTES = 2**30


#: Bands and mask of windows, as they are stored.
Pixels = tuple[NDArray[Any], NDArray[np.uint8]]


class Labelled(NamedTuple):
    """What labels do in a run."""

    support: Support | None = None
    classes: int = 0
    check: Callable[[Run], float] | None = None


def labelled_part(
    loaded: LoadedRecipe,
    dataset: Dataset,
    model: Model,
    normaliser: Normaliser,
    device: torch.device,
) -> Labelled:
    """Return what the recipe wants of labels: nothing, unless it asks.

    Raises
    ------
    RecipeError
        It asks for labels that are not there.
    """
    settings = model.settings
    supported, checked = settings.method == "paws", settings.knn_every > 0
    if not (supported or checked):
        return Labelled()
    reader = dataset.patches(model.product)
    windows = labelled_windows(loaded, dataset, reader)
    support, classes = None, 0
    if supported:
        support, classes = support_of(windows, reader, settings, device)
    check = None
    if checked:
        how = loaded.recipe.evaluate or Evaluate(labels="")
        check = check_of(windows, reader, normaliser, model, how.knn, device)
    return Labelled(support, classes, check)


def labelled_windows(loaded: LoadedRecipe, dataset: Dataset, reader: PatchReader) -> Windows:
    """Cut the patches of a reader into labelled windows, as the evaluation does.

    Raises
    ------
    RecipeError
        There is no such label product in the recipe.
    """
    settings: Pretrain | None = loaded.recipe.pretrain
    asked: Evaluate | None = loaded.recipe.evaluate
    wanted = settings.support_labels if settings is not None else None
    name = wanted or (asked.labels if asked is not None else None)
    known = [key for key, product in loaded.products.items() if product.kind == "labels"]
    if name not in known:
        raise RecipeError(
            f"labels for pretraining are {name!r} (`pretrain.support_labels` or "
            f"`evaluate.labels`), but the label products of recipe {loaded.name} are: "
            f"{', '.join(known) or 'none'}."
        )
    # Pretraining looks at majority classes, whatever the evaluation is asked for.
    one = {"labels": name, "task": "classes"}
    how = (asked or Evaluate(labels=name)).model_copy(update=one)
    return windows_of(loaded, dataset, reader, how)


def windows_of(
    loaded: LoadedRecipe, dataset: Dataset, reader: PatchReader, how: Evaluate
) -> Windows:
    """Cut the patches of a reader into windows with the labels of `how.labels`.

    Maps of a year belong to the slots that they were planned for, as dated labels do.

    Raises
    ------
    RecipeError
        The windows do not fit the patches, or the labels have no classes to make sets of.
    """
    product = loaded.products[how.labels]
    groups = product.class_groups if how.task == "multi-label" else None
    if groups is not None and not groups:
        raise RecipeError(
            f'`evaluate.task` is "multi-label", but label product {how.labels} names no classes; '
            "give its file `classes` or `groups`."
        )
    return cut_windows(
        reader,
        dataset.patches(how.labels),
        window_px=how.window_px,
        min_label_fraction=how.min_label_fraction,
        ignore=product.ignore_class,
        static=product.temporal == "static",
        groups=groups,
        min_group_fraction=how.min_group_fraction,
    )


def support_of(
    windows: Windows, reader: PatchReader, settings: Pretrain, device: torch.device
) -> tuple[Support, int]:
    """Return what draws a step's labelled windows, and how many classes there are.

    Equal steps draw equal windows: `settings.support_per_class` of each class of the training part,
    or of the `settings.support_known` ones that the run knows of each. A step does not wait for
    them: few are kept in memory, more are read ahead.
    """
    train = windows.of("train")
    if settings.support_known is not None:
        train = draw_support(windows, settings.support_known, settings.seed)
    classes, code = np.unique(windows.label[train], return_inverse=True)
    count = settings.support_per_class
    label = torch.arange(len(classes)).repeat_interleave(count)

    def choose(step: int) -> NDArray[np.int64]:
        """Draw places in `train`."""
        random = np.random.default_rng([settings.seed, step])
        places = [np.flatnonzero(code == number) for number in range(len(classes))]
        return np.concatenate([random.choice(some, count) for some in places])

    def read(places: NDArray[np.int64]) -> Pixels:
        return read_windows(windows, reader, train[places], threads=settings.threads)

    one_bytes = windows.edge_px**2 * (len(reader.bands) * reader.dtype.itemsize + 1)
    if len(train) * one_bytes <= MOST_KEPT_BYTES and settings.support_known is not None:
        # So many at a time as a step takes: whole patches are read, and windows cut out of them.
        pieces = np.array_split(np.arange(len(train)), -(-len(train) // len(label)))
        bands, mask = (np.concatenate(part) for part in zip(*map(read, pieces), strict=True))

        def pixels_of(step: int) -> Pixels:
            places = choose(step)
            return bands[places], mask[places]
    else:
        ahead = _Ahead(lambda step: read(choose(step)), settings.steps)
        pixels_of = ahead.of

    def draw(step: int) -> tuple[Stored, torch.Tensor]:
        drawn = [torch.from_numpy(part) for part in pixels_of(step)]
        pixels, seen, said = send([*drawn, label], device)
        return Stored(pixels, seen, reader.product), said

    return draw, len(classes)


class _Ahead:
    """Reads what a step needs while the step before goes on.

    Parameters
    ----------
    read : callable
        Takes a step; in a thread of its own.
    stop : int
        The step at which a run ends.
    """

    def __init__(self, read: Callable[[int], Pixels], stop: int) -> None:
        self._read, self._stop = read, stop
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="support")
        self._next: tuple[int, Future[Pixels]] | None = None

    def of(self, step: int) -> Pixels:
        """Return what a step needs, and begin with the next."""
        waiting, self._next = self._next, None
        found = waiting[1].result() if waiting and waiting[0] == step else self._read(step)
        if step + 1 < self._stop:
            self._next = (step + 1, self._pool.submit(self._read, step + 1))
        return found


def read_windows(
    windows: Windows, reader: PatchReader, chosen: NDArray[np.int64], *, threads: int
) -> Pixels:
    """Read windows by their numbers: bands (window, band, y, x) and mask (window, y, x)."""
    edge = windows.edge_px
    distinct, where = np.unique(windows.patch[chosen], return_inverse=True)
    bands, mask = reader.read(distinct, threads=threads)
    boxes = [
        (row, slice(y, y + edge), slice(x, x + edge))
        for row, y, x in zip(where, windows.y_px[chosen], windows.x_px[chosen], strict=True)
    ]
    pixels = np.stack([bands[row, :, y, x] for row, y, x in boxes])
    return pixels, np.stack([mask[row, y, x] for row, y, x in boxes])


def check_of(
    windows: Windows,
    reader: PatchReader,
    normaliser: Normaliser,
    model: Model,
    k: int,
    device: torch.device,
) -> Callable[[Run], float]:
    """Return what measures a run's features: nearest neighbours, balanced over the classes.

    Raises
    ------
    RecipeError
        The training or the validation part has no labelled window.
    """
    random = np.random.default_rng(0)
    parts = [random.permutation(windows.of(part))[:MOST_CHECKED] for part in ("train", "val")]
    if not all(len(part) for part in parts):
        raise RecipeError(
            "`pretrain.knn_every` needs labelled windows in the training and validation parts."
        )
    some = windows.at(np.sort(np.concatenate(parts)))

    def check(run: Run) -> float:
        encoder = run.method.encoder
        aim(encoder, reader.product)
        training = {name: module.training for name, module in encoder.named_modules()}
        features = describe_windows(
            reader,
            some,
            normaliser,
            {"model": EncoderFeatures.trained(encoder, model.shape.image_px, model.settings)},
            device=device,
        )["model"]
        for name, module in encoder.named_modules():
            module.training = training[name]
        train, val = some.of("train"), some.of("val")
        standardised = Parts.standardised(features, some.label, train, val, val)
        return accuracy(knn(standardised, k), some.label[val])[1]

    return check
