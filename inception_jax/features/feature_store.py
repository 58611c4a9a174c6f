"""Features of a set, row by row: in memory, as statistics alone, or in files that a second call continues."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import file_locks
from inception_jax.errors import UserError, write_error
from inception_jax.features.statistics import Moments


class FeatureStore(contextlib.AbstractContextManager):
    """Keeps the features of one set: in one array, in files, or as mean and covariance alone.

    With a folder, each output is a file of float32 rows, written batch by batch: a process that ends between two
    images loses at most a batch, and `done` says where to continue. Outputs that are complete stay as they are when
    others are added. Inside a `with` block, at whose end another process may write to the folder.

    Attributes:
      done: images whose features are complete.
      incomplete: outputs whose rows are to be added.
    """

    def __init__(
        self,
        folder: str | os.PathLike | None,
        name: str,
        identity: Mapping[str, Any],
        count: int,
        *,
        only_moments: bool = False,
    ):
        """Opens a store.

        Args:
          folder: of the files; None: the features are kept in memory.
          name: of the set: "real" or "fake"; of the files, too.
          identity: images, network and input rule; features of another identity are refused. "outputs": {output:
            width}.
          count: images of the set, for which room is made in memory.
          only_moments: whether mean and covariance are enough: the rows are not kept. Without a folder only.

        Raises:
          UserError: the folder cannot be written, another process writes to it, or it holds features of other images or
            another network.
        """
        self.done = 0
        self._folder = None if folder is None else Path(folder)
        self.incomplete = list(identity["outputs"])
        self._name, self._count, self._only_moments = name, count, only_moments and folder is None
        self._rows: dict[str, np.ndarray] = {}
        self._moments: dict[str, Moments] = {}
        self._lock: int | None = None
        if self._folder is not None:
            try:
                self._open(self._folder, dict(identity))
            except BaseException:
                self.__exit__()
                raise

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self, folder: Path, identity: dict[str, Any]) -> None:
        record = folder / f"{self._name}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = file_locks.open_lock_file(folder / f"{self._name}.lock")
            with contextlib.suppress(file_locks.LocksUnsupported):
                if not file_locks.try_lock(self._lock):
                    raise UserError(
                        f"--cache={folder}: another process writes the features of the {self._name} images there; wait "
                        "for it, or give another folder"
                    )
            stored = self._read(record, identity) if record.exists() else {}
            outputs = stored.get("outputs", {}) | identity["outputs"]
            if stored != (whole := identity | {"outputs": outputs}):
                record.write_text(json.dumps(whole, indent=2))
        except OSError as error:
            raise write_error(folder, error) from None
        counts = {}
        for output, width in identity["outputs"].items():
            path = self._path(output)
            counts[output] = path.stat().st_size // (4 * width) if path.exists() else 0
        self.done = min(counts.values())
        self.incomplete = [output for output, count in counts.items() if count < self._count]
        for output in self.incomplete:  # a batch that was cut off is written again
            if self._path(output).exists():
                os.truncate(self._path(output), self.done * identity["outputs"][output] * 4)

    def _read(self, record: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Reads what the features in the folder are of, and compares it with what is wanted."""
        try:
            stored = dict(json.loads(record.read_text()))
            widths = dict(stored["outputs"])
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{record}: damaged; delete the folder, or give another --cache") from None
        for key, value in identity.items():
            known = stored.get(key)
            if key == "outputs":  # others may be there, or be added
                known = {output: widths.get(output, width) for output, width in value.items()}
            if known != value:
                raise UserError(
                    f"{record}: these are features of other {key} ({known}, now {value}); give another "
                    "--cache, or delete this one"
                )
        return stored

    def _path(self, output: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._name}.{output}.float32"

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Appends the features of a batch: {output: [b, C]}.

        Raises:
          UserError: the disk is full, or a value is not finite (where only moments are kept).
        """
        for output, values in rows.items():
            if self._only_moments:
                moments = self._moments.setdefault(output, Moments(values.shape[1]))
                moments.add(values)
            elif self._folder is None:
                if output not in self._rows:  # the system gives memory to what is written, so not all at once
                    self._rows[output] = np.empty((self._count, *values.shape[1:]), values.dtype)
                self._rows[output][self.done : self.done + len(values)] = values
            else:
                try:
                    with self._path(output).open("ab") as file:
                        file.write(np.ascontiguousarray(values, np.float32).data)
                except OSError as error:
                    raise write_error(self._path(output), error) from None
        self.done += len(next(iter(rows.values())))

    def moments(self, output: str) -> Moments | None:
        """Mean and covariance, where only these are kept."""
        return self._moments.get(output)

    def rows(self, output: str) -> np.ndarray | None:
        """The features [done, C]: in memory, or mapped from the file; None: only moments are kept."""
        if self._only_moments:
            return None
        if self._folder is None:
            return self._rows[output][: self.done] if output in self._rows else None
        path = self._path(output)
        return np.memmap(path, np.float32, "r").reshape(self.done, -1) if path.exists() else None
