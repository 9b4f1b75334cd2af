"""Compose file, image, DAG and schemas agree with the commands they call."""

import ast
import importlib.util
import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from pipeline.cli import app
from pipeline.recipe import recipe_names
from pipeline.run.schemas import schema_files
from pipeline.sources.providers import providers

REPO = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((REPO / "docker-compose.yml").read_text())


def test_schemas_on_disk_are_those_of_the_code():
    fresh = schema_files()
    kept = {path.name: path.read_text() for path in (REPO / "schemas").glob("*.json")}
    assert kept == fresh, "run `make schemas`"


def test_schemas_are_sound_and_accept_the_built_in_files():
    for text in schema_files().values():
        jsonschema.Draft202012Validator.check_schema(json.loads(text))
    recipe = jsonschema.Draft202012Validator(
        json.loads(schema_files()["recipe.schema.json"]),
    )
    for name in recipe_names():
        values = tomllib.loads((REPO / "pipeline" / "recipes" / f"{name}.toml").read_text())
        recipe.validate(json.loads(json.dumps(values, default=str)))


def test_compose_services_start_what_exists():
    services = COMPOSE["services"]
    assert set(services) == {"scheduler", "worker", "cli", "demo"}
    assert services["demo"]["profiles"] == ["demo"]
    for line in (REPO / "docs" / "demo.sh").read_text().splitlines():
        words = line.split()
        if words and words[0] == "terrashard":
            assert words[1] in get_command(app).commands


def test_compose_passes_on_every_login_that_a_provider_takes():
    given = set(COMPOSE["x-terrashard"]["environment"])
    for provider in providers().values():
        if provider.auth in ("basic", "s3-keys"):
            assert set(provider.credentials) <= given
        if provider.auth == "aws":
            assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} <= given
    assert COMPOSE["services"]["demo"]["environment"].keys() >= given


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not here")
def test_docker_compose_accepts_the_file():
    subprocess.run(
        ["docker-compose", "-f", str(REPO / "docker-compose.yml"), "config", "-q"], check=True
    )


def test_the_image_uses_the_hashed_lock():
    text = (REPO / "Dockerfile").read_text()
    assert "--require-hashes -r requirements/${EXTRAS}.txt" in text
    for name in ("all", "curation", "bootstrap"):
        lock = (REPO / "requirements" / f"{name}.txt").read_text()
        assert "--hash=sha256:" in lock
        assert "://" not in lock, "the lock must not name an index"
    assert "\ntorch==" not in (REPO / "requirements" / "curation.txt").read_text()


def test_dag_calls_only_commands_and_options_that_exist():
    tree = ast.parse((REPO / "dags" / "terrashard_recipes.py").read_text())
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    options = {word for word in words if word.startswith("--")}
    commands = get_command(app).commands
    known = {name for stage in commands.values() for p in stage.params for name in p.opts}
    assert options <= known


@pytest.mark.skipif(importlib.util.find_spec("airflow") is None, reason="Airflow is not here")
def test_airflow_loads_one_dag_per_recipe(tmp_path, monkeypatch):
    (tmp_path / "demo.toml").write_text((REPO / "pipeline/recipes/demo.toml").read_text())
    (tmp_path / "twin of demo.toml").write_text((tmp_path / "demo.toml").read_text())
    (tmp_path / "broken.toml").write_text("name = 1\n")
    whole = (REPO / "pipeline/recipes/ssl4eo-s12.toml").read_text()
    (tmp_path / "whole.toml").write_text(whole)
    monkeypatch.setenv("TERRASHARD_RECIPES", str(tmp_path))
    spec = importlib.util.spec_from_file_location("dag", REPO / "dags" / "terrashard_recipes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert next(task.task_id for task in module.terrashard_demo.topological_sort()) == "sample"
    names = [task.task_id for task in vars(module)["terrashard_ssl4eo-s12"].topological_sort()]
    assert names[names.index("extract") :][:3] == ["extract", "rounds", "publish"]
    assert "broken" in module.terrashard_broken_broken.tags
    twin = vars(module)["terrashard_broken_twin-of-demo"]
    assert "demo.toml has the `name` 'demo' too" in twin.description
