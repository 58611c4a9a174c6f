"""Files that are read at any position by many threads, of which only some are open at a time."""

from __future__ import annotations

import functools
import os
from typing import Any

MAX_OPEN = 256
"""Open files per source and process; a process may have 1,024 on many systems."""


class _OpenFile:
    """An open file that is closed when the last thread that uses it lets it go."""

    def __init__(self, path: str):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class OpenFiles:
    """Opens files when they are read, and keeps those open that were read last; it pickles without them."""

    def __init__(self) -> None:
        self._open = functools.lru_cache(MAX_OPEN)(_OpenFile)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenFiles, ()

    def read(self, path: str, start: int, size: int) -> bytes:
        """Reads bytes `start … start + size - 1` of a file; fewer where it ends before.

        Raises:
          OSError: it cannot be opened or read.
        """
        file = self._open(path)
        return os.pread(file.descriptor, size, start)
