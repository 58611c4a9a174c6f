"""Types that all readers share: their input, their result, their error, and the limit on memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_LIMIT = 4 << 30  # bytes: eight times the largest published file of the family
# Weights hardly compress (float32 mantissas are noise). Above the floor, arrays of more than this many times the
# file's own size mean a decompression bomb: 1 MB of zip can declare 1 GB of zeros.
_INFLATION_FLOOR = 64 << 20
_INFLATION_FACTOR = 100
_MAX_NAME = 1000  # characters of an array's name; the longest published one has about a hundred


class ReadError(Exception):
    """A file cannot be read. The message lacks the file's name: `read_weights` puts it in front."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of one weight file, with the names, layouts and dtypes of its publisher.

    Attributes:
      arrays: the arrays by name, in the order of the file. They may be read-only and may be views with strides.
      format: one of `FORMATS`.
      sha256: hex digest of the file; of a TensorFlow V2 checkpoint, of its index and then its data files.
      metadata: what else the file says that an importer may need; each format's reader lists its keys.
    """

    arrays: dict[str, np.ndarray]
    format: str
    sha256: str
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParsedFile:
    """The result of one format's reader.

    Attributes:
      arrays: as in `Weights`.
      metadata: as in `Weights`.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InputFile:
    """The bytes of one file, and where they came from.

    Attributes:
      name: the file's name, for messages; never opened.
      data: the whole file.
      directory: the folder that may hold further files of it; None for a member of an archive.
    """

    name: str
    data: memoryview
    directory: Path | None = None


class ReadBudget:
    """Limits the bytes of arrays that a file may declare.

    Sizes are charged before anything of that size is allocated, so that a small file cannot ask for much memory.

    Attributes:
      limit: the most bytes of files read, and of arrays declared.
      file_size: bytes of the files read so far.
    """

    def __init__(self, limit: int, file_size: int) -> None:
        """Starts with one file.

        Args:
          limit: the most bytes of arrays.
          file_size: bytes of the file on disk.

        Raises:
          ReadError: the file is above the limit.
        """
        self.limit, self.file_size = limit, 0
        self._spent = 0
        self.add_file(file_size, "the file")

    def add_file(self, size: int, what: str) -> None:
        """Counts a further file, whose size raises what the arrays may take.

        Args:
          size: its bytes.
          what: its name, for messages.

        Raises:
          ReadError: all files together are above the limit.
        """
        self.file_size += size
        if self.file_size > self.limit:
            raise ReadError(f"{what} brings the files to {self.file_size:,} bytes, above the limit of {self.limit:,}")
        self._inflated = max(_INFLATION_FLOOR, _INFLATION_FACTOR * self.file_size)

    def charge(self, size: int, what: str) -> None:
        """Adds declared bytes.

        Args:
          size: the bytes.
          what: what they are, for messages.

        Raises:
          ReadError: the sum is above the limit, or above 100 times the bytes of the files (64 MiB are always allowed).
        """
        self._spent += size
        if self._spent > self.limit:
            raise ReadError(f"{what} brings the arrays to {self._spent:,} bytes, above the limit of {self.limit:,}")
        if self._spent > self._inflated:
            raise ReadError(
                f"{what} brings the arrays to {self._spent:,} bytes, though the file has {self.file_size:,}: "
                f"more than {_INFLATION_FACTOR} times as much is not read"
            )

    def charge_array(self, shape: Iterable[int], dtype: np.dtype, what: str) -> tuple[int, ...]:
        """Charges the bytes of an array.

        Args:
          shape: its sizes, as the file declares them.
          dtype: its dtype.
          what: its name, for messages.

        Returns:
          The shape as a tuple.

        Raises:
          ReadError: as `charge`, or NumPy cannot hold such a shape.
        """
        shape = tuple(shape)
        if len(shape) > 32 or any(size < 0 for size in shape):
            raise ReadError(f"{what} has the impossible shape {list(shape[:8])}")
        # An empty array may declare other sizes at will; NumPy refuses the product of the others where it overflows.
        if math.prod(size for size in shape if size) * dtype.itemsize >= 1 << 62:
            raise ReadError(f"{what} has the impossible shape {list(shape)}")
        self.charge(math.prod(shape) * dtype.itemsize, what)
        return shape


def decode_utf8(data: bytes | memoryview, what: str) -> str:
    """Decodes UTF-8.

    Args:
      data: the bytes.
      what: what they are, for the message.

    Raises:
      ReadError: they are not UTF-8.
    """
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise ReadError(f"{what} is not text: {bytes(data[:20])!r}") from None


def add_array(arrays: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Adds an array under its name.

    Raises:
      ReadError: the file has the name twice, or the name is not printable or longer than 1,000 characters.
    """
    if len(name) > _MAX_NAME or not name.isprintable():
        raise ReadError(
            f"an array has the name {name[:80]!r} of {len(name):,} characters, which is not printable or too long"
        )
    if name in arrays:
        raise ReadError(f"{name!r} occurs twice")
    arrays[name] = array
