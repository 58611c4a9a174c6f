"""What a device does at most, measured: for chips that no table knows, and for telling data sheets from deeds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_REPEATS = 10
_SECONDS = 0.05  # of one product or copy, at least: starting it then weighs nothing
_BYTES = 2**28  # of the array that is copied: larger than any cache


def measure_flops(dtype: str, device: jax.Device) -> float:
    """FLOP/s of dense square matrix products in this dtype, the best of ten.

    Args:
      dtype: of the operands; sums are in at least float32, as in the network's layers.
      device: on which.
    """
    with jax.default_device(device):
        side = 512
        while True:
            one = jnp.ones((side, side), jnp.dtype(dtype))
            seconds = _best(jax.jit(lambda a, b: a @ b), one, one)
            if seconds >= _SECONDS or side >= 16384:
                return 2 * side**3 / seconds
            side *= 2


def measure_bandwidth(device: jax.Device) -> float:
    """Bytes/s of reading one array and writing another, both larger than any cache, the best of ten."""
    with jax.default_device(device):
        array = jnp.ones(_BYTES // 4, jnp.float32)
        return 2 * _BYTES / _best(jax.jit(lambda x: x + 1), array)


def _best(function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - start)
    return best
