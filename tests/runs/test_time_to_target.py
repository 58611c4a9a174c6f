"""What runs needed to reach their targets: read from a result or from rows, and the median over seeds."""

import math
from pathlib import Path

import pytest

from inception_jax.runs import time_to_target
from inception_jax.runs.run_state import RunState, RunStatus


def make_run(seed=0, rate=0.1, result=None, rows=(), **stop):
    config = {
        "seed": seed,
        "batch_size": 8,
        "optimizer": {"learning_rate": rate},
        "checkpoint": {"best_metric": "top1"},
        "stop": {"target": 0.9, "target_metric": None} | stop,
    }
    return RunState(Path("run"), RunStatus.RUNNING, "", config, {}, result or {}, {}, list(rows), [], None, ())


def make_target(steps):
    reached = steps and {"value": 0.91, "steps": steps, "epochs": steps / 10, "images": 8 * steps,
                         "wall_seconds": 2.0 * steps, "training_seconds": 1.0 * steps, "starts": 2}  # fmt: skip
    return {"metric": "top1", "value": 0.9, "title": "top-1 accuracy", "better": "higher", "reached": reached}


@pytest.mark.parametrize(
    ("steps", "median"),
    [([30, 10, 20], 20), ([30, None, 20], 30), ([None, 10, None], math.inf), ([10, None], math.inf)],
)
def test_the_median_over_seeds_counts_runs_that_missed_the_target_as_infinite(steps, median):
    runs = [make_run(seed, result={"target": make_target(count)}) for seed, count in enumerate(steps)]
    runs += [make_run(7, rate=0.2, result={"target": make_target(1)}), make_run(8, target=None)]
    targets = [time_to_target.find(run) for run in runs]
    assert targets[-1] is None
    ((group, medians),) = time_to_target.median_over_seeds(runs, targets)
    assert group == list(range(len(steps)))
    assert (medians["steps_to_target"], medians["wall_seconds_to_target"]) == (median, 2 * median)


def test_a_run_without_a_result_has_the_steps_of_its_rows():
    def row(step, top1, weights="ema"):
        return {"kind": "evaluation", "split": "test", "weights": weights, "step": step, "epoch": step / 10,
                "top1": top1, "loss": 1 - top1}  # fmt: skip

    rows = [row(10, 0.8), row(10, 0.95, "raw"), row(20, math.nan), row(30, 0.9), row(40, 0.99)]
    found = time_to_target.find(make_run(rows=rows))
    assert found["reached"] == {"value": 0.9, "steps": 30, "epochs": 3.0, "images": 240}
    assert math.isnan(time_to_target.value_of(found, "wall_seconds_to_target"))  # it reached it, unmeasured
    assert math.isnan(time_to_target.median([math.inf, math.nan, 1.0]))
    unfinished = [make_run(seed, rows=kept) for seed, kept in enumerate((rows, rows, rows[:3]))]
    ((_, medians),) = time_to_target.median_over_seeds(unfinished, [time_to_target.find(run) for run in unfinished])
    assert medians["steps_to_target"] == 30  # two have reached it already, in runs that have not ended
    lower = time_to_target.find(make_run(rows=rows, target=0.05, target_metric="loss"))
    assert lower["reached"]["steps"] == 40 and lower["better"] == "lower"
    assert time_to_target.find(make_run(rows=rows[:3]))["reached"] is None


def test_lines():
    assert time_to_target.format_reached(make_target(None)) == "target not reached: top-1 accuracy >= 90.00 %"
    assert time_to_target.format_reached(make_target(1200)) == (
        "target reached: top-1 accuracy >= 90.00 % at step 1,200 (epoch 120, 9,600 images): 91.00 %, after 40:00, of "
        "which 20:00 in training, 2 starts"
    )
