"""Logs say what was measured, once, however often a run was interrupted."""

from __future__ import annotations

import csv
import io
import math
import sys
import types

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.errors import RecipeError
from pipeline.pretrain.data.batches import Stored
from pipeline.pretrain.logs import Journal, Meter, open_sinks
from pipeline.run.pretrain import run_pretrain
from pipeline.watch.progress import Progress


def opened(names, folder, start=0):
    return open_sinks(names, folder, run="mine", start=start, settings={"method": "moco"})


def row(step: int, loss: float = 1.0) -> dict[str, float]:
    return {"step": float(step), "loss": loss, "knn_accuracy": math.nan}


def lines(folder) -> list[dict[str, str]]:
    with (folder / "mine.csv").open() as file:
        return list(csv.DictReader(file))


def view(items: int = 4) -> Stored:
    bands = torch.zeros(items, 3, 10, 10, dtype=torch.int16)
    return Stored(bands, torch.zeros(items, 10, 10, dtype=torch.uint8), "image")


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_rates_are_items_bytes_and_the_share_of_time_not_waited():
    clock = Clock()
    meter = Meter(clock)

    def slow():
        for _ in range(2):
            clock.now_s += 1.0
            same = view()
            yield same, same, view()  # two views of the same patches, decoded once

    for _ in meter.watch(slow()):
        clock.now_s += 3.0
    rates = meter.rates()
    assert rates.samples_per_s == 2 * 4 / 8
    assert rates.decoded_gb_per_s == pytest.approx(2 * 2 * 4 * (600 + 100) / 8 / 1e9)
    assert rates.busy_fraction == 0.75
    clock.now_s += 1.0
    assert meter.rates().samples_per_s == 0


def test_a_row_is_in_the_csv_as_soon_as_it_is_measured(tmp_path):
    (sink,) = opened(["csv"], tmp_path)
    sink.write(row(10, 0.1 + 0.2))
    (line,) = lines(tmp_path)
    assert line == {"step": "10", "loss": repr(0.1 + 0.2), "knn_accuracy": ""}
    sink.close()


def test_a_resumed_run_has_every_row_once(tmp_path):
    (sink,) = opened(["csv"], tmp_path)
    for step in (10, 20, 30):
        sink.write(row(step))
    sink.close()
    with (tmp_path / "mine.csv").open("a") as file:
        file.write("4")  # killed while it wrote step 40
    (sink,) = opened(["csv"], tmp_path, start=20)
    for step in (30, 40):
        sink.write(row(step, loss=2.0))
    sink.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        *(("10", "1.0"), ("20", "1.0"), ("30", "2.0"), ("40", "2.0"))
    ]


def test_a_run_begun_anew_leaves_nothing_of_the_old_one(tmp_path):
    for loss in (1.0, 2.0):
        (sink,) = opened(["csv"], tmp_path)
        sink.write(row(10, loss))
        sink.close()
    assert [line["loss"] for line in lines(tmp_path)] == ["2.0"]


def test_tensorboard_reads_what_was_measured(tmp_path):
    for start, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        (sink,) = opened(["tensorboard"], tmp_path, start=start)
        for step in steps:
            sink.write(row(step, step + start))
        sink.close()
    events = EventAccumulator(str(tmp_path / "mine")).Reload()
    assert events.Tags()["scalars"] == ["loss"]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0)]


def test_wandb_is_imported_only_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    opened(["csv"], tmp_path)[0].close()
    with pytest.raises(RecipeError, match="pip install 'wandb'"):
        opened(["wandb"], tmp_path)


def test_wandb_gets_rows_and_settings(tmp_path, monkeypatch):
    """Its service is not to be called here; what it is told is."""
    told: list = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end")
    )
    fake = types.SimpleNamespace(init=lambda **given: told.append(given) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (sink,) = opened(["wandb"], tmp_path, start=5)
    sink.write(row(10))
    sink.close()
    assert told[0]["config"] == {"method": "moco"}
    assert told[0]["resume"] == "allow"
    assert told[1:] == [(10, {"loss": 1.0}), "end"]


def test_an_unknown_log_is_named_with_those_there_are(tmp_path):
    with pytest.raises(RecipeError, match="'mlflow'; allowed are: csv, tensorboard, wandb"):
        opened(["csv", "mlflow"], tmp_path)


def test_a_journal_writes_logged_steps_and_shows_rates(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.pretrain.logs.SHOW_EVERY_S", 0.0)
    out = io.StringIO()
    with (
        Progress(out, live=False) as progress,
        Journal(opened(["csv"], tmp_path), progress) as journal,
    ):
        progress.start("pretrain", 3)
        log = []
        for step, _ in enumerate(journal.watch([(view(),)] * 3), 1):
            if step != 2:
                log.append(row(step))
            journal.after_step(step, log)
    assert [line["step"] for line in lines(tmp_path)] == ["1", "3"]
    assert all(float(line["samples_per_s"]) > 0 for line in lines(tmp_path))
    assert "pretrain 3/3" in out.getvalue()
    assert "samples/s" in out.getvalue()
    assert "GB/s decoded" in out.getvalue()


def test_a_run_is_followed_in_what_was_asked_for(published, tmp_path):
    pretrain = {"backbone": "small", "steps": 2, "batch_size": 4, "crop_px": 8, "queue": 8}
    run_pretrain(
        published.recipe(pretrain=pretrain),
        published.store,
        name="mine",
        device="cpu",
        logs=["csv"],
        log_folder=tmp_path,
    )
    kept = published.store.get("models/mine/step-00000002/log.csv").decode()
    live = lines(tmp_path)
    for row, line in zip(csv.DictReader(io.StringIO(kept)), live, strict=True):
        assert (row["step"], row["loss"]) == (line["step"], line["loss"])
    assert float(live[-1]["decoded_gb_per_s"]) > 0
    assert 0 <= float(live[-1]["busy_fraction"]) <= 1
