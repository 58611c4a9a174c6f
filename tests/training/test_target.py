"""The target of a run: which evaluation reaches it, and what a checkpoint holds of it."""

import json
import math

import pytest

import inception_jax
from inception_jax.config import Config, ConfigError, default
from inception_jax.errors import UserError
from inception_jax.metric_definitions import METRICS
from inception_jax.training.target import Target, TargetRecord, read_target


def make_config(**fields):
    config = default()
    config.stop.update(fields)
    return Config(config)


@pytest.mark.parametrize(
    ("metric", "value", "values", "step"),
    [
        ("top1", 0.5, [0.4, math.nan, 0.5, 0.7], 3),  # reached where it is equal; NaN reaches nothing
        ("loss", 0.5, [math.nan, 0.6, 0.4, 0.3], 3),
        ("loss", -1.0, [0.6, 0.4], None),
    ],
)
def test_the_first_evaluation_at_the_target_is_recorded(metric, value, values, step):
    target, measured = Target(METRICS[metric], value, ends_run=True), []
    record = TargetRecord(target)
    for number, found in enumerate(values, 1):
        record.add({metric: found}, lambda number=number: measured.append(number) or {"steps": number})
        restored = TargetRecord(target)
        assert restored.restore(json.loads(json.dumps(record.state()))) and restored == record
        assert record.ends_run == (step is not None and number >= step)
    assert measured == ([step] if step else [])  # what came after changes nothing
    assert record.reached == ({"value": values[step - 1], "steps": step} if step else None)


def test_a_record_of_another_target_is_not_taken_and_goes_on_where_the_run_goes_on():
    state = TargetRecord(Target(METRICS["top1"], 0.5, True), {"value": 0.6, "steps": 4}).state()
    for other in (Target(METRICS["top1"], 0.6, True), Target(METRICS["loss"], 0.5, True), None):
        assert not TargetRecord(other).restore(state)
    goes_on = TargetRecord(Target(METRICS["top1"], 0.5, False))
    assert goes_on.restore(state) and goes_on.reached and not goes_on.ends_run
    assert TargetRecord().state() is None and not TargetRecord().add({}, dict) and not TargetRecord().ends_run


def test_evaluations_before_the_target_was_set_count_without_times():
    record = TargetRecord(Target(METRICS["top1"], 0.5, True))
    record.replay([{"step": 4 * n, "epoch": 0.5 * n, "top1": 0.2 * n} for n in range(1, 6)], batch_size=8)
    assert record.reached == {"value": pytest.approx(0.6), "steps": 12, "epochs": 1.5, "images": 96}
    assert "before the run had this target" in record.summary()


def test_reading_it_from_the_config():
    assert read_target(make_config()) is None
    target = read_target(make_config(target=0.97))
    assert target == Target(METRICS["top1"], 0.97, True)
    assert read_target(make_config(target=1, target_metric="loss", at_target=False)) == Target(
        METRICS["loss"], 1.0, False
    )
    with pytest.raises(ConfigError, match=r"stop.target = 97: top-1 accuracy is a fraction, at most 1: 97 % is 0.97"):
        read_target(make_config(target=97.0))
    with pytest.raises(ConfigError, match=r"stop.target_metric = 'top_1': it must be one of 'loss', 'top1'"):
        make_config(target=0.97, target_metric="top_1")
    config = make_config(at_target=False)  # nothing reads it without a target
    assert read_target(config) is None
    with pytest.raises(ConfigError, match="at_target = False: nothing reads it"):
        config.stop.refuse_unread()
    with pytest.raises(UserError, match="steps_to_target"):
        inception_jax.register_metric("steps_to_target", lambda predictions: 0.0)
