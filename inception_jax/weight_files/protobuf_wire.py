"""Parses the wire format of protocol buffers, as far as weight files need it.

Source: protobuf.dev, "Encoding". Four formats are protobuf messages (Caffe, ONNX, GraphDef and the entries of
TensorFlow's checkpoints); each reader states which field numbers it knows and skips the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from inception_jax.weight_files.types import Cost, ReadBudget, ReadError, decode_utf8

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}
_PIECE = 1 << 20  # bytes of packed numbers decoded at a time, which takes thirty times as many


def read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Reads an unsigned varint of at most 64 bits.

    Args:
      data: the bytes.
      position: where it begins.

    Returns:
      (the number, the position after it).

    Raises:
      ReadError: it is truncated, or longer.
    """
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise ReadError("a varint is cut off: the file is truncated or damaged")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
        shift += 7
    raise ReadError("a varint of more than 64 bits: the file is damaged")


def to_int64(value: int) -> int:
    """Returns the int64 that an unsigned varint stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


def fields(data: memoryview, budget: ReadBudget) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yields the fields of one message as (number, wire type, value), in the order of the file.

    The value is an int for a varint, and bytes for every other wire type. A run of the same fixed-size field (repeated
    numbers without packing) comes as one value with the bytes of all, so that millions of them need no loop.

    Args:
      data: the message.
      budget: to which the fields are charged; a run counts once.

    Raises:
      ReadError: a field is truncated or invalid (groups, which no format uses, too), or there are too many fields.
    """
    position = 0
    while position < len(data):
        budget.charge_objects(Cost.FIELD, "a message of many fields")
        start = position
        key, position = read_varint(data, position)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise ReadError("a field with the number 0: the file is damaged")
        if wire == VARINT:
            value, position = read_varint(data, position)
            yield number, wire, value
        elif wire == LENGTH:
            size, position = read_varint(data, position)
            if size > len(data) - position:
                raise ReadError(f"field {number} declares {size:,} bytes where {len(data) - position:,} are left")
            yield number, wire, data[position : position + size]
            position += size
        elif wire in _FIXED_SIZE:
            budget.charge_objects(Cost.RUN, "a message of many numbers")
            size = _FIXED_SIZE[wire]
            if size > len(data) - position:
                raise ReadError(f"field {number} is cut off: the file is truncated or damaged")
            tag = data[start:position]
            run = _run(data, start, tag, size)
            yield number, wire, run
            position += (len(run) // size - 1) * (len(tag) + size) + size
        else:
            raise ReadError(f"field {number} has the wire type {wire}, which no file of weights uses")


def _run(data: memoryview, start: int, tag: memoryview, size: int) -> memoryview:
    """Returns the values, without tags, of the consecutive fields of this tag that begin at `start`."""
    stride = len(tag) + size
    rest = np.frombuffer(data, np.uint8, offset=start)
    rows = rest[: len(rest) // stride * stride].reshape(-1, stride)
    # Doubling windows: a lone field in a long message must not cost a pass over the message.
    count, window = 1, 8
    while count < len(rows):
        same = (rows[count : count + window, : len(tag)] == np.frombuffer(tag, np.uint8)).all(axis=1)
        if not same.all():
            count += int(np.argmin(same))
            break
        count += len(same)
        window *= 2
    return memoryview(rows[:count, len(tag) :].tobytes())


class Message:
    """One message, with its fields by number.

    Attributes:
      what: what the message is, for error messages.
      budget: to which it is charged, with the messages inside of it.
    """

    def __init__(self, data: memoryview, what: str, budget: ReadBudget) -> None:
        """Parses a message.

        Args:
          data: its bytes.
          what: what it is, for error messages.
          budget: as the attribute.

        Raises:
          ReadError: as `fields`.
        """
        self.what, self.budget = what, budget
        budget.charge_objects(Cost.MESSAGE, "many messages")
        self._fields: dict[int, list[tuple[int, int | memoryview]]] = {}
        for number, wire, value in fields(data, budget):
            self._fields.setdefault(number, []).append((wire, value))

    def __contains__(self, number: int) -> bool:
        """Returns whether the message has a field of this number."""
        return number in self._fields

    def _values(self, number: int, wire: int) -> list[Any]:
        """Returns the values of a field; ReadError where one has another wire type."""
        found = self._fields.get(number, [])
        if any(kind != wire for kind, _ in found):
            raise ReadError(f"{self.what}: field {number} has an unexpected wire type")
        return [value for _, value in found]

    def integer(self, number: int, default: int = 0) -> int:
        """Returns an unsigned varint; the last one where the message has several, as protobuf prescribes."""
        return [default, *self._values(number, VARINT)][-1]

    def fixed32(self, number: int) -> int | None:
        """Returns a fixed32, or None."""
        values = self._values(number, FIXED32)
        return struct.unpack("<I", bytes(values[-1][-4:]))[0] if values else None

    def float32(self, number: int) -> float | None:
        """Returns a float, or None."""
        values = self._values(number, FIXED32)
        return struct.unpack("<f", bytes(values[-1][-4:]))[0] if values else None

    def blobs(self, number: int) -> list[memoryview]:
        """Returns the bytes of each occurrence."""
        return self._values(number, LENGTH)

    def blob(self, number: int) -> memoryview:
        """Returns the bytes of the last occurrence; empty where it is absent."""
        return [memoryview(b""), *self.blobs(number)][-1]

    def text(self, number: int) -> str:
        """Returns a string; "" where it is absent."""
        return decode_utf8(self.blob(number), f"{self.what}: field {number}")

    def texts(self, number: int) -> list[str]:
        """Returns each occurrence as a string."""
        return [decode_utf8(value, f"{self.what}: field {number}") for value in self.blobs(number)]

    def messages(self, number: int, what: str) -> Iterator[Message]:
        """Yields each occurrence as a message, one at a time: all of them take many times their bytes."""
        return (Message(value, what, self.budget) for value in self.blobs(number))

    def message(self, number: int, what: str) -> Message:
        """Returns the last occurrence as a message; an empty one where it is absent."""
        return Message(self.blob(number), what, self.budget)

    def fixed(self, number: int, dtype: str) -> np.ndarray:
        """Returns a repeated float or double (`dtype` "<f4" or "<f8"), packed or not: [n]."""
        wire = FIXED32 if np.dtype(dtype).itemsize == 4 else FIXED64
        parts = []
        for kind, value in self._fields.get(number, []):
            if isinstance(value, int) or kind not in (LENGTH, wire) or len(value) % np.dtype(dtype).itemsize:
                raise ReadError(f"{self.what}: field {number} does not hold whole numbers of {dtype[1:]}")
            parts.append(np.frombuffer(value, dtype))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])

    def numbers(self, number: int, dtype: np.dtype) -> np.ndarray:
        """Returns a tensor's values: floats and doubles as they are, all others as varints, of 16-bit floats the bits.

        Args:
          number: of the repeated field.
          dtype: of the tensor.
        """
        if dtype in (np.float32, np.float64):
            return self.fixed(number, f"<f{dtype.itemsize}")
        values = self.integers(number)
        return values.astype(np.uint16).view(dtype) if dtype.kind in "fV" else values.astype(dtype)

    def integers(self, number: int) -> np.ndarray:
        """Returns a repeated varint, packed or not: int64 [n]."""
        parts, lone = [np.empty(0, np.int64)], []
        for kind, value in self._fields.get(number, []):
            if isinstance(value, int):
                lone.append(to_int64(value))
            elif kind == LENGTH:
                parts += [np.array(lone, np.int64), _varints(value, self.what)]
                lone = []
            else:
                raise ReadError(f"{self.what}: field {number} has an unexpected wire type")
        return np.concatenate([*parts, np.array(lone, np.int64)])


