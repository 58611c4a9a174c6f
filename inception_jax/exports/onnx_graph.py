"""An ONNX graph under construction: nodes, initialisers, names; and what is tidied up before it is a model."""

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
      shape: JAX's: a map is [B, H, W, C] here, and [B, C, H, W] in the graph. B may be symbolic.
    """

    name: str
    shape: tuple[Any, ...]


@dataclasses.dataclass(eq=False)
class Const:
    """A value that is known already.

    Attributes:
      array: in JAX's order of axes; an axis of size 1 may stand for any size.
      name: of the variable that it is, for the graph's reader.
    """

    array: np.ndarray
    name: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return self.array.shape


@dataclasses.dataclass(eq=False)
class Node:
    """One operator with its output, under whose name it goes.

    Attributes:
      op: ONNX's name of it.
      name: in the graph.
      inputs: names of values.
      output: name of its value.
      attributes: as the operator's text has them.
    """

    op: str
    name: str
    inputs: list[str]
    output: str
    attributes: dict[str, Any]


class Graph:
    """Nodes in order, and the initialisers that they take.

    Attributes:
      scope: where in the network the next nodes stand, for their names.
    """

    def __init__(self, dtype: np.dtype):
        self.dtype = dtype
        self.scope = ""
        self.nodes: list[Node] = []
        self.initializers: dict[str, np.ndarray] = {}
        self._names: Counter[str] = Counter()
        self._kept: dict[tuple[Any, ...], str] = {}

    def emit(self, op: str, inputs: Sequence[str], shape: tuple[Any, ...], **attributes: Any) -> Tensor:
        """Adds a node with one output, a value of JAX's `shape`."""
        name = self._fresh(f"{self.scope}/{op}" if self.scope else op)
        self.nodes.append(Node(op, name, list(inputs), name, attributes))
        return Tensor(name, shape)

    def constant(self, array: np.ndarray, name: str = "") -> str:
        """The name of an initialiser with these values, in the graph's own order of axes; the same ones only once."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        # A variable's name and shape say which array it is; what has no name is small.
        key = (name, array.dtype.str, array.shape, b"" if name else array.tobytes())
        if key not in self._kept:
            self._kept[key] = self._fresh(name or "constant")
            self.initializers[self._kept[key]] = array
        return self._kept[key]

    def integers(self, *values: int) -> str:
        """The name of a list of integers."""
        return self.constant(np.array(values, np.int64))

    def simplify(self, outputs: Mapping[str, str]) -> None:
        """Makes the biases of what is linear part of it, and drops what no output needs.

        Args:
          outputs: name of the graph's output -> name of the value.
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
        """Conv and then Add of one number per channel becomes Conv with a bias; MatMul and Add become Gemm."""
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
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}_{self._names[name]}"


def _per_channel(values: np.ndarray, rank: int, channels: int) -> bool:
    """Whether the values are one per channel of a value with `rank` axes."""
    return values.ndim == rank and values.size == values.shape[1] == channels
