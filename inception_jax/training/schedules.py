"""Learning-rate schedules as functions of the step, as in the papers and their code.

Every schedule counts from step 0, with or without a warm-up, as Caffe and TF do (`iter_`, `global_step`): decay
boundaries do not move when a warm-up is added. The warm-up is a multiplier: with W = warmup_epochs * steps_per_epoch,

    learning_rate(step) = shape(step) * (warmup_start + (1 - warmup_start) * min(1, step / W)).

The papers and Caffe's solvers have no warm-up. Google's TPU recipe starts at 0.1 of the learning rate that the decay
has when the warm-up ends (tensorflow/tpu, `inception_v3.py`: `wlr`, `adj_initial_learning_rate`) and rises epoch by
epoch; 0.1 is the default `warmup_start` here, and the rate rises step by step.

The step is an int32 inside `jit`. float32 cannot distinguish neighbouring steps where a ratio of steps is large or
close to 1, so staircases compare integers with a table made in float64, and polynomial and cosine use the number of
remaining steps: relative error below 5e-7 at every step tried of a run of 10^7.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError, must_be_one_of
from inception_jax.ranges import FLOAT32_TINY

# name -> {option: its default}. Defaults of "exponential": TF-Slim's train_image_classifier.py (x0.94 every 2 epochs).
# "polynomial": power 0.5 and end 0 is Caffe's quick_solver of bvlc_googlenet.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "constant": {},
    "exponential": {"decay_rate": 0.94, "decay_epochs": 2.0, "staircase": True, "end_learning_rate": 0.0},
    "polynomial": {"power": 0.5, "end_learning_rate": 0.0},
    "cosine": {"end_learning_rate": 0.0},
}
OPTIONS: dict[str, tuple[str, ...]] = {name: tuple(defaults) for name, defaults in _DEFAULTS.items()}
"""The options that each schedule reads, beside the warm-up's."""

_MAX_STAIRS = 1 << 16  # The table becomes a constant of the compiled step.

