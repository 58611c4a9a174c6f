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

The few windows of `even_avg_pool` have a gradient of their own, too, the same to the last bit as JAX's of their slices:
forward and backward with the ReLU before and the 1x1 convolution after it take 0.39 (8 maps of 14x14x512 to 4x4) and
0.41 (2 of 17x17x1024 to 5x5) of the time.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.models.tracing import trace_once

Padding = str | int


@trace_once("window", "stride", "padding", "dilation")
def max_pool(x: jax.Array, window: int, stride: int, padding: Padding = "SAME", dilation: int = 1) -> jax.Array:
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

    Returns:
      [B, H', W', C] in the dtype of `x`.

    Raises:
      ValueError: unknown padding, a map too small for one window, or a window of padding only.
    """
    _output_size(x, window, stride, padding, dilation)  # both axes are checked before any work
    return _max_pool(x, window, stride, padding, dilation)


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
    _output_size(x, window, stride, padding, dilation)
    total = x.astype(_accumulator(x.dtype))
    counts = []
    for axis in (2, 1):
        size = x.shape[axis]
        elements = _elements(size, window, stride, padding, dilation)
        # The range of pixels that are counted: the map, or the map and its padding.
        first, end = (0, size)
        if count_include_pad and padding != "CEIL":
            low = -elements[0, 0]
            first, end = -low, max(size + low, elements[-1, -1] + 1)
        counts.append(((first <= elements) & (elements < end)).sum(1))
    total = _select_form(_sum_by_slices, _sum_by_window, _sum_by_slices, (window, stride, padding, dilation), total)
    divisor = np.outer(counts[1], counts[0])
    if (divisor == divisor[0, 0]).all():
        return (total / float(divisor[0, 0])).astype(x.dtype)
    return (total / jnp.asarray(divisor[:, :, None], total.dtype)).astype(x.dtype)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Global average pooling: [B, H, W, C] to [B, C] in the dtype of `x`, accumulated in at least float32."""
    return jnp.mean(x, (1, 2), dtype=_accumulator(x.dtype)).astype(x.dtype)


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
    total, divisor = x.astype(_accumulator(x.dtype)), 1
    for axis in (2, 1):
        width, starts = _even_windows(x.shape[axis], output, window, stride)
        total, divisor = _sum_windows(total, axis, width, tuple(starts)), divisor * width
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
    total = x.astype(_accumulator(x.dtype))
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
    shape = _with_size(gradient.shape, axis, pixels.size)
    pixels = pixels.reshape(_with_size((1,) * gradient.ndim, axis, pixels.size))
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


# --- Geometry of one axis --------------------------------------------------------------------------------------------


