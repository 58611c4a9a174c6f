"""Reads records of TFRecord files by index, without TensorFlow: offsets are found once per file and kept.

The format (TensorFlow, `core/lib/io/record_writer.h`): for each record its length as uint64, the masked CRC-32C of
these 8 bytes, the data, and the masked CRC-32C of the data; integers are little-endian. The index is built from the
lengths alone, each with its checksum, without reading the data; the checksum of the data is compared at each read.

`tfds.data_source` refuses this format, which has no index of its own, and `tfds.load` reads it through TensorFlow.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

import numpy as np

from inception_jax.crc32c import crc32c, unmask
from inception_jax.data import file_index
from inception_jax.data.names import printable
from inception_jax.errors import UserError

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_OVERHEAD = _HEADER.size + _CHECKSUM.size
_REMEDY = "copy the file again, or prepare the data set again"


def load_offsets(files: Sequence[str]) -> list[np.ndarray]:
    """Where the records of files begin, from their indices; makes those that are missing or out of date.

    Args:
      files: paths of TFRecord files.

    Returns:
      For each file int64 [n + 1]: the byte at which each record begins, and the size of the file.

    Raises:
      UserError: a file is missing, truncated or damaged.
    """
    found = file_index.load(files, _is_valid, _find_records, "the records of {} TFRecord files")
    return [found[file]["offsets"] for file in files]


def _is_valid(file: str, arrays: file_index.Arrays, size: int) -> bool:
    del file
    offsets = arrays["offsets"]
    return bool(
        offsets.dtype == np.int64
        and len(offsets)
        and offsets[0] == 0
        and offsets[-1] == size
        and 0 <= offsets.min() <= offsets.max() <= size  # or a difference may overflow
        and (np.diff(offsets) >= _OVERHEAD).all()
    )


def _find_records(path: str) -> file_index.Arrays:
    """Walks through the lengths of a file: {"offsets": int64 [n + 1]}.

    Raises:
      UserError: it is truncated or damaged, or no TFRecord file.
    """
    offsets, position = [0], 0
    with open(path, "rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        while position < size:
            header = os.pread(descriptor, _HEADER.size, position)
            where = f"{printable(path)}: record {len(offsets) - 1}, at byte {position:,} of {size:,}"
            if len(header) < _HEADER.size:
                raise UserError(f"{where}: truncated; {_REMEDY}")
            length, checksum = _HEADER.unpack(header)
            if crc32c(header[:8]) != unmask(checksum):
                if position == 0 and header[:2] == b"\x1f\x8b":
                    raise UserError(f"{printable(path)}: a compressed TFRecord file has no random access; gunzip it")
                raise UserError(f"{where}: the checksum of its length is wrong: damaged; {_REMEDY}")
            position += _OVERHEAD + length
            if position > size:
                raise UserError(f"{where}: truncated, {position - size:,} bytes are missing; {_REMEDY}")
            offsets.append(position)
    return {"offsets": np.array(offsets, np.int64)}


def parse_record(content: bytes, size: int) -> bytes:
    """Returns the data of one record.

    Args:
      content: the bytes of the record in its file.
      size: how many there should be, by the index.

    Raises:
      ValueError: a length or a checksum does not match.
    """
    if len(content) != size:
        raise ValueError("the file is truncated")
    length, checksum = _HEADER.unpack_from(content)
    if crc32c(content[:8]) != unmask(checksum) or length != size - _OVERHEAD:
        raise ValueError("its length is not that of the index")
    data = content[_HEADER.size : -_CHECKSUM.size]
    if crc32c(data) != unmask(_CHECKSUM.unpack(content[-_CHECKSUM.size :])[0]):
        raise ValueError("its checksum is wrong")
    return data