def _varints(data: memoryview, what: str) -> np.ndarray:
    """Decodes all varints of a packed field: int64 [n]."""
    raw = np.frombuffer(data, np.uint8)
    if len(raw) and raw[-1] >= 0x80:
        raise ReadError(f"{what}: a packed number is cut off")
    pieces, start = [np.empty(0, np.int64)], 0
    while start < len(raw):
        stop = start + _PIECE
        while stop < len(raw) and raw[stop - 1] >= 0x80 and stop < start + _PIECE + 10:
            stop += 1
        pieces.append(_varints_of(raw[start:stop], what))
        start = stop
    return np.concatenate(pieces)


def _varints_of(raw: np.ndarray, what: str) -> np.ndarray:
    """Decodes the varints of uint8 [bytes], which must end with the last byte of one: int64 [n]."""
    last = np.flatnonzero(raw < 0x80)
    if not len(last) or last[-1] < len(raw) - 1:
        raise ReadError(f"{what}: a packed number of more than 64 bits")
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if lengths.max() > 10:
        raise ReadError(f"{what}: a packed number of more than 64 bits")
    place = np.arange(len(raw)) - np.repeat(starts, lengths)
    # The tenth byte has one bit of the 64: a shift of 63 keeps that bit and drops the others.
    digits = (raw & np.uint8(0x7F)).astype(np.uint64) << (place * 7).astype(np.uint64)
    return np.bitwise_or.reduceat(digits, starts).astype(np.int64)
