"""Locks a workdir for one run: two runs in one workdir would delete each other's checkpoints."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from inception_jax import file_locks
from inception_jax.errors import ExitCode, UserError, write_error

FILE = "lock"

_QUERY_SECONDS = 0.3  # `is_locked` holds a shared lock for much less than this


class WorkdirLocked(UserError):
    """Another process has locked the workdir."""

    exit_code = ExitCode.LOCKED


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike) -> Iterator[Path]:
    """Locks the workdir for this process; makes it, with its parents, where it is missing.

    The kernel releases the lock when the process ends, however it ends, so a kill leaves nothing to clean up. The file
    records the holder as one JSON object: pid, host and start. On release the file is emptied and stays: unlinking it
    would let two processes lock two files of the same name. Where the file system has no locks (some parallel ones have
    none), a line on stderr says so.

    Args:
      workdir: a directory of a mounted file system.

    Yields:
      The workdir.

    Raises:
      WorkdirLocked: another process, of this or another host, has locked it.
      UserError: it cannot be made or written; nothing was.
    """
    workdir = Path(workdir)
    _refuse_address(workdir)
    descriptor = _open(workdir)
    try:
        _lock(workdir, descriptor)
        _write(workdir, descriptor, json.dumps(_own_record()) + "\n")
        try:
            yield workdir
        finally:
            with contextlib.suppress(OSError):  # a stale record is harmless, only the lock counts
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def refuse_unusable(workdir: str | os.PathLike) -> None:
    """Refuses a workdir that `lock_workdir` would refuse; makes and writes nothing.

    Raises:
      WorkdirLocked: another process has locked it.
      UserError: it cannot be made or written.
    """
    workdir = Path(workdir)
    _refuse_address(workdir)
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise _cannot_use(workdir, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(existing, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
        raise _cannot_use(workdir, OSError(number, os.strerror(number)))
    if is_locked(workdir):
        raise _in_use(workdir, read_holder(workdir) or "")


def read_holder(workdir: str | os.PathLike) -> str | None:
    """Returns the content of the lock file, which differs for every run; None where it cannot be read."""
    try:
        return (Path(workdir) / FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def is_locked(workdir: str | os.PathLike) -> bool | None:
    """Returns whether a run has locked the workdir, found without disturbing one that is about to lock it.

    A workdir whose lock file is empty is not touched. Otherwise a shared lock is taken for an instant, which
    `lock_workdir` waits for.

    Args:
      workdir: may be missing, or not a workdir.

    Returns:
      None where the file system has no locks and the file names a process of another host.
    """
    if not (name := read_holder(workdir)):
        return False
    try:
        descriptor = os.open(Path(workdir) / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not file_locks.try_lock(descriptor, shared=True)
    except OSError:
        return _runs_on_this_host(name)
    finally:
        os.close(descriptor)


def _runs_on_this_host(name: str) -> bool | None:
    """Returns whether the process that a lock file names runs on this host; None where it names another host."""
    try:
        content = json.loads(name)
        return _is_alive(int(content["pid"])) if content["host"] == socket.gethostname() else None
    except (ValueError, KeyError, TypeError):
        return None


def _open(workdir: Path) -> int:
    """Opens the lock file; where that fails, removes the directories that this call made."""
    made = []
    try:
        for directory in (*reversed(workdir.parents), workdir):
            if not directory.is_dir():
                directory.mkdir(exist_ok=True)  # a run that starts at the same moment may have made it
                made.append(directory)
        return file_locks.open_lock_file(workdir / FILE)
    except OSError as error:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise _cannot_use(workdir, error) from None


def _cannot_use(workdir: Path, error: OSError) -> UserError:
    """Returns an error of one line, which names the part of the path that is a file."""
    file = next((parent for parent in (workdir, *workdir.parents) if parent.exists() and not parent.is_dir()), None)
    if file is not None:
        return UserError(f"workdir {workdir}: {file} is a file, not a directory")
    return write_error(f"workdir {workdir}", error)


def _lock(workdir: Path, descriptor: int) -> None:
    deadline = time.monotonic() + _QUERY_SECONDS
    try:
        while not file_locks.try_lock(descriptor):
            if time.monotonic() > deadline:
                raise _in_use(workdir, _read(descriptor))
            time.sleep(_QUERY_SECONDS / 20)
    except file_locks.LocksUnsupported as error:
        print(
            f"workdir {workdir}: its file system has no locks ({error.strerror}): nothing keeps a second run out",
            file=sys.stderr,
        )
    except OSError as error:
        raise write_error(f"workdir {workdir}", error) from None


def _own_record() -> dict[str, str | int]:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": now}


def _refuse_address(workdir: Path) -> None:
    if re.match(r"[a-z][a-z0-9]+:/", str(workdir)):
        raise UserError(
            f"workdir {str(workdir)!r}: a directory of a mounted file system is needed; train takes an address as text"
        )


def _in_use(workdir: Path, holder: str) -> WorkdirLocked:
    return WorkdirLocked(
        f"workdir {workdir} is in use by {_describe_holder(holder)}; stop that run, or choose another workdir"
    )


def _read(descriptor: int) -> str:
    try:
        return os.pread(descriptor, 4096, 0).decode(errors="replace")
    except OSError:
        return ""


def _describe_holder(holder: str) -> str:
    """Describes the holder by the content of the lock file, which it may not have written yet."""
    try:
        content = json.loads(holder)
        description = f"process {content['pid']} on {content['host']}, started {content['started']}"
        pid, here = int(content["pid"]), content["host"] == socket.gethostname()
    except (ValueError, KeyError, TypeError):
        return "another process"
    if here and not _is_alive(pid):
        return f"a process that was left behind by {description}, which has ended"
    return description


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _write(workdir: Path, descriptor: int, text: str) -> None:
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError as error:
        raise write_error(f"workdir {workdir}", error) from None
