"""Reads sorted tables of LevelDB, in which TensorFlow stores the entries of its checkpoints.

Source: google/leveldb, doc/table_format.md and doc/impl.md; tensorflow/core/lib/io/table_format.txt.
"""

from __future__ import annotations

from collections.abc import Iterator

from inception_jax.crc32c import crc32c, unmask
from inception_jax.weight_files.protobuf_wire import read_varint
from inception_jax.weight_files.types import Cost, ReadBudget, ReadError

MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")  # the last eight bytes of a table
_FOOTER = 48  # two block handles, padding, magic
_TRAILER = 5  # a block's compression type, and its masked CRC-32C


def is_table(data: memoryview) -> bool:
    """Returns whether the bytes end with the footer of a table."""
    return len(data) >= _FOOTER and bytes(data[-8:]) == MAGIC


def entries(data: memoryview, budget: ReadBudget) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the (key, value) pairs of a table, in order.

    Args:
      data: the whole table.
      budget: to which the keys are charged.

    Raises:
      ReadError: the table is truncated, damaged or compressed, a checksum is wrong, or the keys do not ascend.
    """
    if not is_table(data):
        raise ReadError("the end of the table is missing: the file is truncated")
    footer = data[-_FOOTER:]
    _, position = _handle(footer, 0)
    index, _ = _handle(footer, position)
    last = None
    for _, value in _block_entries(_block(data, index), budget):
        handle, _ = _handle(value, 0)
        for key, entry in _block_entries(_block(data, handle), budget):
            # Ascending keys also mean that no block is read twice, whatever the index says.
            if last is not None and key <= last:
                raise ReadError("the keys of the table do not ascend: the file is damaged")
            last = key
            yield key, entry


def _handle(data: memoryview, position: int) -> tuple[tuple[int, int], int]:
    """Reads a block's (offset, size); returns it and the position after it."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def _block(data: memoryview, handle: tuple[int, int]) -> memoryview:
    """Returns the contents of one block, after its checksum has been compared."""
    offset, size = handle
    if offset + size + _TRAILER > len(data) - _FOOTER:
        raise ReadError(f"a block of {size:,} bytes at {offset:,} lies outside of the table: the file is damaged")
    contents, kind = data[offset : offset + size], data[offset + size]
    stored = int.from_bytes(data[offset + size + 1 : offset + size + _TRAILER], "little")
    if crc32c(data[offset : offset + size + 1]) != unmask(stored):
        raise ReadError(f"the checksum of the block at byte {offset:,} is wrong: the file is damaged")
    if kind == 0:
        return contents
    if kind == 1:
        raise ReadError(
            f"the block at byte {offset:,} is compressed with Snappy, which TensorFlow's checkpoint writers never do: "
            "it is not read; restore the checkpoint in TensorFlow and save it again"
        )
    raise ReadError(
        f"the block at byte {offset:,} has the unknown compression type {kind}; TensorFlow writes type 0, uncompressed"
    )


def _block_entries(block: memoryview, budget: ReadBudget) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the entries of a block; each key is stored as the bytes that differ from the key before."""
    if len(block) < 4:
        raise ReadError("a block is too short: the file is damaged")
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ReadError("a block has more restart points than bytes: the file is damaged")
    body, position, key = block[:end], 0, b""
    while position < end:
        shared, position = read_varint(body, position)
        own, position = read_varint(body, position)
        size, position = read_varint(body, position)
        if shared > len(key) or own + size > end - position:
            raise ReadError("an entry reaches out of its block: the file is damaged")
        # A few bytes can declare a key as long as the one before.
        budget.charge(shared + own, "a key of the table")
        budget.charge_objects(Cost.ENTRY, "a table of many entries")
        key = key[:shared] + bytes(body[position : position + own])
        position += own
        yield key, body[position : position + size]
        position += size
