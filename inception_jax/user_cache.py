"""The folders of this package in the user's cache directory."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Returns `inception_jax/KIND` below $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "inception_jax", kind)
