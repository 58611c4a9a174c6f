"""Numbers as arguments of the step: the bits of constants, and one program for every value."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import recipe_files
from inception_jax.config import Config
from inception_jax.training import (
    executable_files,
    executables,
    optax_optimizers,
    optimizers,
    parallel,
    preprocess,
    schedules,
    state,
    step,
    step_numbers,
)
from inception_jax.training import setup as setups

from .test_step import Small, batch, initial

STEPS = 20
RATES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SCHEDULE = {"base_learning_rate": 0.05, "steps_per_epoch": 3.5, "total_steps": 23}
# (optimizer, its options, schedule, its options, options of the objective)
CASES = {
    "momentum": (
        "sgd", {"momentum": 0.9, "weight_decay": 2e-4, "clip_norm": 0.7},
        "cosine", {"warmup_epochs": 1.3, "warmup_start": 0.07},
        {"ema_decay": 0.99, "label_smoothing": 0.1, "class_weights": (0.3, 1.7, 1.1, 0.9, 1.0)},
    ),
    "nesterov": (
        "sgd", {"momentum": 0.83, "nesterov": True, "learning_rate_multipliers": (("bias", 2.0),)},
        "exponential", {"decay_rate": 0.93, "decay_epochs": 1.1}, {"ema_decay": 0.97, "ema_num_updates": False},
    ),
    "plain": ("sgd", {"momentum": 0.0}, "constant", {}, {"skip_non_finite": True, "loss_limit": 1.9}),
    "rmsprop": (
        "rmsprop", {"decay": 0.87, "epsilon": 0.3, "momentum": 0.9, "weight_decay": 3e-3},
        "polynomial", {"power": 0.7, "end_learning_rate": 1e-3, "warmup_epochs": 1.0}, {"accumulation": 2},
    ),
    "adamw": (
        "adamw", {"b1": 0.87, "b2": 0.993, "epsilon": 1e-7, "weight_decay": 0.03, "clip_norm": 0.5},
        "exponential", {"staircase": False, "decay_rate": 0.8, "end_learning_rate": 0.02}, {},
    ),
    "lamb": ("optax.lamb", {"weight_decay": 0.01}, "polynomial", {}, {"label_smoothing": 0.2}),
}  # fmt: skip


def prepare(name, dtype=jnp.float32, devices=1, mode="jit"):
    optimizer, options, schedule, schedule_options, objective = CASES[name]
    schedule = schedules.make_schedule(schedule, **SCHEDULE, **schedule_options)
    if optimizer.startswith("optax."):

        def build(learning_rate, numbers):
            return optax_optimizers.make_optimizer(optimizer, learning_rate=learning_rate, options={}, **options)

        numbers = None
    else:
        rule = optimizers.specify(optimizer, **options)
        build, numbers = rule.build, rule.numbers
    return SimpleNamespace(
        model=Small(batch_norm=True, dtype=dtype),
        devices=parallel.Devices(mode, devices),
        schedule=schedule,
        optimizer=build(schedule, numbers or {}),
        build_optimizer=build,
        optimizer_numbers=numbers,
        objective=step.Objective(preprocess.get_normalization("inception"), dtype, (0.3,), seed=3, **objective),
    )


def other(setup):
    """The setup with other values of all numbers that are arguments: what its step is compiled with must not matter."""
    objective, numbers = setup.objective, setup.optimizer_numbers
    changes = {"seed": 4, "ema_decay": objective.ema_decay / 2, "aux_weights": (0.9,)}
    if objective.class_weights:
        changes["class_weights"] = objective.class_weights[::-1]
    if objective.loss_limit:
        changes["loss_limit"] = 2 * objective.loss_limit
    return SimpleNamespace(
        **vars(setup)
        | {
            "objective": dataclasses.replace(objective, **changes),
            "optimizer_numbers": numbers and {name: value / 3 for name, value in numbers.items()},
            "schedule": setup.schedule.replace_numbers({k: v / 3 for k, v in setup.schedule.numbers.items()}),
        }
    )


def train(setup, with_arguments, dtype):
    keep_ema = setup.objective.ema_decay > 0
    devices, current = setup.devices, state.create(initial(True, dtype), setup.optimizer, keep_ema=keep_ema)
    batches = [devices.put(batch(k % 3)) for k in range(STEPS)]
    current = devices.replicate(current)
    if with_arguments:
        unlike = other(setup)
        numbers, made_for = ([devices.place_numbers(step_numbers.read_numbers(each))] for each in (setup, unlike))
        assert executables.describe_arguments(made_for) == executables.describe_arguments(numbers)
        compiled = devices.compile_train(step_numbers.make_step(unlike), current, batches[0], *made_for)
    else:
        numbers = []
        whole = step.make_train_step(setup.model, setup.optimizer, setup.objective, devices=devices.count)
        compiled = devices.compile_train(whole, current, batches[0])
    log = []
    for one in batches:
        current, metrics = compiled(current, one, *numbers)
        log.append(metrics)
    return jax.device_get((current, log))


def assert_same_bits(one, other):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        assert np.array_equal(a, b), (jax.tree_util.keystr(path), a, b)


@pytest.mark.parametrize("name", CASES)
def test_arguments_give_the_bits_of_constants(name):
    setup = prepare(name)
    arguments, constants = (train(setup, how, jnp.float32) for how in (True, False))
    assert_same_bits(arguments, constants)
    assert np.isfinite(arguments[1][-1]["loss"]) and arguments[0].step == STEPS


@pytest.mark.parametrize(("devices", "mode", "name"), [(2, "jit", "momentum"), (2, "pmap", "adamw")])
def test_on_several_devices_too(devices, mode, name):
    setup = prepare(name, jnp.float32, devices, mode)
    assert_same_bits(*(train(setup, how, jnp.float32) for how in (True, False)))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("name", CASES)
def test_on_any_devices_in_any_mode(devices, mode, name):
    test_on_several_devices_too(devices, mode, name)


def test_a_number_on_the_devices_is_an_operand_like_a_constant():
    """In bfloat16 a float32 array would make another product than a constant: weak types stay, as arguments are."""
    half = jnp.full(3, 1.7, jnp.bfloat16)
    for mode in ("jit", "pmap"):
        devices = parallel.Devices(mode, 2)
        placed = devices.place_numbers({"rate": 0.3, "weights": np.ones(2, np.float32)})
        assert placed["rate"].weak_type and placed["rate"].sharding == devices.replicated
        assert (half * placed["rate"]).dtype == jnp.bfloat16 and not placed["weights"].weak_type


def test_in_float64_too(x64):
    setup = prepare("momentum", jnp.float64)
    assert_same_bits(*(train(setup, how, jnp.float64) for how in (True, False)))


def test_a_study_compiles_once(small_arguments, tmp_path):
    """Eight learning rates, each with another seed and other numbers of optimizer, EMA and loss.

    The setups are real, and so their keys; the step is a small one that takes their numbers and ignores them.
    """
    store, compiled = executable_files.Store(tmp_path / "executables", {}), []
    for number, rate in enumerate(RATES):
        changes = {
            "optimizer.learning_rate": rate,
            "optimizer.momentum": 0.5 + number / 100,
            "optimizer.weight_decay": 1e-4 * (1 + number),
            "ema.decay": 0.9 + number / 100,
            "loss.aux_weights": f"({0.1 * (1 + number)}, 0.3)",
            "schedule.end_learning_rate": rate / 10,
            "seed": number,
            "parallel.devices": 2,
        }
        config, _ = recipe_files.load_config([*small_arguments, *(f"--config.{k}={v}" for k, v in changes.items())])
        setup = setups.build(Config(config))
        devices = setup.devices
        current = devices.replicate({"step": np.zeros((), np.int32)})
        arguments = (current, devices.abstract_batch(16, 32), devices.place_numbers(step_numbers.read_numbers(setup)))

        def compile_step(*arguments, **options):
            compiled.append(rate)  # noqa: B023
            return devices.compile_train(lambda state, batch, numbers: (state, {}), *arguments, **options)  # noqa: B023

        assert executables.load_or_compile(store, "train", setup, arguments, compile_step).call
    assert compiled == [RATES[0]] and len(list(store.folder.iterdir())) == 2
