"""The training state: params, batch_stats, optimizer state, EMA."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend import core

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


def create_on_host(variables: dict[str, Any], optimizer: optax.GradientTransformation, *, keep_ema: bool) -> TrainState:
    """As `create`, with NumPy arrays, and without a compilation where a state begins with zeros, ones and copies.

    Args:
      variables: as in `create`.
      optimizer: as in `create`; the state of one that begins with other values is computed by a compiled program.
      keep_ema: as in `create`.

    Returns:
      The state; arrays of equal values may be the same array.
    """
    make = functools.partial(create, optimizer=optimizer, keep_ema=keep_ema)
    program, shapes = jax.make_jaxpr(make, return_shape=True)(variables)
    try:
        leaves = _evaluate(program, [np.asarray(leaf) for leaf in jax.tree.leaves(variables)])
    except NotImplementedError:
        return jax.device_get(jax.jit(make)(variables))
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _evaluate(program: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    """Evaluates a program of constants, copies and casts in NumPy; NotImplementedError: it computes something else."""
    jaxpr = program.jaxpr
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*program.consts, *arguments), strict=True))

    def read(atom: Any) -> Any:
        if not isinstance(atom, core.Literal):
            return values[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, list(map(read, equation.invars))
        out: Any = equation.outvars[0].aval
        if name in ("jit", "pjit"):
            results = _evaluate(equation.params["jaxpr"], inputs)
        elif name == "broadcast_in_dim" and not np.ndim(inputs[0]):
            results = [np.full(out.shape, inputs[0], out.dtype)]
        elif name in ("copy", "convert_element_type"):
            results = [np.asarray(inputs[0], out.dtype)]
        else:
            raise NotImplementedError(name)
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(read, jaxpr.outvars))
