"""Reads TensorFlow's tensors: TensorProto, shapes, slices and types.

Sources: tensorflow/core/framework/{tensor,tensor_shape,tensor_slice,types}.proto.
"""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from inception_jax.weight_files.protobuf_wire import Message, to_int64
from inception_jax.weight_files.types import ReadBudget, ReadError

Extents = tuple[tuple[int, int], ...]  # (start, length) of a slice in each dimension; a length of -1 means all

# types.proto, DataType. The others (strings, resources, quantized types) are not arrays of weights.
DTYPES = {
    1: np.dtype(np.float32), 2: np.dtype(np.float64), 3: np.dtype(np.int32), 4: np.dtype(np.uint8),
    5: np.dtype(np.int16), 6: np.dtype(np.int8), 9: np.dtype(np.int64), 10: np.dtype(np.bool_),
    14: np.dtype(ml_dtypes.bfloat16), 17: np.dtype(np.uint16), 19: np.dtype(np.float16), 22: np.dtype(np.uint32),
    23: np.dtype(np.uint64),
}  # fmt: skip
STRING = 7

_FLOATS, _DOUBLES, _INTS, _LONGS, _BOOLS, _HALVES, _UINTS, _ULONGS = 5, 6, 7, 10, 11, 13, 16, 17
# The field of TensorProto that holds the values of a type where `tensor_content` does not.
_FIELD = {
    1: _FLOATS, 2: _DOUBLES, 3: _INTS, 4: _INTS, 5: _INTS, 6: _INTS, 9: _LONGS, 10: _BOOLS, 14: _HALVES, 17: _INTS,
    19: _HALVES, 22: _UINTS, 23: _ULONGS,
}  # fmt: skip


def read_dtype(number: int, what: str) -> np.dtype:
    """Returns the NumPy dtype of a DataType.

    Args:
      number: the DataType.
      what: whose it is, for the message.

    Raises:
      ReadError: it is not a type of numbers.
    """
    if number not in DTYPES:
        raise ReadError(f"{what} has TensorFlow's type {number}, which is not a numeric type of weights")
    return DTYPES[number]


def read_shape(message: Message) -> tuple[int, ...]:
    """Returns the sizes of a TensorShapeProto; ReadError where its rank is unknown."""
    if message.integer(3):
        raise ReadError(f"{message.what}: a shape of unknown rank")
    return tuple(to_int64(dimension.integer(1)) for dimension in message.messages(2, message.what))


def read_slice(message: Message, shape: tuple[int, ...]) -> Extents:
    """Returns the (start, length) of a TensorSliceProto in each dimension; a length of -1 means all.

    Args:
      message: the TensorSliceProto.
      shape: of the whole variable.

    Raises:
      ReadError: the slice reaches out of `shape`.
    """
    extents = [
        (extent.integer(1), extent.integer(2) if 2 in extent else -1) for extent in message.messages(1, message.what)
    ]
    if not extents:
        extents = [(0, -1)] * len(shape)
    if len(extents) != len(shape):
        raise ReadError(f"{message.what}: a slice of {len(extents)} dimensions of an array of {len(shape)}")
    for (start, length), size in zip(extents, shape, strict=True):
        if (length < 0 and start) or start + max(length, 0) > size:
            raise ReadError(f"{message.what}: a slice reaches out of the shape {list(shape)}")
    return tuple(extents)


def slice_shape(extents: Extents, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of a slice of an array of `shape`."""
    return tuple(size if length < 0 else length for (_, length), size in zip(extents, shape, strict=True))


def assemble_slices(
    name: str, shape: tuple[int, ...], dtype: np.dtype, parts: list[tuple[Extents, np.ndarray]]
) -> np.ndarray:
    """Puts an array together from its slices. Charge its bytes to the budget first.

    Args:
      name: of the variable, for messages.
      shape: of the variable.
      dtype: of the variable.
      parts: ((start, length) in each dimension, the slice's array) of each slice.

    Raises:
      ReadError: the slices overlap, or do not cover the array.
    """
    if len(parts) == 1 and parts[0][1].shape == shape:
        return parts[0][1]
    whole, covered = np.empty(shape, dtype), np.zeros(shape, np.bool_)
    for extents, part in parts:
        where = tuple(slice(start, None if length < 0 else start + length) for start, length in extents)
        if covered[where].any():
            raise ReadError(f"{name!r}: slices overlap")
        whole[where], covered[where] = part, True
    if not covered.all():
        raise ReadError(f"{name!r}: {int((~covered).sum())} of {covered.size} values are missing from its slices")
    return whole


def read_values(message: Message, number: int, shape: tuple[int, ...], budget: ReadBudget) -> np.ndarray:
    """Reads the array of a TensorProto whose type and shape are known.

    Fewer values than elements mean that the last is repeated (tensor.proto, "if the tensor has only one value").

    Args:
      message: the TensorProto.
      number: its DataType: the TensorProto's own, or that in the checkpoint's list of variables.
      shape: its shape, from the same place as `number`.
      budget: to which the array is charged.

    Raises:
      ReadError: it has another number of values, or a type that is not numeric.
    """
    dtype = read_dtype(number, message.what)
    shape = budget.charge_array(shape, dtype, message.what)
    size = math.prod(shape)
    content = message.blob(4)
    if len(content):
        if len(content) != size * dtype.itemsize:
            raise ReadError(f"{message.what}: {len(content):,} bytes for {dtype.name} of shape {list(shape)}")
        return np.frombuffer(content, dtype).reshape(shape)
    values = message.numbers(_FIELD[number], dtype)
    if len(values) == size:
        return values.reshape(shape)
    if len(values) > size:
        raise ReadError(f"{message.what}: {len(values):,} values for the shape {list(shape)}")
    if len(values) == 0:
        # TensorFlow may write a tensor of zeros without values.
        return np.broadcast_to(np.zeros((), dtype), shape)
    if len(values) == 1:
        return np.broadcast_to(values[0], shape)
    return np.concatenate([values, np.broadcast_to(values[-1], size - len(values))]).reshape(shape)


def read_tensor(message: Message, budget: ReadBudget) -> np.ndarray:
    """Reads the array of a TensorProto by its own type and shape; errors as in `read_values`."""
    return read_values(message, message.integer(1), read_shape(message.message(2, message.what)), budget)
