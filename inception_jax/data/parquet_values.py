"""Finds where the values of a column of bytes lie in a Parquet file, so that one can be read without its row group.

That is possible where a value lies in the file as it is, neither compressed nor in a dictionary: so does version 5.2.0
of the package `datasets` write images. The places are found once per file, from the headers of the pages and the
lengths before the values, and kept (`file_index`). No reader of Parquet for Python gives them.

The format: github.com/apache/parquet-format. A column of a row group is pages one after another. Before a page is its
header (Thrift's compact protocol); a page begins with the definition levels, which say which values are null, where a
value can be; then each value is its length, uint32, and its bytes. Integers are little-endian.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from inception_jax.data import file_index

LENGTH = struct.Struct("<I")
"""Before each value."""

_HEADER_BYTES = (256, 1 << 16)  # of a page, in which there may be the smallest and largest value
_DATA_PAGE, _DATA_PAGE_V2 = 0, 3
_PLAIN = 0


def load(files: Sequence[str], metadata: Sequence[Any], column: str) -> list[np.ndarray | None]:
    """Where the values of a column lie, from the indices of the files; makes those that are missing or out of date.

    Args:
      files: paths of Parquet files.
      metadata: of each, a `pyarrow.parquet.FileMetaData`.
      column: path of a column of bytes, such as "image.bytes".

    Returns:
      For each file int64 [2, n]: the byte at which each row's value begins, and its bytes. None: a value is
      compressed, in a dictionary, null or otherwise not to be found.

    Raises:
      UserError: a file is missing or cannot be read.
    """
    about = dict(zip(files, metadata, strict=True))
    usable = [file for file in files if _lie_as_they_are(about[file], column)]
    variant = f".{hashlib.sha256(column.encode()).hexdigest()[:8]}"
    found = file_index.load(
        usable,
        lambda file, arrays, size: _is_valid(arrays, size, about[file].num_rows),
        lambda file: _find_values(file, about[file], column),
        "the images in {} Parquet files",
        variant,
    )
    return [
        np.stack([index["offsets"], index["sizes"]])
        if (index := found.get(file)) is not None and len(index["offsets"]) == about[file].num_rows
        else None
        for file in files
    ]


def _lie_as_they_are(metadata: Any, column: str) -> bool:
    """Whether the file says that no value of a column is compressed, in a dictionary or null."""
    for place in range(len(metadata.schema)):
        described = metadata.schema.column(place)
        if described.path == column:
            break
    else:
        return False
    if described.physical_type != "BYTE_ARRAY" or described.max_repetition_level:
        return False
    for number in range(metadata.num_row_groups):
        chunk = metadata.row_group(number).column(place)
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or {*chunk.encodings} - {"PLAIN", "RLE"}:
            return False
        if described.max_definition_level and (chunk.statistics is None or chunk.statistics.null_count != 0):
            return False
    return True


def _is_valid(arrays: file_index.Arrays, size: int, rows: int) -> bool:
    offsets, sizes = arrays["offsets"], arrays["sizes"]
    if not (offsets.dtype == sizes.dtype == np.int64 and len(offsets) == len(sizes)):
        return False
    if not len(offsets):
        return True  # of a file whose values could not be found
    in_file = 0 < offsets.min() <= offsets.max() <= size and 0 <= sizes.min() <= sizes.max() <= size
    return len(offsets) == rows and bool(in_file and (offsets + sizes <= size).all())


def _find_values(file: str, metadata: Any, column: str) -> file_index.Arrays:
    """The offsets and sizes of all values; empty where they are not where they should be."""
    place = next(i for i in range(len(metadata.schema)) if metadata.schema.column(i).path == column)
    offsets: list[int] = []
    sizes: list[int] = []
    with open(file, "rb", buffering=0) as stream:
        try:
            for number in range(metadata.num_row_groups):
                chunk = metadata.row_group(number).column(place)
                has_levels = metadata.schema.column(place).max_definition_level > 0
                _walk_chunk(stream.fileno(), chunk, has_levels, offsets, sizes)
        except (ValueError, TypeError, LookupError, struct.error, RecursionError):  # of numbers that make no sense
            offsets, sizes = [], []
    return {"offsets": np.array(offsets, np.int64), "sizes": np.array(sizes, np.int64)}


def _walk_chunk(descriptor: int, chunk: Any, has_levels: bool, offsets: list[int], sizes: list[int]) -> None:
    """Adds the values of a column of a row group.

    Raises:
      ValueError: the pages are others than `_lie_as_they_are` says, or damaged; also what `_find_values` names.
    """
    position = chunk.data_page_offset
    end = position + chunk.total_compressed_size
    count = len(offsets) + chunk.num_values
    while len(offsets) < count:
        header, length = _read_header(descriptor, position)
        start = position + length
        if not 0 <= header[3] <= end - start:  # compressed_page_size
            raise ValueError(f"a page of {header[3]} bytes")
        position = start + header[3]
        if header[1] == _DATA_PAGE:
            page = header[5]
            encoding = page[2]
            if has_levels:
                start += LENGTH.size + LENGTH.unpack(os.pread(descriptor, LENGTH.size, start))[0]
        elif header[1] == _DATA_PAGE_V2:
            page = header[8]
            encoding = page[4]
            start += page[5] + page[6]  # of definition and repetition levels
        else:
            continue  # an index page
        if encoding != _PLAIN or not 0 <= page[1] <= count - len(offsets):
            raise ValueError(f"{page[1]} values of encoding {encoding}")
        for _ in range(page[1]):
            (size,) = LENGTH.unpack(os.pread(descriptor, LENGTH.size, start))
            offsets.append(start + LENGTH.size)
            sizes.append(size)
            start += LENGTH.size + size
        if start != position:
            raise ValueError(f"a page that ends at {position}, and not at {start}")


def _read_header(descriptor: int, position: int) -> tuple[dict[int, Any], int]:
    """The header of the page at a position, as {number of a field: its value}, and its length."""
    for size in _HEADER_BYTES:
        try:
            return _read_struct(os.pread(descriptor, size, position), 0)
        except IndexError:
            if size == _HEADER_BYTES[-1]:
                raise
    raise AssertionError


def _read_struct(content: bytes, position: int) -> tuple[dict[int, Any], int]:
    """A struct of Thrift's compact protocol, and where it ends; an IndexError where the content ends before."""
    found: dict[int, Any] = {}
    number = 0
    while (head := content[position]) != 0:
        position += 1
        if head >> 4:
            number += head >> 4
        else:
            number, position = _read_integer(content, position)
        kind = head & 15
        if kind in (1, 2):  # true, false
            found[number] = kind == 1
        elif kind == 3:  # a byte
            found[number], position = content[position], position + 1
        elif kind in (4, 5, 6):  # integers of 16, 32 and 64 bits
            found[number], position = _read_integer(content, position)
        elif kind == 8:  # bytes
            length, position = _read_varint(content, position)
            found[number], position = content[position : position + length], position + length
        elif kind == 12:
            found[number], position = _read_struct(content, position)
        else:
            raise ValueError(f"type {kind} in the header of a page")
    return found, position + 1


def _read_varint(content: bytes, position: int) -> tuple[int, int]:
    found = shift = 0
    while True:
        byte = content[position]
        position += 1
        found |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return found, position


def _read_integer(content: bytes, position: int) -> tuple[int, int]:
    found, position = _read_varint(content, position)
    return (found >> 1) ^ -(found & 1), position
