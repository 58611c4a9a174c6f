"""Keeps what was found by reading through a file once (where its records begin), so that later starts need not.

The index of a file is `.inception_jax_offsets/NAME.npz` beside it, or, where that folder is read-only, in
`inception_jax/offsets` of the user's cache directory. It is used only while the file's size and the times of its last
change (mtime, ctime) are the same, and is written only when that change is older than two seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inception_jax.data import index_files

FOLDER = ".inception_jax_offsets"
"""The folder beside the indexed files."""

_VERSION = 1

Arrays = dict[str, np.ndarray]


def paths(file: str, variant: str = "") -> list[Path]:
    """Where the index of a file may be: beside it, or in the user's cache directory; each variant has its own."""
    return [
        Path(os.path.dirname(file), FOLDER, f"{os.path.basename(file)}{variant}.npz"),
        index_files.cache_path("offsets", os.path.realpath(file) + variant),
    ]


def _stamp(file: str) -> np.ndarray:
    found = os.stat(file)
    return np.array([_VERSION, found.st_size, found.st_mtime_ns, found.st_ctime_ns], np.int64)


def read(file: str, is_valid: Callable[[Arrays, int], bool], variant: str = "") -> Arrays | None:
    """Reads the index of a file; None where there is none, or where the file has changed since.

    Args:
      file: the indexed file.
      is_valid: whether arrays are an index of a file of so many bytes; the index may be anybody's.
      variant: a part of the index's name, such as ".1f0c", where a file has several.

    Raises:
      OSError: the indexed file is missing or cannot be read.
    """
    stamp = _stamp(file)
    for path in paths(file, variant):
        with contextlib.suppress(*index_files.DAMAGED):
            arrays = index_files.read_arrays(path)
            if np.array_equal(arrays.pop("stamp"), stamp) and is_valid(arrays, int(stamp[1])):
                return arrays
    return None


def build(file: str, make: Callable[[str], Arrays], variant: str = "") -> Arrays:
    """Makes the index of a file and keeps it, where it can be kept.

    Args:
      file: to index.
      make: returns the arrays, one-dimensional and of integers.
      variant: as in `read`.
    """
    stamp = _stamp(file)
    arrays = make(file)
    if index_files.has_settled(int(stamp[2:].max())) and np.array_equal(_stamp(file), stamp):
        index_files.write_arrays(paths(file, variant), {"stamp": stamp, **arrays})
    return arrays
