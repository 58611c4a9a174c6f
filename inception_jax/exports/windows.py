"""Pools found in a program made of slices: shifted views of one map, joined by a maximum or a sum.

`models.pooling` writes a pool as strided slices, padded where a window leaves the map, one axis after the other. Here
such slices stay views of their source until something joins them; joined views along one axis are windows, and windows
of windows along the other axis are a two-dimensional pool. What is found is what the program computes: nothing is
taken from names.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# What lies outside of a map, in a pool of each kind.
FILLS = {"max": -np.inf, "add": 0.0}


@dataclasses.dataclass(eq=False)
class Windows:
    """The elements source[..., offset + j * stride, ...] for j < count along one axis, joined over the offsets.

    Attributes:
      source: what is looked at: another `Windows`, or a map; it has `shape`.
      axis: along which.
      offsets: of the first window's elements, rising; below 0 and from the source's size on lies the fill.
      stride: from one window to the next.
      count: windows.
      join: "max" or "add"; None for a view, which has one offset.
      fill: what stands outside of the source; None where nothing does.
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
        """The source's, with `count` along the axis."""
        shape = self.source.shape
        return (*shape[: self.axis], self.count, *shape[self.axis + 1 :])

    @property
    def size(self) -> int:
        """Elements of the source along the axis."""
        return self.source.shape[self.axis]

    def valid_range(self) -> tuple[int, int]:
        """Of a view: the first and the one after the last window that fall on the source."""
        (offset,) = self.offsets
        first = min(self.count, max(0, -(offset // self.stride)))
        end = min(self.count, max(first, (self.size - 1 - offset) // self.stride + 1))
        return first, end

    def valid_counts(self) -> np.ndarray:
        """[count]: how many elements of each window lie on the source."""
        elements = np.arange(self.count)[:, None] * self.stride + np.array(self.offsets)
        return ((elements >= 0) & (elements < self.size)).sum(1)


def slice_windows(source: Any, axis: int, start: int, stop: int, stride: int) -> Windows:
    """`source[..., start:stop:stride, ...]`; of a view along the same axis, a view of its source."""
    count = max(0, -(-(stop - start) // stride))
    if _is_view(source, axis):
        offset = source.offsets[0] + start * source.stride
        return Windows(source.source, axis, (offset,), stride * source.stride, count, fill=source.fill)
    return Windows(source, axis, (start,), stride, count)


def pad_windows(source: Any, axis: int, low: int, high: int, fill: float) -> Windows | None:
    """`source` with `low` and `high` elements of `fill` around it along an axis; None where that is no view."""
    if not _is_view(source, axis):
        return Windows(source, axis, (-low,), 1, source.shape[axis] + low + high, fill=fill)
    offset, stride = source.offsets[0], source.stride
    count = source.count + low + high
    last = offset + (source.count - 1) * stride
    # What is padded must lie outside of the source, where a view has its fill.
    outside = (low == 0 or offset - stride < 0) and (high == 0 or last + stride >= source.size)
    if not outside or source.fill not in (None, fill):
        return None
    return Windows(source.source, axis, (offset - low * stride,), stride, count, fill=fill)


def join_windows(a: Any, b: Any, join: str) -> Windows | None:
    """The maximum or the sum of two views or windows; None where they are not of one pool.

    A map beside a view of it is the view from its first element on.
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
    """Windows along one axis as a pool operator describes them.

    Attributes:
      taps: elements per window.
      dilation: from one of them to the next.
      stride: from one window to the next.
      begin, end: the part of the source that the windows look at, where it is not all.
      low, high: elements of padding around that part.
    """

    taps: int
    dilation: int
    stride: int
    begin: int
    end: int
    low: int
    high: int


def pool_extent(windows: Windows) -> Extent | None:
    """The pool of these windows along their axis; None where its elements are not evenly spaced."""
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
        end = min(end, needed)  # an operator would lay one more window on what is left
    return Extent(len(offsets), dilation, windows.stride, begin, end, low, high)


def _is_view(source: Any, axis: int) -> bool:
    return isinstance(source, Windows) and source.axis == axis and source.join is None
