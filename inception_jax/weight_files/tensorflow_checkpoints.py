"""Reads TensorFlow checkpoints of both versions, without TensorFlow.

V2 (since 2016) is a table of entries, `prefix.index`, and raw bytes in `prefix.data-00000-of-00001`; V1 (slim's
releases of 2016) is one table that also holds the values. Sources: tensorflow/core/protobuf/tensor_bundle.proto,
tensorflow/core/util/{saved_tensor_slice.proto, saved_tensor_slice_util.cc, tensor_slice_writer.cc} and
tensorflow/core/lib/strings/ordered_code.h (the keys of slices).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from inception_jax.crc32c import crc32c, unmask
from inception_jax.weight_files import leveldb_table, tensorflow_tensors
from inception_jax.weight_files.protobuf_wire import Message
from inception_jax.weight_files.tensorflow_tensors import Extents
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError, add_array, decode_utf8


def read_v1(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the variables of a V1 checkpoint, in the order of its list of variables.

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: "left_out", {name: reason} of variables that are not arrays of numbers.

    Raises:
      ReadError: the file is damaged or compressed.
    """
    table = dict(leveldb_table.entries(source.data, budget))
    if b"" not in table:
        raise ReadError("the table has no entry that lists the variables: it is not a TensorFlow checkpoint")
    listed, left_out = _read_variable_list(Message(table.pop(b""), "the list of variables", budget))
    parts: dict[tuple[str, Extents], np.ndarray] = {}
    for value in table.values():
        stored = Message(value, "a stored slice", budget).message(2, "a stored slice")
        name = stored.text(1)
        if name in left_out:
            continue
        if name not in listed:
            raise ReadError(f"values of {name!r}, which the list of variables does not name")
        shape, number, _ = listed[name]
        extents = tensorflow_tensors.read_slice(stored.message(2, f"variable {name!r}"), shape)
        tensor = stored.message(3, f"variable {name!r}")
        size = tensorflow_tensors.slice_shape(extents, shape)
        parts[name, extents] = tensorflow_tensors.read_values(tensor, number, size, budget)
    arrays: dict[str, np.ndarray] = {}
    for name, (shape, number, slices) in listed.items():
        if not slices or any((name, extents) not in parts for extents in slices):
            raise ReadError(f"variable {name!r} is listed, but some of its values are missing: the file is damaged")
        found = [(extents, parts[name, extents]) for extents in slices]
        if len(found) > 1 or found[0][1].shape != shape:  # else its one slice is the variable, and charged already
            budget.charge_array(shape, tensorflow_tensors.DTYPES[number], f"variable {name!r}")
        add_array(
            arrays, name, tensorflow_tensors.assemble_slices(name, shape, tensorflow_tensors.DTYPES[number], found)
        )
    return ParsedFile(arrays, {"left_out": left_out})


def _read_variable_list(
    contents: Message,
) -> tuple[dict[str, tuple[tuple[int, ...], int, list[Extents]]], dict[str, str]]:
    """Reads the list of variables in V1: {name: (shape, type, slices)}, and {name: reason} of those left out."""
    listed: dict[str, tuple[tuple[int, ...], int, list[Extents]]] = {}
    left_out = {}
    for entry in contents.message(1, contents.what).messages(1, contents.what):
        name, number = entry.text(1), entry.integer(3)
        entry.what = f"variable {name!r}"
        shape = tensorflow_tensors.read_shape(entry.message(2, entry.what))
        if number not in tensorflow_tensors.DTYPES:
            left_out[name] = f"TensorFlow's type {number}"
        elif name in listed:
            raise ReadError(f"{entry.what} is listed twice")
        else:
            slices = [tensorflow_tensors.read_slice(part, shape) for part in entry.messages(4, entry.what)]
            listed[name] = (shape, number, slices)
    return listed, left_out


def read_v2(index: InputFile, shard: Callable[[int, int], memoryview], budget: ReadBudget) -> ParsedFile:
    """Reads the variables of a V2 checkpoint, in the order of its keys.

    Args:
      index: the `.index` file.
      shard: a function that returns the bytes of data file i of n, or raises ReadError.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: "left_out", {name: reason} of entries that are not arrays of numbers.

    Raises:
      ReadError: a file is damaged, missing or compressed.
    """
    table = dict(leveldb_table.entries(index.data, budget))
    if b"" not in table:
        raise ReadError("the index has no header: it is not a TensorFlow checkpoint")
    header = Message(table.pop(b""), "the header", budget)
    if header.integer(2):
        raise ReadError("the checkpoint was written on a big-endian machine; save it again on a little-endian one")
    data = _DataFiles(header.integer(1), shard, budget)
    arrays: dict[str, np.ndarray] = {}
    left_out: dict[str, str] = {}
    for key, value in table.items():
        if key.startswith(b"\0"):  # a slice, which is read with its variable
            continue
        name = decode_utf8(key, "a key of the index")
        entry = Message(value, f"variable {name!r}", budget)
        if entry.integer(1) not in tensorflow_tensors.DTYPES:
            left_out[name] = f"TensorFlow's type {entry.integer(1)}"
            continue
        shape = tensorflow_tensors.read_shape(entry.message(2, entry.what))
        add_array(
            arrays, name, _read_partitioned(name, entry, shape, table, data) if 7 in entry else data.array(entry, shape)
        )
    return ParsedFile(arrays, {"left_out": left_out})


