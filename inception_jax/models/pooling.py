"""Max and average pooling of NHWC maps, separable: along the rows of a map, then across them.

The gradient of XLA's own max pool is a select-and-scatter, which CPUs run as a scalar loop and GPUs with atomic
additions. Here forward and backward pass are slices, comparisons and additions that fuse. XLA's compiler for TPUs
writes the slices to memory, and reads and writes a map once for its own pools: there they are `lax.reduce_window` and
its gradient, which give the same numbers. Bytes of forward and backward in programs compiled for a TPU v5e, bfloat16,
256 maps, relative to the slices: max 3x3/1 on 28x28x256 0.12, max 3x3/2 on 112x112x64 0.15, average 3x3/1 on
17x17x128 0.13. CPU time of forward and backward together relative to `lax.reduce_window` and its gradient, medians of
interleaved runs on two x86-64 cores, float32:

* max 3x3/2: 64 maps of 32x32x64 0.16, 64 of 16x16x192 0.11, 8 of 112x112x64 0.20, 2 of 147x147x64 0.07;
* max 3x3/1: 64 maps of 8x8x256 0.14, 8 of 28x28x256 0.14, 8 of 14x14x512 0.14; forward alone 0.2 to 0.4;
* average 3x3/1: 2 maps of 35x35x384 0.38, 64 of 8x8x256 0.36; 5x5/3 on 8 of 14x14x512 0.14.

On CPUs XLA also writes padded slices to memory, and computes anew, for each of them, what it fuses them with. So there
the windows at the edge of a max pool are computed apart from the others, which have no padding, and with a stride of 1
the gradient's pixels at the edge, too: the same bits. CPU time relative to padded slices, with a ReLU before, 8 maps:
forward 3/1 on 28x28x192 0.61 to 0.71, 3/2 on 56x56x192 0.89 to 0.94; forward and backward 3/1 on 28x28x192 0.45, on
14x14x512 0.50.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.models import onednn
from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.normalization import at_least_float32
from inception_jax.models.platforms import platform_dependent
from inception_jax.models.pool_windows import (
    Line,
    Padding,
    concatenate,
    count_windows,
    output_size,
    pad_axis,
    reduce_window,
    slice_axis,
    split_range,
    window_elements,
    window_taps,
    with_size,
)
from inception_jax.models.tracing import trace_once


@trace_once("window", "stride", "padding", "dilation", "algorithm")
def max_pool(
    x: jax.Array, window: int, stride: int, padding: Padding = "SAME", dilation: int = 1, algorithm: str = "fast"
) -> jax.Array:
    """Max pooling: the largest value in each window.

    If several elements of a window have the largest value, the first (top to bottom, then left to right) receives
    the gradient, as in XLA, Caffe and PyTorch. Differentiable in reverse mode, also twice; forward mode (`jax.jvp`)
    raises, as for every `jax.custom_vjp`.

    Args:
      x: maps [B, H, W, C], floating-point.
      window: height and width of the window, in pixels.
      stride: step of the window, in pixels.
      padding: "SAME" (TensorFlow's: ceil(size / stride) windows, the odd pixel of padding below and to the right),
        "VALID", "CEIL" (Caffe's with pad 0: the number of windows is rounded up, the last one is cut by the map's
        edge, and dropped if it would start beyond it), or a number of pixels on every side, fewer than the window
        covers, with the number of windows rounded down. Padding is never the maximum.
      dilation: distance in pixels between neighbouring elements of the window, which covers
        (window - 1) * dilation + 1 pixels.
      algorithm: as of `conv2d`. With oneDNN's, maps on a CPU are pooled by the code beside it (`max_pool.h`) where it
        takes their dtype (`onednn.computes`): the same values, and a gradient that adds the windows of a pixel in
        another order, in float32 (and belongs to a pixel of the map, not to its padding, also where all of a window is
        -inf).

    Returns:
      [B, H', W', C] in the dtype of `x`.

    Raises:
      ValueError: unknown padding, a map too small for one window, or a window of padding only.
      ModelError: oneDNN cannot be had.
    """
    output_size(x, window, stride, padding, dilation)  # both axes are checked before any work
    calls = algorithm.startswith("onednn") and dilation == 1 and onednn.computes(x)
    return sharded_like(x, lambda x: _max_pool(x, calls, window, stride, padding, dilation), x)


@trace_once("window", "stride", "padding", "count_include_pad", "dilation")
def avg_pool(
    x: jax.Array,
    window: int,
    stride: int,
    padding: Padding = "SAME",
    count_include_pad: bool = False,
    dilation: int = 1,
) -> jax.Array:
    """Average pooling: the mean of each window.

    Args:
      x: maps [B, H, W, C], floating-point.
      window: height and width of the window, in pixels.
      stride: step of the window, in pixels.
      padding: as for `max_pool`.
      count_include_pad: divide by the number of pixels of the window inside the padded map (Caffe's AVE, PyTorch's
        default), not by the number inside the map itself (TensorFlow, slim, Keras). "CEIL" has no padding, so both are
        the same: a window cut by the edge is divided by the number of its pixels that remain.
      dilation: as for `max_pool`.

    Returns:
      [B, H', W', C] in the dtype of `x`; sums are accumulated in at least float32.

    Raises:
      ValueError: as for `max_pool`.
    """
    output_size(x, window, stride, padding, dilation)
    total = x.astype(at_least_float32(x.dtype))
    counts = []
    for axis in (2, 1):
        size = x.shape[axis]
        elements = window_elements(size, window, stride, padding, dilation)
        # The range of pixels that are counted: the map, or the map and its padding.
        first, end = (0, size)
        if count_include_pad and padding != "CEIL":
            low = -elements[0, 0]
            first, end = -low, max(size + low, elements[-1, -1] + 1)
        counts.append(((first <= elements) & (elements < end)).sum(1))
    forms = (_sum_by_slices, _sum_by_window, _sum_by_slices, (window, stride, padding, dilation))
    total = sharded_like(total, partial(_select_form, *forms), total)
    divisor = np.outer(counts[1], counts[0])
    if (divisor == divisor[0, 0]).all():
        return (total / float(divisor[0, 0])).astype(x.dtype)
    return (total / jnp.asarray(divisor[None, :, :, None], total.dtype)).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Global average pooling: [B, H, W, C] to [B, C] in the dtype of `x`, accumulated in at least float32."""
    return jnp.mean(x, (1, 2), dtype=at_least_float32(x.dtype)).astype(x.dtype)


def _select_form(
    cpu: Callable[..., jax.Array],
    tpu: Callable[..., jax.Array],
    default: Callable[..., jax.Array],
    geometry: Any,
    *operands: jax.Array,
) -> jax.Array:
    """Calls the platform's form with the operands, then window, stride, padding and dilation."""
    forms = [lambda *arrays, form=form: form(*arrays, *geometry) for form in (cpu, tpu, default)]
    if geometry[-1] != 1:  # XLA's gradient of a max pool knows no dilation
        return forms[2](*operands)
    return platform_dependent(*operands, cpu=forms[0], tpu=forms[1], default=forms[2])


def _sum_by_slices(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> jax.Array:
    for axis in (2, 1):
        line = Line.of(x.shape[axis], window, stride, padding, dilation)
        x = cast(jax.Array, sum(window_taps(x, axis, line, 0.0)))  # never empty
    return x


def _sum_by_window(x: jax.Array, *geometry: Any) -> jax.Array:
    return reduce_window(x, 0.0, lax.add, *geometry)


# --- Max pooling -----------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4, 5))
def _max_pool(x: jax.Array, calls: bool, *geometry: Any) -> jax.Array:
    return _select_form(_max_by_call if calls else _max_by_parts, _max_by_window, _max_by_slices, geometry, x)


def _max_pool_forward(x: jax.Array, *calls_and_geometry: Any) -> tuple[jax.Array, jax.Array]:
    return _max_pool(x, *calls_and_geometry), x


def _max_pool_backward(calls: bool, *geometry_map_and_gradient: Any) -> tuple[jax.Array]:
    *geometry, x, gradient = geometry_map_and_gradient
    cpu = _max_gradient_by_call if calls else _max_gradient_by_parts
    forms = (cpu, _max_gradient_by_window, _max_gradient_by_slices)
    return (_select_form(*forms, tuple(geometry), x, gradient),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_by_slices(x: jax.Array, *geometry: Any, parts: bool = False) -> jax.Array:
    return _max_along(_max_along(x, 2, geometry, parts), 1, geometry, parts)


def _max_gradient_by_slices(x: jax.Array, gradient: jax.Array, *geometry: Any, parts: bool = False) -> jax.Array:
    # The barrier makes the backward pass pool the rows again instead of storing them in the forward pass, and on
    # accelerators compare values that are rounded to the dtype of `x`, where the compiler may compute in a wider one.
    x = lax.optimization_barrier(x)
    rows = _max_along(x, 2, geometry, parts)
    gradient = _unpool_along(rows, gradient, 1, geometry, parts)
    return _unpool_along(x, gradient, 2, geometry, parts)


def _window_of_call(x: jax.Array, window: int, stride: int, padding: Padding) -> tuple[tuple[int, int], list[int]]:
    """The numbers of windows along the axes, and the window, as `onednn` takes them."""
    counts, before = zip(*(count_windows(size, window, stride, padding) for size in x.shape[1:3]), strict=True)
    return counts, [window, stride, *before]


def _max_by_call(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> jax.Array:
    return onednn.max_pool(x, *_window_of_call(x, window, stride, padding))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _max_gradient_by_call(
    x: jax.Array, gradient: jax.Array, window: int, stride: int, padding: Padding, dilation: int
) -> jax.Array:
    return onednn.max_pool_gradient(x, gradient, _window_of_call(x, window, stride, padding)[1])


def _gradient_call_forward(x: jax.Array, gradient: jax.Array, *geometry: Any) -> tuple[jax.Array, Any]:
    return _max_gradient_by_call(x, gradient, *geometry), (x, gradient)


def _gradient_call_backward(*geometry_operands_and_cotangent: Any) -> tuple[jax.Array, jax.Array]:
    *geometry, operands, cotangent = geometry_operands_and_cotangent
    return jax.vjp(lambda *pair: _max_gradient_by_parts(*pair, *geometry), *operands)[1](cotangent)


_max_gradient_by_call.defvjp(_gradient_call_forward, _gradient_call_backward)

_max_by_parts = partial(_max_by_slices, parts=True)
_max_gradient_by_parts = partial(_max_gradient_by_slices, parts=True)


def _max_by_window(x: jax.Array, *geometry: Any) -> jax.Array:
    return reduce_window(x, -np.inf, lax.max, *geometry)


def _max_gradient_by_window(x: jax.Array, gradient: jax.Array, *geometry: Any) -> jax.Array:
    return cast(jax.Array, jax.vjp(lambda x: _max_by_window(x, *geometry), x)[1](gradient)[0])


def _max_along(x: jax.Array, axis: int, geometry: tuple[Any, ...], parts: bool) -> jax.Array:
    line = Line.of(x.shape[axis], *geometry)
    first, last = line.complete
    ranges = split_range(first, last + 1, line.count) if parts else [(0, line.count)]
    return concatenate([_max_of_windows(x, axis, line, *ends) for ends in ranges], axis)


def _max_of_windows(x: jax.Array, axis: int, line: Line, first: int, end: int) -> jax.Array:
    """The maxima of the windows from `first` up to `end`."""
    start, stop, part = line.part(first, end)
    best, *others = window_taps(slice_axis(x, start, stop, axis), axis, part, -np.inf)
    for tap in others:
        best = lax.max(best, tap)
    return best


def _unpool_along(x: jax.Array, gradient: jax.Array, axis: int, geometry: tuple[Any, ...], parts: bool) -> jax.Array:
    """Sends each window's gradient to the first of its largest elements, along one axis."""
    line = Line.of(x.shape[axis], *geometry)
    ranges = [(0, line.size)]
    # With a larger stride the parts took more time: the interleaved classes are fused, too.
    if parts and line.stride == 1:
        first, last = line.complete
        # The pixels of which every window is complete.
        ranges = split_range(first + line.reach - 1 - line.low, last + 1 - line.low, line.size)
    return concatenate([_unpool_part(x, gradient, axis, line, *ends) for ends in ranges], axis)


def _unpool_part(x: jax.Array, gradient: jax.Array, axis: int, line: Line, start: int, stop: int) -> jax.Array:
    """The gradient of the pixels from `start` up to `stop`.

    The elements of a window are compared with each other, never with the maximum of the forward pass. On CPUs XLA
    ignores barriers when it fuses, and computes an element anew where it is used, here with a fused multiply-add and
    there without: the stored maximum then equals none of the elements.
    """
    first = max(0, -((line.reach - 1 - line.low - start) // line.stride))  # the windows that have one of the pixels
    end = min(line.count, (stop - 1 + line.low) // line.stride + 1)
    if first >= end:
        return jnp.zeros(with_size(x.shape, axis, stop - start), x.dtype)
    before, after, part = line.part(first, end)
    x, gradient = slice_axis(x, before, after, axis), slice_axis(gradient, first, end, axis)
    zeros = jnp.zeros_like(gradient)
    best, *others = window_taps(x, axis, part, -np.inf)
    larger = []  # whether an element is larger than all before it; the last such one is the first of the largest
    for tap in others:
        larger.append(tap > best)
        best = lax.max(best, tap)
    gradients, rest = [], gradient  # of the elements from the last to the first; what no later element has received
    for wins in reversed(larger):
        gradients.append(jnp.where(wins, rest, zeros))
        rest = jnp.where(wins, zeros, rest)
    gradients.append(rest)
    gradients.reverse()
    # Pixels i, i + stride, ... of the padded map belong to one residue class; within a class the elements' gradients
    # are added, shifted by whole windows. The classes are then interleaved.
    begin = (start - before + part.low) // part.stride  # of the whole strides that have the pixels
    length = -(-(stop - before + part.low) // part.stride) - begin
    classes = []
    for residue in range(part.stride):
        shifted = [
            pad_axis(element, axis, offset // part.stride - begin, begin + length - part.count - offset // part.stride)
            for offset, element in zip(range(0, part.reach, part.dilation), gradients, strict=True)
            if offset % part.stride == residue
        ]
        empty = jnp.zeros(with_size(gradient.shape, axis, length), gradient.dtype)
        classes.append(sum(shifted[1:], shifted[0]) if shifted else empty)
    merged = jnp.stack(classes, axis + 1).reshape(with_size(x.shape, axis, length * part.stride))
    at = start - before + part.low - begin * part.stride
    return lax.slice_in_dim(merged, at, at + stop - start, axis=axis)
