"""Batch norm over single values is refused before the first step; statistics that will not catch up are told."""

import ast
import dataclasses
import re

import jax.numpy as jnp
import pytest

import inception_jax.config
from inception_jax.config import Config, ConfigError
from inception_jax.runs import manifest
from inception_jax.training import batch_norm_checks, log_header, loop, restore, setup
from inception_jax.training.state import TrainState

WHOLE_RUN = {
    "num_steps": 60,
    "batch_size": 16,
    "data.image_size": 32,
    "model.name": "inception_v1_bn",
    "model.width_multiplier": 0.1,
    "model.aux_heads": False,
    "parallel.devices": 1,
}


def recipe(**fields):
    config = inception_jax.config.default()
    for path, value in (WHOLE_RUN | fields).items():
        section = config
        *parents, name = path.split(".")
        for parent in parents:
            section = section[parent]
        section[name] = value
    return config


def build(**fields):
    return setup.build(Config(recipe(**fields)))


def remedies(message):
    """[{field: value}] of what a message offers."""
    found = []
    for text in message.partition("What would do: ")[2].split("; or "):
        pairs = re.findall(r"config\.([\w.]+) = ('\w+'|\w+)", text)
        found.append({path: ast.literal_eval(value) for path, value in pairs})
    return found


@pytest.mark.parametrize(
    ("fields", "offered"),
    [
        ({"batch_size": 1}, [{"batch_size": 2}, {"data.image_size": 64}]),
        (
            {"batch_size": 4, "parallel.devices": 2, "optimizer.accumulation": 2},
            [
                {"batch_size": 8},
                {"optimizer.accumulation": 1},
                {"parallel.batch_norm": "global"},
                {"data.image_size": 64},
            ],
        ),
        (
            {"batch_size": 2, "parallel.batch_norm": "examples:1"},
            [{"parallel.batch_norm": "local"}, {"parallel.batch_norm": "global"}, {"data.image_size": 64}],
        ),
    ],
)
def test_single_values_are_found_and_each_setting_that_is_offered_would_do(fields, offered):
    message = build(**fields).single_values
    assert "batch norm layer inception_5a/conv_1x1/bn and 11 more would normalize a single value" in message
    assert "\n" not in message and f"config.batch_size = {fields['batch_size']}: " in message
    assert remedies(message) == offered
    for change in offered:
        assert build(**fields | change).single_values is None


def test_layers_that_are_frozen_do_not_count():
    assert build(batch_size=1, **{"optimizer.freeze": ("^inception_5",)}).single_values is None


def test_the_head_of_inception_v3_makes_one_value_of_every_map():
    fields = {
        "model.name": "inception_v3",
        "model.aux_heads": True,
        "data.image_size": 299,
        "batch_size": 2,
        "parallel.devices": 2,
    }
    message = build(**fields).single_values
    assert "batch norm layer aux/conv_5x5/bn would normalize" in message
    assert remedies(message) == [{"batch_size": 4}, {"parallel.batch_norm": "global"}, {"model.aux_heads": False}]


@pytest.mark.parametrize(
    ("groups", "shared"), [("local", 2), ("global", 8), ("groups:2", 4), ("examples:1", 1), ("examples:8", 8)]
)
def test_how_many_examples_share_their_statistics(groups, shared):
    parsed = batch_norm_checks.BatchNormGroups.parse(groups)
    assert batch_norm_checks.Batch(size=16, devices=4, micro_batches=2, groups=parsed).shared == shared


def test_a_new_run_is_refused_before_its_workdir_is_made_and_an_earlier_one_goes_on(tmp_path):
    single = recipe(batch_size=1)
    with pytest.raises(ConfigError, match=r"config.batch_size = 1: .* What would do: config.batch_size = 2; or "):
        loop.train(single, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    built = dataclasses.replace(build(), single_values="config.batch_size = 1: as above")
    manifest.write(tmp_path, Config(single).to_json())
    restore.refuse_single_values(tmp_path, built)
    assert f"\nwarning: {built.single_values}" in header(built)


def header(built, ema=None):
    statistics = {"conv1": {"bn": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}}
    return log_header.format_header(built, TrainState(0, {}, statistics, (), ema), 0)


def test_statistics_that_will_not_catch_up_are_told_with_what_remains():
    built = build(**{"model.options.bn_momentum": 0.99})
    assert (
        "warning: batch norm: 54.7 % of the initial running statistics remain after 60 updates with momentum 0.99"
        in header(built)
    )
    # Every micro-batch updates them.
    assert "29.9 %" in header(build(**{"model.options.bn_momentum": 0.99, "optimizer.accumulation": 2}))
    assert "warning" not in header(build(**{"model.options.bn_momentum": 0.92}))
    assert "warning" not in header(build(**{"model.name": "inception_v1"}))
    precise = build(**{"model.options.bn_momentum": 0.99, "evaluation.batch_norm_images": 40})
    assert "estimates the batch norm statistics from 48 training images (3 batches)" in header(precise)
    assert "warning" not in header(precise)


def test_the_momentum_follows_the_length_of_the_run():
    short = build(**{"model.bn_initial_fraction": 0.01, "model.options.bn_momentum": 0.99})
    assert short.model.bn_momentum == pytest.approx(0.01 ** (1 / 60), abs=1e-6)
    assert 0.0099 < short.model.bn_momentum**60 <= 0.01
    assert "warning" not in header(short)
    long = build(**{"model.bn_initial_fraction": 0.01, "model.options.bn_momentum": 0.99, "num_steps": 1000})
    assert long.model.bn_momentum == 0.99
    accumulated = build(**{"model.bn_initial_fraction": 0.01, "optimizer.accumulation": 2})
    assert accumulated.model.bn_momentum == pytest.approx(0.01 ** (1 / 120), abs=1e-6)


def test_a_run_whose_momentum_follows_its_length_is_not_extended(tmp_path):
    fields = {"model.bn_initial_fraction": 0.01}
    manifest.write(tmp_path, Config(recipe(**fields)).to_json())
    restore.refuse_changed_config(tmp_path, Config(recipe(**fields)))
    with pytest.raises(ConfigError, match="its batch-norm momentum depends on its length"):
        restore.refuse_changed_config(tmp_path, Config(recipe(num_steps=61, **fields)))


def test_without_statistics_that_change_the_fields_are_refused():
    config = Config(recipe(**{"model.name": "inception_v1", "model.bn_initial_fraction": 0.1}))
    setup.build(config)
    with pytest.raises(ConfigError, match=r"fraction = 0.1: nothing reads it .*default, config.*fraction = None"):
        config.refuse_unread()
    for fields in ({"model.name": "inception_v1"}, {"optimizer.freeze": ("^conv", "^inception")}):
        with pytest.raises(ConfigError, match=r"batch_norm_images = 8: \w+ has no batch norm whose statistics are not"):
            build(**fields, **{"evaluation.batch_norm_images": 8})


def test_an_ema_that_will_not_catch_up_is_told():
    fields = {"ema.decay": 0.999, "model.name": "inception_v1"}
    assert "warning" not in header(build(**fields), ema={})
    told = header(build(**fields, **{"ema.num_updates": False}), ema={})
    assert "warning: EMA: 94.2 % of the initial weights remain in it after 60 steps with decay 0.999" in told
