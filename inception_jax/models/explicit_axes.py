"""Meshes of explicit axes (`jax.sharding.AxisType.Explicit`, JAX's default), where the type of an array has a sharding.

JAX infers the shardings of most operations. It refuses others, such as `where` of an array that is sharded and one that
was made of its shape alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax.sharding import PartitionSpec

_T = TypeVar("_T")


def sharded_like(like: _T, function: Callable[..., _T], *operands: Any) -> _T:
    """Calls a function in which XLA chooses the shardings, as with automatic axes.

    Args:
      like: a pytree of arrays: the result has its structure and shardings.
      function: of the operands; it must not use other arrays.
      *operands: pytrees of arrays.
    """
    if not any(_axes(leaf) for leaf in jax.tree.leaves(operands)):
        return function(*operands)
    shardings = jax.tree.map(lambda leaf: jax.typeof(leaf).sharding, like)
    return jax.sharding.auto_axes(function, out_sharding=shardings)(*operands)


def rows_like(rows: jax.Array, like: jax.Array) -> jax.Array:
    """Shards the first axis of an array as that of another one."""
    axes = _axes(like)
    return jax.sharding.reshard(rows, jax.typeof(like).sharding.update(spec=PartitionSpec(axes[0]))) if axes else rows


def _axes(array: jax.Array) -> tuple[Any, ...]:
    """The explicit axes that each axis of the array is sharded over; (): it is over none."""
    spec = jax.typeof(array).sharding.spec
    return tuple(spec) if any(spec) else ()
