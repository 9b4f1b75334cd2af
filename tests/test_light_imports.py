"""Training, storage and recipe load on a machine without geospatial libraries and without Dask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pipeline"
BLOCKED = ("rasterio", "shapely", "pyproj", "geopandas", "dask", "distributed", "odc")

SCRIPT = """
import importlib, sys

# None stands for a module that is not installed, for `import` and for `find_spec` alike.
sys.modules.update(dict.fromkeys({blocked!r}))
for name in {modules!r}:
    importlib.import_module(name)
print(len({modules!r}))
"""


def modules(*rooms: str) -> list[str]:
    found = []
    for room in rooms:
        place = PACKAGE / room
        files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
        for file in files:
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            found.append(".".join(part for part in parts if part != "__init__"))
    return found


def load(names: list[str], blocked: tuple[str, ...]) -> None:
    script = SCRIPT.format(blocked=blocked, modules=names)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(len(names))


def test_annexes_store_and_recipe_need_no_geospatial_library_and_no_dask():
    names = modules("pretrain", "evaluate", "store", "recipe")
    assert {"pipeline.pretrain.train", "pipeline.store.reader", "pipeline.recipe"} <= set(names)
    load([*names, "pipeline.run.pretrain", "pipeline.run.evaluate"], BLOCKED)


def test_store_and_recipe_need_no_torch():
    load(modules("store", "recipe", "records", "errors"), (*BLOCKED, "torch", "sklearn", "timm"))
