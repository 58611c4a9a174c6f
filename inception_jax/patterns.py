"""Regular expressions of the user: compiled once, bounded in length, and in the time that a search may take.

A short expression can search for longer than a run lasts: `(.|.)*!` tries 2**n ways through a path of n letters.
"""

from __future__ import annotations

import contextlib
import functools
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from inception_jax.errors import UserError, shorten

MAX_LENGTH = 1000
SECONDS = 5.0
"""CPU-seconds that one expression may search; all paths of the largest network take some milliseconds."""
LIMIT = f"of at most {MAX_LENGTH:,} characters"


def is_pattern(value: Any) -> bool:
    """Returns whether a value is a regular expression that can be used."""
    try:
        compile_pattern(value, "")
    except UserError:
        return False
    return True


def compile_pattern(value: Any, field: str) -> re.Pattern[str]:
    """Compiles a regular expression.

    Args:
      value: the expression.
      field: the config field or flag, for the message.

    Raises:
      UserError: it is not a string, too long, or not a regular expression.
    """
    if not isinstance(value, str) or len(value) > MAX_LENGTH:
        raise UserError(f"{field}: {shorten(repr(value))} is not a regular expression {LIMIT}")
    try:
        return _compile(value)
    except (re.error, OverflowError, RecursionError, MemoryError, ValueError) as error:
        raise UserError(f"{field}: {shorten(repr(value))} is not a regular expression: {error}") from None


_compile = functools.lru_cache(maxsize=256)(re.compile)


def search(pattern: re.Pattern[str], texts: Iterable[str], field: str) -> list[str]:
    """Returns the texts in which an expression is found.

    Args:
      pattern: from `compile_pattern`.
      texts: to search.
      field: the config field or flag, for the message.

    Raises:
      UserError: the search takes more than `SECONDS`. Only the main thread can be interrupted; in another one there
        is no limit.
    """
    with _interrupted(f"{field}: {shorten(repr(pattern.pattern))} does not end its search within {SECONDS:g} s; "
                      "a repeat inside of a repeat, such as (a*)*, can take forever: write it without"):  # fmt: skip
        return [text for text in texts if pattern.search(text)]


class _TimeUp(BaseException):
    """The search took too long."""


@contextlib.contextmanager
def _interrupted(message: str) -> Iterator[None]:
    """Ends the block after `SECONDS` CPU-seconds with a UserError. `re` looks for signals while it searches."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise _TimeUp

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    except _TimeUp:
        raise UserError(message) from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
