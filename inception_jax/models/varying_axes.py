"""Over which axes of a `shard_map` an array varies: operands of one operation must agree."""

from __future__ import annotations

import jax
from jax import lax


def match_varying_axes(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Makes both operands vary over the same axes, where one of them may be replicated.

    To be called outside a custom gradient, so that JAX itself sums the replicated operand's gradient over the devices
    (check_vma=True; with False, JAX knows no axes, and both are returned as they are).
    """
    return vary_as(a, b), vary_as(b, a)


def vary_as(array: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the array, varying over every axis over which the other one varies."""
    axes = jax.typeof(other).manual_axis_type.varying - jax.typeof(array).manual_axis_type.varying
    return lax.pcast(array, tuple(axes), to="varying") if axes else array
