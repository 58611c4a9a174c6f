"""The numbers of a run that its training step takes as arguments: runs that differ in them alone share one program.

The rates of the schedule, the numbers of the built-in optimizers and the EMA, the weights of heads and classes, and the
seed's key are arguments of the step; which of them there are is part of its program. Python floats have weak types, as
constants have: an argument gives the bits of a constant. Constants remain: the lengths of a schedule in steps, its
warm-up, the exponent of a polynomial and the label smoothing, of which XLA makes other arithmetic; dropout rates, which
are the network's; the numbers of the augmentation; the factors of `optimizer.learning_rate_multipliers` and
`bias_learning_rate`; and the options of Optax's optimizers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from inception_jax.training import ema
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState
from inception_jax.training.step import Batch, Metrics, make_train_step

Numbers = dict[str, Any]

_FIELDS = (
    "ema.decay", "faults.loss_limit", "loss.aux_weights", "loss.class_weights", "optimizer.learning_rate",
    "schedule.end_learning_rate", "seed",
)  # fmt: skip
# Of a built-in optimizer: Optax's take them as constants.
_OPTIMIZER_FIELDS = (
    "optimizer.b1", "optimizer.b2", "optimizer.clip_norm", "optimizer.decay", "optimizer.epsilon",
    "optimizer.momentum", "optimizer.weight_decay",
)  # fmt: skip


def fields(setup: Setup) -> tuple[str, ...]:
    """The paths of the config fields whose values are arguments of the step."""
    return _FIELDS + (_OPTIMIZER_FIELDS if setup.optimizer_numbers is not None else ())


def read_numbers(setup: Setup) -> Numbers:
    """The numbers of a run, for each call of `make_step`'s step."""
    objective = setup.objective
    changes: Numbers = {"seed": np.asarray(jax.random.key_data(jax.random.key(objective.seed)))}
    if objective.ema_decay:
        changes["ema_new_weight"] = ema.new_weight(objective.ema_decay)
    if objective.aux_weights:
        changes["aux_weights"] = tuple(map(float, objective.aux_weights))
    if objective.class_weights is not None:
        changes["class_weights"] = _canonical(np.asarray(objective.class_weights))
    if objective.loss_limit is not None and objective.skip_non_finite:
        changes["loss_limit"] = float(objective.loss_limit)
    rates = {name: _canonical(value) for name, value in setup.schedule.numbers.items()}
    return {"objective": changes, "optimizer": dict(setup.optimizer_numbers or {}), "schedule": rates}


def make_step(setup: Setup) -> Callable[[TrainState, Batch, Numbers], tuple[TrainState, Metrics]]:
    """Builds the step (state, batch, numbers) -> (next state, metrics); it is `step.make_train_step`'s otherwise."""

    def train_step(state: TrainState, batch: Batch, numbers: Numbers) -> tuple[TrainState, Metrics]:
        schedule = setup.schedule.replace_numbers(numbers["schedule"])
        optimizer = setup.build_optimizer(schedule, numbers["optimizer"])
        objective = dataclasses.replace(setup.objective, **numbers["objective"])
        return make_train_step(setup.model, optimizer, objective, devices=setup.devices.count)(state, batch)

    return train_step


def _canonical(value: Any) -> Any:
    """An array in the precision of the step; a Python float as it is, with the weak type of a constant."""
    return value.astype(jax.dtypes.canonicalize_dtype(float)) if isinstance(value, np.ndarray) else value
