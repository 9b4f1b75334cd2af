"""What README says is so: its recipe loads, its commands and options exist, its Python runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
from typer.main import get_command

from pipeline.cli import app
from pipeline.recipe import load_recipe
from pipeline.run.schemas import schema_files
from pipeline.run.simulate import run_simulate
from pipeline.watch.progress import Progress

REPO = Path(__file__).resolve().parents[2]
TEXT = (REPO / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize("more", [False, True])
def test_the_recipe_loads_and_its_schema_accepts_it(tmp_path: Path, more: bool) -> None:
    text, products = blocks("toml")
    text += products if more else ""
    (tmp_path / "alps.toml").write_text(text)
    loaded = load_recipe(tmp_path / "alps.toml")
    assert loaded.stages()[-1] == "pretrain"
    schema = json.loads(schema_files()["recipe.schema.json"])
    values = json.loads(json.dumps(tomllib.loads(text), default=str))
    jsonschema.Draft202012Validator(schema).validate(values)


def test_every_command_parses() -> None:
    commands = get_command(app).commands
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    called = [
        shlex.split(line.replace(" & ", " "), comments=True)[1:]
        for line in lines
        if line[:10] == "terrashard"
    ]
    assert len(called) >= 10
    for name, *words in called:
        commands[name].make_context(name, words)


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (REPO / "Makefile").read_text()))
    named = {a or b for a, b in re.findall(r"(?m)`make ([a-z]+)`|^make ([a-z]+)", TEXT)}
    assert named <= targets


def test_every_file_and_module_named_exists() -> None:
    for path in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (REPO / path).exists(), path
    for path in ("dags/terrashard_recipes.py", "requirements/curation.txt", "docs/decisions"):
        assert path in TEXT
        assert (REPO / path).exists()


def test_the_python_runs(tmp_path: Path) -> None:
    """In a process of its own, as a reader would paste it."""
    with Progress(live=False) as progress:
        run_simulate(str(tmp_path / "data" / "demo"), shards=2, seed=0, progress=progress)
    code = "\n".join(blocks("python"))
    (opened,) = re.findall(r"`(xarray\.open_zarr\([^`]*\))`", TEXT)
    code += f"\nimport xarray\nassert {opened}.sizes['band'] == cube.sizes['band']\n"
    code += "assert sample['enmap-l2a']['bands'].ndim == 4\n"
    code += "assert batch['bands'].ndim == 4\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize("code", ["0 done", "2 edit", "65 stored", "69 gave up", "75 try again"])
def test_exit_codes_are_those_of_the_help(code: str) -> None:
    assert code in TEXT
    assert code in str(app.info.epilog)
