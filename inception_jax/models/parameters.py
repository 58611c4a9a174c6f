"""Declares parameters and batch statistics, and can record the declarations without allocating the arrays."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.errors import ScopeParamShapeError
from jax import lax

Initializer = Callable[..., jax.Array]


class ArrayDeclaration(NamedTuple):
    """One leaf of a network's variables; its value is `initializer(key, shape, dtype)`."""

    collection: str  # "params" or "batch_stats"
    path: tuple[str, ...]  # of the layer in the network
    name: str
    initializer: Initializer
    shape: tuple[int, ...]
    dtype: Any


_record: contextvars.ContextVar[list[ArrayDeclaration] | None] = contextvars.ContextVar("declarations", default=None)


@contextlib.contextmanager
def record_declarations() -> Iterator[list[ArrayDeclaration]]:
    """Records the declarations made inside the `with` block, in order: run `jax.eval_shape` of `model.init` in it."""
    declarations: list[ArrayDeclaration] = []
    token = _record.set(declarations)
    try:
        yield declarations
    finally:
        _record.reset(token)


def parameter(module: nn.Module, name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Declares a trainable parameter by `module.param`; recorded inside `record_declarations`.

    In `apply`, where the parameter exists, its shape is compared here: `module.param` would trace the initializer of
    every parameter to learn that shape, a third of the time that tracing Inception-v4 takes.

    Raises:
      ScopeParamShapeError: the parameter that was given has another shape, as from `module.param`.
    """
    if (declarations := _record.get()) is not None:
        return _declare(declarations, module, "params", name, initializer, shape, dtype)
    if module.has_variable("params", name) and not module.is_mutable_collection("params"):
        value = nn.meta.unbox(module.get_variable("params", name))
        if np.shape(value) != tuple(shape):
            raise ScopeParamShapeError(name, "/" + "/".join(module.path), np.shape(value), tuple(shape))
        return value
    return module.param(name, initializer, shape, dtype)


def statistic(
    module: nn.Module, name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any
) -> nn.Variable:
    """Declares a variable of the collection `batch_stats`; recorded inside `record_declarations`.

    `initializer` is called with None as its key.
    """
    if (declarations := _record.get()) is not None:
        initializer = partial(_declare, declarations, module, "batch_stats", name, initializer, shape, dtype)
        return module.variable("batch_stats", name, initializer)
    return module.variable("batch_stats", name, initializer, None, shape, dtype)


def _declare(
    declarations: list[ArrayDeclaration],
    module: nn.Module,
    collection: str,
    name: str,
    initializer: Initializer,
    shape: tuple[int, ...],
    dtype: Any,
) -> jax.Array:
    """Records a leaf; returns zeros in its place, without Flax's random key and the initializer's random numbers."""
    declarations.append(ArrayDeclaration(collection, tuple(module.path), name, initializer, tuple(shape), dtype))
    # Not `lax.empty`, which is quicker: under `vmap` JAX before 0.11 gives every array that it makes a batch axis.
    return lax.full(shape, 0, dtype)
