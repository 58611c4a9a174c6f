"""Exponential moving averages (EMA) of parameters and batch statistics, for evaluation with the EMA weights.

The papers evaluate on averaged parameters (arXiv:1409.4842 section 6, arXiv:1512.00567 section 8); Google's v3 trainer
averages the batch-norm moving statistics with the same decay (0.9999). The EMA is at least float32, also of bfloat16
parameters: an increment of 1e-4 of the difference is below the resolution of bfloat16 and would be rounded away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def init(params: Tree, batch_stats: Tree) -> dict[str, Tree]:
    """Starts the averages at the given values (as TF does: the variable's initial value).

    Args:
      params: tree of floating arrays.
      batch_stats: tree of floating arrays; empty for a network without batch norm.

    Returns:
      {"params": ..., "batch_stats": ...}: copies, in at least float32. Copies, because the step donates both the
      parameters and the averages, and one buffer cannot be donated twice.
    """
    copy = lambda x: jnp.array(x, dtype=np.promote_types(x.dtype, jnp.float32), copy=True)  # noqa: E731
    return jax.tree.map(copy, {"params": params, "batch_stats": batch_stats})


def new_weight(decay: float) -> float:
    """The weight of the new values: 1 - decay, formed in Python, because 1 - 0.9999 in float32 is off by 1e-4."""
    return 1.0 - decay


def update(
    ema: Mapping[str, Tree],
    params: Tree,
    batch_stats: Tree,
    *,
    weight: float | jax.Array,
    step: jax.Array | int,
    num_updates_rule: bool,
) -> dict[str, Tree]:
    """Updates the averages once: `ema - (1 - decay_t) * (ema - value)`, as TF computes it.

    With `num_updates_rule`, decay_t = min(decay, (1 + t) / (10 + t)), so that the start values soon lose their weight
    (`tf.train.ExponentialMovingAverage(decay, num_updates=t)`); without it decay_t = decay.

    Args:
      ema: from `init` or `update`.
      params: tree of new parameters, as `ema["params"]`; may be of a lower precision.
      batch_stats: tree of new batch statistics, as `ema["batch_stats"]`.
      weight: of the new values, from `new_weight(decay)`; it may be an argument of a compiled step.
      step: t, an integer scalar: the number of updates that `params` has had, the newest included (Google's TPU
        trainer applies the average after `global_step` was advanced). Read by `num_updates_rule` only.
      num_updates_rule: whether decay_t depends on the step, see above.

    Returns:
      The new averages, in the types of `ema`.
    """
    if num_updates_rule:  # 1 - (1 + t) / (10 + t) = 9 / (10 + t)
        updates = jnp.asarray(step).astype(jnp.result_type(float))
        weight = jnp.maximum(9.0 / (10.0 + updates), weight)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return old + jnp.asarray(weight, old.dtype) * (new.astype(old.dtype) - old)

    return jax.tree.map(average, dict(ema), {"params": params, "batch_stats": batch_stats})
