"""What the input says on standard error: whole lines, whichever process or thread they come from."""

from __future__ import annotations

import sys
import threading

_lock = threading.Lock()
_named: set[str] = set()


def warn(text: str) -> None:
    """One line, with its end in the same write: the lines of several processes must not run into each other."""
    sys.stderr.write(f"warning: {text}\n")
    sys.stderr.flush()


def warn_once(record: str, text: str) -> None:
    """One line about a record; nothing where this process has said one about the same record before.

    Args:
      record: its name, unlike that of any other.
      text: what to say of it.
    """
    with _lock:
        if record in _named:
            return
        _named.add(record)
    warn(text)
