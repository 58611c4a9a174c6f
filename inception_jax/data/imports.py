"""Imports that are made when a record is first read."""

from __future__ import annotations

import importlib
import threading
from typing import Any

_importing = threading.Lock()


def import_module(name: str) -> Any:
    """Imports a module in one thread at a time: TFDS replaces `builtins.__import__` while it is imported."""
    with _importing:
        return importlib.import_module(name)
