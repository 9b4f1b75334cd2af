"""Learn from a published version without labels; run it again and it goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint, ranks
from pipeline.pretrain.backbones import WAVELENGTH, EncoderShape
from pipeline.pretrain.batches import Share, stream
from pipeline.pretrain.checkpoint import Model
from pipeline.pretrain.logs import Journal, open_sinks
from pipeline.pretrain.normalise import Normaliser
from pipeline.pretrain.order import Picks, pairs_of_products, times_or_views
from pipeline.pretrain.spectral import LEAST_BANDS
from pipeline.pretrain.train import (
    Run,
    build_run,
    check_parts,
    choose_device,
    last_health,
    train,
)
from pipeline.pretrain.wavelength import Sensor
from pipeline.recipe import LoadedRecipe, Pretrain
from pipeline.run.labelled import labelled_part
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset
from pipeline.watch.progress import Progress


@dataclass(frozen=True, slots=True)
class PretrainReport:
    """What a run learned, and how healthy it is."""

    model: str
    """Name, a folder of `models/`."""
    version: int
    """Published version it learned from."""
    steps: int
    resumed_from: int
    """Step it went on from; equal to `steps` if there was nothing left to do."""
    locations: int
    patches: int
    paired_fraction: float
    """Share of locations that have at least two times: the others are paired with themselves."""
    transductive: bool
    """Whether it saw the validation and test parts too (without labels)."""
    loss: float
    embedding_std: float
    mean_cosine: float
    effective_rank: float
    collapsed: bool
    """Whether the embeddings look like one point (`pipeline.pretrain.monitors`)."""


def run_pretrain(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    name: str | None = None,
    resume: bool = True,
    device: str = "auto",
    progress: Progress | None = None,
    logs: Sequence[str] = (),
    log_folder: Path = Path("logs"),
) -> PretrainReport:
    """Train the recipe's model on the newest version, from its newest checkpoint if there is one.

    Parameters
    ----------
    loaded : LoadedRecipe
        With a `[pretrain]` table.
    store : ObjectStore
        The root.
    name : str or None
        Of the model; None: one that tells method, backbone, version and settings.
    resume : bool
        False: drop earlier checkpoints of that name and begin anew.
    device : str
        `auto`, `cpu`, `cuda`.
    progress : Progress or None
    logs : sequence of str
        Where rows go as they are measured, beside the log in each checkpoint: see
        `pipeline.pretrain.logs.SINKS`.
    log_folder : Path
        On this machine, for what logs write.

    Raises
    ------
    RecipeError
        The recipe does not fit the data, or the name belongs to another run.
    """
    settings = _settings(loaded)
    check_parts(settings, ranks.launched())
    dataset = open_dataset(store)
    readers = {
        product: _reader(dataset, product, transductive=settings.transductive)
        for product in products_of(loaded)
    }
    model = describe(loaded, dataset, name=name)
    place = ranks.join(choose_device(device))
    first = ranks.rank() == 0
    normalisers = {product: _normaliser(dataset, product).to(place) for product in readers}
    second = _second_shape(model, readers)
    labels = labelled_part(loaded, dataset, model, normalisers[model.product], place)
    run = build_run(settings, model.shape, place, second=second, classes=labels.classes)
    if resume:
        _resume(store, model, run)
    elif first:
        for step in checkpoint.steps(store, model.name):
            checkpoint.drop(store, model.name, step)
    started = run.step
    ranks.agree(started, "the step to go on from")
    if progress is not None:
        progress.start("pretrain", settings.steps - started)
    wanted = logs if first else ()
    shown = settings.model_dump(mode="json")
    sinks = open_sinks(wanted, log_folder, run=model.name, start=started, settings=shown)
    with Journal(sinks, progress) as journal, ranks.company():
        batches = stream(
            readers,
            _picks(settings, readers, run.method.views),
            start=started,
            stop=settings.steps,
            threads=settings.threads,
            device=place,
            share=Share(ranks.rank(), ranks.size()),
        )
        train(
            run,
            journal.watch(batches),
            settings=settings,
            shape=model.shape,
            second=second,
            normalisers=normalisers,
            support=labels.support,
            validate=labels.check,
            checkpoint=lambda run: _save(store, model, run) if first else None,
            after_step=lambda run: journal.after_step(run.step, run.log),
        )
    report = _report(model, run, readers[model.product], started)
    if report.collapsed and progress is not None:
        progress.note(
            f"pretrain: embeddings look collapsed (deviation {report.embedding_std:.2f}, mean "
            f"cosine {report.mean_cosine:.2f}); see models/{model.name}/"
        )
    return report


def product_of(loaded: LoadedRecipe) -> str:
    """Return the id of the product that is learned from.

    Raises
    ------
    RecipeError
        There is no such image product in the recipe.
    """
    images = [key for key, product in loaded.products.items() if product.kind == "image"]
    wanted = _settings(loaded).product
    if wanted is None and images:
        return images[0]
    if wanted not in images:
        raise RecipeError(
            f"`pretrain.product` is {wanted!r}, but the image products of recipe {loaded.name} "
            f"are: {', '.join(images) or 'none'}."
        )
    return str(wanted)


def products_of(loaded: LoadedRecipe) -> tuple[str, ...]:
    """Return the ids of all products that are learned from, the recipe's `product` first.

    Raises
    ------
    RecipeError
        One is no image product of the recipe, is named twice, or needs another backbone.
    """
    settings, first = _settings(loaded), product_of(loaded)
    images = [key for key, product in loaded.products.items() if product.kind == "image"]
    more = settings.more_products
    if settings.pairs == "products" and not more:
        more = tuple(key for key in images if key != first)[:1]
    everything = (first, *more)
    for product in settings.more_products:
        if product not in images or everything.count(product) > 1:
            raise RecipeError(
                f"`pretrain.more_products` names {product!r}; it takes other image products of "
                f"recipe {loaded.name} than {first}: {', '.join(images)}."
            )
    mixed = len(everything) > 1 and settings.pairs != "products"
    if mixed and not settings.backbone.startswith(WAVELENGTH):
        raise RecipeError(
            f"`pretrain.more_products` mixes sensors, which {settings.backbone} cannot take; "
            f'write `backbone = "{WAVELENGTH}..."`, or pair two of them with `method = "decur"`.'
        )
    if mixed and settings.method == "mae":
        raise RecipeError(
            '`pretrain.method = "mae"` predicts the bands of one product; leave out '
            "`pretrain.more_products`, or choose another method."
        )
    if settings.method == "decur" and settings.pairs != "products":
        raise RecipeError(
            '`pretrain.method = "decur"` learns from two products; leave out `pretrain.pairs`.'
        )
    if settings.pairs == "products" and settings.method != "decur":
        raise RecipeError(
            f'`pretrain.pairs = "products"` needs two encoders, and {settings.method} has one; '
            'choose `method = "decur"`.'
        )
    if settings.pairs == "products" and len(everything) != 2:
        raise RecipeError(
            '`pretrain.pairs = "products"` pairs two products: `product` and one in '
            f"`more_products`, not {len(everything)}."
        )
    return everything


def describe(loaded: LoadedRecipe, dataset: Dataset, *, name: str | None = None) -> Model:
    """Return what the recipe's model on this version is, before its first step."""
    settings, product = _settings(loaded), product_of(loaded)
    reader = dataset.patches(product)
    mean, std, _ = dataset.statistics(product)
    size_px = min(dataset.patches(each).shape[-1] for each in products_of(loaded))
    crop_px = settings.crop_px or size_px
    if crop_px > size_px:
        raise RecipeError(
            f"`pretrain.crop_px` is {crop_px}, but the patches have {size_px} pixels."
        )
    return Model(
        name=checkpoint.check_name(name or _default_name(settings, product, dataset)),
        dataset=dataset.version.name,
        identity=dataset.version.identity,
        version=dataset.version.number,
        digest=dataset.version.dataset_digest,
        product=product,
        bands=tuple(reader.bands),
        wavelength_nm=tuple(reader.wavelength_nm),
        # Bands that no training patch saw have no statistics; any number will do for them.
        mean=tuple(np.nan_to_num(mean).tolist()),
        std=tuple(np.nan_to_num(std, nan=1.0).tolist()),
        fill=None if np.isnan(reader.fill) else float(reader.fill),
        shape=EncoderShape(
            settings.backbone,
            len(reader.bands),
            crop_px,
            settings.patch_px,
            _sensors(loaded, dataset) if settings.backbone.startswith(WAVELENGTH) else (),
        ),
        settings=settings,
    )


