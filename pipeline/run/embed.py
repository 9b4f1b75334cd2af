"""Run the command `embed`: what a model makes of every patch, as GeoParquet beside it.

::

    models/<name>/features/<weights>-v000001-float32/00000.parquet    a piece: one row per patch
    models/<name>/features/<weights>-v000001-float32.json             all pieces are there

`<weights>` begins the digest of the weights, so other weights never share a folder; a product that
is not the model's own stands behind it. A piece that is there is never made again. The folder is
one table for whatever reads Parquet.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import RecipeError
from pipeline.evaluate.features import EncoderFeatures, Features, describe_windows
from pipeline.evaluate.windows import Windows
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint
from pipeline.pretrain.train import choose_device
from pipeline.recipe import LoadedRecipe
from pipeline.run.describe import model_name
from pipeline.run.trained import Trained, open_trained
from pipeline.store import layout
from pipeline.store.patches import PatchReader
from pipeline.store.reader import Dataset, open_dataset
from pipeline.store.tables import encode_table
from pipeline.watch.progress import Progress

#: Of stored features: NumPy's names.
DTYPES = ("float32", "float16")
#: Patches of a piece: what an interrupted run loses at most. Pieces are counted by it, so another
#: number would need other folders.
PIECE = 4096
#: What a row has beside its features, from the version's index.
COLUMNS = (
    *("location", "product", "slot", "acquired", "scenes", "split", "clear_fraction"),
    *("valid_fraction", "pixel_digest", "epsg", "x_min_m", "y_max_m", "lon_deg", "lat_deg"),
    "geometry",
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where features come from: metadata of every piece, as JSON under `terrashard`."""

    model: str
    step: int
    weights_sha256: str
    """Digest of the model."""
    pretrained_on: str
    """Digest of the data it learned from."""
    transductive: bool
    """Whether validation and test images were among them."""
    product: str
    own_product: bool
    """Whether it is the one that the model is named after."""
    new_product: bool
    """Whether the model never learned from it: `pipeline.run.trained.Trained.new`."""
    bands: tuple[str, ...]
    dataset: str
    version: int
    """Published version whose patches these are."""
    data_digest: str
    """Digest of that version."""
    dtype: str

    @property
    def folder(self) -> str:
        """Key of the folder of the pieces."""
        name = f"{self.weights_sha256[:12]}-v{self.version:06d}-{self.dtype}"
        name += "" if self.own_product else f"-{self.product}"
        return layout.model(self.model, f"features/{name}")


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What was embedded."""

    model: str
    product: str
    weights_sha256: str
    version: int
    patches: int
    pieces: int
    made: int
    """Pieces that were not there before."""
    folder: str
    """Key in the root."""


def run_embed(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    model: str | None = None,
    product: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    progress: Progress | None = None,
) -> EmbedReport:
    """Write the features of every patch of a product in the newest version.

    A patch is seen whole, at the size of training and with its product's own standardisation.

    Parameters
    ----------
    loaded : LoadedRecipe
    store : ObjectStore
        The root.
    model : str or None
        Name; None: the one that the recipe's `[pretrain]` makes of the newest version.
    product : str or None
        None: the model's own. One that it did not learn from is standardised by the statistics of
        this version's training part, if it has a backbone of any sensor.
    dtype : str
        Of the stored features; `float16` halves them and keeps three digits.
    device : str
        `auto`, `cpu`, `cuda`.
    progress : Progress or None

    Raises
    ------
    RecipeError
        No such model, or the product is not what it can look at.
    """
    dataset = open_dataset(store)
    described = checkpoint.load(store, model or model_name(loaded, dataset))
    place = choose_device(device)
    trained = open_trained(loaded, store, dataset, described, product, place)
    reader, normaliser = trained.reader, trained.normaliser
    origin = _origin(trained, described.product, dataset, dtype)
    how = trained.model.settings
    kinds = {"model": EncoderFeatures.trained(trained.encoder, trained.shape.image_px, how)}
    if progress is not None:
        progress.start("embed", len(reader))
    made = 0
    firsts = range(0, len(reader), PIECE)
    for number, first in enumerate(firsts):
        rows = np.arange(first, min(first + PIECE, len(reader)))
        key = f"{origin.folder}/{number:05d}.parquet"
        if not _exists(store, key):
            whole = _whole(reader, rows)
            found = describe_windows(reader, whole, normaliser, kinds, device=place)["model"]
            store.create(key, _encode(reader.rows.slice(first, len(rows)), found, origin))
            made += 1
        if progress is not None:
            progress.advance(len(rows))
    facts = {**asdict(origin), "patches": len(reader), "pieces": len(firsts)}
    store.put(f"{origin.folder}.json", layout.dump_json(facts))
    return EmbedReport(
        model=origin.model,
        product=origin.product,
        weights_sha256=origin.weights_sha256,
        version=origin.version,
        patches=len(reader),
        pieces=len(firsts),
        made=made,
        folder=origin.folder,
    )


def _origin(trained: Trained, own: str, dataset: Dataset, dtype: str) -> Origin:
    if dtype not in DTYPES:
        raise RecipeError(f"features cannot be stored as {dtype!r}; use `float32` or `float16`.")
    model = trained.model
    return Origin(
        model=model.name,
        step=model.step,
        weights_sha256=model.weights_sha256,
        pretrained_on=model.digest,
        transductive=model.settings.transductive,
        product=trained.product,
        own_product=trained.product == own,
        new_product=trained.new,
        bands=trained.reader.bands,
        dataset=dataset.version.name,
        version=dataset.version.number,
        data_digest=dataset.version.dataset_digest,
        dtype=dtype,
    )


def _whole(reader: PatchReader, rows: NDArray[np.int64]) -> Windows:
    """Return windows that are whole patches, without labels."""
    nothing = np.zeros(len(rows), dtype=np.int64)
    return Windows(
        patch=rows,
        y_px=nothing,
        x_px=nothing,
        label=nothing,
        location=reader.sample_row[rows],
        part=np.asarray(reader.rows["split"].to_pylist(), dtype=str)[rows],
        edge_px=reader.shape[-1],
    )


def _encode(rows: pa.Table, features: Features, origin: Origin) -> bytes:
    """Return a piece: the rows' places and times, and a list of features in each."""
    flat = pa.array(features.astype(origin.dtype).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, features.shape[1])
    table = rows.select(COLUMNS).append_column("features", lists)
    return encode_table(table, metadata={"terrashard": json.dumps(asdict(origin), sort_keys=True)})


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        return store.size(key) > 0
    except KeyError:
        return False
