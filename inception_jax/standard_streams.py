"""Standard output and standard error that may be closed, full, or a terminal that has gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO


class _Stream:
    """A stream with another `write` and `flush`; what these classes do not define is that of the stream."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    @property
    def encoding(self) -> str:
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes a text; replaces characters that the stream cannot encode (in a locale without UTF-8)."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            return self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))


class SafeStream(_Stream):
    """A stream that ignores write errors: a terminal that was closed must not end the run."""

    def write(self, text: str) -> int:
        """Writes a text, where that is possible."""
        try:
            return super().write(text)
        except (OSError, ValueError):  # ValueError: closed
            return len(text)

    def flush(self) -> None:
        """Flushes the stream, where it is still open."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Returns whether the stream is an open terminal."""
        try:
            return self._stream.isatty()
        except (AttributeError, ValueError):
            return False


class RecordingStream(_Stream):
    """A stream that remembers its first write error, after which it writes nothing more.

    The error is not raised: a command whose output nobody reads (`| head`) finishes its files, and keeps its exit code.
    `command_line.run` asks `stdout_failure` at the end.

    Attributes:
      failure: the error; None: there was none.
    """

    failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes a text, unless a write has failed."""
        self._record(lambda: super(RecordingStream, self).write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream, unless a write has failed."""
        self._record(self._stream.flush)

    def _record(self, call: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                call()
            except OSError as error:
                self.failure = error


def prepare() -> None:
    """Prepares the streams of a command: closed ones are /dev/null, write errors are ignored (stderr) or remembered.

    Without this, the next file that is opened would get the number of a closed stream, and with it all that libraries
    write there; `print(…, file=sys.stderr)` would write to standard output; and a full disk under standard error would
    end a run.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)
    # Not what a test or a notebook has put there.
    own_stdout, own_stderr = sys.stdout is sys.__stdout__, sys.stderr is sys.__stderr__
    if own_stdout:
        sys.stdout = RecordingStream(sys.stdout)
    if own_stderr:
        sys.stderr = SafeStream(sys.stderr)


def is_terminal(stream: TextIO | SafeStream) -> bool:
    """Returns whether a stream is a terminal that can draw lines anew."""
    return stream.isatty() and os.environ.get("TERM") not in (None, "dumb", "unknown")


def stdout_failure() -> OSError | None:
    """Flushes standard output; returns the error where that, or a write before it, has failed."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return getattr(sys.stdout, "failure", None)


def discard_stdout() -> None:
    """Sends what standard output could not write to /dev/null: at exit, Python would report it with its own code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