def _settings(loaded: LoadedRecipe) -> Pretrain:
    if loaded.recipe.pretrain is None:
        raise RecipeError(
            f"recipe {loaded.name} has no [pretrain] table; add one, for example "
            '[pretrain] with method = "moco" and backbone = "resnet18".'
        )
    return loaded.recipe.pretrain


def _default_name(settings: Pretrain, product: str, dataset: Dataset) -> str:
    """Name a run by what it is, so that other settings never meet its checkpoints."""
    values = [product, settings.model_dump(mode="json", exclude={"threads", "checkpoint_every"})]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    number = dataset.version.number
    return f"{settings.method}-{settings.backbone}-v{number}-{digest[:6]}".replace("_", "-")


def _reader(dataset: Dataset, product: str, *, transductive: bool) -> PatchReader:
    if transductive:
        return dataset.patches(product)
    splits = set(dataset.sel(product=product).index["split"].unique().to_pylist())
    if "train" not in splits:
        raise RecipeError(
            f"version {dataset.version.number} has no {product} patch in the training part; "
            "collect more locations, or change `split` (smaller `block_km`, a larger `train`)."
        )
    return dataset.sel(product=product, split="train").patches(product)


def _second_shape(model: Model, readers: Mapping[str, PatchReader]) -> EncoderShape | None:
    """Return what the second product's encoder is built from, for a method of two.

    It is the first's but for the bands, and has no spectral adapter where those are too few; one of
    any sensor begins with the second product.
    """
    if model.settings.method != "decur":
        return None
    _, other = readers.values()
    shape = model.shape
    plain = shape.spectral and len(other.bands) < LEAST_BANDS
    return replace(
        shape,
        backbone=shape.family if plain else shape.backbone,
        bands=len(other.bands),
        sensors=shape.sensors[::-1],
    )


