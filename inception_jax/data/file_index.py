"""Keeps what was found by reading through a file once (where its records begin), so that later starts need not.

The index of a file is `.inception_jax_offsets/NAME.npz` beside it, or, where that folder is read-only, in
`inception_jax/offsets` of the user's cache directory. It is used only while the file's size and the times of its last
change (mtime, ctime) are the same, and is written only when that change is older than two seconds.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from inception_jax.data import index_files
from inception_jax.data.names import printable
from inception_jax.errors import UserError

FOLDER = ".inception_jax_offsets"
"""The folder beside the indexed files."""

_VERSION = 1
_THREADS = 16  # of waiting for a disk or a network, mostly
_MANY_BYTES = 1 << 30  # files of so many bytes take so long to index that a line says so

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


def load(
    files: Sequence[str],
    is_valid: Callable[[str, Arrays, int], bool],
    make: Callable[[str], Arrays],
    what: str,
    variant: str = "",
) -> dict[str, Arrays]:
    """Reads the indices of files; makes those that are missing or out of date, and keeps them where they can be kept.

    Args:
      files: the paths of the files.
      is_valid: whether arrays are an index of a file of so many bytes; the index may be anybody's.
      make: reads through a file, and returns the arrays, one-dimensional and of integers.
      what: is looked for, with a place for the number of files, for a line where that takes long.
      variant: a part of the index's name, such as ".1f0c", where a file has several.

    Returns:
      {path of a file: its index}.

    Raises:
      UserError: a file is missing or cannot be read; whatever `make` raises.
    """
    try:
        found = {file: index for file in files if (index := _read(file, is_valid, variant)) is not None}
        missing = [file for file in dict.fromkeys(files) if file not in found]
        if sum(os.path.getsize(file) for file in missing) > _MANY_BYTES:
            print(f"finding {what.format(f'{len(missing):,}')}, once", file=sys.stderr)
        with ThreadPoolExecutor(_THREADS) as pool:
            made = pool.map(lambda file: _build(file, make, variant), missing)
            return found | dict(zip(missing, made, strict=True))
    except OSError as error:
        raise UserError(f"{printable(str(error.filename))}: {error.strerror or error}") from None


def _read(file: str, is_valid: Callable[[str, Arrays, int], bool], variant: str) -> Arrays | None:
    """Reads the index of a file; None where there is none, or where the file has changed since."""
    stamp = _stamp(file)
    for path in paths(file, variant):
        with contextlib.suppress(*index_files.DAMAGED):
            arrays = index_files.read_arrays(path)
            if np.array_equal(arrays.pop("stamp"), stamp) and is_valid(file, arrays, int(stamp[1])):
                return arrays
    return None


def _build(file: str, make: Callable[[str], Arrays], variant: str) -> Arrays:
    """Makes the index of a file and keeps it, where it can be kept."""
    stamp = _stamp(file)
    arrays = make(file)
    if index_files.has_settled(int(stamp[2:].max())) and np.array_equal(_stamp(file), stamp):
        index_files.write_arrays(paths(file, variant), {"stamp": stamp, **arrays})
    return arrays
