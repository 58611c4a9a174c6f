"""The one place where a layer declares its parameters and statistics, so that they can be listed without being made."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


class ArrayDeclaration(NamedTuple):
    """One leaf of a network's variables: `initializer(key, shape, dtype)` makes it."""

    collection: str  # "params" or "batch_stats"
    path: tuple[str, ...]  # of the layer inside the network
    name: str
    initializer: Initializer
    shape: tuple[int, ...]
    dtype: Any


_record: contextvars.ContextVar[list[ArrayDeclaration] | None] = contextvars.ContextVar("declarations", default=None)


@contextlib.contextmanager
def record_declarations() -> Iterator[list[ArrayDeclaration]]:
    """Collects, in order, what is declared inside the block: run `model.init` under `jax.eval_shape` in it."""
    declarations: list[ArrayDeclaration] = []
    token = _record.set(declarations)
    try:
        yield declarations
    finally:
        _record.reset(token)


def _declare(module: nn.Module, collection: str, name: str, initializer: Initializer, shape: Any, dtype: Any) -> Any:
    """Lists the leaf if a list is being made, and returns its initialiser: then zeros, whose values nobody will see."""
    declarations = _record.get()
    if declarations is None:
        return initializer
    declarations.append(ArrayDeclaration(collection, tuple(module.path), name, initializer, tuple(shape), dtype))
    return _zeros


def _zeros(key: jax.Array | None, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jnp.zeros(shape, dtype)


def parameter(module: nn.Module, name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """`module.param`, listed: a trained array of `shape` and `dtype`."""
    return module.param(name, _declare(module, "params", name, initializer, shape, dtype), shape, dtype)


def statistic(
    module: nn.Module, name: str, initializer: Initializer, shape: tuple[int, ...], dtype: Any
) -> nn.Variable:
    """`module.variable` in the collection `batch_stats`, listed; `initializer` gets no key (None)."""
    initializer = _declare(module, "batch_stats", name, initializer, shape, dtype)
    return module.variable("batch_stats", name, initializer, None, shape, dtype)
