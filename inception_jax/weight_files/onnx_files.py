"""Reads ONNX models: the initializers, the constants, and the graph that uses them.

Source: onnx/onnx, onnx/onnx.proto (ModelProto, GraphProto, NodeProto, TensorProto).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from inception_jax.weight_files.protobuf_wire import Message, to_int64
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError, add_array

# TensorProto.DataType: the NumPy dtype, and the field that holds the values where `raw_data` does not.
_FLOATS, _INTS, _LONGS, _DOUBLES, _ULONGS = 4, 5, 7, 10, 11
_TYPES = {
    1: (np.dtype(np.float32), _FLOATS), 2: (np.dtype(np.uint8), _INTS), 3: (np.dtype(np.int8), _INTS),
    4: (np.dtype(np.uint16), _INTS), 5: (np.dtype(np.int16), _INTS), 6: (np.dtype(np.int32), _INTS),
    7: (np.dtype(np.int64), _LONGS), 9: (np.dtype(np.bool_), _INTS), 10: (np.dtype(np.float16), _INTS),
    11: (np.dtype(np.float64), _DOUBLES), 12: (np.dtype(np.uint32), _ULONGS), 13: (np.dtype(np.uint64), _ULONGS),
    16: (np.dtype(ml_dtypes.bfloat16), _INTS),
}  # fmt: skip
_STRING, _EXTERNAL = 8, 1


def read(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the initializers by name, then the values of Constant nodes by the names of their outputs.

    Args:
      source: the model; its external data must lie in `source.directory`.
      budget: to which the arrays and the external files are charged.

    Returns:
      The arrays. Metadata: "nodes", a list in the order of the graph of {"name", "op", "inputs", "outputs",
      "attributes"}, where attributes are numbers, strings and lists of them (without tensors and subgraphs); "inputs"
      and "outputs" of the graph, names; "producer", a string; "opset", the version of the default operators;
      "left_out", names of string constants; "external_files", the names of further files that were read.

    Raises:
      ReadError: the file is damaged, or its external data lies outside of its folder.
    """
    model = Message(source.data, "the model", budget)
    graph = model.message(7, "the graph")
    reader = _Tensors(source, budget)
    arrays: dict[str, np.ndarray] = {}
    left_out: list[str] = []
    for tensor in graph.messages(5, "an initializer"):
        _keep(arrays, left_out, tensor.text(8), tensor, reader)
    nodes = []
    for node in graph.messages(1, "a node"):
        node.what = f"node {node.text(3) or node.text(4)!r}"
        outputs = node.texts(2)
        attributes = dict(_attributes(node))
        nodes.append(
            {
                "name": node.text(3),
                "op": node.text(4),
                "inputs": node.texts(1),
                "outputs": outputs,
                "attributes": {name: value for name, value in attributes.items() if not isinstance(value, Message)},
            }
        )
        if node.text(4) == "Constant" and len(outputs) == 1 and len(attributes) == 1:
            ((kind, value),) = attributes.items()
            if kind == "value" and isinstance(value, Message):
                _keep(arrays, left_out, outputs[0], value, reader)
            elif kind in ("value_float", "value_floats"):
                add_array(arrays, outputs[0], np.array(value, np.float32))
            elif kind in ("value_int", "value_ints"):
                add_array(arrays, outputs[0], np.array(value, np.int64))
            else:
                left_out.append(outputs[0])
    if not nodes and not arrays:
        raise ReadError("an ONNX model without a graph")
    if model.integer(1) >= 3 and 8 not in model:
        # Since version 3 of the format every model names its operators' versions, and exporters write them last.
        raise ReadError("an ONNX model that does not say which operators it uses: the file is truncated")
    opsets = {entry.text(1): entry.integer(2) for entry in model.messages(8, "an operator set")}
    return ParsedFile(
        arrays,
        {
            "nodes": nodes,
            "inputs": [value.text(1) for value in graph.messages(11, "an input")],
            "outputs": [value.text(1) for value in graph.messages(12, "an output")],
            "producer": model.text(2),
            "opset": opsets.get("", opsets.get("ai.onnx", 0)),
            "left_out": left_out,
            "external_files": sorted(reader.files),
        },
    )


def _keep(arrays: dict[str, np.ndarray], left_out: list[str], name: str, tensor: Message, reader: _Tensors) -> None:
    if tensor.integer(2) == _STRING:
        left_out.append(name)
    else:
        tensor.what = f"tensor {name!r}"
        add_array(arrays, name, reader.array(tensor))


