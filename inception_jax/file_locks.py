"""Advisory locks on files (`flock`). The kernel releases a lock when its process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import IO

_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


class LocksUnsupported(OSError):
    """The file system has no locks, as some parallel ones have none."""


def open_lock_file(path: str | os.PathLike) -> int:
    """Opens a file to be locked, and makes it where it is missing; the lock goes when the descriptor is closed.

    Raises:
      OSError: the file cannot be made or opened.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def try_lock(file: int | IO, *, shared: bool = False) -> bool:
    """Locks a file without waiting; False where another descriptor holds a lock that excludes this one.

    Args:
      file: an open file, or its descriptor.
      shared: several descriptors may hold a shared lock at once, but none beside an exclusive one.

    Raises:
      LocksUnsupported: the file system has no locks.
      OSError: any other failure.
    """
    try:
        _flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: int | IO) -> None:
    """Locks a file exclusively, and waits until that is possible. Raises as `try_lock` does."""
    _flock(file, fcntl.LOCK_EX)


def _flock(file: int | IO, operation: int) -> None:
    try:
        fcntl.flock(file, operation)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            raise LocksUnsupported(error.errno, error.strerror) from None
        raise
