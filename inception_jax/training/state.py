"""The training state: params, batch_stats, optimizer state, EMA."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from inception_jax.training import ema as ema_lib


@flax.struct.dataclass
class TrainState:
    """The state of a run after `step` updates. A checkpoint holds exactly this, and the next batch follows from `step`.

    Attributes:
      step: int32 scalar, the number of updates so far; the index of the next batch.
      params: the network's parameters, in `param_dtype`.
      batch_stats: batch-norm running statistics, at least float32; `{}` for a network without batch norm.
      opt_state: the optimizer's state.
      ema: exponential moving averages `{"params": …, "batch_stats": …}`; None without EMA.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any

    def variables(self, weights: str = "raw") -> dict[str, Any]:
        """The variables for `model.apply`.

        Args:
          weights: "raw" for the trained parameters, "ema" for their exponential moving average.
        """
        if weights == "ema":
            return dict(self.ema)
        return {"params": self.params, "batch_stats": self.batch_stats}


def create(variables: dict[str, Any], optimizer: optax.GradientTransformation, *, keep_ema: bool) -> TrainState:
    """Makes the state before the first step.

    Args:
      variables: "params" and, with batch norm, "batch_stats", from the initialization of the model.
      optimizer: the Optax transformation that will update them.
      keep_ema: whether the state has an EMA.
    """
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        ema=ema_lib.init(params, batch_stats) if keep_ema else None,
    )
