"""Small files of integers that this package keeps beside data or in the user's cache: indices of folders and of files.

They may be anybody's: they came with the data, perhaps from elsewhere. One that this package would not have written is
not used, and takes no more memory than its own size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from inception_jax.data.names import encode
from inception_jax.user_cache import cache_folder

_SETTLED_SECONDS = 2.0
DAMAGED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, zipfile.BadZipFile)
"""What reading a file raises that is not, or no longer, an index."""

# The header of a .npy file, of version 1.0, for a one-dimensional array of integers (numpy.lib.format).
_HEADER = re.compile(
    rb"\x93NUMPY\x01\0..{'descr': '(?P<dtype>[|<][ui][1248])', 'fortran_order': False, 'shape': "
    rb"\((?P<length>\d{1,12}),\), } *\n",
    re.DOTALL,
)


def cache_path(kind: str, path: str) -> Path:
    """The file in the user's cache directory for a file or folder: `inception_jax/KIND/…` below it."""
    name = hashlib.sha256(encode(os.path.realpath(path))).hexdigest()[:32]
    return cache_folder(kind) / f"{name}.npz"


def has_settled(time_ns: int) -> bool:
    """Whether a change is older than two seconds.

    A later one has another time then, whatever the resolution of the file system's clock (as in git's index).
    """
    return time_ns < time.time_ns() - _SETTLED_SECONDS * 1e9


def write_arrays(paths: Sequence[Path], arrays: Mapping[str, np.ndarray]) -> Path | None:
    """Writes one-dimensional arrays of integers, atomically, to the first of these paths that can be written.

    Returns:
      That path; None where none can be written.
    """

    def write(file: BinaryIO) -> None:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # NumPy's stub takes its own keyword for one of ours

    return next((path for path in paths if write_file(path, write)), None)


def write_file(path: Path, write: Callable[[BinaryIO], None]) -> bool:
    """Writes a file atomically, in a folder that it makes; returns whether it could be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    return True


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file of one-dimensional arrays of integers, as `write_arrays` makes them.

    Raises:
      ValueError: it is another one: compressed, or with an array of another kind or length than its bytes.
      OSError: it cannot be read.
      zipfile.BadZipFile: it is damaged.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename}: compressed")
            stored = archive.read(member)
            header = _HEADER.match(stored)
            if header is None:
                raise ValueError(f"{member.filename}: no array of integers")
            values = np.frombuffer(stored, header["dtype"].decode(), offset=header.end())
            if len(values) != int(header["length"]):
                raise ValueError(f"{member.filename}: {len(values)} values, not {int(header['length'])}")
            arrays[member.filename.removesuffix(".npy")] = values
    return arrays
