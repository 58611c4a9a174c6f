"""Snappy's block format, decompressed: TensorFlow's tables may be written with it.

Source: google/snappy, format_description.txt.
"""

from __future__ import annotations

from inception_jax.weight_files.protobuf_wire import read_varint
from inception_jax.weight_files.types import ReadError


def declared_size(data: memoryview) -> int:
    """The size after decompression that a block declares."""
    size, _ = read_varint(data, 0)
    return size


def decompress(data: memoryview) -> bytes:
    """The bytes of one compressed block. Charge `declared_size` to a budget first.

    Raises:
      ReadError: the block is cut off, refers outside of itself, or does not have the size that it declares.
    """
    size, position = read_varint(data, 0)
    out = bytearray()
    while position < len(data):
        tag = data[position]
        position += 1
        kind = tag & 3
        if kind == 0:
            length = (tag >> 2) + 1
            if length > 60:
                wide = length - 60
                length = int.from_bytes(_take(data, position, wide), "little") + 1
                position += wide
            out += _take(data, position, length)
            position += length
        else:
            wide = (1, 1, 2, 4)[kind]
            offset = int.from_bytes(_take(data, position, wide), "little")
            position += wide
            length = (tag >> 2) + 1
            if kind == 1:
                offset |= (tag >> 5) << 8
                length = (tag >> 2 & 7) + 4
            if not 0 < offset <= len(out):
                raise ReadError("a compressed block refers to bytes before its beginning: the file is damaged")
            # A copy may overlap what it writes: the last `offset` bytes are then repeated.
            start = len(out) - offset
            piece = bytes(out[start : start + length])
            out += (piece * (length // len(piece) + 1))[:length]
        if len(out) > size:
            break
    if len(out) != size:
        raise ReadError(f"a compressed block holds another number of bytes than the {size:,} that it declares")
    return bytes(out)


def _take(data: memoryview, position: int, length: int) -> memoryview:
    if length > len(data) - position:
        raise ReadError("a compressed block is cut off: the file is truncated or damaged")
    return data[position : position + length]