Numbers = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A function of an integer step to the learning rate, whose rates may be arguments of a compiled step.

    Attributes:
      numbers: {name: value} of the rates in it. Its lengths, in steps, are constants: XLA multiplies by the reciprocal
        of a constant where it divides by an argument, which gives other bits.
      function: (numbers, int32 step) -> learning rate.
    """

    numbers: Numbers
    function: Callable[[Numbers, jax.Array], jax.Array]

    def __call__(self, step: Any) -> jax.Array:
        """The learning rate of an integer step, a scalar or an array, in float32 (float64 under x64)."""
        return self.function(self.numbers, jnp.asarray(step, jnp.int32))

    def replace_numbers(self, numbers: Numbers) -> Schedule:
        """The schedule with values in the place of `numbers`, such as the arguments of a traced function."""
        return Schedule(numbers, self.function)


def make_schedule(
    name: str,
    *,
    base_learning_rate: float,
    steps_per_epoch: float,
    total_steps: int,
    decay_rate: float | None = None,
    decay_epochs: float | None = None,
    staircase: bool | None = None,
    power: float | None = None,
    end_learning_rate: float | None = None,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.1,
) -> Schedule:
    """Makes a learning-rate schedule.

    * "constant": base.
    * "exponential": max(end, base * decay_rate ^ (step / decay_steps)), the exponent floored if `staircase`.
      decay_steps = decay_epochs * steps_per_epoch is not rounded: stair k begins at the first step that is at least
      k * decay_steps (TF-Slim truncates decay_steps to an integer, less than one step per stair earlier).
      Caffe's `step` policy: x0.96 per 320,000 iterations, 8 epochs at batch 32. TF-Slim: x0.94 per 2 epochs.
      The floor is the TPU recipe's, 1e-4 of the base there.
    * "polynomial": end + (base - end) * (1 - step / total_steps) ^ power. Caffe's `poly`, TF's `polynomial_decay`.
    * "cosine": end + (base - end) * (1 + cos(pi * step / total_steps)) / 2. arXiv:1608.03983 equation 5, one period.

    After `total_steps`, polynomial and cosine stay at their end value, and a staircase at its last stair.
    Options left at None take the defaults in this module.

    Args:
      name: one of `OPTIONS`.
      base_learning_rate: the learning rate at step 0 without warm-up.
      steps_per_epoch: examples / batch size; need not be whole.
      total_steps: steps of the whole run (Caffe's max_iter).
      decay_rate: factor per decay period, 0 < decay_rate <= 1.
      decay_epochs: length of a decay period, in epochs.
      staircase: decay in jumps rather than smoothly.
      power: exponent of the polynomial, > 0 (1: linear).
      end_learning_rate: a learning rate (not a fraction of the base, as in TF-Slim's flag of this name).
      warmup_epochs: length of the linear warm-up, in epochs; 0: none.
      warmup_start: fraction of the learning rate that step 0 has.

    Returns:
      A function of an integer step (scalar or array; int32 under `jit`, or a Python int) to the learning rate, in
      float32 (float64 under x64).

    Raises:
      UserError: an unknown name, an option that this schedule does not read, or a value out of range.
    """
    given = {
        "decay_rate": decay_rate,
        "decay_epochs": decay_epochs,
        "staircase": staircase,
        "power": power,
        "end_learning_rate": end_learning_rate,
    }
    options = _options(name, {option: value for option, value in given.items() if value is not None})
    _check(base_learning_rate >= 0, "config.optimizer.learning_rate", base_learning_rate, "0 or more")
    _check(steps_per_epoch > 0, "steps_per_epoch", steps_per_epoch, "more than 0")
    _check(total_steps >= 1, "total_steps", total_steps, "1 or more")
    _check(warmup_epochs >= 0, "config.schedule.warmup_epochs", warmup_epochs, "0 or more")
    _check(0 <= warmup_start <= 1, "config.schedule.warmup_start", warmup_start, "0 to 1")
    base, end = float(base_learning_rate), float(options.get("end_learning_rate", 0.0))
    _check(0 <= end <= base, "config.schedule.end_learning_rate", end, f"0 to the learning rate ({base})")

    if name == "constant":
        shape = _constant(base)
    elif name == "exponential":
        _check(0 < options["decay_rate"] <= 1, "config.schedule.decay_rate", options["decay_rate"], "0 < value <= 1")
        _check(options["decay_epochs"] > 0, "config.schedule.decay_epochs", options["decay_epochs"], "more than 0")
        decay_steps = float(options["decay_epochs"]) * float(steps_per_epoch)
        if options["staircase"]:
            shape = _stairs(base, end, float(options["decay_rate"]), decay_steps, total_steps)
        else:
            shape = _exponential(base, end, float(options["decay_rate"]), decay_steps)
    elif name == "polynomial":
        _check(options["power"] > 0, "config.schedule.power", options["power"], "more than 0")
        shape = _polynomial(base, end, float(options["power"]), total_steps)
    else:
        shape = _cosine(base, end, total_steps)
    return _with_warmup(shape, float(warmup_epochs) * float(steps_per_epoch), float(warmup_start))


def _options(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of schedule `name`: its defaults, overridden by the given ones."""
    if name not in _DEFAULTS:
        raise UserError(f"config.schedule.name = {name!r}: {must_be_one_of(name, _DEFAULTS)}")
    for option in given:
        if option not in _DEFAULTS[name]:
            allowed = ", ".join(OPTIONS[name]) or "none"
            raise UserError(f"config.schedule.{option} is not read by schedule {name!r}; its options: {allowed}")
    return {**_DEFAULTS[name], **given}


def _check(holds: bool, field: str, value: object, allowed: str) -> None:
    if not holds:  # `not (NaN > 0)` is true: NaN is refused too.
        raise UserError(f"{field} = {value!r}; allowed: {allowed}")


def _float(steps: jax.Array) -> jax.Array:
    return steps.astype(jnp.result_type(float))


def _constant(base: float) -> Schedule:
    return Schedule({"base": base}, lambda numbers, step: jnp.full_like(_float(step), numbers["base"]))


def _exponential(base: float, end: float, rate: float, decay_steps: float) -> Schedule:
    def function(numbers: Numbers, step: jax.Array) -> jax.Array:
        return jnp.maximum(numbers["base"] * jnp.exp(_float(step) * numbers["log decay"]), numbers["end"])

    return Schedule({"base": base, "end": end, "log decay": math.log(rate) / decay_steps}, function)


def _stairs(base: float, end: float, rate: float, decay_steps: float, total_steps: int) -> Schedule:
    count = int(total_steps / decay_steps) + 1
    if decay_steps < 1 or count > _MAX_STAIRS:
        raise UserError(
            f"config.schedule.decay_epochs is {decay_steps:.6g} steps: {count} stairs in {total_steps} steps; allowed: "
            f"stairs of one step or more, at most {_MAX_STAIRS} (or config.schedule.staircase=False)"
        )
    stair = np.arange(1, count + 1)
    # The millionth absorbs float64 rounding of a product that is a whole number in exact arithmetic.
    starts = np.ceil(stair * decay_steps - 1e-6).astype(np.int64)
    starts = starts[starts <= total_steps].astype(np.int32)
    rates = np.maximum(base * rate ** np.arange(len(starts) + 1, dtype=np.float64), end)

    def function(numbers: Numbers, step: jax.Array) -> jax.Array:
        reached = jnp.searchsorted(jnp.asarray(starts), step, side="right", method="compare_all")
        return jnp.asarray(numbers["rates"], jnp.result_type(float))[reached]

    return Schedule({"rates": rates}, function)


def _remaining(step: jax.Array, total_steps: int) -> jax.Array:
    """1 - step / total_steps, clipped to [0, 1]; subtracted as integers, so that it is exact close to the end."""
    return _float(jnp.clip(total_steps - step, 0, total_steps)) / total_steps


def _polynomial(base: float, end: float, power: float, total_steps: int) -> Schedule:
    def function(numbers: Numbers, step: jax.Array) -> jax.Array:
        return numbers["end"] + numbers["base - end"] * _remaining(step, total_steps) ** power

    return Schedule({"end": end, "base - end": base - end}, function)


def _cosine(base: float, end: float, total_steps: int) -> Schedule:
    def function(numbers: Numbers, step: jax.Array) -> jax.Array:
        # (1 + cos(pi t)) / 2 = sin(pi (1 - t) / 2)^2, without the cancellation of 1 + cos close to the end.
        return numbers["end"] + numbers["base - end"] * jnp.sin(0.5 * math.pi * _remaining(step, total_steps)) ** 2

    return Schedule({"end": end, "base - end": base - end}, function)


def _with_warmup(shape: Schedule, warmup_steps: float, start: float) -> Schedule:
    if warmup_steps == 0:
        return shape
    # In float32 a shorter warm-up would be one of 0 steps: step 0 divided by it is NaN.
    warmup_steps = max(warmup_steps, FLOAT32_TINY)

    def function(numbers: Numbers, step: jax.Array) -> jax.Array:
        return shape.function(numbers, step) * (start + (1.0 - start) * jnp.minimum(_float(step) / warmup_steps, 1.0))

    return Schedule(shape.numbers, function)
