"""Keeps the labels of a large prepared data set in the user's cache, so that only the first start reads all records.

The file is used only for the same shards: their names, sizes, times of the last change and ranges of records.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inception_jax.data.index_files import write_file
from inception_jax.user_cache import cache_folder


def path(digest: str, files: Sequence[str]) -> Path | None:
    """The file of the labels of a source.

    Args:
      digest: of the source: names and sizes of its files, and the ranges of records.
      files: the paths of its files.

    Returns:
      None where a file is missing.
    """
    try:
        times = [os.stat(file).st_mtime_ns for file in files]
    except OSError:
        return None
    name = hashlib.sha256(f"{digest} {times}".encode()).hexdigest()[:32]
    return cache_folder("labels") / f"{name}.npy"


def read(file: Path, count: int) -> np.ndarray | None:
    """Reads labels, int64 [count]; None where the file is missing or is not one of so many labels."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        labels = np.load(file, allow_pickle=False)
        if labels.shape == (count,) and labels.dtype == np.int32:
            return labels.astype(np.int64)
    return None


def write(file: Path, labels: np.ndarray) -> None:
    """Writes labels, atomically; does nothing where some are unknown (-1), or there is no place."""
    if not (labels < 0).any():
        write_file(file, lambda out: np.save(out, labels.astype(np.int32)))