def _attributes(node: Message) -> Iterator[tuple[str, Any]]:
    """The attributes of a node; tensors as messages, subgraphs not at all."""
    for attribute in node.messages(5, node.what):
        name = attribute.text(1)
        attribute.what = f"{node.what}, attribute {name!r}"
        kind = attribute.integer(20)
        if kind == 1 or (kind == 0 and 2 in attribute):
            yield name, attribute.float32(2) or 0.0
        elif kind == 2 or (kind == 0 and 3 in attribute):
            yield name, to_int64(attribute.integer(3))
        elif kind == 3 or (kind == 0 and 4 in attribute):
            yield name, bytes(attribute.blob(4)).decode("utf-8", "replace")
        elif kind == 4 or (kind == 0 and 5 in attribute):
            yield name, attribute.message(5, attribute.what)
        elif kind == 6 or (kind == 0 and 7 in attribute):
            yield name, attribute.fixed(7, "<f4").tolist()
        elif kind == 7 or (kind == 0 and 8 in attribute):
            yield name, attribute.integers(8).tolist()
        elif kind == 8 or (kind == 0 and 9 in attribute):
            yield name, [bytes(text).decode("utf-8", "replace") for text in attribute.blobs(9)]


class _Tensors:
    """Makes arrays of TensorProtos, and keeps the external files that it has read."""

    def __init__(self, source: InputFile, budget: ReadBudget) -> None:
        """Starts without external files; arguments as in `read`."""
        self._source, self._budget = source, budget
        self.files: dict[str, memoryview] = {}

    def array(self, tensor: Message) -> np.ndarray:
        """Reads one TensorProto, which must not be of strings."""
        number = tensor.integer(2)
        if number not in _TYPES:
            raise ReadError(f"{tensor.what} has ONNX's type {number}, which is not a numeric type of weights")
        if 3 in tensor:
            raise ReadError(f"{tensor.what} is cut into segments, which no exporter writes")
        dtype, field = _TYPES[number]
        # Opened first: the size of the external file raises what the tensor may take.
        external = self._external(tensor) if tensor.integer(14) == _EXTERNAL else None
        shape = self._budget.charge_array(tensor.integers(1).tolist(), dtype, tensor.what)
        size = math.prod(shape)
        if external is not None:
            raw = _part(tensor, *external, size * dtype.itemsize)
        elif 9 in tensor:
            raw = tensor.blob(9)
        else:
            raw = None
        if raw is not None:
            if len(raw) != size * dtype.itemsize:
                raise ReadError(f"{tensor.what}: {len(raw):,} bytes for {dtype.name} of shape {list(shape)}")
            return np.frombuffer(raw, dtype).reshape(shape)
        values = tensor.numbers(field, dtype)
        if len(values) != size:
            raise ReadError(f"{tensor.what}: {len(values):,} values for the shape {list(shape)}")
        return values.reshape(shape)

    def _external(self, tensor: Message) -> tuple[dict[str, str], memoryview]:
        """Returns the tensor's `external_data` entries, and the bytes of the file that they name."""
        about = {entry.text(1): entry.text(2) for entry in tensor.messages(13, tensor.what)}
        location = about.get("location", "")
        if location not in self.files:
            self.files[location] = _beside(self._source.directory, location, tensor.what, self._budget)
        return about, self.files[location]


def _part(tensor: Message, about: dict[str, str], data: memoryview, size: int) -> memoryview:
    """Returns the `size` bytes of a tensor in its external file."""
    location = about.get("location", "")
    try:
        offset, length = int(about.get("offset", "0")), int(about.get("length", str(size)))
    except ValueError:
        raise ReadError(f"{tensor.what}: its offset or length in {location!r} is not a number") from None
    if offset < 0 or length != size or offset + length > len(data):
        raise ReadError(f"{tensor.what}: {length:,} bytes at {offset:,} of {location!r}, which has {len(data):,}")
    return data[offset : offset + length]


def _beside(directory: Path | None, location: str, what: str, budget: ReadBudget) -> memoryview:
    """Reads a file that a model names; it must lie in the model's folder or below it."""
    if directory is None:
        raise ReadError(f"{what} lies in another file, {location!r}: unpack the archive and pass the model's own path")
    parts = Path(location).parts
    if not location or os.path.isabs(location) or ".." in parts or "\\" in location or "\0" in location:
        raise ReadError(f"{what} refers to {location!r}, outside of the model's folder: it is not opened")
    path = directory / location
    # `resolve` follows links, so that a link out of the folder is found.
    if not path.resolve().is_relative_to(directory.resolve()):
        raise ReadError(f"{what} refers to {location!r}, a link out of the model's folder: it is not opened")
    if not path.is_file():
        raise ReadError(f"{what} lies in the file {location!r}, which is not beside the model")
    size = path.stat().st_size
    budget.add_file(size, repr(location))
    with path.open("rb") as file:
        return memoryview(file.read(size))
