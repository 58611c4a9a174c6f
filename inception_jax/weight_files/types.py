"""Types that all readers share: their input, their result, their error, and the budget of a file."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

DEFAULT_LIMIT = 4 << 30  # bytes: eight times the largest published file of the family
# Weights hardly compress (float32 mantissas are noise). Above the floor, arrays of more than this many times the
# file's own size mean a decompression bomb: 1 MB of zip can declare 1 GB of zeros.
_INFLATION_FLOOR = 64 << 20
_INFLATION_FACTOR = 100
_OBJECTS_FLOOR, _BYTES_PER_OBJECT = 3_000_000, 64
_SECONDS_FLOOR, _BYTES_PER_SECOND = 30.0, 1e6
_OBJECTS_PER_LOOK = 10_000  # units between two looks at the clock
_MAX_NAME = 1000  # characters of an array's name; the longest published one has about a hundred


class Cost:
    """Units of `ReadBudget.charge_objects` for what is more than one small object, in bytes and in time."""

    FIELD = 4  # of a protobuf message: a tuple and a memoryview
    RUN = 16  # of fields of a fixed size: NumPy looks for more of them
    MESSAGE = 16  # a message with its dictionary of fields
    MEMBER = 40  # of a zip or a tar
    GROUP = 100  # or a dataset of an HDF5 file
    ENTRY = 8  # of a table: a key and a memoryview


class ReadError(Exception):
    """A file cannot be read. The message lacks the file's name: `read_weights` puts it in front."""


class BudgetError(ReadError):
    """A file asks for more than it may: it is refused, whatever else it might be."""


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
    """Limits what reading a file may take: bytes of arrays, objects, and seconds. One for all readers.

    Everything is charged before it is allocated or computed, so that a small file cannot ask for much.

    * **Bytes**: of arrays and of what is decompressed, at most `limit`, and at most 100 times the bytes of the file
      (64 MiB are always allowed): weights hardly compress, because mantissas of float32 are noise.
    * **Objects**: the Python objects that a parser makes, in units of about 100 bytes or a microsecond (`Cost`): a step
      of a pickle and a value of JSON are one, a field of a protobuf message four. 3,000,000 are always allowed, which
      end after at most 300 MB and five CPU-seconds, and one more for every 64 bytes of the file, so that they take at
      most about twice its size. Ordinary files need far less: a tensor of a state dict takes about 60, a node of a
      frozen graph 260 (so that a file of 95 MB may have 17,000), a node of an ONNX model 240, a training state with its
      optimizer 200,000 in all.
    * **Seconds**: of this thread's processor time, 30 and one more for every MB; a file of 100 MB takes less than one.
      Charges of objects look at the clock. It ends what the other two limits do not foresee.

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
          BudgetError: the file is above the limit.
        """
        self.limit, self.file_size = limit, 0
        self._spent = self._objects = 0
        self._next_look = _OBJECTS_PER_LOOK
        self._started = time.thread_time()
        self.add_file(file_size, "the file")

    def add_file(self, size: int, what: str) -> None:
        """Counts a further file, whose size raises what the arrays may take.

        Args:
          size: its bytes.
          what: its name, for messages.

        Raises:
          BudgetError: all files together are above the limit.
        """
        self.file_size += size
        if self.file_size > self.limit:
            raise BudgetError(f"{what} brings the files to {self.file_size:,} bytes, above the limit of {self.limit:,}")
        self._inflated = max(_INFLATION_FLOOR, _INFLATION_FACTOR * self.file_size)
        self._most_objects = _OBJECTS_FLOOR + self.file_size // _BYTES_PER_OBJECT
        self._seconds = _SECONDS_FLOOR + self.file_size / _BYTES_PER_SECOND

    def charge_objects(self, count: int, what: str) -> None:
        """Adds objects, and looks at the clock from time to time.

        Args:
          count: units, as the class describes them.
          what: what they are, for messages.

        Raises:
          BudgetError: there are too many for the size of the file, or reading has taken too long.
        """
        self._objects += count
        if self._objects > self._most_objects:
            raise BudgetError(
                f"{what}: too many objects for a file of {self.file_size:,} bytes, which no file of weights has"
            )
        if self._objects >= self._next_look:
            self._next_look = self._objects + _OBJECTS_PER_LOOK
            self.check_time(what)

    def check_time(self, what: str) -> None:
        """Looks at the clock; `charge_objects` does so by itself.

        Args:
          what: what is read, for the message.

        Raises:
          BudgetError: reading has taken too long.
        """
        if time.thread_time() - self._started > self._seconds:
            raise BudgetError(
                f"{what}: reading has taken {self._seconds:.0f} s of processor time, which no file of "
                f"{self.file_size:,} bytes needs"
            )

    def charge(self, size: int, what: str) -> None:
        """Adds declared bytes.

        Args:
          size: the bytes.
          what: what they are, for messages.

        Raises:
          BudgetError: the sum is above the limit, or above 100 times the bytes of the files (64 MiB are always
            allowed).
        """
        self._spent += size
        if self._spent > self.limit:
            raise BudgetError(f"{what} brings the arrays to {self._spent:,} bytes, above the limit of {self.limit:,}")
        if self._spent > self._inflated:
            raise BudgetError(
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


def parse_json(text: str, what: str, budget: ReadBudget, **options: Any) -> Any:
    """Parses JSON; its values are counted by their separators before they are made.

    Args:
      text: the JSON.
      what: what it is, for the message.
      budget: to which the values are charged.
      **options: of `json.loads`.

    Raises:
      ReadError: it is not JSON, or has too many values.
    """
    budget.charge_objects(sum(text.count(mark) for mark in ",:[{"), what)
    try:
        return json.loads(text, **options)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{what} is not JSON ({error!s:.80}): the file is damaged") from None


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
