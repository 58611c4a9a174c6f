"""Frozen TensorFlow graphs (GraphDef, `.pb`), as the inception5h of 2015 was published.

Sources: tensorflow/core/framework/{graph,node_def,attr_value}.proto.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from inception_jax.weight_files import tensorflow_tensors
from inception_jax.weight_files.protobuf_wire import Message, fields, to_int64
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError, add_array, decode_utf8


def read(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """The values of the Const nodes by the nodes' names.

    Metadata: "nodes", a list in the order of the file of {"name", "op", "inputs", "attributes"}, where attributes are
    numbers, text, lists and shapes (tensors are left out: those of Const nodes are the arrays); "left_out", the Const
    nodes that hold text.

    Raises:
      ReadError: the file is damaged. A file truncated between two nodes is undetectable: it has fewer nodes.
    """
    arrays: dict[str, np.ndarray] = {}
    nodes, left_out = [], []
    for number, _, value in fields(source.data):
        if number != 1 or isinstance(value, int):
            continue
        node = Message(value, "a node")
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


def is_node(data: memoryview) -> bool:
    """Whether bytes look like a NodeDef: a name and an operation."""
    try:
        node = Message(data, "a node")
        return bool(node.text(1)) and node.text(2).isidentifier()
    except ReadError:
        return False


def _entries(node: Message):
    for entry in node.messages(5, node.what):
        yield entry.text(1), entry.message(2, f"{node.what}, attribute {entry.text(1)!r}")


def _tensor(node: Message) -> Message:
    for name, value in _entries(node):
        if name == "value":
            return value.message(8, node.what)
    raise ReadError(f"{node.what} is a constant without a value")


def _attributes(node: Message) -> dict[str, Any]:
    """The attributes that are no tensors."""
    found = {name: _attribute(value) for name, value in _entries(node)}
    return {name: value for name, value in found.items() if value is not None}


def _attribute(value: Message) -> Any:
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
    """AttrValue.ListValue: of one kind only, in practice."""
    return [
        *value.texts(2),
        *value.integers(3).tolist(),
        *value.fixed(4, "<f4").tolist(),
        *map(bool, value.integers(5).tolist()),
        *map(_type_name, value.integers(6).tolist()),
    ]


def _type_name(number: int) -> str:
    dtype = tensorflow_tensors.DTYPES.get(number)
    return dtype.name if dtype is not None else f"type {number}"
