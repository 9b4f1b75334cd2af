"""Every mistake a user can make is one paragraph that says what to do, and never a traceback."""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli.options import make_engine
from pipeline.errors import FINAL, PASSING
from pipeline.recipe import load_recipe
from pipeline.run.plan import PlanReport
from pipeline.store.layout import claim
from pipeline.store.objects import open_store
from pipeline.watch.progress import Progress

RECIPE = """
name = "tiny"
[sample]
strategy = "points"
path = "points.csv"
[cell]
lattice = "enmap30"
size_px = 32
[slots]
kind = "months"
start = 2022-07-01
end = 2022-08-01
[[product]]
id = "enmap-l2a"
path = "archive"
"""
CALL = "from pipeline.cli import main; main()"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    (tmp_path / "points.csv").write_text("lon,lat\n13.01,52.39\n")
    (tmp_path / "archive").mkdir()
    return path


def call(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "tiny"', 'name = "Tiny X"', "`name` should match pattern"),
        ("size_px", "size_pix", "`cell.size_pix` is not a known key (did you mean `size_px`?)"),
        ("size_px = 32", "size_px = 32\nx = 1", "(allowed are: lattice, size_px, snap)"),
        ("path = ", "pats = ", "`sample.pats` is not a known key (did you mean `path`?)"),
        ('id = "en', 'provder = "dlr"\nid = "en', "(did you mean `provider`?)"),
        ("[[product]]", "[product]", "`product` is one table; write its head in double brackets"),
        ("07-01", "07-02", "no whole month lies between 2022-07-02 and 2022-08-01"),
        ('"points"\npath', '"grid"\nregion = [9, 52, 10, 51]\n#', "south must be less than north"),
        ('"archive"', '"archive"\n[pretrain]\nmethod = "mae"', "hides tokens, and resnet18 has"),
        ('"archive"', '"archive"\n[pretrain]\nmethod = "decur"', "learns from two image products"),
        ('"archive"', '"archive"\n[pretrain]\nmethod = "paws"', "needs labels; name their product"),
        ('"archive"', '"archive"\n[pretrain]\ncrop_px = 33', "have 32 pixels; allowed are 1 to 32"),
        ('"points"', '"point"', "`sample.strategy` is 'point'; allowed are: 'cities', "),
        ('strategy = "points"\n', "", "`sample.strategy` is missing"),
        (
            '"enmap30"',
            '"enmap31"',
            "`cell.lattice`: there is no lattice 'enmap31'; known are",
        ),
        ("2022-08-01", "2022-06-01", "`slots` `start` 2022-07-01 must be before `end` 2022-06-01"),
        ("2022-08-01", '"2022-8"', "`slots.end` should be a valid date"),
        ('id = "enmap-l2a"', 'id = "enmap-l3"', "`product.id`: there is no product 'enmap-l3'; "),
        ('id = "enmap-l2a"', 'id = "enmap-l3"', "(did you mean `enmap-l2a`?)"),
        ('path = "archive"', "", "`product.enmap-l2a` needs `path`"),
        ('"archive"', '"archive"\nbands = ["B999"]', "no band 'B999'; it has: B001, B002 ... B224"),
        ('"archive"', '"archive"\nbands = []', "`bands` is empty"),
        ('"archive"', '"archive"\npixel_m = 0', "`pixel_m` is 0"),
        ('"archive"', '"archive"\ncandidates = 0', "`product.enmap-l2a.candidates` should be"),
        ('"archive"', '"archive"\nfollows = "x"', "follows 'x', which is not one of: (there is no"),
        ('"archive"', '"archive"\n[pretrain]\nproduct = "x"', "`pretrain.product` is 'x'; allowed"),
        ('"archive"', '"archive"\n[evaluate]\nlabels = "x"', "`evaluate.labels` is 'x'; allowed"),
        ('name = "tiny"', "name = tiny", "is not valid TOML: Invalid value (at line 2"),
        ('"archive"', '"archiv"', "archiv does not exist"),
        ("points.csv", "point.csv", "point.csv does not exist"),
        ('path = "archive"', 'provider = "google"', "no provider 'google'; known are: local"),
        ('path = "archive"', 'provider = ["dlr", "usgs"]', "'usgs' does not serve enmap-l2a"),
        ('path = "archive"', 'provider = "stac"', "needs a `url`"),
        ('path = "archive"', 'provider = "static"\nurl = "c.json"', "c.json of provider 'static'"),
        ('"archive"', '"archive"\n[pretrain]\nbackbone = "vit_huge"', "is 'vit_huge'; allowed are"),
        ('"archive"', '"archive"\n[pretrain]\nmethod = "mocco"', "'mocco') (did you mean `moco`?)"),
        ('"archive"', '"archive"\n[pretrain]\nbatch_size = 0', "to 2 (found 0).\n"),
        (
            '"archive"',
            '"archive"\n[pretrain]\ncrop_area = [0.2]',
            "has too few values (found [0.2])",
        ),
        (
            '"archive"',
            '"archive"\n[pretrain]\ncrop_area = 3',
            "crop_area` should be a list (found 3)",
        ),
        ("size_px = 32", 'size_px = "32"', "`cell` `size_px` should be a number, without quotes"),
        ("size_px = 32", "size_px = true", "should be a number, without quotes (found true)"),
        ("size_px = 32", "size_px = 32.5", "`cell.size_px` should be a whole number (found 32.5)"),
        ('"enmap30"', "30", "`cell.lattice` should be text in quotes (found 30)"),
        ('"archive"', '"archive"\nbands = [1]', "`product.enmap-l2a.bands.0` should be text"),
        ('"archive"', '"archive"\nrequire = [1]', "`product.enmap-l2a.require` should be a table"),
        ('id = "enmap-l2a"', 'id = ["enmap-l2a"]', "`product.0.id` should be text in quotes"),
        ('"months"', '"windows"', "`slots.windows` is missing; `slots.start` is not a known key ("),
        (
            'name = "tiny"',
            'name = "tiny"\nname = "b"',
            "a key or table that is there already (at line 3",
        ),
        (
            'path = "archive"',
            'path = "archive"\nprovider = "dlr"',
            'belongs to `provider = "local"`',
        ),
        (
            '"points"\npath = "points.csv"',
            '"grid"\nregion = [20, 50, 10, 51]',
            "spans 350 degrees; swap",
        ),
        (
            '"points"\npath = "points.csv"',
            '"grid"\nregion = [1, 2, 3]',
            "too few values (found [1, 2, 3",
        ),
        (
            '"archive"',
            '"archive"\n[split]\nblock_km = 0.1',
            "less than the edge of a cell (0.96 km)",
        ),
        (
            '"archive"',
            '"archive"\n[[product]]\nid = "nlcd"\npath = "archive"\n[pretrain]\n[evaluate]\n'
            'labels = "nlcd"\nwindow_px = 40',
            "`evaluate.window_px` is 40; patches have 32 pixels of the image and 32 of the labels: "
            "allowed are 1 to 32",
        ),
    ],
)
def test_a_wrong_recipe_names_file_and_key_and_what_is_allowed(recipe, old, new, said, capsys):
    recipe.write_text(RECIPE.replace(old, new))
    code, out, err = call("check", recipe, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_two_mistakes_are_both_told(recipe, capsys):
    recipe.write_text(RECIPE.replace('"points"', '"point"').replace("= 32", "= 0"))
    _, _, err = call("check", recipe, capsys=capsys)
    assert "`sample.strategy` is 'point'" in err
    assert "`cell.size_px` should be greater" in err
    assert err.count("\n") == 1


def test_run_checks_the_recipe_before_its_first_stage(recipe, tmp_path, capsys):
    recipe.write_text(RECIPE.replace('"archive"', '"archiv"'))
    code, _, err = call("run", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "archiv does not exist" in err
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "gpu"), "device 'gpu' is not here; allowed are: auto, cpu"),
        (("--device", "cuda:99"), "device 'cuda:99' is not here; allowed are: auto, cpu"),
        (("--scheduler", "foo"), "'foo' is no address of a Dask scheduler"),
        (("--serial", "--workers", "2"), "leave --workers and --scheduler out"),
    ],
)
def test_run_refuses_options_before_its_first_stage(recipe, tmp_path, options, said, capsys):
    with recipe.open("a") as file:
        file.write("\n[pretrain]\n")
    code, _, err = call("run", recipe, "--root", tmp_path / "root", *options, capsys=capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not (tmp_path / "root").exists()


def test_a_login_in_a_url_is_refused_and_not_repeated(recipe, capsys):
    place = 'provider = "stac"\nurl = "https://me:hunter2@127.0.0.1/stac"'
    recipe.write_text(RECIPE.replace('path = "archive"', place))
    for command in (("check", recipe), ("run", recipe, "--root", "root")):
        code, out, err = call(*command, capsys=capsys)
        assert code == 2
        assert "has a login in it" in err
        assert "hunter2" not in out + err


def test_a_file_saved_by_a_windows_editor_is_read(recipe, capsys):
    recipe.write_bytes(b"\xef\xbb\xbf" + RECIPE.replace("\n", "\r\n").encode())
    assert call("check", recipe, capsys=capsys)[0] == 0


def test_a_folder_is_no_recipe_and_a_recipe_of_ones_own_no_built_in_one(recipe, tmp_path, capsys):
    code, _, err = call("check", tmp_path, capsys=capsys)
    assert code == 2
    assert "is a folder; name the recipe file in it" in err
    code, _, err = call("init", recipe, tmp_path / "copy.toml", capsys=capsys)
    assert code == 2
    assert "no built-in recipe" in err
    assert "demo, " in err


def test_a_folder_hides_no_built_in_recipe(tmp_path, capsys, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    code, out, _ = call("check", "demo", "--stages", capsys=capsys)
    assert (code, out) == (0, "sample search plan extract publish pretrain evaluate\n")


def test_a_cut_off_is_utc_and_decides_what_is_planned(recipe, tmp_path, capsys, monkeypatch):
    seen = []

    def plan(*_: object, cutoff: datetime, **__: object) -> PlanReport:
        seen.append(cutoff)
        return PlanReport(None, None)

    monkeypatch.setattr("pipeline.run.plan.run_plan", plan)
    for text in ("2022-09-01", "2022-09-01T12:30:00"):
        assert call("plan", recipe, "--root", tmp_path, "--cutoff", text, capsys=capsys)[0] == 0
    assert [moment.isoformat() for moment in seen] == [
        "2022-09-01T00:00:00+00:00",
        "2022-09-01T12:30:00+00:00",
    ]
    assert call("plan", recipe, "--cutoff", "1.9.2022", capsys=capsys)[0] == 2


def test_a_scheduler_that_does_not_answer_may_do_so_later(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.engine.dask.CONNECT_S", 0.2)

    def connect(*_: object, **__: object) -> None:
        with make_engine(None, "tcp://127.0.0.1:1", False, Progress(live=False)):
            raise AssertionError("nobody listens there")

    monkeypatch.setattr("pipeline.run.extract.run_extract", connect)
    code, _, err = call("extract", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert code == 75
    assert "no Dask scheduler answered at tcp://127.0.0.1:1" in err
    assert err.count("\n") == 1


def test_stages_out_of_order_name_the_one_that_is_missing(recipe, tmp_path, capsys):
    root = tmp_path / "root"
    for command, said in (
        ("search", "run `terrashard sample` first"),
        ("plan", "run `terrashard sample` first"),
        ("extract", "run `terrashard plan` first"),
        ("publish", "`terrashard extract` makes them"),
        ("verify", "holds no data set. Is `--root` right?"),
        ("status", "holds no data set. Is `--root` right?"),
        ("retry", "holds no data set. Is `--root` right?"),
    ):
        code, _, err = call(command, recipe, "--root", root, capsys=capsys)
        assert (code, err.count("\n")) == (2, 1), err
        assert said in err
    assert not root.exists(), "a mistake leaves nothing behind"
    (tmp_path / "scenes.toml").write_text(
        RECIPE.replace('"points"\npath = "points.csv"', '"scenes"\nproduct = "enmap-l2a"')
    )
    for command in ("sample", "plan"):
        _, _, err = call(command, tmp_path / "scenes.toml", "--root", root, capsys=capsys)
        assert "run `terrashard search` first" in err


def test_a_failure_class_that_does_not_exist_is_refused_before_any_work(recipe, tmp_path, capsys):
    for root in ("none", "root"):
        code, _, err = call("retry", recipe, "--root", root, "--only", "time-out", capsys=capsys)
        assert code == 2
        assert "no failure class 'time-out'; there are: throttled, " in err
        assert not (tmp_path / root).exists()


def test_every_failure_class_of_the_ledger_is_listed():
    """A class that is raised where files are read can be asked for by name."""
    folder = Path(cli.__file__).parent.parent
    files = [p for room in ("sources", "raster", "task") for p in (folder / room).glob("*.py")]
    found = {name for p in files for name in re.findall(r'failure="([a-z-]+)"', p.read_text())}
    assert "gone" in found
    assert found <= {*PASSING, *FINAL}


def test_another_recipes_root_is_refused_by_every_command_and_told_apart_by_key(
    recipe, tmp_path, capsys
):
    root = tmp_path / "root"
    assert call("sample", recipe, "--root", root, capsys=capsys)[0] == 0
    recipe.write_text(RECIPE.replace("32", "64"))
    for command in ("sample", "search", "plan", "extract", "publish", "status", "retry", "verify"):
        code, _, err = call(command, recipe, "--root", root, capsys=capsys)
        assert code == 2
        assert "`cell.size_px` is 64 in the recipe and 32 there." in err


def test_a_failed_first_stage_leaves_the_root_free(recipe, tmp_path, capsys):
    root = tmp_path / "root"
    recipe.write_text(RECIPE.replace("points.csv", "point.csv"))
    code, _, err = call("sample", recipe, "--root", root, capsys=capsys)
    assert code == 2
    assert "point.csv: there is no such file" in err
    recipe.write_text(RECIPE)
    assert call("sample", recipe, "--root", root, capsys=capsys)[0] == 0


def test_points_without_a_row_are_refused(recipe, tmp_path, capsys):
    (tmp_path / "points.csv").write_text("lon,lat\n")
    code, _, err = call("sample", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert code == 2
    assert "gets none" in err


def test_what_the_system_refuses_is_said_with_the_name(recipe, tmp_path, capsys, monkeypatch):
    code, _, err = call("sample", recipe, "--root", recipe, capsys=capsys)
    assert code == 2
    assert "tiny.toml is a file, not a folder" in err
    code, _, err = call("init", "demo", tmp_path / "none" / "x.toml", capsys=capsys)
    assert code == 2
    assert "none/x.toml: No such file or directory." in err

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere")

    monkeypatch.setattr("pipeline.run.sample.run_sample", full)
    code, _, err = call("sample", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert code == 75
    assert "/somewhere: No space left on device. Make room" in err


def test_a_package_of_an_extra_that_is_missing_is_named_with_it(recipe, tmp_path):
    code = (
        "import sys; sys.modules.update(torch=None, safetensors=None)\n"
        f"from pipeline.cli import main; main(['pretrain', {str(recipe)!r}, '--root', 'root'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 2
    assert re.search("needs the package (torch|safetensors), .* extra `pretrain`", ended.stderr)
    assert ended.stderr.count("\n") == 1


def test_a_fault_of_the_program_is_called_one(recipe, tmp_path, capsys, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("pipeline.run.sample.run_sample", broken)
    code, _, err = call("sample", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert code == 1
    assert err.count("\n") == 1
    assert "ZeroDivisionError: division by zero" in err


def test_a_full_disk_is_told_with_the_file_that_found_no_room(tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.writev", full)
    with pytest.raises(OSError, match="No space left") as caught:
        open_store(tmp_path).put("plans/000001.json", b"{}")
    assert caught.value.filename == str(tmp_path / "plans" / "000001.json")
    assert [*tmp_path.rglob("*.json*")] == []


@pytest.mark.parametrize("root", ["s3://", "az://bucket/x", "ftp://bucket/x", "", " "])
def test_a_root_that_cannot_be_opened_is_refused(root, recipe, capsys, monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    code, _, err = call("status", recipe, "--root", root, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert root in err


def test_an_interrupt_says_how_to_go_on(recipe, tmp_path):
    code = (
        "import pipeline.run.sample, os, signal\n"
        "pipeline.run.sample.run_sample = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        f"from pipeline.cli import main; main(['sample', {str(recipe)!r}, '--root', 'root'])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert ended.returncode == 130
    assert ended.stderr == "terrashard: stopped; run the same command again to go on.\n"


def test_a_closed_pipe_is_silent(tmp_path):
    shell = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{CALL}" products enmap-l2a | head -1'],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert shell.stdout.startswith("enmap-l2a: ")
    assert shell.stderr == ""


def test_a_root_of_which_part_was_deleted_contradicts_itself(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(tmp_path / "root")
    claim(store, load_recipe(recipe))
    store.create("commits/p000001-s00000/r1.parquet", b"")
    code, _, said = call("status", recipe, "--root", tmp_path / "root", capsys=capsys)
    assert code == 65
    assert "has no plans/000001.json, though other files there name it" in said
