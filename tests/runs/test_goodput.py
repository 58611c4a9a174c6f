"""Where the time of a run went over all its starts, one of them killed."""

import datetime
import json

import pytest

from inception_jax.runs import goodput

TOTALS = {
    "wall_seconds": 100.0, "startup_seconds": 5.0, "compile_seconds": 10.0, "data_wait_seconds": 4.0,
    "evaluation_seconds": 8.0, "checkpoint_seconds": 2.0, "plots_seconds": 1.0,
}  # fmt: skip


def write_timing(workdir, *rows):
    lines = [json.dumps({"step": step, "wall_seconds": wall}) for step, wall in rows]
    (workdir / "timing.jsonl").write_text("\n".join(lines) + "\n")


def test_the_time_of_a_killed_start_is_read_from_its_rows(tmp_path):
    assert goodput.measure_lost(tmp_path, 0, 0.0) is None  # a new run
    write_timing(tmp_path, (10, 12.0), (20, 20.0), (30, 31.5))
    assert goodput.measure_lost(tmp_path, 20, 21.0) == {"from_step": 20, "to_step": 30, "seconds": 10.5}
    assert goodput.measure_lost(tmp_path, 30, 32.0) is None
    assert goodput.measure_lost(tmp_path, 0, 0.0)["seconds"] == 31.5
    (tmp_path / "timing.jsonl").write_text("no row\n{}\n")
    assert goodput.measure_lost(tmp_path, 0, 0.0) is None


def test_a_start_that_left_neither_row_nor_checkpoint_counts_with_its_startup():
    def lost_seconds(*starts):
        return goodput.lost_seconds([
            {"startup_seconds": startup, "wall_seconds_before": before} | ({"lost": {"seconds": lost}} if lost else {})
            for startup, before, lost in starts
        ])  # fmt: skip

    assert lost_seconds((5.0, 0.0, 0)) == 0.0
    assert lost_seconds((5.0, 0.0, 0), (4.0, 0.0, 0)) == 5.0  # the first was killed while its step compiled
    assert lost_seconds((5.0, 0.0, 0), (4.0, 60.0, 0)) == 0.0  # it saved a checkpoint, which has its start-up
    assert lost_seconds((5.0, 0.0, 0), (4.0, 0.0, 30.0)) == 30.0  # a row has it
    assert lost_seconds((5.0, 0.0, 0), (4.0, 20.0, 30.0), (3.0, 20.0, 30.0)) == 34.0  # nothing truncated by the second
    assert lost_seconds((5.0, 0.0, 0), (4.0, 20.0, 30.0), (3.0, 20.0, 0)) == 34.0
    assert lost_seconds((5.0, 0.0, 0), (4.0, 20.0, 0), (3.0, 8.0, 12.0)) == 16.0  # a damaged checkpoint, an earlier one
    assert goodput.lost_seconds([{"startup_seconds": 5.0}, {"startup_seconds": 4.0}]) == 0.0  # of an earlier version


def test_an_account_over_three_starts():
    ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=1000)
    lost = {"from_step": 20, "to_step": 30, "seconds": 25.0}
    starts = [{"time": ago.isoformat(), "startup_seconds": 5.0}, {"lost": lost}, {"lost": dict(lost)}]
    found = goodput.account(TOTALS, starts)
    assert found["lost_seconds"] == 25.0  # the third start found the rows that the second had not truncated yet
    assert found["training_seconds"] == 74.0 and found["starts"] == 3
    assert found["goodput"] == (74.0 - 4.0) / 125.0
    assert found["between_starts_seconds"] == pytest.approx(1005 - 125, abs=2)
    assert goodput.lost_seconds([*starts, {}, {"lost": lost}]) == 50.0
    alone = goodput.account(TOTALS, starts[:1])
    assert (alone["goodput"], alone["between_starts_seconds"]) == (0.7, 0.0)
