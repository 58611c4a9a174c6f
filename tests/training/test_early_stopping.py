"""The best evaluation and the end that it decides: the same after any interruption."""

import json
import math

import pytest

from inception_jax.checkpoints.reading import best_first, score
from inception_jax.metric_definitions import METRICS
from inception_jax.training.early_stopping import BestEvaluation

VALUES = [0.5, 0.6, 0.6, math.nan, 0.61, 0.59, 0.58, 0.57]


def follow(best, values, start=0):
    """The step at which it ends; None: it does not. An evaluation every 10 steps."""
    for number, value in enumerate(values, start + 1):
        best.add(10 * number, value)
        if best.is_exhausted:
            return 10 * number
    return None


@pytest.mark.parametrize(
    ("patience", "min_improvement", "end", "best"),
    [(None, 0.0, None, 0.61), (2, 0.0, 40, 0.6), (3, 0.0, 80, 0.61), (3, 0.05, 50, 0.61)],
)
def test_it_ends_after_so_many_evaluations_without_a_better_one(patience, min_improvement, end, best):
    followed = BestEvaluation(METRICS["top1"], patience, min_improvement)
    assert follow(followed, VALUES) == end
    assert followed.value == best
    found = followed.to_json()
    assert (found["metric"], found["value"], found["step"]) == ("top1", best, {0.6: 30, 0.61: 50}[best])
    assert (found["title"], found["better"], found["percent"]) == ("top-1 accuracy", "higher", True)


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_of_equal_evaluations_it_names_the_step_of_the_best_checkpoint(metric):
    values = [0.5, 0.6, 0.4, 0.6, 0.4, 0.5, math.nan]
    followed = BestEvaluation(METRICS[metric])
    follow(followed, values)
    rule = {"name": metric, "mode": {"higher": "max", "lower": "min"}[METRICS[metric].better]}
    scores = {10 * number: score({metric: value}, rule) for number, value in enumerate(values, 1)}
    assert followed.step == best_first(scores)[0] == {"top1": 40, "loss": 50}[metric]


def test_of_a_loss_less_is_better():
    followed = BestEvaluation(METRICS["loss"], patience=2)
    assert follow(followed, [3.0, 2.0, 2.5, 2.1, 1.0]) == 40
    assert (followed.value, followed.step) == (2.0, 20)
    assert followed.summary() == "early stopping: 2 evaluations without a better loss than 2 at step 20"


@pytest.mark.parametrize("cut", range(1, 7))
def test_an_interruption_changes_no_decision(cut):
    first, second = (BestEvaluation(METRICS["top1"], 3, 0.0) for _ in range(2))
    follow(first, VALUES[:cut])
    assert second.restore(json.loads(json.dumps(first.state())))
    assert follow(second, VALUES[cut:], cut) == 80


def test_a_state_of_another_metric_is_not_taken():
    state = BestEvaluation(METRICS["loss"], 3).state()
    for best in (BestEvaluation(METRICS["top1"], 3), BestEvaluation(METRICS["loss"], 3, 0.1)):
        assert not best.restore(state) and not best.restore(None)
