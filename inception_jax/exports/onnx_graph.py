"""Builds an ONNX graph: nodes, initializers and names, and the simplification at the end."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(eq=False)
class Tensor:
    """A value of the graph.

    Attributes:
      name: in the graph.
      shape: JAX's: a feature map is [B, H, W, C] here, and [B, C, H, W] in the graph. B may be symbolic.
    """

    name: str
    shape: tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Const:
    """A constant.

    Attributes:
      array: in JAX's order of axes; an axis of size 1 may stand for any size (broadcasting).
      name: of the variable that it is, for people who read the graph.
    """

    array: np.ndarray
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.array.shape


@dataclasses.dataclass(eq=False)
class Node:
    """One operator and its output, whose name it shares.

    Attributes:
      op: the operator type in ONNX.
      name: in the graph.
      inputs: names of values.
      output: name of its value.
      attributes: by their names in ONNX.
    """

    op: str
    name: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes in order, and the initializers that they use.

    Attributes:
      dtype: of the values.
      scope: the place in the network of the next nodes, for their names.
      nodes: the nodes so far.
      initializers: arrays by name.
    """

    def __init__(self, dtype: np.dtype) -> None:
        """Starts with an empty graph.

        Args:
          dtype: of the values.
        """
        self.dtype = dtype
        self.scope = ""
        self.nodes: list[Node] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._names: Counter[str] = Counter()
        self._constants: dict[tuple[Any, ...], str] = {}

    def emit(self, op: str, inputs: Sequence[str], shape: tuple[Any, ...], **attributes: Any) -> Tensor:
        """Adds a node with one output.

        Args:
          op: the operator type in ONNX.
          inputs: names of values.
          shape: of the output, in JAX's order of axes.
          **attributes: of the operator.

        Returns:
          The output.
        """
        name = self._fresh(f"{self.scope}/{op}" if self.scope else op)
        self.nodes.append(Node(op, name, list(inputs), name, attributes))
        return Tensor(name, shape)

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """Adds an initializer; equal ones are added once.

        Args:
          array: the values, in the graph's order of axes.
          name: the variable that it is; "" for another constant.

        Returns:
          The initializer's name.
        """
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        # A variable's name and shape identify its array; arrays without a name are small enough to compare.
        key = (name, array.dtype.str, array.shape, b"" if name else array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._fresh(name or "constant")
            self.initializers[self._constants[key]] = array
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """Adds an initializer of int64 values, and returns its name."""
        return self.constant(np.array(values, np.int64))

    def simplify(self, outputs: Mapping[str, str]) -> None:
        """Merges biases into Conv and Gemm, and drops nodes and initializers that no output needs.

        Args:
          outputs: the name of the value for each name of an output.
        """
        self._merge_biases(set(outputs.values()))
        needed, kept = set(outputs.values()), []
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.initializers = {name: array for name, array in self.initializers.items() if name in needed}

    def _merge_biases(self, outputs: set[str]) -> None:
        """Replaces Conv and Add of one number per channel by Conv with a bias, and MatMul and Add by Gemm."""
        uses = Counter(name for node in self.nodes for name in node.inputs)
        makers = {node.output: node for node in self.nodes}
        merged = set()
        for node in self.nodes:
            if node.op != "Add":
                continue
            for linear, bias in (node.inputs, reversed(node.inputs)):
                maker, values = makers.get(linear), self.initializers.get(bias)
                if maker is None or values is None or uses[linear] != 1 or linear in outputs:
                    continue
                kernel = self.initializers.get(maker.inputs[1]) if len(maker.inputs) == 2 else None
                axis = {"Conv": 0, "MatMul": 1}.get(maker.op)  # of the kernel: the output's channels
                if kernel is None or axis is None or not _per_channel(values, kernel.ndim, kernel.shape[axis]):
                    continue
                maker.op = {"Conv": "Conv", "MatMul": "Gemm"}[maker.op]
                if uses[bias] == 1:
                    self.initializers[bias] = values.reshape(-1)  # under its own name
                else:
                    bias = self.constant(values.reshape(-1), bias)
                maker.inputs.append(bias)
                maker.output = node.output
                merged.add(node.name)
                break
        self.nodes = [node for node in self.nodes if node.name not in merged]

    def _fresh(self, name: str) -> str:
        """Returns a name that is not in use."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


def _per_channel(values: np.ndarray, rank: int, channels: int) -> bool:
    """Returns whether there is one value per channel, in a shape that broadcasts over `rank` axes."""
    return values.ndim == rank and values.size == values.shape[1] == channels