def _windows(size: int, window: int, stride: int, padding: Padding) -> tuple[int, int]:
    """The number of windows along an axis, each `window` pixels wide, and the pixels of padding before the map."""
    if padding == "SAME":
        count = -(-size // stride)
        return count, max((count - 1) * stride + window - size, 0) // 2
    if padding == "CEIL":
        count = -(-max(size - window, 0) // stride) + 1
        return count - ((count - 1) * stride >= size), 0
    low = 0 if padding == "VALID" else padding
    if isinstance(low, str) or not 0 <= low < window:
        raise ValueError(f"pool: padding {padding!r}: expected 'SAME', 'VALID', 'CEIL' or 0 to {window - 1} pixels")
    count = (size + 2 * low - window) // stride + 1
    if count < 1:
        raise ValueError(f"pool: {size} pixels are too few for a window of {window} with padding {padding!r}")
    return count, low


def _reach(window: int, dilation: int) -> int:
    return (window - 1) * dilation + 1


def _elements(size: int, window: int, stride: int, padding: Padding, dilation: int) -> np.ndarray:
    """[windows, window]: the pixel under each element of each window; outside 0 ... size - 1 is padding."""
    count, low = _windows(size, _reach(window, dilation), stride, padding)
    return np.arange(count)[:, None] * stride - low + np.arange(window) * dilation


@dataclasses.dataclass(frozen=True)
class _Line:
    """The windows along one axis of a map, or of a part of it.

    Attributes:
      size: pixels.
      count: windows.
      low: pixels of padding before the first pixel.
      window, stride, dilation: as of `max_pool`.
    """

    size: int
    count: int
    low: int
    window: int
    stride: int
    dilation: int

    @classmethod
    def of(cls, size: int, window: int, stride: int, padding: Padding, dilation: int) -> _Line:
        return cls(size, *_windows(size, _reach(window, dilation), stride, padding), window, stride, dilation)

    @property
    def reach(self) -> int:
        """Pixels that a window covers."""
        return _reach(self.window, self.dilation)

    @property
    def complete(self) -> tuple[int, int]:
        """The first and the last window without padding."""
        return -(-self.low // self.stride), min(self.count - 1, (self.size - self.reach + self.low) // self.stride)

    def part(self, first: int, end: int) -> tuple[int, int, _Line]:
        """The pixels, from start up to stop, of the windows from `first` up to `end`, and these windows on them."""
        if (first, end) == (0, self.count):
            return 0, self.size, self
        begin = first * self.stride - self.low
        start, stop = max(0, begin), min(self.size, (end - 1) * self.stride - self.low + self.reach)
        return start, stop, dataclasses.replace(self, size=stop - start, count=end - first, low=start - begin)


def _output_size(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> tuple[int, int]:
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"pool: expected floating-point maps [B,H,W,C], got {x.dtype}{list(x.shape)}")
    counts = []
    for size in x.shape[1:3]:
        elements = _elements(size, window, stride, padding, dilation)
        if not ((elements >= 0) & (elements < size)).any(1).all():
            raise ValueError(f"pool: {size} pixels: a window of {window} with dilation {dilation} covers none of them")
        counts.append(len(elements))
    return counts[0], counts[1]


def _taps(x: jax.Array, axis: int, line: _Line, fill: float) -> list[jax.Array]:
    """The i-th elements of all windows along an axis, for each i: strided slices, with `fill` outside the map."""
    taps = []
    for i in range(0, line.reach, line.dilation):
        first = max(0, -((i - line.low) // line.stride))  # the windows whose i-th element is inside the map
        last = min(line.count - 1, (line.size - 1 + line.low - i) // line.stride)
        if first > last:
            taps.append(lax.full(_with_size(x.shape, axis, line.count), fill, x.dtype))
            continue
        start = first * line.stride + i - line.low
        tap = lax.slice_in_dim(x, start, start + (last - first) * line.stride + 1, stride=line.stride, axis=axis)
        taps.append(_pad_axis(tap, axis, first, line.count - 1 - last, fill))
    return taps


def _split(low: int, high: int, end: int) -> list[tuple[int, int]]:
    """The range from 0 up to `end` in three: below `low`, up to `high`, and the rest; without empty ones."""
    bounds = (0, low, high, end) if low < high else (0, end)
    return [(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop]


def _slice(x: jax.Array, start: int, stop: int, axis: int) -> jax.Array:
    return x if (start, stop) == (0, x.shape[axis]) else lax.slice_in_dim(x, start, stop, axis=axis)


def _concatenate(parts: list[jax.Array], axis: int) -> jax.Array:
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, axis)


def _pad_axis(x: jax.Array, axis: int, low: int, high: int, fill: float = 0.0) -> jax.Array:
    if low == high == 0:
        return x
    edges = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), edges)


def _with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


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
    return cast(jax.Array, lax.platform_dependent(*operands, cpu=forms[0], tpu=forms[1], default=forms[2]))


def _reduce_window(
    x: jax.Array,
    start: float,
    reduction: Callable[..., jax.Array],
    window: int,
    stride: int,
    padding: Padding,
    dilation: int,
) -> jax.Array:
    """XLA's own reduction over windows of NHWC maps; `start` is the value of the padding."""
    pads = []
    for size in x.shape[1:3]:
        count, low = _windows(size, _reach(window, dilation), stride, padding)
        # Pixels behind the last window, fewer than a stride, need no padding.
        pads.append((low, max((count - 1) * stride + _reach(window, dilation) - low - size, 0)))
    return lax.reduce_window(
        x,
        np.asarray(start, x.dtype),
        reduction,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *pads, (0, 0)),
        window_dilation=(1, dilation, dilation, 1),
    )


def _sum_by_slices(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> jax.Array:
    for axis in (2, 1):
        line = _Line.of(x.shape[axis], window, stride, padding, dilation)
        x = cast(jax.Array, sum(_taps(x, axis, line, 0.0)))  # never empty
    return x


def _sum_by_window(x: jax.Array, *geometry: Any) -> jax.Array:
    return _reduce_window(x, 0.0, lax.add, *geometry)


def _accumulator(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


# --- Max pooling -----------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> jax.Array:
    geometry = (window, stride, padding, dilation)
    return _select_form(_max_by_parts, _max_by_window, _max_by_slices, geometry, x)


def _max_pool_forward(x: jax.Array, *geometry: Any) -> tuple[jax.Array, jax.Array]:
    return _max_pool(x, *geometry), x


def _max_pool_backward(*geometry_map_and_gradient: Any) -> tuple[jax.Array]:
    *geometry, x, gradient = geometry_map_and_gradient
    forms = (_max_gradient_by_parts, _max_gradient_by_window, _max_gradient_by_slices)
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


_max_by_parts = partial(_max_by_slices, parts=True)
_max_gradient_by_parts = partial(_max_gradient_by_slices, parts=True)


def _max_by_window(x: jax.Array, *geometry: Any) -> jax.Array:
    return _reduce_window(x, -np.inf, lax.max, *geometry)


def _max_gradient_by_window(x: jax.Array, gradient: jax.Array, *geometry: Any) -> jax.Array:
    return cast(jax.Array, jax.vjp(lambda x: _max_by_window(x, *geometry), x)[1](gradient)[0])


def _max_along(x: jax.Array, axis: int, geometry: tuple[Any, ...], parts: bool) -> jax.Array:
    line = _Line.of(x.shape[axis], *geometry)
    first, last = line.complete
    ranges = _split(first, last + 1, line.count) if parts else [(0, line.count)]
    return _concatenate([_max_of_windows(x, axis, line, *ends) for ends in ranges], axis)


def _max_of_windows(x: jax.Array, axis: int, line: _Line, first: int, end: int) -> jax.Array:
    """The maxima of the windows from `first` up to `end`."""
    start, stop, part = line.part(first, end)
    best, *others = _taps(_slice(x, start, stop, axis), axis, part, -np.inf)
    for tap in others:
        best = lax.max(best, tap)
    return best


def _unpool_along(x: jax.Array, gradient: jax.Array, axis: int, geometry: tuple[Any, ...], parts: bool) -> jax.Array:
    """Sends each window's gradient to the first of its largest elements, along one axis."""
    line = _Line.of(x.shape[axis], *geometry)
    ranges = [(0, line.size)]
    # With a larger stride the parts took more time: the interleaved classes are fused, too.
    if parts and line.stride == 1:
        first, last = line.complete
        # The pixels of which every window is complete.
        ranges = _split(first + line.reach - 1 - line.low, last + 1 - line.low, line.size)
    return _concatenate([_unpool_part(x, gradient, axis, line, *ends) for ends in ranges], axis)


def _unpool_part(x: jax.Array, gradient: jax.Array, axis: int, line: _Line, start: int, stop: int) -> jax.Array:
    """The gradient of the pixels from `start` up to `stop`.

    The elements of a window are compared with each other, never with the maximum of the forward pass. On CPUs XLA
    ignores barriers when it fuses, and computes an element anew where it is used, here with a fused multiply-add and
    there without: the stored maximum then equals none of the elements.
    """
    first = max(0, -((line.reach - 1 - line.low - start) // line.stride))  # the windows that have one of the pixels
    end = min(line.count, (stop - 1 + line.low) // line.stride + 1)
    if first >= end:
        return jnp.zeros(_with_size(x.shape, axis, stop - start), x.dtype)
    before, after, part = line.part(first, end)
    x, gradient = _slice(x, before, after, axis), _slice(gradient, first, end, axis)
    zeros = jnp.zeros_like(gradient)
    best, *others = _taps(x, axis, part, -np.inf)
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
            _pad_axis(element, axis, offset // part.stride - begin, begin + length - part.count - offset // part.stride)
            for offset, element in zip(range(0, part.reach, part.dilation), gradients, strict=True)
            if offset % part.stride == residue
        ]
        empty = jnp.zeros(_with_size(gradient.shape, axis, length), gradient.dtype)
        classes.append(sum(shifted[1:], shifted[0]) if shifted else empty)
    merged = jnp.stack(classes, axis + 1).reshape(_with_size(x.shape, axis, length * part.stride))
    at = start - before + part.low - begin * part.stride
    return lax.slice_in_dim(merged, at, at + stop - start, axis=axis)
