"""Translates JAX primitives to ONNX operators, equation by equation of an inference jaxpr.

Feature maps are [B, H, W, C] in JAX and [B, C, H, W] in ONNX; the graph transposes only its input and its outputs.
What does not depend on the images (the scale of a batch norm) is computed here, by JAX itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from inception_jax.errors import UserError
from inception_jax.exports import response_norm, windows
from inception_jax.exports.onnx_graph import Const, Graph, Tensor
from inception_jax.exports.onnx_pools import Pools, graph_axis
from inception_jax.exports.windows import FILLS, Windows

_ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg",
    "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "tanh": "Tanh", "logistic": "Sigmoid", "abs": "Abs",
}  # fmt: skip
_IDENTITY = ("convert_element_type", "copy", "copy_p", "stop_gradient", "reduce_precision")
# Parameters in which a primitive that calls a function holds it.
_CALLED = ("call_jaxpr", "jaxpr", "fun_jaxpr")


@dataclasses.dataclass(eq=False)
class _SpatialSum:
    """The sum over all positions of a feature map, which becomes a mean when it is divided."""

    source: Tensor
    shape: tuple[Any, ...]


class Converter:
    """Walks a jaxpr and writes its ONNX graph.

    Attributes:
      graph: the graph so far.
    """

    def __init__(self, graph: Graph) -> None:
        """Starts with a graph, to which the nodes are added."""
        self.graph = graph
        self._pools = Pools(graph)
        self._rules: dict[str, Callable[..., Any]] = {
            "conv_general_dilated": self._conv, "dot_general": self._dot, "reshape": self._reshape,
            "squeeze": self._reshape, "expand_dims": self._reshape, "broadcast_in_dim": self._broadcast,
            "concatenate": self._concatenate, "slice": self._slice, "pad": self._pad, "reduce_sum": self._reduce_sum,
            "integer_pow": self._integer_pow, "rsqrt": self._rsqrt, "square": self._square,
            "optimization_barrier": lambda equation, *values: list(values),
        }  # fmt: skip

    def run(self, jaxpr: Any, constants: list[Any], inputs: list[Any]) -> list[Any]:
        """Translates a jaxpr.

        Args:
          jaxpr: an open jaxpr.
          constants: arrays, its constants.
          inputs: a `Tensor` or a `Const` for each of its inputs.

        Returns:
          The values of its outputs.

        Raises:
          UserError: the jaxpr has a primitive that this export does not support.
        """
        known: dict[Any, Any] = dict(zip(jaxpr.invars, inputs, strict=True))
        known |= {v: Const(np.asarray(c)) for v, c in zip(jaxpr.constvars, constants, strict=True)}
        outer = self.graph.scope
        for equation in jaxpr.eqns:
            inner = str(equation.source_info.name_stack).replace("(", "/").replace(")", "")
            self.graph.scope = "/".join(part for part in (outer, inner) if part)
            values = [Const(np.asarray(v.val)) if hasattr(v, "val") else known[v] for v in equation.invars]
            results = self._equation(equation, values)
            known |= dict(zip(equation.outvars, results, strict=True))
        self.graph.scope = outer
        return [Const(np.asarray(v.val)) if hasattr(v, "val") else known[v] for v in jaxpr.outvars]

    def tensor(self, value: Any, rank: int = 0) -> Tensor:
        """Makes a value a tensor of the graph.

        Args:
          value: of any kind that `run` handles.
          rank: axes of the other operand, with which a constant must broadcast.
        """
        if isinstance(value, _SpatialSum):
            axes = self.graph.integers(2, 3)
            return self.graph.emit("ReduceSum", [value.source.name, axes], value.shape, keepdims=0)
        if isinstance(value, Const):
            array = value.array.astype(self.graph.dtype)
            if array.ndim and array.ndim < rank:
                array = array.reshape((1,) * (rank - array.ndim) + array.shape)
            if array.ndim == 4:
                array = array.transpose(0, 3, 1, 2)
            return Tensor(self.graph.constant(array, value.name), value.shape)
        return self._pools.tensor(value)

    def _equation(self, equation: Any, values: list[Any]) -> list[Any]:
        name = equation.primitive.name
        called = next((equation.params[key] for key in _CALLED if key in equation.params), None)
        if called is not None:
            return self._call(called, values)
        if all(isinstance(value, Const) for value in values) and name != "broadcast_in_dim":
            return _evaluate_constants(equation, values)
        if name in self._rules:
            result = self._rules[name](equation, *values)
        elif name in _IDENTITY:
            result = values[0]
        elif name in _ELEMENTWISE:
            result = self._elementwise(name, equation.outvars[0].aval.shape, *values)
        else:
            raise UserError(
                f"ONNX export: no rule for JAX's {name!r} (in {self.graph.scope or 'the network'}); rules: "
                f"{', '.join(sorted({*self._rules, *_ELEMENTWISE, *_IDENTITY}))}"
            )
        return result if isinstance(result, list) else [result]

    def _call(self, called: Any, values: list[Any]) -> list[Any]:
        """Translates a called function: local response normalization as one operator, others equation by equation."""
        jaxpr, constants = (called.jaxpr, called.consts) if hasattr(called, "jaxpr") else (called, [])
        if len(values) == 1 and not isinstance(values[0], Const):
            found = response_norm.find_response_norm(jaxpr)
            if found is not None:
                # ONNX divides alpha by the window, as Caffe does.
                return [
                    self.graph.emit(
                        "LRN",
                        [self.tensor(values[0]).name],
                        values[0].shape,
                        size=found.size,
                        alpha=found.alpha,
                        beta=found.beta,
                        bias=found.k,
                    )
                ]
        return self.run(jaxpr, constants, values)

    # --- Arithmetic --------------------------------------------------------------------------------------------------

    def _elementwise(self, name: str, shape: tuple[Any, ...], *values: Any) -> Any:
        if name in FILLS and len(values) == 2:
            pool = self._pool_step(name, *values)
            if pool is not None:
                return pool
        if name == "div" and isinstance(values[1], Const):
            whole, divisor = values[0], values[1].array
            if isinstance(whole, Windows) and whole.join == "add" and (divisor.size == 1 or divisor.ndim == 4):
                return self._pools.mean(whole, divisor)
            if isinstance(whole, _SpatialSum) and divisor.size == 1:
                return self._mean(whole, float(divisor))
            if (divisor == 1).all() and whole.shape == shape:  # the average pool of a feature map of one pixel
                return whole
        if name == "max" and any(isinstance(v, Const) and not v.array.any() for v in values):
            (x,) = (v for v in values if not (isinstance(v, Const) and not v.array.any()))
            return self.graph.emit("Relu", [self.tensor(x).name], shape)
        names = [self.tensor(value, len(shape)).name for value in values]
        return self.graph.emit(_ELEMENTWISE[name], names, shape)

    def _pool_step(self, join: str, a: Any, b: Any) -> Any:
        """Adds an element to a pool's windows; one that lies outside of the map in all windows is the fill alone."""
        for value, other in ((a, b), (b, a)):
            if isinstance(other, Const) and (other.array == FILLS[join]).all():
                return value
        return windows.join_windows(a, b, join)

    def _mean(self, total: _SpatialSum, divisor: float) -> Tensor:
        graph, (batch, height, width, channels) = self.graph, total.source.shape
        pooled = graph.emit("GlobalAveragePool", [total.source.name], (batch, 1, 1, channels))
        flat = graph.emit("Flatten", [pooled.name], total.shape, axis=1)
        if divisor == height * width:
            return flat
        factor = graph.constant(np.array(height * width / divisor, graph.dtype))
        return graph.emit("Mul", [flat.name, factor], total.shape)

    def _integer_pow(self, equation: Any, x: Any) -> Tensor:
        exponent = self.graph.constant(np.array(equation.params["y"], self.graph.dtype))
        return self.graph.emit("Pow", [self.tensor(x).name, exponent], x.shape)

    def _square(self, equation: Any, x: Any) -> Tensor:
        name = self.tensor(x).name
        return self.graph.emit("Mul", [name, name], x.shape)

    def _rsqrt(self, equation: Any, x: Any) -> Tensor:
        root = self.graph.emit("Sqrt", [self.tensor(x).name], x.shape)
        return self.graph.emit("Reciprocal", [root.name], x.shape)

    # --- Sums over channels ------------------------------------------------------------------------------------------

    def _conv(self, equation: Any, x: Any, kernel: Any) -> Tensor:
        params = equation.params
        dimensions = params["dimension_numbers"]
        if tuple(dimensions.lhs_spec) != (0, 3, 1, 2) or tuple(dimensions.out_spec) != (0, 3, 1, 2):
            raise UserError(f"ONNX export: a convolution of {dimensions}; only NHWC is supported")
        if set(params["lhs_dilation"]) != {1} or not isinstance(kernel, Const):
            raise UserError(
                "ONNX export: a transposed convolution, or one whose kernel depends on the images, is not supported"
            )
        weights = kernel.array.astype(self.graph.dtype).transpose(dimensions.rhs_spec)
        pads = [*(low for low, _ in params["padding"]), *(high for _, high in params["padding"])]
        return self.graph.emit(
            "Conv",
            [self.tensor(x).name, self.graph.constant(weights, kernel.name)],
            equation.outvars[0].aval.shape,
            kernel_shape=list(weights.shape[2:]),
            strides=list(params["window_strides"]),
            pads=pads,
            dilations=list(params["rhs_dilation"]),
            group=params["feature_group_count"],
        )

    def _dot(self, equation: Any, x: Any, kernel: Any) -> Tensor:
        if equation.params["dimension_numbers"] != (((1,), (0,)), ((), ())) or len(x.shape) != 2:
            raise UserError(
                f"ONNX export: a product {equation.params['dimension_numbers']} of {x.shape} is not supported"
            )
        return self.graph.emit(
            "MatMul", [self.tensor(x).name, self.tensor(kernel).name], equation.outvars[0].aval.shape
        )

    # --- Shapes ------------------------------------------------------------------------------------------------------

    def _broadcast(self, equation: Any, x: Any, *_: Any) -> Any:
        """Keeps size 1 in the broadcast axes of constants: every operator of ONNX broadcasts them itself."""
        shape, kept = equation.params["shape"], equation.params["broadcast_dimensions"]
        if isinstance(x, Const):
            sizes = dict(zip(kept, x.shape, strict=True))
            return Const(x.array.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), x.name)
        if [size for size in shape if size != 1] != [size for size in x.shape if size != 1]:
            raise UserError(f"ONNX export: broadcasting {x.shape} to {shape} is not supported")
        return self._reshape(equation, x)

    def _reshape(self, equation: Any, x: Any, *_: Any) -> Tensor:
        shape, graph = equation.outvars[0].aval.shape, self.graph
        if shape == x.shape:
            return x
        if shape[0] != x.shape[0]:
            raise UserError(f"ONNX export: {x.shape} reshaped to {shape}: the batch axis must stay as it is")
        tensor = self.tensor(x)
        if len(x.shape) == 4 and x.shape[1:3] != (1, 1):
            tensor = graph.emit("Transpose", [tensor.name], x.shape, perm=[0, 2, 3, 1])
        if len(shape) != 4:
            return graph.emit("Reshape", [tensor.name, graph.integers(0, *shape[1:])], shape)
        nhwc = graph.emit("Reshape", [tensor.name, graph.integers(0, *shape[1:])], shape)
        return graph.emit("Transpose", [nhwc.name], shape, perm=[0, 3, 1, 2])

    def _concatenate(self, equation: Any, *values: Any) -> Tensor:
        if any(isinstance(value, Const) for value in values):
            raise UserError(
                "ONNX export: concatenating a constant with a value that depends on the images is not supported"
            )
        shape = equation.outvars[0].aval.shape
        axis = graph_axis(equation.params["dimension"], len(shape))
        return self.graph.emit("Concat", [self.tensor(value).name for value in values], shape, axis=axis)

    def _slice(self, equation: Any, x: Any) -> Any:
        params = equation.params
        strides = params["strides"] or (1,) * len(x.shape)
        if isinstance(x, _SpatialSum):
            x = self.tensor(x)
        for axis, (start, stop, stride) in enumerate(
            zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        ):
            if axis == 0 and (start != 0 or stop != x.shape[0] or stride != 1):
                raise UserError(f"ONNX export: a slice [{start}:{stop}:{stride}] of the batch is not supported")
            # A slice of a whole axis is the value itself: pools have elements that use the map as it is.
            if axis and (start, stop, stride) != (0, x.shape[axis], 1):
                x = windows.slice_windows(x, axis, start, stop, stride)
        return x

    def _pad(self, equation: Any, x: Any, fill: Any) -> Any:
        config = equation.params["padding_config"]
        if any(interior or low < 0 or high < 0 for low, high, interior in config) or not isinstance(fill, Const):
            raise UserError(f"ONNX export: a padding {config}; only edges of a constant are supported")
        for axis, (low, high, _) in enumerate(config):
            if low or high:
                view = windows.pad_windows(x, axis, low, high, float(fill.array))
                x = (
                    view
                    if view is not None
                    else windows.pad_windows(self.tensor(x), axis, low, high, float(fill.array))
                )
        return x

    def _reduce_sum(self, equation: Any, x: Any) -> _SpatialSum:
        if tuple(equation.params["axes"]) != (1, 2) or len(x.shape) != 4:
            raise UserError(
                f"ONNX export: a sum of {x.shape} over the axes {equation.params['axes']}; only (1, 2) is supported"
            )
        return _SpatialSum(self.tensor(x), equation.outvars[0].aval.shape)


def _evaluate_constants(equation: Any, values: list[Const]) -> list[Const]:
    """Evaluates an equation of constants with JAX."""
    arrays = [
        _broadcast_constant(value.array, variable.aval.shape)
        for value, variable in zip(values, equation.invars, strict=True)
    ]
    if equation.primitive.name in _IDENTITY:
        return [Const(arrays[0].astype(equation.outvars[0].aval.dtype), values[0].name)]
    results = equation.primitive.bind(*map(jax.numpy.asarray, arrays), **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    same = values[0].name if equation.primitive.name in ("reshape", "squeeze") else ""
    return [Const(np.asarray(result), same) for result in results]


def _broadcast_constant(array: np.ndarray, shape: tuple[Any, ...]) -> np.ndarray:
    """Broadcasts a constant to its shape; returns it as it is where the batch size is symbolic."""
    return np.broadcast_to(array, shape) if all(isinstance(size, int) for size in shape) else array
