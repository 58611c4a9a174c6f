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

from inception_jax.errors import UserError
from inception_jax.ranges import FLOAT32_TINY

OPTIONS: dict[str, tuple[str, ...]] = {
    "constant": (),
    "exponential": ("decay_rate", "decay_epochs", "staircase", "end_learning_rate"),
    "polynomial": ("power", "end_learning_rate"),
    "cosine": ("end_learning_rate",),
}
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
    decay_rate: float = 0.94,
    decay_epochs: float = 2.0,
    staircase: bool = True,
    power: float = 0.5,
    end_learning_rate: float = 0.0,
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

    After `total_steps`, polynomial and cosine stay at their end value, and a staircase at its last stair. The defaults
    of "exponential" are those of TF-Slim's train_image_classifier.py, those of "polynomial" are Caffe's quick_solver of
    bvlc_googlenet. The schema of the config has the ranges of all values.

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
      UserError: the end is above the base, or there are too many stairs.
    """
    base, end = float(base_learning_rate), float(end_learning_rate)
    if end > base:
        raise UserError(f"config.schedule.end_learning_rate = {end!r}; allowed: 0 to the learning rate ({base})")
    decay_steps = float(decay_epochs) * float(steps_per_epoch)
    if name == "constant":
        shape = _constant(base)
    elif name == "exponential" and staircase:
        shape = _stairs(base, end, float(decay_rate), decay_steps, total_steps)
    elif name == "exponential":
        shape = _exponential(base, end, float(decay_rate), decay_steps)
    elif name == "polynomial":
        shape = _polynomial(base, end, float(power), total_steps)
    else:
        assert name == "cosine", name
        shape = _cosine(base, end, total_steps)
    return _with_warmup(shape, float(warmup_epochs) * float(steps_per_epoch), float(warmup_start))


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
