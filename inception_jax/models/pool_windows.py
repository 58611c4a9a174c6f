"""The windows of a pool along an axis of NHWC maps: where they lie, and their elements as slices; XLA's own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = str | int


def count_windows(size: int, window: int, stride: int, padding: Padding) -> tuple[int, int]:
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


def window_reach(window: int, dilation: int) -> int:
    """The pixels that a window covers, with those between its elements."""
    return (window - 1) * dilation + 1


def window_elements(size: int, window: int, stride: int, padding: Padding, dilation: int) -> np.ndarray:
    """[windows, window]: the pixel under each element of each window; outside 0 ... size - 1 is padding."""
    count, low = count_windows(size, window_reach(window, dilation), stride, padding)
    return np.arange(count)[:, None] * stride - low + np.arange(window) * dilation


@dataclasses.dataclass(frozen=True)
class Line:
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
    def of(cls, size: int, window: int, stride: int, padding: Padding, dilation: int) -> Line:
        return cls(
            size, *count_windows(size, window_reach(window, dilation), stride, padding), window, stride, dilation
        )

    @property
    def reach(self) -> int:
        """Pixels that a window covers."""
        return window_reach(self.window, self.dilation)

    @property
    def complete(self) -> tuple[int, int]:
        """The first and the last window without padding."""
        return -(-self.low // self.stride), min(self.count - 1, (self.size - self.reach + self.low) // self.stride)

    def part(self, first: int, end: int) -> tuple[int, int, Line]:
        """The pixels, from start up to stop, of the windows from `first` up to `end`, and these windows on them."""
        if (first, end) == (0, self.count):
            return 0, self.size, self
        begin = first * self.stride - self.low
        start, stop = max(0, begin), min(self.size, (end - 1) * self.stride - self.low + self.reach)
        return start, stop, dataclasses.replace(self, size=stop - start, count=end - first, low=start - begin)


def output_size(x: jax.Array, window: int, stride: int, padding: Padding, dilation: int) -> tuple[int, int]:
    """The height and width of the output; raises a ValueError as `max_pool` does."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"pool: expected floating-point maps [B,H,W,C], got {x.dtype}{list(x.shape)}")
    counts = []
    for size in x.shape[1:3]:
        elements = window_elements(size, window, stride, padding, dilation)
        if not ((elements >= 0) & (elements < size)).any(1).all():
            raise ValueError(f"pool: {size} pixels: a window of {window} with dilation {dilation} covers none of them")
        counts.append(len(elements))
    return counts[0], counts[1]


def window_taps(x: jax.Array, axis: int, line: Line, fill: float) -> list[jax.Array]:
    """The i-th elements of all windows along an axis, for each i: strided slices, with `fill` outside the map."""
    taps = []
    for i in range(0, line.reach, line.dilation):
        first = max(0, -((i - line.low) // line.stride))  # the windows whose i-th element is inside the map
        last = min(line.count - 1, (line.size - 1 + line.low - i) // line.stride)
        if first > last:
            taps.append(lax.full(with_size(x.shape, axis, line.count), fill, x.dtype))
            continue
        start = first * line.stride + i - line.low
        tap = lax.slice_in_dim(x, start, start + (last - first) * line.stride + 1, stride=line.stride, axis=axis)
        taps.append(pad_axis(tap, axis, first, line.count - 1 - last, fill))
    return taps


def split_range(low: int, high: int, end: int) -> list[tuple[int, int]]:
    """The range from 0 up to `end` in three: below `low`, up to `high`, and the rest; without empty ones."""
    bounds = (0, low, high, end) if low < high else (0, end)
    return [(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop]


def slice_axis(x: jax.Array, start: int, stop: int, axis: int) -> jax.Array:
    """The pixels from `start` up to `stop` along an axis; nothing is sliced where these are all."""
    return x if (start, stop) == (0, x.shape[axis]) else lax.slice_in_dim(x, start, stop, axis=axis)


def concatenate(parts: list[jax.Array], axis: int) -> jax.Array:
    """Joins the parts along an axis."""
    return parts[0] if len(parts) == 1 else lax.concatenate(parts, axis)


def pad_axis(x: jax.Array, axis: int, low: int, high: int, fill: float = 0.0) -> jax.Array:
    """Pads an axis by `low` and `high` pixels with `fill`; negative numbers cut pixels off."""
    if low == high == 0:
        return x
    edges = [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), edges)


def with_size(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    """The shape with another size of one axis."""
    return (*shape[:axis], size, *shape[axis + 1 :])


def reduce_window(
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
        count, low = count_windows(size, window_reach(window, dilation), stride, padding)
        # Pixels behind the last window, fewer than a stride, need no padding.
        pads.append((low, max((count - 1) * stride + window_reach(window, dilation) - low - size, 0)))
    return lax.reduce_window(
        x,
        np.asarray(start, x.dtype),
        reduction,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *pads, (0, 0)),
        window_dilation=(1, dilation, dilation, 1),
    )
