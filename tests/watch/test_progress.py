"""Progress says the same on a terminal and in a log."""

import io

from pipeline.watch.progress import Progress


def test_each_step_ends_with_a_line_that_holds_its_counts():
    out = io.StringIO()
    with Progress(out) as progress:
        progress.start("extract", total=3)
        progress.advance(2, written=5, rejected=1)
        progress.advance(1, written=2)
        progress.start("publish")
        progress.advance(4)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("extract 3/3")
    assert lines[0].endswith("written 7 rejected 1")
    assert lines[1].startswith("publish 4")


def test_lines_come_while_a_long_step_runs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.watch.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(out) as progress:
        progress.start("extract", total=10)
        for _ in range(4):
            now[0] += 4
            progress.advance()
        said_meanwhile = out.getvalue()
    assert said_meanwhile == "extract 3/10  1 in 4.0 s  28 s left\n"


def test_live_bar_shows_label_total_and_notes():
    out = io.StringIO()
    with Progress(out, live=True) as progress:
        progress.start("extract", total=2)
        progress.advance(2, written=2)
        progress.note("dashboard at [somewhere]")
    text = out.getvalue()
    assert "extract" in text
    assert "2/2" in text
    assert "dashboard at [somewhere]" in text
