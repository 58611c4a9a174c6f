"""The progress of a command that counts examples, images or bytes: one line on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO


class ProgressLine:
    """Reports progress: one line, rewritten, in a terminal; else a line every ten seconds.

    As a context manager it ends a line that is not complete, so that an error begins a line of its own.
    """

    def __init__(self, stream: TextIO | None = None):
        """Makes a reporter.

        Args:
          stream: to write to; None: standard error.
        """
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._last = 0.0
        self._open = False

    def __call__(self, what: str, done: int, total: int) -> None:
        """Reports that `done` of `total` are done; not all calls are shown, but the last one is."""
        now = time.monotonic()
        if done < total and now - self._last < (0.2 if self._terminal else 10.0):
            return
        self._last = now
        line = f"{what}: {done:,} of {total:,} ({done / max(total, 1):.0%})"
        self._stream.write(f"\r{line}\033[K" + "\n" * (done >= total) if self._terminal else f"{line}\n")
        self._stream.flush()
        self._open = self._terminal and done < total

    def log(self, line: str) -> None:
        """Writes a whole line."""
        print(line, file=self._stream, flush=True)

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._open:
            self._open = False
            self.log("")
