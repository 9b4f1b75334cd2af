"""The front door: every command explains itself, every error is one paragraph."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import app, main

COMMANDS = get_command(app).commands
WANTED = {
    *("sample", "search", "plan", "extract", "publish", "pretrain", "evaluate"),
    *("run", "check", "init", "status", "retry", "verify", "simulate", "serve"),
    *("embed", "export"),
    *("products", "recipes", "schemas"),
}

CALL = "from pipeline.cli import main; main()"


def call(*arguments: str, capsys) -> tuple[int, str, str]:
    """Return (exit code, standard output, standard error) of a call in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_all_commands_are_there():
    assert set(COMMANDS) == WANTED


@pytest.mark.parametrize("name", sorted(WANTED))
def test_help_says_what_it_does_and_shows_an_example(name, capsys):
    code, out, _ = call(name, "--help", capsys=capsys)
    assert code == 0
    assert f"Example: terrashard {name}" in " ".join(out.split())
    assert COMMANDS[name].help
    for parameter in COMMANDS[name].params:
        if parameter.name not in ("recipe", "help"):
            assert parameter.help, f"{name}: {parameter.name} is not explained"


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_example_of_each_command_parses(name):
    command = COMMANDS[name]
    words = command.epilog.split(f"terrashard {name}", 1)[1].split()
    command.make_context(name, words)


def test_an_unknown_recipe_is_one_paragraph_and_exit_2(capsys):
    code, out, err = call("check", "nowhere.toml", capsys=capsys)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert "nowhere.toml" in err
    assert "Traceback" not in err


def test_debug_shows_the_traceback(tmp_path: Path):
    ended = subprocess.run(
        [sys.executable, "-c", CALL, "check", "nowhere.toml", "--debug"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert "Traceback" in ended.stderr
    assert "RecipeError" in ended.stderr
    assert ended.returncode == 2, "what without it"


def test_the_version_is_that_of_the_package(capsys):
    assert call("--version", capsys=capsys)[:2] == (0, f"terrashard {version('terrashard')}\n")


def test_the_list_of_commands_cuts_no_sentence(capsys):
    _, out, _ = call("--help", capsys=capsys)
    assert "..." not in out.split("Commands:")[1]


def test_help_needs_no_heavy_import():
    code = (
        "import sys\n"
        "sys.argv = ['terrashard', '--help']\n"
        "from pipeline.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'numpy', 'pyarrow', 'rasterio', 'dask', 'torch', 'pydantic', 'xarray', 'zarr'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_init_copies_and_never_overwrites(tmp_path: Path, capsys):
    target = tmp_path / "mine.toml"
    assert call("init", "demo", str(target), capsys=capsys)[0] == 0
    before = target.read_text()
    code, _, err = call("init", "demo", str(target), capsys=capsys)
    assert code == 2
    assert "exists already" in err
    assert target.read_text() == before
    code, out, _ = call("check", str(target), capsys=capsys)
    assert code == 0
    assert json.loads(out)["name"] == "demo"


def test_check_prints_defaults_and_what_follows(capsys):
    code, out, _ = call("check", "demo", capsys=capsys)
    resolved = json.loads(out)
    assert code == 0
    assert resolved["shards"]["compression_level"] == 1
    assert resolved["resolved"]["stages"][0] == "sample"
    code, out, _ = call("check", "demo", "--stages", capsys=capsys)
    assert out.split() == resolved["resolved"]["stages"]


def test_products_and_recipes_are_listed(capsys):
    _, out, _ = call("products", capsys=capsys)
    assert "sentinel-2-l2a" in out
    assert "enmap-l2a" in out
    _, out, _ = call("products", "enmap-l2a", capsys=capsys)
    assert out.count(" yes\n") == 202
    assert "TERRASHARD_DLR_USER" in out, "who serves it, and what login that takes"
    _, out, _ = call("recipes", capsys=capsys)
    assert "demo" in out


def test_until_must_be_a_stage_of_the_recipe(tmp_path: Path, capsys):
    code, _, err = call("run", "demo", "--root", str(tmp_path), "--until", "wish", capsys=capsys)
    assert code == 2
    assert "no stage 'wish'" in err
    assert "sample" in err


def test_serial_and_workers_exclude_each_other(tmp_path: Path, capsys):
    code, _, err = call(
        "extract", "demo", "--root", str(tmp_path), "--serial", "--workers", "2", capsys=capsys
    )
    assert code == 2
    assert "--serial" in err
