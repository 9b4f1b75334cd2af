"""Run every stage of a recipe, in the recipe's own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from pipeline.errors import RecipeError
from pipeline.ports import Engine, ObjectStore
from pipeline.recipe import LoadedRecipe
from pipeline.run.check import check_recipe
from pipeline.stages.sample.complete import to_complete
from pipeline.watch.progress import Progress


def run_everything(
    loaded: LoadedRecipe,
    store: ObjectStore,
    *,
    engine: Callable[[], Engine],
    until: str | None = None,
    cutoff: datetime | None = None,
    device: str = "auto",
    progress: Progress,
) -> Iterator[tuple[str, Any]]:
    """Yield (stage, report) after each stage.

    Where locations must be complete, the stages up to `extract` follow one another in rounds.

    Parameters
    ----------
    engine : callable
        Makes the engine, only when `extract` needs it.
    until : str or None
        Last stage to run.

    Raises
    ------
    RecipeError
        `until` is not a stage of this recipe, `device` is not here, or the recipe cannot lead to
        its end.
    """
    check_recipe(loaded)
    stages = loaded.stages()
    if until is not None and until not in stages:
        raise RecipeError(
            f"recipe {loaded.name} has no stage {until!r}; its stages are: {', '.join(stages)}."
        )

    wanted = stages if until is None else stages[: stages.index(until) + 1]
    if device != "auto" and {"pretrain", "evaluate"} & set(wanted):
        from pipeline.pretrain.train import choose_device

        choose_device(device)  # before hours of other stages

    def run(stage: str, newest: int | None = None) -> tuple[str, Any]:
        report = _run(stage, loaded, store, engine, cutoff, device, progress, newest)
        progress.finish()
        return stage, report

    for stage in wanted:
        done = run(stage)
        yield done
        if stage == "extract" and to_complete(loaded):
            yield from _rounds(wanted[: wanted.index(stage) + 1], run)


def _rounds(
    stages: tuple[str, ...], run: Callable[[str, int | None], tuple[str, Any]]
) -> Iterator[tuple[str, Any]]:
    """Run the stages up to `extract` again and again, until `sample` draws no new location.

    Catalogues are asked about the new ones alone.
    """
    while True:
        new = None
        for stage in stages:
            done = run(stage, new)
            yield done
            if stage == "sample":
                new = done[1].new
                if not new:
                    return


def _run(
    stage: str,
    loaded: LoadedRecipe,
    store: ObjectStore,
    engine: Callable[[], Engine],
    cutoff: datetime | None,
    device: str,
    progress: Progress,
    newest: int | None,
) -> Any:
    if stage == "sample":
        from pipeline.run.sample import run_sample

        return run_sample(loaded, store)
    if stage == "search":
        from pipeline.run.search import run_search

        return run_search(loaded, store, newest=newest)
    if stage == "plan":
        from pipeline.run.plan import run_plan

        return run_plan(loaded, store, cutoff=cutoff)
    if stage == "extract":
        from pipeline.run.extract import run_extract

        return run_extract(loaded, store, engine(), progress=progress)
    if stage == "publish":
        from pipeline.run.publish import run_publish

        return run_publish(loaded, store)
    if stage == "pretrain":
        from pipeline.run.pretrain import run_pretrain

        return run_pretrain(loaded, store, device=device, progress=progress)
    from pipeline.run.evaluate import run_evaluate

    return run_evaluate(loaded, store, device=device, progress=progress)
