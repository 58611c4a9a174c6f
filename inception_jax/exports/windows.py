"""Finds pools in a jaxpr of slices: shifted views of one feature map, joined by a maximum or a sum.

`models.pooling` writes a pool as strided slices, padded where a window leaves the map, one axis after the other. Here
such slices stay views of their source until an operation joins them; joined views along one axis are windows, and
windows of windows along the other axis are a two-dimensional pool. Only the arithmetic decides, never a name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# The value outside of a map, in a pool of each kind.
FILLS = {"max": -np.inf, "add": 0.0}


@dataclasses.dataclass(eq=False)
class Windows:
    """The elements source[..., offset + j * stride, ...] for j < count along one axis, joined over the offsets.

    Attributes:
      source: another `Windows`, or a feature map; it has `shape`.
      axis: the axis of the windows.
      offsets: of the first window's elements, ascending; below 0 and from the source's size on, elements are the fill.
      stride: from one window to the next.
      count: how many windows.
      join: "max" or "add"; None for a view, which has one offset.
      fill: the value outside of the source; None where no window leaves it.
    """

    source: Any
    axis: int
    offsets: tuple[int, ...]
    stride: int
    count: int
    join: str | None = None
    fill: float | None = None

    @property
    def shape(self) -> tuple[Any, ...]:
        """The source's shape, with `count` along the axis."""
        shape = self.source.shape
        return (*shape[: self.axis], self.count, *shape[self.axis + 1 :])

    @property
    def size(self) -> int:
        """The source's size along the axis."""
        return self.source.shape[self.axis]

    def valid_range(self) -> tuple[int, int]:
        """Returns, for a view, the first window that falls on the source, and the one after the last."""
        (offset,) = self.offsets
        first = min(self.count, max(0, -(offset // self.stride)))
        end = min(self.count, max(first, (self.size - 1 - offset) // self.stride + 1))
        return first, end

    def valid_counts(self) -> np.ndarray:
        """Returns how many elements of each window lie on the source: int [count]."""
        elements = np.arange(self.count)[:, None] * self.stride + np.array(self.offsets)
        return ((elements >= 0) & (elements < self.size)).sum(1)


def slice_windows(source: Any, axis: int, start: int, stop: int, stride: int) -> Windows:
    """Slices a value along one axis; a slice of a view along the same axis is a view of the view's source.

    Args:
      source: the value.
      axis: the axis.
      start: the first element.
      stop: the end.
      stride: from one element to the next.
    """
    count = max(0, -(-(stop - start) // stride))
    if _is_view(source, axis):
        offset = source.offsets[0] + start * source.stride
        return Windows(source.source, axis, (offset,), stride * source.stride, count, fill=source.fill)
    return Windows(source, axis, (start,), stride, count)


def pad_windows(source: Any, axis: int, low: int, high: int, fill: float) -> Windows | None:
    """Pads a value along one axis.

    Args:
      source: the value.
      axis: the axis.
      low: elements before it.
      high: elements behind it.
      fill: their value.

    Returns:
      A view; None where a view cannot express the padding.
    """
    if not _is_view(source, axis):
        return Windows(source, axis, (-low,), 1, source.shape[axis] + low + high, fill=fill)
    offset, stride = source.offsets[0], source.stride
    count = source.count + low + high
    last = offset + (source.count - 1) * stride
    # The added elements must lie outside of the source, where a view has its fill.
    outside = (low == 0 or offset - stride < 0) and (high == 0 or last + stride >= source.size)
    if not outside or source.fill not in (None, fill):
        return None
    return Windows(source.source, axis, (offset - low * stride,), stride, count, fill=fill)


def join_windows(a: Any, b: Any, join: str) -> Windows | None:
    """Joins two views or windows.

    Args:
      a: a view, windows, or the map that is the source of `b`.
      b: as `a`, the other way round.
      join: "max" or "add".

    Returns:
      The windows of both; None where they do not belong to one pool.
    """
    if isinstance(a, Windows) and b is a.source:
        b = Windows(b, a.axis, (0,), 1, a.size)
    elif isinstance(b, Windows) and a is b.source:
        a = Windows(a, b.axis, (0,), 1, b.size)
    if not (isinstance(a, Windows) and isinstance(b, Windows)):
        return None
    same = all(getattr(a, name) == getattr(b, name) for name in ("axis", "stride", "count"))
    if a.source is not b.source or not same or {a.join, b.join} - {None, join}:
        return None
    fills = {a.fill, b.fill} - {None}
    offsets = (*a.offsets, *b.offsets)
    if fills - {FILLS[join]} or len(set(offsets)) < len(offsets):
        return None
    return Windows(a.source, a.axis, tuple(sorted(offsets)), a.stride, a.count, join, FILLS[join] if fills else None)


@dataclasses.dataclass(frozen=True)
class Extent:
    """Windows along one axis, as a pool operator describes them.

    Attributes:
      taps: elements per window.
      dilation: from one element to the next.
      stride: from one window to the next.
      begin: first element of the part of the source that the windows cover.
      end: end of that part.
      low: elements of padding before that part.
      high: elements of padding behind it.
    """

    taps: int
    dilation: int
    stride: int
    begin: int
    end: int
    low: int
    high: int


def pool_extent(windows: Windows) -> Extent | None:
    """Returns the pool of these windows along their axis; None where the elements are not evenly spaced.

    Args:
      windows: the windows.
    """
    offsets = windows.offsets
    gaps = set(np.diff(offsets).tolist())
    if len(gaps) > 1:
        return None
    dilation = gaps.pop() if gaps else 1
    reach = offsets[-1] - offsets[0] + 1
    needed = offsets[0] + (windows.count - 1) * windows.stride + reach
    low, high = max(0, -offsets[0]), max(0, needed - windows.size)
    begin, end = max(0, offsets[0]), windows.size
    if (end - begin + low + high - reach) // windows.stride + 1 != windows.count:
        end = min(end, needed)  # an operator would fit one more window on the rest
    return Extent(len(offsets), dilation, windows.stride, begin, end, low, high)


def _is_view(source: Any, axis: int) -> bool:
    """Returns whether a value is a view along this axis."""
    return isinstance(source, Windows) and source.axis == axis and source.join is None
