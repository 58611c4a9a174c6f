"""Writes pooling windows as ONNX operators: MaxPool and AveragePool where possible, otherwise slices and sums."""

from __future__ import annotations

from typing import Any

import numpy as np

from inception_jax.exports import windows
from inception_jax.exports.onnx_graph import Graph, Tensor
from inception_jax.exports.windows import FILLS, Extent, Windows

# JAX's axes of a feature map, and the graph's.
_TO_GRAPH = {0: 0, 1: 2, 2: 3, 3: 1}


def graph_axis(axis: int, rank: int) -> int:
    """Returns the graph's axis of a JAX axis: feature maps have their channels second in the graph."""
    return _TO_GRAPH[axis] if rank == 4 else axis


class Pools:
    """Turns each `Windows` into nodes, once."""

    def __init__(self, graph: Graph) -> None:
        """Starts with a graph, to which the nodes are added."""
        self._graph = graph
        self._made: dict[int, tuple[Windows, Tensor]] = {}

    def tensor(self, value: Windows | Tensor) -> Tensor:
        """Returns the value as a tensor of the graph."""
        if isinstance(value, Tensor):
            return value
        if id(value) not in self._made:  # the windows are kept in the entry, so that their id stays theirs
            self._made[id(value)] = value, self._make(value)
        return self._made[id(value)][1]

    def mean(self, sums: Windows, divisor: np.ndarray) -> Tensor:
        """Divides the sums of windows by a constant.

        Args:
          sums: the windows.
          divisor: [1, H', W', 1], or of one element.

        Returns:
          The mean: one AveragePool where the divisor is the count of elements per window; else also a product.
        """
        geometry = _geometry(sums)
        if geometry is None or len(geometry[1]) < 2 or any(e.dilation > 1 for e in geometry[1].values()):
            product = self.tensor(sums)
            return self._multiplied(product, 1 / divisor.astype(np.float64), sums.shape)
        base, extents, levels = geometry
        taps = float(np.prod([e.taps for e in extents.values()]))
        inside = np.outer(*(levels[axis].valid_counts() for axis in (1, 2)))
        divisor = np.broadcast_to(divisor.reshape(divisor.shape[1:3] if divisor.ndim == 4 else ()), inside.shape)
        source = self.tensor(base)
        if (divisor == inside).all() and not _too_wide(extents):
            return self._pool("AveragePool", source, extents, sums.shape, 0.0, count_include_pad=0)
        mean = self._pool("AveragePool", source, extents, sums.shape, 0.0, count_include_pad=1)
        factor = taps / divisor.astype(np.float64)
        return mean if (factor == 1).all() else self._multiplied(mean, factor[None, :, :, None], sums.shape)

    def _make(self, value: Windows) -> Tensor:
        if value.join is None:
            return self._view(value)
        geometry = _geometry(value)
        if geometry is None:
            return self._join_views(value)
        base, extents, _ = geometry
        source = self.tensor(base)
        if value.join == "max":
            return self._pool("MaxPool", source, extents, value.shape, FILLS["max"])
        return self._sums(source, extents, value.shape)

    def _view(self, view: Windows) -> Tensor:
        """Writes a slice, padded with the fill where the view leaves its source."""
        source = self.tensor(view.source)
        rank, (offset,), (first, end) = len(view.shape), view.offsets, view.valid_range()
        axis = graph_axis(view.axis, rank)
        start = offset + first * view.stride
        stop = offset + (end - 1) * view.stride + 1
        shape = (*view.shape[: view.axis], end - first, *view.shape[view.axis + 1 :])
        graph = self._graph
        numbers = [graph.integers(number) for number in (start, stop, axis, view.stride)]
        if (start, stop, view.stride) == (0, view.size, 1):
            part = source
        else:
            part = graph.emit("Slice", [source.name, *numbers], shape)
        if (first, end) == (0, view.count):
            return part
        edges = [0] * (2 * rank)
        edges[axis], edges[rank + axis] = first, view.count - end
        fill = graph.constant(np.array(view.fill, graph.dtype))
        return graph.emit("Pad", [part.name, graph.integers(*edges), fill], view.shape)

    def _join_views(self, value: Windows) -> Tensor:
        """Writes the maximum or sum of views, for windows that no pool operator supports."""
        assert value.join is not None  # `_make` handles views
        fill = FILLS[value.join]
        views = [Windows(value.source, value.axis, (o,), value.stride, value.count, fill=fill) for o in value.offsets]
        total, *others = (self.tensor(view) for view in views)
        for view in others:
            total = self._graph.emit({"max": "Max", "add": "Add"}[value.join], [total.name, view.name], value.shape)
        return total

    def _sums(self, source: Tensor, extents: dict[int, Extent], shape: tuple[Any, ...]) -> Tensor:
        """Writes sums over windows as a depthwise convolution with ones, which may be dilated as well."""
        graph, rows_columns = self._graph, [extents.get(axis, _unpooled(source, axis)) for axis in (1, 2)]
        source = self._cropped(source, extents)
        channels = source.shape[3]
        ones = np.ones((channels, 1, *(e.taps for e in rows_columns)), graph.dtype)
        return graph.emit(
            "Conv",
            [source.name, graph.constant(ones)],
            shape,
            kernel_shape=[e.taps for e in rows_columns],
            strides=[e.stride for e in rows_columns],
            dilations=[e.dilation for e in rows_columns],
            group=channels,
            pads=[*(e.low for e in rows_columns), *(e.high for e in rows_columns)],
        )

    def _pool(
        self, op: str, source: Tensor, extents: dict[int, Extent], shape: Any, fill: float, **more: Any
    ) -> Tensor:
        """Writes one pool operator, with a Pad before it where it pads more than the operator allows."""
        graph = self._graph
        both = [extents.get(axis, _unpooled(source, axis)) for axis in (1, 2)]
        source = self._cropped(source, extents)
        pads = [*(e.low for e in both), *(e.high for e in both)]
        if _too_wide(extents):
            edges = [0, 0, *pads[:2], 0, 0, *pads[2:]]
            wide = (
                source.shape[0],
                *(size + e.low + e.high for size, e in zip(source.shape[1:3], both, strict=True)),
                source.shape[3],
            )
            inputs = [source.name, graph.integers(*edges), graph.constant(np.array(fill, graph.dtype))]
            source, pads = graph.emit("Pad", inputs, wide), [0, 0, 0, 0]
        if any(e.dilation > 1 for e in both):
            more["dilations"] = [e.dilation for e in both]
        return graph.emit(
            op,
            [source.name],
            shape,
            kernel_shape=[e.taps for e in both],
            strides=[e.stride for e in both],
            pads=pads,
            **more,
        )

    def _cropped(self, source: Tensor, extents: dict[int, Extent]) -> Tensor:
        """Writes a slice of the part of the map that the windows cover."""
        for axis, e in extents.items():
            if (e.begin, e.end) != (0, source.shape[axis]):
                source = self._view(windows.slice_windows(source, axis, e.begin, e.end, 1))
        return source

    def _multiplied(self, tensor: Tensor, factor: np.ndarray, shape: tuple[Any, ...]) -> Tensor:
        """Writes a product with a constant."""
        if factor.ndim == 4:
            factor = factor.transpose(0, 3, 1, 2)
        name = self._graph.constant(factor.astype(self._graph.dtype))
        return self._graph.emit("Mul", [tensor.name, name], shape)


def _geometry(value: Windows) -> tuple[Any, dict[int, Extent], dict[int, Windows]] | None:
    """Returns (the pooled map, the pool along each axis, the windows of each axis); None where it is not a pool."""
    if value.axis not in (1, 2) or len(value.shape) != 4:
        return None
    levels = {value.axis: value}
    base, inner = value.source, value.source
    if isinstance(inner, Windows) and inner.join == value.join and inner.axis == 3 - value.axis:
        levels[inner.axis] = inner
        base = inner.source
    extents = {}
    for axis, level in levels.items():
        extent = windows.pool_extent(level)
        if extent is None:
            return None
        extents[axis] = extent
    return base, extents, levels


def _too_wide(extents: dict[int, Extent]) -> bool:
    """Returns whether the padding is more than a pool operator allows, which is fewer than its taps."""
    return any(max(e.low, e.high) >= e.taps for e in extents.values())


def _unpooled(source: Tensor, axis: int) -> Extent:
    """Returns the extent of an axis that is not pooled."""
    return Extent(1, 1, 1, 0, source.shape[axis], 0, 0)
