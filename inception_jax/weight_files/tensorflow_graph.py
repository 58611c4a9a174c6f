"""Reads frozen TensorFlow graphs (GraphDef, `.pb`), the format in which inception5h was published in 2015.

Sources: tensorflow/core/framework/{graph,node_def,attr_value}.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from inception_jax.weight_files import tensorflow_tensors
from inception_jax.weight_files.protobuf_wire import Message, fields, to_int64
from inception_jax.weight_files.types import (
    BudgetError,
    InputFile,
    ParsedFile,
    ReadBudget,
    ReadError,
    add_array,
    decode_utf8,
)


def read(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the values of the Const nodes by the nodes' names.

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: "nodes", a list in the order of the file of {"name", "op", "inputs", "attributes"}, where
      attributes are numbers, strings, lists and shapes (not tensors: those of Const nodes are the arrays); "left_out",
      the Const nodes that hold strings.

    Raises:
      ReadError: the file is damaged. A file truncated between two nodes is not detected: it has fewer nodes.
    """
    arrays: dict[str, np.ndarray] = {}
    nodes, left_out = [], []
    for number, _, value in fields(source.data, budget):
        if number != 1 or isinstance(value, int):
            continue
        node = Message(value, "a node", budget)
        name = node.text(1)
        node.what = f"node {name!r}"
        op, attributes = node.text(2), _attributes(node)
        if op == "Const":
            tensor = _tensor(node)
            if tensor.integer(1) == tensorflow_tensors.STRING:
                left_out.append(name)
            else:
                add_array(arrays, name, tensorflow_tensors.read_tensor(tensor, budget))
        nodes.append({"name": name, "op": op, "inputs": node.texts(3), "attributes": attributes})
    if not arrays:
        raise ReadError(
            f"a TensorFlow graph of {len(nodes)} nodes, none of which is a constant: it is not frozen, "
            "and its weights are in the checkpoint beside it"
        )
    return ParsedFile(arrays, {"nodes": nodes, "left_out": left_out})


def is_node(data: memoryview, budget: ReadBudget) -> bool:
    """Returns whether bytes look like a NodeDef, with a name and an operation."""
    try:
        node = Message(data, "a node", budget)
        return bool(node.text(1)) and node.text(2).isidentifier()
    except BudgetError:
        raise
    except ReadError:
        return False


def _entries(node: Message) -> Iterator[tuple[str, Message]]:
    """Yields the (name, AttrValue) of each attribute."""
    for entry in node.messages(5, node.what):
        yield entry.text(1), entry.message(2, f"{node.what}, attribute {entry.text(1)!r}")


def _tensor(node: Message) -> Message:
    """Returns the TensorProto of a Const node."""
    for name, value in _entries(node):
        if name == "value":
            return value.message(8, node.what)
    raise ReadError(f"{node.what} is a Const without a value")


def _attributes(node: Message) -> dict[str, Any]:
    """Returns the attributes of a node, without tensors."""
    found = {name: _attribute(value) for name, value in _entries(node)}
    return {name: value for name, value in found.items() if value is not None}


def _attribute(value: Message) -> Any:
    """Returns the value of an AttrValue; None for a tensor."""
    if 1 in value:
        return _list(value.message(1, value.what))
    if 2 in value:
        return decode_utf8(bytes(value.blob(2)).decode("utf-8", "replace").encode(), value.what)
    if 3 in value:
        return to_int64(value.integer(3))
    if 4 in value:
        return value.float32(4)
    if 5 in value:
        return bool(value.integer(5))
    if 6 in value:
        return _type_name(value.integer(6))
    if 7 in value:
        return [to_int64(size.integer(1)) for size in value.message(7, value.what).messages(2, value.what)]
    return None


def _list(value: Message) -> list:
    """Returns the elements of an AttrValue.ListValue, which has one kind only in practice."""
    return [
        *value.texts(2),
        *value.integers(3).tolist(),
        *value.fixed(4, "<f4").tolist(),
        *map(bool, value.integers(5).tolist()),
        *map(_type_name, value.integers(6).tolist()),
    ]


def _type_name(number: int) -> str:
    """Returns the NumPy name of a DataType."""
    dtype = tensorflow_tensors.DTYPES.get(number)
    return dtype.name if dtype is not None else f"type {number}"
