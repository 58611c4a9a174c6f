"""Average pools to a fixed number of windows, for maps of any size.

The few windows of `even_avg_pool` have a gradient of their own, too, the same to the last bit as JAX's of their slices:
forward and backward with the ReLU before and the 1x1 convolution after it take 0.39 (8 maps of 14x14x512 to 4x4) and
0.41 (2 of 17x17x1024 to 5x5) of the time.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.normalization import at_least_float32
from inception_jax.models.pool_windows import with_size
from inception_jax.models.tracing import trace_once


@trace_once("output", "window", "stride")
def even_avg_pool(x: jax.Array, output: int, window: int, stride: int) -> jax.Array:
    """Average pooling of a map of any size to `output` x `output`, so that later layers do not depend on image size.

    If `window` and `stride` without padding give `output` windows, this is the plain pool: the 5x5/3 pool of
    GoogLeNet's auxiliary heads (arXiv:1409.4842, section 5) takes 14x14 to 4x4, that of Inception-v4 17x17 to 5x5. On
    any other size g the `output` windows cover the same fraction of the map, k = max(1, round(window * g / g0)) pixels
    with g0 the smallest size that the plain pool accepts, and start at round_half_down(i * (g - k) / (output - 1)).
    The axes are independent.

    Args:
      x: maps [B, H, W, C], floating-point.
      output: windows per axis.
      window: height and width of the plain pool's window, in pixels.
      stride: step of the plain pool, in pixels.

    Returns:
      [B, output, output, C] in the dtype of `x`; sums are accumulated in at least float32.
    """
    total, divisor = x.astype(at_least_float32(x.dtype)), 1
    for axis in (2, 1):
        width, starts = _even_windows(x.shape[axis], output, window, stride)
        add = partial(_sum_windows, axis=axis, width=width, starts=tuple(starts))
        total, divisor = sharded_like(total, add, total), divisor * width
    return (total / float(divisor)).astype(x.dtype)


@trace_once("output")
def adaptive_avg_pool(x: jax.Array, output: int) -> jax.Array:
    """Average pooling of a map of any size to `output` x `output`, as `torch.nn.functional.adaptive_avg_pool2d`.

    Along each axis of size g, window i is the pixels from floor(i * g / output) up to ceil((i + 1) * g / output).
    Windows may overlap and differ in width; if g is less than `output`, pixels are repeated.

    Args:
      x: maps [B, H, W, C], floating-point.
      output: windows per axis.

    Returns:
      [B, output, output, C] in the dtype of `x`; sums are accumulated in at least float32.
    """
    total = x.astype(at_least_float32(x.dtype))
    for axis in (2, 1):
        size = x.shape[axis]
        ends = [(i * size // output, -(-(i + 1) * size // output)) for i in range(output)]
        means = [
            sum(lax.slice_in_dim(total, k, k + 1, axis=axis) for k in range(start, end)) / float(end - start)
            for start, end in ends
        ]
        total = jnp.concatenate(means, axis)
    return total.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _sum_windows(x: jax.Array, axis: int, width: int, starts: tuple[int, ...]) -> jax.Array:
    """The sums of a few windows along one axis, each `width` pixels wide, from the pixels `starts` on."""
    sums = [sum(lax.slice_in_dim(x, start + i, start + i + 1, axis=axis) for i in range(width)) for start in starts]
    return jnp.concatenate(sums, axis)


def _sum_windows_forward(x: jax.Array, axis: int, width: int, starts: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return _sum_windows(x, axis, width, starts), jnp.arange(x.shape[axis], dtype=jnp.int32)


def _sum_windows_backward(
    axis: int, width: int, starts: tuple[int, ...], pixels: jax.Array, gradient: jax.Array
) -> tuple[jax.Array]:
    # A pixel's gradient is the sum of those of its windows, added in JAX's order. JAX itself would pad the gradient of
    # every pixel of every window to the whole map, and add these maps.
    shape = with_size(gradient.shape, axis, pixels.size)
    pixels = pixels.reshape(with_size((1,) * gradient.ndim, axis, pixels.size))
    parts = []
    for i, start in reversed(list(enumerate(starts))):
        inside = jnp.broadcast_to((start <= pixels) & (pixels < start + width), shape)
        row = jnp.broadcast_to(lax.slice_in_dim(gradient, i, i + 1, axis=axis), shape)
        parts.append(jnp.where(inside, row, jnp.zeros_like(row)))
    return (sum(parts[1:], parts[0]),)


_sum_windows.defvjp(_sum_windows_forward, _sum_windows_backward)


def _even_windows(size: int, output: int, window: int, stride: int) -> tuple[int, list[int]]:
    """The width and the first pixels of `even_avg_pool`'s windows along one axis."""
    plain = (output - 1) * stride + window
    if plain <= size < plain + stride:
        return window, [i * stride for i in range(output)]
    width = max(1, round(window * size / plain))
    gaps = max(output - 1, 1)
    # ceil(a / b - 1/2), in integers: to the nearest, halves down
    return width, [-((gaps - 2 * i * (size - width)) // (2 * gaps)) for i in range(output)]
