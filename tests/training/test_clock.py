"""Where the time goes: phases, laps without them, and totals that go on over several starts."""

import pytest

from inception_jax.training import clock as clocks


@pytest.fixture
def now(monkeypatch):
    """A hand-driven clock: `now[0]` is the time."""
    time = [100.0]
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: time[0])
    return time


def test_laps_leave_compilation_evaluation_and_saving_out(now):
    clock = clocks.Clock()
    for phase, seconds in (("compile", 30.0), ("evaluation", 5.0), ("checkpoint", 1.0)):
        with clock.phase(phase):
            now[0] += seconds
    now[0] += 10.0
    clock.add("data_wait", 4.0)
    lap = clock.lap(steps=20, batch_size=8)
    assert lap == {"step_seconds": 0.5, "images_per_second": 16.0, "data_wait_fraction": 0.4, "wall_seconds": 46.0}
    now[0] += 2.0
    assert clock.lap(steps=1, batch_size=8)["step_seconds"] == 2.0


def test_totals_go_on_from_an_earlier_start(now):
    first = clocks.Clock()
    with first.phase("compile"):
        now[0] += 3.0
    second = clocks.Clock(first.totals())
    now[0] += 1.0
    with second.phase("compile"):
        now[0] += 2.0
    totals = second.totals()
    assert totals["compile_seconds"] == 5.0
    assert totals["wall_seconds"] == 6.0
