"""A remote workdir and its copy on this machine: which of their files differ, downloads, uploads in a safe order.

`state.json` beside the copy has the version of each object as it was when it was last equal to the local file. Where no
other machine has changed the remote workdir since, the copy is used as it is, with what was not uploaded; otherwise the
remote workdir is what counts.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inception_jax.checkpoints.layout import HOST, RECORD_FILE, SUBDIRECTORY
from inception_jax.data import storage
from inception_jax.errors import UserError
from inception_jax.runs.manifest import replace_bytes

_ATTEMPTS = (0.0, 1.0, 5.0)  # seconds before each attempt of the last upload
_STATE = "state.json"
# In the description of an object: the first that there is changes with its content; and when it was written.
_VERSIONS = ("etag", "ETag", "generation", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
_NOT_UPLOADED = re.compile(rf"(^|/)lock$|\.new$|\.orbax-checkpoint-tmp|^{SUBDIRECTORY}/deleted/")
_STEP = re.compile(rf"{SUBDIRECTORY}/(\d+)/")
_OF_RUN = re.compile(rf"(config\.json|manifest\.json|metrics\.jsonl|train\.log|(.*/)?{HOST}/{RECORD_FILE})$")


class RemoteCopy:
    """A remote workdir and its copy.

    Attributes:
      address: of the remote workdir.
      folder: the copy.
    """

    def __init__(self, address: str, place: Path):
        """Opens the address, and reads the state of the copy.

        Args:
          address: of the workdir.
          place: an existing folder, for the copy and its state.

        Raises:
          UserError: the address cannot be opened.
        """
        self.address = address.rstrip("/")
        if self.address.endswith(":"):
            raise UserError(f"{address}: name a folder in a bucket, such as gs://bucket/runs/a")
        self._files, self._root = storage.open_address(self.address)
        self.folder = place / (self.address.rpartition("/")[2] or "workdir")
        self._state_file = place / _STATE
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            self._local, self._remote = dict(state["local"]), dict(state["remote"])
        except (OSError, ValueError, KeyError, TypeError):
            self._local, self._remote = {}, {}

    def download(self, checkpoints: bool = True) -> None:
        """Makes the copy equal to the remote workdir, where that has changed since they were equal.

        Args:
          checkpoints: whether to download them, too; otherwise those of the copy stay as they are.

        Raises:
          UserError: it cannot be read, or holds something else than a run.
        """
        self.folder.mkdir(exist_ok=True)
        for attempt in range(3):  # a run may delete a checkpoint while it is being read
            with self._as_user_error("read"):
                objects, times = self._list()
            if objects and not any(map(_OF_RUN.match, objects)):
                raise UserError(f"{self.address}: {len(objects):,} objects, but no run; name the address of a run")
            if not checkpoints:
                objects = {name: version for name, version in objects.items() if not _STEP.match(name)}
                objects |= {name: version for name, version in self._remote.items() if _STEP.match(name)}
            if objects == self._remote:
                return
            try:
                with self._as_user_error("read", but=FileNotFoundError):
                    self._download(objects, times)
                return
            except FileNotFoundError:
                if attempt == 2:
                    raise UserError(f"cannot read {self.address}: it changes while it is read") from None

    def _download(self, objects: dict[str, Any], times: dict[str, float]) -> None:
        here = self._walk()
        for name in [*here]:
            is_same = objects.get(name) == self._remote.get(name) and self._local.get(name) == here[name]
            if name not in objects or not is_same:
                (self.folder / name).unlink()
                del here[name]
        self._remote = {name: version for name, version in self._remote.items() if name in here}
        for name, version in objects.items():
            if name in here:
                continue
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.new")
            self._files.get_file(f"{self._root}/{name}", str(new))
            if name in times:
                os.utime(new, (times[name], times[name]))  # by which readers know how old a row or a result is
            os.replace(new, path)
            self._local[name], self._remote[name] = _stamp(path), version
        self._local = {name: stamp for name, stamp in self._local.items() if name in objects}
        for folder, _, _ in os.walk(self.folder, topdown=False):
            with contextlib.suppress(OSError):  # not empty
                if folder != str(self.folder):
                    os.rmdir(folder)
        self._write_state()

    def upload(self) -> None:
        """Uploads what has changed, and deletes what is gone. Local files may change meanwhile.

        Raises:
          UserError: the address cannot be written.
        """
        # Before the files: so the rows of all these steps are in the metric files that are uploaded.
        steps = sorted({int(match[1]) for name in self._walk() if (match := _STEP.match(name))})
        here = self._walk()
        with self._as_user_error("write"):
            for name in here:
                if not _STEP.match(name):
                    self._put(name, here[name])
            for step in steps:
                prefix = f"{SUBDIRECTORY}/{step}/"
                record = f"{prefix}{HOST}/{RECORD_FILE}"
                names = [name for name in here if name.startswith(prefix) and name != record]
                for name in (*names, record) if record in here else ():
                    self._put(name, here[name])
            gone = [name for name in self._remote if name not in here]
            for name in sorted(gone, key=lambda name: not name.endswith(f"/{HOST}/{RECORD_FILE}")):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}")
                del self._remote[name]
                self._local.pop(name, None)
        self._write_state()

    def upload_folder(self, folder: Path) -> None:
        """Uploads one folder of the copy. Raises as `upload`."""
        prefix = folder.relative_to(self.folder).as_posix() + "/"
        with self._as_user_error("write"):
            for name, stamp in self._walk().items():
                if name.startswith(prefix):
                    self._put(name, stamp)
        self._write_state()

    def upload_at_last(self) -> None:
        """Uploads at the end of a run; tries several times. Raises as `upload`; the message has the remedy."""
        for attempt, seconds in enumerate(_ATTEMPTS, 1):
            time.sleep(seconds)
            try:
                self.upload()
                return
            except UserError as error:
                if attempt == len(_ATTEMPTS):
                    raise UserError(
                        f"{error}; the run is in {self.folder}, and the same command on this machine uploads it"
                    ) from None

    def _put(self, name: str, stamp: list[int]) -> None:
        """Uploads a file as one object, where it has changed since it was equal to the object."""
        if self._local.get(name) == stamp and name in self._remote:
            return
        path, target = self.folder / name, f"{self._root}/{name}"
        try:
            if _STEP.match(name):
                self._files.put_file(str(path), target)  # of a finished checkpoint: it does not change
            else:
                self._files.pipe_file(target, path.read_bytes())  # it may grow meanwhile: its bytes as they are now
        except FileNotFoundError:
            if path.exists():
                raise
            return  # deleted meanwhile, such as an older checkpoint
        self._local[name], self._remote[name] = stamp, _version(self._files.info(target))
        self._write_state()

    def _list(self) -> tuple[dict[str, Any], dict[str, float]]:
        """{name: version} and {name: time} of all objects, without those of checkpoints that are not complete."""
        self._files.invalidate_cache()
        try:
            found = self._files.find(self._root, detail=True)
        except FileNotFoundError:
            return {}, {}
        start = len(self._root) + 1
        objects = {path[start:]: _version(about) for path, about in found.items() if path[start:]}
        times = {path[start:]: seconds for path, about in found.items() if (seconds := _time(about)) is not None}
        return {
            name: version
            for name, version in objects.items()
            if not name.endswith("/")  # some programs store an empty object for a folder
            and (not (match := _STEP.match(name)) or f"{match[0]}{HOST}/{RECORD_FILE}" in objects)
        }, times

    def _walk(self) -> dict[str, list[int]]:
        """{name: stamp} of the files of the copy that belong to the workdir."""
        files: dict[str, list[int]] = {}
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in sorted(names)):
                name = path.relative_to(self.folder).as_posix()
                if not _NOT_UPLOADED.search(name) and not path.is_symlink():
                    with contextlib.suppress(FileNotFoundError):
                        files[name] = _stamp(path)
        return files

    def _write_state(self) -> None:
        content = json.dumps({"local": self._local, "remote": self._remote})
        replace_bytes(self._state_file, content.encode(), sync=False)

    @contextlib.contextmanager
    def _as_user_error(self, what: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        try:
            yield
        except but:
            raise
        except Exception as error:  # each file system has exceptions of its own
            text = f"{type(error).__name__}: {storage.one_line(error)}"
            raise UserError(f"cannot {what} {self.address}: {text}") from None


def _version(about: dict[str, Any]) -> list[Any]:
    """What changes when an object changes: its size, and its version, digest or time."""
    return [about.get("size"), next((str(about[name]) for name in _VERSIONS if about.get(name)), _time(about))]


def _time(about: dict[str, Any]) -> float | None:
    """When an object was written, in seconds of the epoch; None where its file system does not say."""
    value = next((about[name] for name in _TIMES if about.get(name)), None)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.datetime):
        value = value.timestamp()
    return float(value) if isinstance(value, int | float) else None


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
