"""Run the command `export`: a trained encoder as a folder that other programs load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.ports import ObjectStore
from pipeline.pretrain import checkpoint
from pipeline.pretrain.export import export
from pipeline.recipe import LoadedRecipe
from pipeline.run.describe import model_name
from pipeline.store.reader import open_dataset


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was exported, and where to."""

    model: str
    product: str
    """Whose images the encoder takes."""
    step: int
    weights_sha256: str
    folder: str
    files: str


def run_export(
    loaded: LoadedRecipe,
    store: ObjectStore,
    folder: Path,
    *,
    model: str | None = None,
    product: str | None = None,
    onnx: bool = False,
) -> ExportReport:
    """Export a model at its newest checkpoint.

    Parameters
    ----------
    loaded : LoadedRecipe
    store : ObjectStore
        The root.
    folder : Path
        New folder on this machine.
    model : str or None
        Name; None: the one that the recipe's `[pretrain]` makes of the newest version.
    product : str or None
        Of a model of two encoders: the product of the one that is exported; None: the first.
    onnx : bool
        Write `model.onnx` too.

    Raises
    ------
    RecipeError
        No such model or encoder, or the folder exists.
    """
    trained = checkpoint.load(store, model or model_name(loaded, open_dataset(store)))
    if product is not None and product not in trained.encoders:
        raise RecipeError(
            f"model {trained.name!r} has no encoder of its own for {product!r}; it has one for: "
            f"{', '.join(trained.encoders)}."
        )
    trained = trained.facing(product or trained.product)
    files = export(trained, checkpoint.load_encoder(store, trained), folder, onnx=onnx)
    return ExportReport(
        model=trained.name,
        product=trained.product,
        step=trained.step,
        weights_sha256=trained.weights_sha256,
        folder=str(folder),
        files=" ".join(files),
    )
