"""One Airflow DAG per recipe, one task per stage, each a call of the `terrashard` command.

Put recipes into the folder named by the environment variable TERRASHARD_RECIPES (default: the
folder `recipes` beside this file's folder) and name where data sets live by TERRASHARD_ROOTS (a
folder or an object-store prefix). A recipe is picked up when the scheduler parses this file again.

Exit codes decide what Airflow does: 75 (try again) is retried with growing delays; 2 (edit the
recipe), 65 (stored facts contradict) and 69 (gave up) fail at once, because a retry cannot help.
A stage that is done is skipped quickly by the command itself, so clearing a whole run is safe.
"""

from __future__ import annotations

import os
import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from airflow.exceptions import AirflowFailException
from airflow.sdk import DAG, task

from pipeline.errors import RecipeError, TerrashardError
from pipeline.recipe import LoadedRecipe, load_recipe
from pipeline.stages.sample.complete import to_complete

RECIPES = Path(os.environ.get("TERRASHARD_RECIPES", Path(__file__).parent.parent / "recipes"))
ROOTS = os.environ.get("TERRASHARD_ROOTS", "data")
SCHEDULER = os.environ.get("TERRASHARD_SCHEDULER")
TRY_AGAIN = 75
#: Task that draws and builds further places until enough are complete.
ROUNDS = "rounds"


def command(stage: str, recipe: Path, name: str, cutoff: str) -> list[str]:
    """Return the command line of one stage."""
    words = ["terrashard", stage, str(recipe), "--root", f"{ROOTS}/{name}"]
    if stage == ROUNDS:
        words[1] = "run"
        words += ["--until", "extract"]
    if stage in ("plan", ROUNDS):
        words += ["--cutoff", cutoff]
    if stage in ("extract", ROUNDS) and SCHEDULER:
        words += ["--scheduler", SCHEDULER]
    return words


def stages_of(loaded: LoadedRecipe) -> list[str]:
    """Return the recipe's stages; where places must be complete, more rounds follow `extract`."""
    stages = list(loaded.stages())
    if to_complete(loaded):
        stages.insert(stages.index("extract") + 1, ROUNDS)
    return stages


def run_stage(words: list[str]) -> None:
    """Run a command; fail without retries unless it asks to be tried again."""
    code = subprocess.run(words, check=False).returncode
    if code == TRY_AGAIN:
        raise RuntimeError(f"{' '.join(words)} asks to be tried again (exit {code})")
    if code:
        raise AirflowFailException(f"{' '.join(words)} ended with exit code {code}")


def broken_id(path: Path) -> str:
    """Return the id of the DAG of a file that is no recipe: of letters that Airflow allows."""
    return "terrashard_broken_" + re.sub(r"[^A-Za-z0-9_.-]", "-", path.stem)


def dag_of(path: Path, loaded: LoadedRecipe) -> DAG:
    """Return the DAG of one recipe: its stages in the recipe's own order."""
    with DAG(
        dag_id=f"terrashard_{loaded.name}",
        description=loaded.recipe.description,
        schedule="@monthly",
        start_date=datetime(2024, 1, 1),
        catchup=False,
        max_active_runs=1,
        default_args={
            "retries": 5,
            "retry_delay": timedelta(minutes=5),
            "retry_exponential_backoff": True,
            "max_retry_delay": timedelta(hours=2),
        },
        tags=["terrashard"],
    ) as dag:
        before = None
        for stage in stages_of(loaded):

            @task(task_id=stage)
            def run_one(words: list[str]) -> None:
                run_stage(words)

            # The logical date is the cut-off: a rerun of an old run plans what it planned then.
            this = run_one(command(stage, path, loaded.name, "{{ ds }}"))
            if before is not None:
                before >> this
            before = this
    return dag


def broken_dag(path: Path, error: TerrashardError) -> DAG:
    """Return a DAG that shows what is wrong with a recipe, so that the others still load."""
    with DAG(
        dag_id=broken_id(path),
        description=f"broken recipe: {error}",
        schedule=None,
        start_date=datetime(2024, 1, 1),
        tags=["terrashard", "broken"],
    ) as dag:

        @task
        def check(words: list[str]) -> None:
            run_stage(words)

        check(["terrashard", "check", str(path)])
    return dag


named: dict[str, Path] = {}
for recipe_path in sorted(RECIPES.glob("*.toml")):
    try:
        recipe = load_recipe(recipe_path)
        first = named.setdefault(recipe.name, recipe_path)
        if first != recipe_path:
            raise RecipeError(f"{recipe_path}: {first.name} has the `name` {recipe.name!r} too.")
    except TerrashardError as wrong:
        globals()[broken_id(recipe_path)] = broken_dag(recipe_path, wrong)
    else:
        globals()[f"terrashard_{recipe.name}"] = dag_of(recipe_path, recipe)