def _read_partitioned(
    name: str, entry: Message, shape: tuple[int, ...], table: dict[bytes, memoryview], data: _DataFiles
) -> np.ndarray:
    """Reads a variable that is stored in slices, each under a key of its own."""
    dtype = tensorflow_tensors.DTYPES[entry.integer(1)]
    shape = data.budget.charge_array(shape, dtype, entry.what)
    parts = []
    for message in entry.messages(7, entry.what):
        extents = tensorflow_tensors.read_slice(message, shape)
        value = table.get(slice_key(name, extents))
        if value is None:
            raise ReadError(f"{entry.what}: one of its slices is missing from the index")
        part = data.array(
            Message(value, f"a slice of {entry.what}", data.budget), tensorflow_tensors.slice_shape(extents, shape)
        )
        if part.dtype != dtype:
            raise ReadError(f"{entry.what}: one of its slices is {part.dtype.name}, not {dtype.name}")
        parts.append((extents, part))
    return tensorflow_tensors.assemble_slices(name, shape, dtype, parts)


class _DataFiles:
    """The data files of a V2 checkpoint, each read when it is first needed.

    Attributes:
      budget: to which the arrays are charged.
    """

    def __init__(self, count: int, shard: Callable[[int, int], memoryview], budget: ReadBudget) -> None:
        """Starts with no data file read; arguments as in `read_v2`, and how many data files there are."""
        self.budget = budget
        self._count, self._shard = count, shard
        self._files: dict[int, memoryview] = {}

    def array(self, entry: Message, shape: tuple[int, ...]) -> np.ndarray:
        """Reads the array of one entry, and compares its checksum."""
        dtype = tensorflow_tensors.read_dtype(entry.integer(1), entry.what)
        shape = self.budget.charge_array(shape, dtype, entry.what)
        number, offset, size = entry.integer(3), entry.integer(4), entry.integer(5)
        if number >= self._count:
            raise ReadError(f"{entry.what} lies in data file {number} of {self._count}")
        if size != math.prod(shape) * dtype.itemsize:
            raise ReadError(f"{entry.what}: {size:,} bytes for {dtype.name} of shape {list(shape)}")
        if number not in self._files:
            self._files[number] = self._shard(number, self._count)
        data = self._files[number]
        if offset + size > len(data):
            raise ReadError(
                f"{entry.what} ends at byte {offset + size:,} of a data file of {len(data):,}: it is truncated"
            )
        data = data[offset : offset + size]
        if crc32c(data) != unmask(entry.fixed32(6) or 0):
            raise ReadError(
                f"the checksum of {entry.what} is wrong: the data file is damaged, or belongs to another checkpoint"
            )
        return np.frombuffer(data, dtype).reshape(shape)


def slice_key(name: str, extents: Extents) -> bytes:
    """Returns the key under which a slice of a partitioned variable is stored.

    Args:
      name: of the variable.
      extents: (start, length) of the slice in each dimension; a length of -1 means all.

    Returns:
      The ordered code (ordered_code.h) of name, rank and extents.
    """
    key = b"\0" + name.encode().replace(b"\0", b"\0\xff") + b"\0\x01" + _encode_unsigned(len(extents))
    return key + b"".join(_encode_signed(start) + _encode_signed(length) for start, length in extents)


def _encode_unsigned(value: int) -> bytes:
    """Encodes an unsigned number: its count of bytes, then the bytes, most significant first."""
    width = (value.bit_length() + 7) // 8
    return bytes([width]) + value.to_bytes(width, "big")


def _encode_signed(value: int) -> bytes:
    """Encodes a signed number in as few bytes as possible, seven bits each, with the count in the leading bits."""
    width = (value if value >= 0 else ~value).bit_length() // 7 + 1
    # Two sign bytes in front, because the leading ones of a code of nine or ten bytes reach into its second byte.
    raw = bytearray(value.to_bytes(10, "big", signed=True)[10 - width :])
    ones = (((1 << width) - 1) << (16 - width)).to_bytes(2, "big")
    raw[0] ^= ones[0]
    if width > 1:
        raw[1] ^= ones[1]
    return bytes(raw)
