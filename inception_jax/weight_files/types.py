"""What a reader returns, what it raises, and how much it may hand out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_LIMIT = 4 << 30  # bytes: eight times the largest published file of the family
# A file of weights hardly compresses (float32 mantissas are noise). Above the floor, more than this many times the
# file's own size is a bomb: 1 MB of zip can declare 1 GB of zeros.
_INFLATION_FLOOR = 64 << 20
_INFLATION_FACTOR = 100
_MAX_NAME = 1000  # characters of an array's name; the longest published one has about a hundred


class ReadError(Exception):
    """Why a file cannot be read, without the file's name: `read_weights` puts that in front."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The arrays of one file of weights, as the publisher named, laid out and typed them.

    Attributes:
      arrays: the arrays by name, in the order of the file. They may be read-only and may be views with strides.
      format: one of `FORMATS`.
      sha256: hex digest of the file; of a TensorFlow V2 checkpoint, of its index and then its data files.
      metadata: what else the file says that an importer may want; the keys are listed at each format's reader.
    """

    arrays: dict[str, np.ndarray]
    format: str
    sha256: str
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ParsedFile:
    """What a format's reader makes of the bytes of one file."""

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InputFile:
    """The bytes of one file, and what a reader may know of where they came from.

    Attributes:
      name: the file's name, for messages; never opened.
      data: the whole file.
      directory: where files that belong to it lie; None where it came out of an archive.
    """

    name: str
    data: memoryview
    directory: Path | None = None


class ReadBudget:
    """How many bytes of arrays a file may still declare.

    Declared sizes are charged before anything of that size is made, so that a small file cannot ask for much memory.
    """

    def __init__(self, limit: int, file_size: int):
        """Args: limit, the most bytes of arrays; file_size, the bytes of the file on disk."""
        self.limit, self.file_size = limit, 0
        self._spent = 0
        self.add_file(file_size, "the file")

    def add_file(self, size: int, what: str) -> None:
        """Counts a further file that is read, which may declare as much for its size; ReadError above the limit."""
        self.file_size += size
        if self.file_size > self.limit:
            raise ReadError(
                f"{what} brings what is read to {self.file_size:,} bytes, above the limit of {self.limit:,}"
            )
        self._inflated = max(_INFLATION_FLOOR, _INFLATION_FACTOR * self.file_size)

    def charge(self, size: int, what: str) -> None:
        """Raises ReadError if `what` takes the sum of declared bytes above what is allowed."""
        self._spent += size
        if self._spent > self.limit:
            raise ReadError(f"{what} brings the arrays to {self._spent:,} bytes, above the limit of {self.limit:,}")
        if self._spent > self._inflated:
            raise ReadError(
                f"{what} brings the arrays to {self._spent:,} bytes, though the file has {self.file_size:,}: "
                f"more than {_INFLATION_FACTOR} times as much is not read"
            )

    def charge_array(self, shape: Iterable[int], dtype: np.dtype, what: str) -> tuple[int, ...]:
        """Charges an array and returns its shape as a tuple; ReadError if NumPy could not hold such a shape."""
        shape = tuple(shape)
        if len(shape) > 32 or any(size < 0 for size in shape):
            raise ReadError(f"{what} has the impossible shape {list(shape[:8])}")
        # An empty array may declare other sizes at will; NumPy refuses the product of the others where it overflows.
        if math.prod(size for size in shape if size) * dtype.itemsize >= 1 << 62:
            raise ReadError(f"{what} has the impossible shape {list(shape)}")
        self.charge(math.prod(shape) * dtype.itemsize, what)
        return shape


def decode_utf8(data: bytes | memoryview, what: str) -> str:
    """UTF-8 text of bytes; ReadError naming `what` if they are none."""
    try:
        return bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        raise ReadError(f"{what} is not text: {bytes(data[:20])!r}") from None


def add_array(arrays: dict[str, np.ndarray], name: str, array: np.ndarray) -> None:
    """Puts an array under its name; ReadError if the file has the name twice, or it could not stand in a message."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise ReadError(f"an array has the name {name[:80]!r}, of {len(name):,} characters: no name of a weight")
    if name in arrays:
        raise ReadError(f"{name!r} occurs twice")
    arrays[name] = array
