"""What the kill test extracts: the demo's archive and recipe, in smaller shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from pipeline.recipe import load_recipe
from pipeline.run.plan import run_plan
from pipeline.run.sample import run_sample
from pipeline.run.search import run_search
from pipeline.run.simulate import run_simulate
from pipeline.simulate.service.server import ArchiveServer
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

#: Some dozens of shards instead of a few, so that a kill finds some done and some not.
SHARD_MB = 16


@contextmanager
def demo_root(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield a planned root and its recipe file, while the archive is served."""
    archive, root, recipe = folder / "archive", folder / "root", folder / "demo.toml"
    with Progress() as progress:
        run_simulate(str(archive), progress=progress)
    with ArchiveServer(archive) as server:
        text = files("pipeline.recipes").joinpath("demo.toml").read_text()
        text = text.replace("http://127.0.0.1:8790", server.url)
        recipe.write_text(text.replace("shard_mb = 128", f"shard_mb = {SHARD_MB}"))
        loaded, store = load_recipe(recipe), open_store(root)
        run_sample(loaded, store)
        run_search(loaded, store)
        run_plan(loaded, store)
        yield root, recipe
