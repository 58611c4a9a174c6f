"""Local response normalization (LRN) across channels, as Caffe defines it, with a hand-written gradient.

The gradient is two sums over a few neighbouring channels, and powers made of square roots. The sums are shifted
slices; on TPUs a product with a band of ones (0.60 of the bytes in a program for a TPU v5e, 256 maps of 56x56x192 in
bfloat16). CPU time of forward and backward together relative to
`x * (k + alpha / size * reduce_window(x * x)) ** -beta` and its automatic gradient, medians of interleaved runs on two
x86-64 cores, float32: 64 maps of 16x16 with 64 channels 0.22, with 192 0.23; 8 maps of 56x56 with 64 channels 0.24,
with 192 0.25; forward alone 0.2.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.platforms import platform_dependent
from inception_jax.models.tracing import trace_once


@trace_once("size", "alpha", "beta", "k")
def local_response_norm(
    x: jax.Array, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """Normalizes x by its neighbouring channels: x * (k + alpha / size * S) ** -beta.

    S is the sum of x squared over the `size` channels centered on each one. Definition (`lrn_layer.cpp`,
    ACROSS_CHANNELS) and defaults are Caffe's, and those of GoogLeNet's prototxt: alpha is divided by the window size,
    as in PyTorch's `local_response_norm`; TensorFlow's `lrn` takes alpha / size as its alpha. Channels before the
    first and after the last count as zero. Differentiable in reverse mode, also twice; forward mode (`jax.jvp`)
    raises, as for every `jax.custom_vjp`.

    Args:
      x: [..., C], floating-point.
      size: channels in the window, odd.
      alpha: scale of the sum.
      beta: exponent; 0.5, 0.75 and 1 are computed without `pow`.
      k: offset, greater than 0.

    Returns:
      The shape and dtype of `x`; computed in at least float32.

    Raises:
      ValueError: an even or non-positive `size`, or k <= 0.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"local_response_norm: size {size}: expected an odd number of channels")
    if k <= 0:
        raise ValueError(f"local_response_norm: k {k}: expected a number above 0")
    return sharded_like(x, lambda x: _normalize(x, size, alpha, beta, k), x)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _normalize(x: jax.Array, size: int, alpha: float, beta: float, k: float) -> jax.Array:
    wide = _widen(x)
    return (wide * _powers(wide, size, alpha, beta, k)[0]).astype(x.dtype)


def _normalize_forward(x: jax.Array, size: int, alpha: float, beta: float, k: float) -> tuple[jax.Array, jax.Array]:
    return _normalize(x, size, alpha, beta, k), x


def _normalize_backward(
    size: int, alpha: float, beta: float, k: float, x: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    # With d the bracket: dL/dx_i = g_i d_i^-beta - 2 alpha beta / size * x_i * sum of g_j x_j d_j^(-beta-1) over the
    # windows j that contain i, which are the channels of i's own window. The barrier stores only `x` from the forward
    # pass; d is cheaper to recompute than to store.
    x = lax.optimization_barrier(x)
    wide, gradient = _widen(x), _widen(gradient)
    power, next_power = _powers(wide, size, alpha, beta, k)
    crossed = _window_sum_of_product(gradient, wide, next_power, size, x.dtype)
    return ((gradient * power - (2 * alpha * beta / size) * wide * crossed).astype(x.dtype),)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _powers(x: jax.Array, size: int, alpha: float, beta: float, k: float) -> tuple[jax.Array, jax.Array]:
    """d ** -beta and d ** (-beta - 1), without `pow` for the usual exponents: it would cost more than all the rest."""
    d = k + alpha / size * _window_sum(x * x, size)
    if beta == 0.75:
        root = lax.sqrt(lax.rsqrt(d))  # one array, d^-1/4, of which both powers are products
        power = root * root * root
        return power, power * power * root
    if beta == 0.5:
        power = lax.rsqrt(d)
        return power, power * power * power
    if beta == 1:
        power = 1 / d
        return power, power * power
    power = lax.exp(-beta * lax.log(d))
    return power, power / d


def _window_sum(x: jax.Array, size: int) -> jax.Array:
    """The sum over `size` neighbouring channels."""
    by_band, by_slices = (partial(form, size=size) for form in (_sum_by_band, _sum_by_slices))
    return platform_dependent(x, tpu=by_band, default=by_slices)


def _window_sum_of_product(a: jax.Array, b: jax.Array, c: jax.Array, size: int, dtype: Any) -> jax.Array:
    """The window sum of a * b * c in float32; on NVIDIA GPUs the product is stored in `dtype`, if that is bfloat16.

    A window reads neighbours, so the compiler stores the product, a map of 32 bits otherwise: 2.77 GB in the place of
    3.39 for forward and backward of 256 maps of 56x56x192 in a program for an H200. The gradient has the sum times
    2 alpha beta / size, 3e-5 in GoogLeNet: rounding its terms adds 1 % to the error that rounding the gradient makes,
    for maps of standard deviation 60. A program for a TPU v5e would move more (4.0 GB, not 3.1).
    """
    if dtype != jnp.bfloat16:
        return _window_sum(a * b * c, size)

    def rounded(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return _window_sum(_widen(lax.optimization_barrier((a * b * c).astype(dtype))), size)

    def wide(a: jax.Array, b: jax.Array, c: jax.Array) -> jax.Array:
        return _window_sum(a * b * c, size)

    return platform_dependent(a, b, c, cuda=rounded, default=wide)


def _sum_by_band(x: jax.Array, size: int) -> jax.Array:
    """As a matrix product, for TPUs: XLA writes shifted slices to memory there."""
    # No NumPy constant: it would become an argument of every platform's form.
    row, column = (lax.broadcasted_iota(jnp.int32, (x.shape[-1],) * 2, axis) for axis in (0, 1))
    band = (lax.abs(row - column) <= size // 2).astype(x.dtype)
    # A TPU would round both factors to bfloat16 otherwise. The ones of the band lose nothing.
    return lax.dot_general(x, band, (((x.ndim - 1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


def _sum_by_slices(x: jax.Array, size: int) -> jax.Array:
    """By shifted slices: differences of a cumulative sum lose precision."""
    half, channels = size // 2, x.shape[-1]
    edges = [(0, 0, 0)] * (x.ndim - 1) + [(half, half, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), edges)
    total = lax.slice_in_dim(padded, 0, channels, axis=x.ndim - 1)
    for shift in range(1, size):
        total = total + lax.slice_in_dim(padded, shift, shift + channels, axis=x.ndim - 1)
    return total


def _widen(x: jax.Array) -> jax.Array:
    return x if jnp.finfo(x.dtype).bits >= 32 else x.astype(jnp.float32)
