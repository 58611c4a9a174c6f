"""Files of compiled steps: found by a key, read only where this user alone can have written them.

An executable is unpickled and its machine code is run, so a file is read only if it and its folder belong to this user
and nobody else can write them; its header holds the digests of the key and of the content, both compared before
anything is unpickled. A file that fails a check is not used, and the step is compiled as without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

MAX_BYTES = 512 << 20
"""Of all files; the ones that were not used for the longest time are removed."""

Key = Mapping[str, Any]
"""JSON values."""

_MAGIC = b"inception_jax executable 1\n"
_DIGEST = hashlib.sha256().digest_size
_MIN_FREE_BYTES = 128 << 20


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of executables.

    Attributes:
      folder: made when the first executable is written.
      common: what the keys of this process have in common; JSON values.
    """

    folder: Path
    common: Mapping[str, Any]

    def load(self, key: Key, arguments: Sequence[Any]) -> jax.stages.Compiled | None:
        """Loads an executable; None: there is none, or it cannot be used.

        Args:
          key: what decided it, beside what all have in common.
          arguments: that it will be called with, or their shapes; the key must determine their shapes.
        """
        if (content := self.read(key)) is None:
            return None
        try:
            serialized, outputs = pickle.loads(content)
            inputs = jax.tree.structure((tuple(arguments), {}))
            output = jax.tree.structure(tuple(arguments[0] if part is None else part for part in outputs))
            devices = list(jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat)  # in the order of their mesh
            return serialize_executable.deserialize_and_load(serialized, inputs, output, execution_devices=devices)
        except Exception:  # whatever a JAX raises for what it cannot load: the step is compiled
            return None

    def save(self, key: Key, arguments: Sequence[Any], executable: jax.stages.Compiled) -> bool:
        """Writes an executable, whose result is a tuple; where that fails, nothing is kept.

        Args:
          key: as in `load`.
          arguments: as in `load`.
          executable: compiled by this process: XLA writes one that it has loaded without its machine code.

        Returns:
          Whether it was written.
        """
        state = jax.tree.structure(arguments[0])
        try:
            serialized, _, output = serialize_executable.serialize(executable)
            # In the place of the state, whose classes need not be pickled, `load` takes the argument.
            parts = output.children()
            outputs = [None if part == state else part.unflatten([0] * part.num_leaves) for part in parts]
            content = pickle.dumps((serialized, outputs))
        except Exception:  # it cannot be serialized: the next start compiles
            return False
        return self.write(key, content)

    def read(self, key: Key) -> bytes | None:
        """The content of a file; None: there is none, it is not of this key, or others may have written it."""
        path, digest = self._place(key)
        start = len(_MAGIC) + 2 * _DIGEST
        found = _read_private(path) or b""
        content = found[start:]
        if found[:start] != _MAGIC + digest + hashlib.sha256(content).digest():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return content

    def can_write(self) -> bool:
        """Whether the folder, which is made, takes new files, and the disk has space for an executable."""
        try:
            if not self._has_folder():
                return False
            with tempfile.TemporaryFile(dir=self.folder):
                return shutil.disk_usage(self.folder).free >= _MIN_FREE_BYTES
        except OSError:
            return False

    def write(self, key: Key, content: bytes) -> bool:
        """Writes a file; False: it could not be, takes over half of the space, or others can write the folder."""
        path, digest = self._place(key)
        try:
            if len(content) > MAX_BYTES // 2 or not self._has_folder():
                return False
            _replace(path, _MAGIC + digest + hashlib.sha256(content).digest() + content)
            self._remove_oldest()
        except OSError:
            return False
        return True

    def _place(self, key: Key) -> tuple[Path, bytes]:
        digest = hashlib.sha256(json.dumps([self.common, key], sort_keys=True).encode())
        return self.folder / f"{digest.hexdigest()[:32]}.step", digest.digest()

    def _has_folder(self) -> bool:
        """Makes the folder; returns whether nobody else can write it."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _is_private(os.stat(self.folder))

    def _remove_oldest(self) -> None:
        files = []
        for file in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has removed it
                files.append((file.stat(), file))
        size = 0
        for status, file in sorted(files, key=lambda pair: -pair[0].st_mtime):
            size += status.st_size
            if size > MAX_BYTES:
                file.unlink(missing_ok=True)


def _is_private(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and nobody else can write it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _read_private(path: Path) -> bytes | None:
    """The content of a regular file; None: there is none, or another user can write it or its folder."""
    try:
        if not _is_private(os.stat(path.parent)):
            return None
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            return file.read() if stat.S_ISREG(status.st_mode) and _is_private(status) else None
    except OSError:
        return None


def _replace(path: Path, content: bytes) -> None:
    """Replaces a file atomically; readable and writable by this user alone."""
    number, new = tempfile.mkstemp(dir=path.parent, prefix=".new")
    try:
        with open(number, "wb") as file:
            file.write(content)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
