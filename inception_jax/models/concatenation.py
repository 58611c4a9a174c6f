"""Concatenates maps along their channels; with oneDNN's convolutions those of bfloat16 as integers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import onednn
from inception_jax.models.platforms import is_traced_for_shapes, platform_dependent


def concatenate_channels(maps: Sequence[jax.Array], algorithm: str) -> jax.Array:
    """Concatenates maps [..., C] along the channels.

    On a CPU XLA concatenates bfloat16 in float32, and converts each map before and the result behind. Those that calls
    of oneDNN make and read are therefore concatenated as integers of 16 bits.

    Args:
      maps: which agree in all axes but the last.
      algorithm: of the convolutions, as of `conv2d`.
    """
    known = algorithm.startswith("onednn") and not is_traced_for_shapes()
    if known and all(one.dtype == jnp.bfloat16 for one in maps) and onednn.computes(*maps):
        return _concatenate(*maps)
    return jnp.concatenate(maps, axis=-1)


@jax.custom_vjp
def _concatenate(*maps: jax.Array) -> jax.Array:
    return platform_dependent(*maps, default=_as_they_are, cpu=_as_integers)


def _as_they_are(*maps: jax.Array) -> jax.Array:
    return lax.concatenate(maps, maps[0].ndim - 1)


def _as_integers(*maps: jax.Array) -> jax.Array:
    bits = [lax.bitcast_convert_type(one, jnp.uint16) for one in maps]
    return lax.bitcast_convert_type(_as_they_are(*bits), jnp.bfloat16)


def _forward(*maps: jax.Array) -> tuple[jax.Array, list[int]]:
    return _concatenate(*maps), list(itertools.accumulate(one.shape[-1] for one in maps))


def _backward(ends: list[int], gradient: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(jnp.split(gradient, ends[:-1], axis=-1))


_concatenate.defvjp(_forward, _backward)
