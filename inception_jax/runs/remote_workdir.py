"""Workdirs in object storage (`gs://`, `s3://`, any address that fsspec opens): a local copy, kept equal.

A run works in a copy on this machine, exactly as in any local workdir: with append, rename, locks and Orbax's files.
A thread uploads what has changed, as whole objects, in an order in which the remote workdir can be resumed at any
moment: first the files of the run, then each finished checkpoint with its record last; then it deletes what is gone.
Every fsspec file system will do, because nothing but whole objects is asked of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from inception_jax import file_locks
from inception_jax.data.storage import is_remote
from inception_jax.errors import UserError
from inception_jax.runs import lock
from inception_jax.runs.remote_copy import RemoteCopy
from inception_jax.user_cache import cache_folder

UPLOAD_SECONDS = 30.0
"""Seconds between two uploads of a run."""

_ADDRESSES: dict[str, str] = {}  # {local copy: address} of this process


def refuse_address(what: str, path: str | os.PathLike, remedy: str) -> None:
    """Refuses an address where only a local path will do; `pathlib` would make a folder "gs:" of it.

    Raises:
      UserError: the path is an address.
    """
    if is_remote(path):
        raise UserError(f"{what}={os.fspath(path)}: an address, where a local path is needed; {remedy}")


def is_copy(path: str | os.PathLike) -> bool:
    """Returns whether a path is the local copy of a remote workdir, made in this process."""
    return os.fspath(path) in _ADDRESSES


def copy_of(path: str | os.PathLike) -> Path:
    """The local copy of a remote workdir, where this process has made one, or else the path itself."""
    wanted = os.fspath(path).rstrip("/")
    return next((Path(copy) for copy, address in _ADDRESSES.items() if address == wanted), Path(path))


def display_name(path: str | os.PathLike) -> str:
    """The name of a path for a person: of a local copy, or of what is in it, the address."""
    text = os.fspath(path)
    for copy, address in _ADDRESSES.items():
        if text == copy or text.startswith(copy + os.sep):
            return address + text[len(copy) :].replace(os.sep, "/")
    return text


def local_copy(path: str | os.PathLike, *, checkpoints: bool = True) -> Path:
    """Returns a copy of a remote workdir for reading, brought up to date; a local path as it is.

    Args:
      path: a workdir, or its address.
      checkpoints: whether the checkpoints are needed, too.

    Raises:
      UserError: the address cannot be opened or read.
    """
    if not isinstance(path, str) or not is_remote(path):
        return Path(path)
    place = _place(path, "read")
    with open(place / "lock", "a") as file:
        file_locks.wait_for_lock(file)
        copy = _open(path, place)
        copy.download(checkpoints)
        return copy.folder


def upload_results(path: str | os.PathLike, folder: Path) -> None:
    """Uploads a folder inside the copy of a remote workdir that `local_copy` returned; a local path needs nothing.

    Args:
      path: the workdir, or its address.
      folder: with new or changed files.

    Raises:
      UserError: the address cannot be written.
    """
    if isinstance(path, str) and is_remote(path):
        _open(path, _place(path, "read")).upload_folder(folder)


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[str | os.PathLike]:
    """Opens a workdir for a run: of an address a local copy, which is uploaded while the block runs and at its end.

    Yields:
      The local workdir: the path itself, where it is no address.

    Raises:
      WorkdirLocked: another run of this machine works on it. A run on another machine is not noticed.
      UserError: the address cannot be opened, read or, at the end, written.
    """
    if not isinstance(path, str) or not is_remote(path):
        yield path
        return
    place = _place(path, "train")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.lock_workdir(place))
        except lock.WorkdirLocked as error:
            raise lock.WorkdirLocked(str(error).replace(str(place), path)) from None
        copy = _open(path, place)
        copy.download()
        print(
            f"workdir {path}: the run works in {copy.folder}, which is uploaded every {UPLOAD_SECONDS:g} s and at the "
            "end, as whole objects; no lock keeps a run on another machine out",
            file=sys.stderr,
        )
        yield from _uploading(copy)


def _uploading(copy: RemoteCopy) -> Iterator[Path]:
    ended = threading.Event()
    thread = threading.Thread(target=_upload_regularly, args=(copy, ended), name="upload", daemon=True)
    thread.start()
    error: BaseException | None = None
    try:
        yield copy.folder
    except BaseException as raised:
        error = raised
        raise
    finally:
        ended.set()
        thread.join()
        try:
            copy.upload_at_last()
        except UserError as problem:
            if error is None:
                raise
            print(f"warning: {problem}", file=sys.stderr)  # the error that ended the run is the one to raise


def _upload_regularly(copy: RemoteCopy, ended: threading.Event) -> None:
    failing = False
    while not ended.wait(UPLOAD_SECONDS):
        try:
            copy.upload()
            failing = False
        except UserError as error:
            if not failing:
                print(f"warning: {error}; the run continues, and this is tried again", file=sys.stderr)
            failing = True


def _open(address: str, place: Path) -> RemoteCopy:
    copy = RemoteCopy(address, place)
    _ADDRESSES[str(copy.folder)] = copy.address
    return copy


def _place(address: str, use: str) -> Path:
    """The folder of a copy in the user's cache; a run and the commands that read have different ones."""
    place = cache_folder("workdirs") / f"{hashlib.sha256(address.encode()).hexdigest()[:16]}-{use}"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{address}: its copy needs {place}: {error.strerror}") from None
    return place