def _picks(settings: Pretrain, readers: Mapping[str, PatchReader], views: int) -> Picks:
    """Return what each step is made of."""
    if settings.pairs == "products":
        return pairs_of_products(readers, batch_size=settings.batch_size, seed=settings.seed)
    return times_or_views(
        readers,
        views=views,
        times=settings.pairs == "times",
        batch_size=settings.batch_size,
        seed=settings.seed,
    )


def _normaliser(dataset: Dataset, product: str) -> Normaliser:
    """Return the normaliser of a product, by the statistics of the training part."""
    mean, std, _ = dataset.statistics(product)
    fill = dataset.patches(product).fill
    return Normaliser(mean.tolist(), std.tolist(), None if np.isnan(fill) else float(fill))


def _sensors(loaded: LoadedRecipe, dataset: Dataset) -> tuple[Sensor, ...]:
    sensors = []
    for product in products_of(loaded):
        reader, facts = dataset.patches(product), loaded.products[product]
        widths = reader.fwhm_nm
        if all(width is None for width in widths):  # of a root from before they were kept
            widths = tuple(facts.band(name).fwhm_nm for name in reader.bands)
        sensors.append(Sensor(product, tuple(reader.bands), tuple(reader.wavelength_nm), widths))
    return tuple(sensors)


def _resume(store: ObjectStore, model: Model, run: Run) -> None:
    """Bring a run to its newest checkpoint, if it has one and is the same run."""
    known = checkpoint.steps(store, model.name)
    if not known:
        return
    found = checkpoint.load(store, model.name, known[-1])
    for field in ("identity", "digest", "product", "shape", "settings", "mean", "std"):
        old, new = getattr(found, field), getattr(model, field)
        if field == "settings":
            free = {"threads", "checkpoint_every"}
            old, new = old.model_dump(exclude=free), new.model_dump(exclude=free)
        if old != new:
            raise RecipeError(
                f"model {model.name!r} in {store.url} was begun with another {field}; give this "
                "run another name, or begin it anew."
            )
    run.restore(*checkpoint.load_state(store, found))


def _save(store: ObjectStore, model: Model, run: Run) -> None:
    reached = model.model_copy(update={"step": run.step})
    checkpoint.save(store, reached, run.method.encoder, run.state(), run.log_csv())


def _report(model: Model, run: Run, reader: PatchReader, started: int) -> PretrainReport:
    _, times = np.unique(reader.sample_row, return_counts=True)
    measured = last_health(run)
    return PretrainReport(
        model=model.name,
        version=model.version,
        steps=run.step,
        resumed_from=started,
        locations=len(times),
        patches=len(reader),
        paired_fraction=float((times > 1).mean()),
        transductive=model.settings.transductive,
        loss=run.log[-1]["loss"],
        embedding_std=measured.std,
        mean_cosine=measured.cosine,
        effective_rank=measured.rank,
        collapsed=measured.collapsed,
    )
