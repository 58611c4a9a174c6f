"""File names: a million of them in one array, and as text that can be printed whatever their encoding."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from inception_jax.errors import nearest

_MAX_ENTRIES = 10_000  # of a folder whose names are compared


def encode(name: str) -> bytes:
    """The bytes of a name as the operating system has them; a name that is not UTF-8 keeps its own bytes."""
    return name.encode("utf-8", "surrogateescape")


def printable(name: str) -> str:
    r"""A name as text for messages and files: a byte that is not UTF-8 is written as `\xe9`."""
    return encode(name).decode("utf-8", "backslashreplace")


def one_line(name: str) -> str:
    r"""A name as text of one line: as `printable`, and line breaks and other control characters as `\n`, `\x1b`."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in printable(name)
    )


def nearest_entry(path: str | os.PathLike) -> str:
    """A clause for a path that is not there: `; did you mean '…'?`, or where a relative one begins.

    Args:
      path: of a file or a folder.

    Returns:
      The name nearest to its first missing part; else, of a relative path, the current folder; else "".
    """
    start = "" if os.path.isabs(path) else f"; it is looked for in {one_line(os.getcwd())}, the current folder"
    missing = Path(path).absolute()
    while not os.path.isdir(missing.parent) and missing != missing.parent:
        missing = missing.parent
    try:
        names = os.listdir(missing.parent)
    except OSError:
        return start
    near = nearest(missing.name, map(one_line, names)) if len(names) <= _MAX_ENTRIES else ""
    return f"{near} (in {one_line(str(missing.parent))})" if near else start


class PackedNames(Sequence[str]):
    """A sequence of strings without a Python object for each; it pickles, and is made from one array, quickly."""

    def __init__(self, packed: np.ndarray):
        """Makes the sequence.

        Args:
          packed: uint8 [bytes]; each name as UTF-8, with a zero byte after it.
        """
        self.packed = packed

    @classmethod
    def pack(cls, names: Iterable[str]) -> PackedNames:
        """Packs strings without zero bytes, such as file names."""
        return cls(np.frombuffer(b"".join([encode(name) + b"\0" for name in names]), np.uint8))

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.flatnonzero(self.packed == 0)

    def __getstate__(self) -> dict[str, np.ndarray]:
        return {"packed": self.packed}

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = range(len(self))[index]  # negative ones, and the IndexError of a sequence
        start = int(self._ends[position - 1]) + 1 if position else 0
        return self.packed[start : int(self._ends[position])].tobytes().decode("utf-8", "surrogateescape")

    def take(self, order: Sequence[int] | np.ndarray) -> PackedNames:
        """The names at these positions, in this order."""
        names = self.packed.tobytes().split(b"\0")
        return PackedNames(np.frombuffer(b"".join([names[i] + b"\0" for i in order]), np.uint8))
