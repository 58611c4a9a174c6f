"""The live table in a terminal, one line per event elsewhere, and the log."""

import io
import re

import pytest

from inception_jax.sweeps.display import (
    SweepDisplay,
    SweepProgress,
    TrialRow,
    format_best_table,
    format_params,
    format_status_line,
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Terminal()


def shown(terminal):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n").splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_only_the_values_are_shortened(tmp_path, terminal, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    display = SweepDisplay(tmp_path, "top1", terminal)
    display.progress = SweepProgress("digits", 12, "24", {"finished": 7, "pruned": 3, "failed": 1}, (4, 0.9917), 150)
    display.rows[3] = TrialRow(
        3, "running", "gpu 0", "learning_rate 0.0123, " + "name sgd, " * 9, "5 (epoch 5)", 0.5, 0.987
    )
    display.log("a line above the table")
    display.close()
    lines = shown(terminal)
    assert any("a line above the table" in line for line in lines)
    if width >= 100:
        assert "digits: 12/24 begun, 7 finished, 3 pruned, 1 failed, best 99.17 % (trial 4), ETA 2:30" in map(
            str.strip, lines
        )
    [row, *_] = [line for line in reversed(lines) if line.strip().startswith("3") or "running" in line]
    for part in ("running", "5 (epoch 5)", "50.00 %", "…"):
        assert part in row
    assert ("98.70 %" in row and "gpu 0" in row) == (width >= 90)
    assert all(len(line) <= width for line in lines)


def test_elsewhere_it_is_lines(tmp_path):
    stream = io.StringIO()
    display = SweepDisplay(tmp_path, "loss", stream)
    display.log("one\ntwo")
    display.close()
    assert stream.getvalue() == "one\ntwo\n"
    lines = (tmp_path / "sweep.log").read_text().splitlines()
    assert [line.partition(" ")[2] for line in lines] == ["one", "two"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in lines)


def test_a_closed_stream_does_not_end_the_sweep(tmp_path):
    stream = io.StringIO()
    display = SweepDisplay(tmp_path, "loss", stream)
    stream.close = None
    stream.write = lambda text: (_ for _ in ()).throw(BrokenPipeError())
    display.log("nobody hears it")
    display.close()
    assert "nobody hears it" in (tmp_path / "sweep.log").read_text()


def test_formats_of_values_and_lines(tmp_path):
    values = {
        "optimizer.learning_rate": 0.0123456,
        "optimizer.name": "sgd",
        "model.name": "inception_v1",
        "loss.aux_weights": [0.3, 0.3],
        "optimizer.clip_norm": None,
    }
    assert format_params(values) == (
        "learning_rate 0.01235, optimizer.name sgd, model.name inception_v1, aux_weights (0.3, 0.3), clip_norm None"
    )
    display = SweepDisplay(tmp_path, "loss", io.StringIO())
    assert [display.format_value(value) for value in (None, 0.5, float("nan"))] == ["", "0.5000", "nan"]
    display.close()
    assert format_status_line(SweepProgress("s"), str) == "s: 0 begun"
    assert format_best_table([(12, 0.5, "a 1"), (3, 0.25, "a 2")], str).splitlines() == [
        "  trial   12   0.5  a 1",
        "  trial    3  0.25  a 2",
    ]
