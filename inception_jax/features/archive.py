"""Writes an .npz file row by row: no array is ever completely in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from inception_jax.errors import UserError, write_error

_CHUNK = 1 << 24  # bytes copied at a time


class RowArchive(contextlib.AbstractContextManager):
    """Writes arrays by rows, inside a `with` block. The file appears, complete, when `close` has run without an error.

    The rows of each array are collected in a temporary file beside the result, because a zip archive takes one member
    after another: during the work twice the space of the result is needed.
    """

    def __init__(self, path: str | os.PathLike):
        """Creates the temporary folder.

        Args:
          path: the .npz file; an existing file of that name is replaced at the end.

        Raises:
          UserError: another suffix than .npz, or a folder that cannot be written to.
        """
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise UserError(f"{self.path}: the file name must end in .npz")
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise write_error(self.path, error) from None
        self._files: dict[str, IO[bytes]] = {}
        self._row_types: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._counts: dict[str, int] = {}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows to arrays.

        Args:
          rows: name -> [n, ...]; an array's first rows determine its dtype and shape.

        Raises:
          ValueError: rows of another dtype or shape than the first ones.
          UserError: the disk is full.
        """
        for name, values in rows.items():
            row_type = values.dtype, values.shape[1:]
            if name not in self._files:
                self._files[name] = (self._folder / str(len(self._files))).open("wb")
                self._row_types[name], self._counts[name] = row_type, 0
            if row_type != self._row_types[name]:
                raise ValueError(f"{name}: rows of {row_type}, the first ones are of {self._row_types[name]}")
            with self._user_errors():
                self._files[name].write(np.ascontiguousarray(values).data)
            self._counts[name] += len(values)

    def close(self, **whole: Any) -> None:
        """Writes the archive.

        Args:
          **whole: further arrays, small ones.

        Raises:
          UserError: the disk is full.
        """
        part = self._folder / "archive"
        with self._user_errors():
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, file in self._files.items():
                    file.close()
                    dtype, shape = self._row_types[name]
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (self._counts[name], *shape),
                    }
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array_header_1_0(member, header)
                        with open(file.name, "rb") as rows:
                            shutil.copyfileobj(rows, member, _CHUNK)
                    os.unlink(file.name)
                for name, values in whole.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)
            part.replace(self.path)

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # on a full disk what is left in the buffer fails once more
                file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Turns an OSError into a UserError."""
        try:
            yield
        except OSError as error:
            raise write_error(self.path, error) from None
