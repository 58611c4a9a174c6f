"""An .npz file that grows row by row: no array is ever whole in memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from inception_jax.errors import UserError

_CHUNK = 1 << 24  # bytes copied at a time


class RowArchive(contextlib.AbstractContextManager):
    """Writes arrays by rows; inside `with`. The file appears, whole, when `close` has run without an error.

    The rows of each array wait in a file of its own beside the result, since a zip archive takes one member after
    another: on the way twice the space of the result is needed.
    """

    def __init__(self, path: str | os.PathLike):
        """Args:
          path: the .npz file; another one of that name is replaced at the end.

        Raises:
          UserError: its folder cannot be written to.
        """
        self.path = Path(path)
        if self.path.suffix != ".npz":
            raise UserError(f"{self.path}: the name of a NumPy archive ends in .npz")
        try:
            self._folder = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=self.path.parent))
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error})") from None
        self._files: dict[str, IO[bytes]] = {}
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._counts: dict[str, int] = {}

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends rows [n, ...] to each array named; an array's first rows say its dtype and shape.

        Raises:
          ValueError: rows of another dtype or shape than the first ones.
          UserError: the disk is full.
        """
        for name, values in rows.items():
            form = values.dtype, values.shape[1:]
            if name not in self._files:
                self._files[name] = (self._folder / str(len(self._files))).open("wb")
                self._forms[name], self._counts[name] = form, 0
            if form != self._forms[name]:
                raise ValueError(f"{name}: rows of {form}, the first ones are of {self._forms[name]}")
            with self._user_errors():
                self._files[name].write(np.ascontiguousarray(values).data)
            self._counts[name] += len(values)

    def close(self, **whole: Any) -> None:
        """Puts the archive together; `whole`: further arrays, small ones."""
        part = self._folder / "archive"
        with self._user_errors():
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, file in self._files.items():
                    file.close()
                    dtype, shape = self._forms[name]
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
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def _user_errors(self):
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error})") from None
