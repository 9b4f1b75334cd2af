"""Run the command `export`: a trained encoder as a folder that other programs load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    onnx : bool
        Write `model.onnx` too.

    Raises
    ------
    RecipeError
        No such model, or the folder exists.
    """
    trained = checkpoint.load(store, model or model_name(loaded, open_dataset(store)))
    files = export(trained, checkpoint.load_encoder(store, trained), folder, onnx=onnx)
    return ExportReport(
        model=trained.name,
        step=trained.step,
        weights_sha256=trained.weights_sha256,
        folder=str(folder),
        files=" ".join(files),
    )
