"""The first lines of a log: what is unusual about a run is said before its first step."""

import jax
import pytest

from inception_jax.training import log_header, setup
from inception_jax.training.state import TrainState

from .test_restore import config


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, True),
        ({"parallel.batch_norm": "groups:2"}, True),
        ({"parallel.batch_norm": "global"}, False),
        ({"parallel.batch_norm": "examples:4"}, False),
        ({"model.name": "inception_v1"}, False),
    ],
)
def test_other_devices_are_told_where_batch_norm_depends_on_them(fields, told):
    built = setup.build(config(**fields))
    state = TrainState(0, {}, {}, (), None)
    note = "the run was on 8 devices before and is on 2 now"
    assert (note in log_header.format_header(built, state, 0, 8)) is told
    assert note not in log_header.format_header(built, state, 0, 2)
    assert note not in log_header.format_header(built, state, 0)


@pytest.mark.parametrize(
    ("fields", "machine", "told"),
    [
        ({}, "x86_64", True),
        ({}, "aarch64", False),
        ({"model.dtype": "float64", "model.param_dtype": "float64"}, "x86_64", False),
        ({"model.convolution": "exact"}, "x86_64", False),
    ],
)
def test_a_new_run_on_a_cpu_is_told_of_the_faster_convolutions(fields, machine, told, monkeypatch):
    monkeypatch.setattr(log_header.sys, "platform", "linux")
    monkeypatch.setattr(log_header.platform, "machine", lambda: machine)
    with jax.enable_x64("model.dtype" in fields):
        built = setup.build(config(**fields))
    state = TrainState(0, {}, {}, (), None)
    assert ("onednn_winograd" in log_header.format_header(built, state, 0)) is told
    assert "onednn_winograd" not in log_header.format_header(built, state, 3)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, False),  # the digits have 140 to 148 of each class
        ({"data.train_split": "train[:40]"}, True),
        ({"data.train_split": "train[:40]", "data.sampling": "balanced"}, False),
        ({"data.train_split": "train[:40]", "loss.class_weights": "balanced"}, False),
    ],
)
def test_what_helps_unbalanced_classes_is_told(fields, told):
    header = log_header.format_header(setup.build(config(**fields)), TrainState(0, {}, {}, (), None), 0)
    assert ("the classes are unbalanced: config.data.sampling = 'balanced'" in header) is told


@pytest.mark.parametrize(
    ("fields", "heads"),
    [
        ({"model.name": "inception_v1"}, "with auxiliary heads, which are weighted 0.3/0.3; computes"),
        ({"model.name": "inception_v1", "model.aux_heads": False}, ", no auxiliary heads; computes"),
    ],
)
def test_auxiliary_heads_are_told_where_there_are_any(fields, heads):
    lines = log_header.format_header(setup.build(config(**fields)), TrainState(0, {}, {}, (), None), 0).splitlines()
    assert lines[1].startswith("0 parameters") and heads in lines[1] and "\n".join(lines).count("auxiliary") == 1


def test_a_warm_up_that_is_longer_than_the_run_is_told():
    """The run of 4 steps of 16 is 0.04454 epochs of the 1,437 digits."""
    for epochs, told in ((1, True), (0.045, True), (0.04, False), (0, False)):
        built = setup.build(config(**{"model.name": "inception_v1", "schedule.warmup_epochs": float(epochs)}))
        lines = log_header.format_header(built, TrainState(0, {}, {}, (), None), 0).splitlines()
        found = [line for line in lines if "warm-up" in line]
        assert len(found) == told, epochs
        if epochs == 1:
            assert "the warm-up of 1 epoch is longer than the run of 0.04454: the learning rate never rea" in found[0]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "4 steps of 16 (0.04454 epochs)"),
        ({"parallel.steps_per_execution": 2}, "4 steps of 16 (0.04454 epochs), up to 2 in one execution"),
        (
            {"parallel.steps_per_execution": 32, "logging.every_steps": 3},
            "4 steps of 16 (0.04454 epochs), up to 3 in one execution; more would not fit between log rows, "
            "evaluations and checkpoints",
        ),
    ],
)
def test_steps_in_one_execution_are_told(fields, told):
    built = setup.build(config(**{"model.name": "inception_v1"} | fields))
    assert told in log_header.format_header(built, TrainState(0, {}, {}, (), None), 0).splitlines()
