"""The lock of a study, and the leases of its trials: file locks that the kernel releases, with heartbeats.

Optuna's journal storage has no heartbeat (its database storage has one), so it cannot tell that a driver has died.
A lease can: it is a file lock, for drivers on one machine, and the modification time of a file, for other machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from inception_jax import file_locks
from inception_jax.errors import UserError, write_error
from inception_jax.runs.manifest import replace_bytes

LOCK = "driver.lock"
LEASE = "lease.json"


class StudyLock:
    """A re-entrant file lock: one driver at a time changes the study.

    The kernel releases it when the process ends in any way, so a killed driver blocks nobody. Optuna's journal uses
    this same object as its lock (`acquire`, `release`): all writes inside one `with lock:` are one change.
    """

    def __init__(self, path: str | os.PathLike):
        """Remembers the path; nothing is opened before `acquire`.

        Args:
          path: of the lock file; created at the first `acquire`.
        """
        self._path, self._depth, self._descriptor = Path(path), 0, -1
        self._warned = False

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._depth > 0

    def acquire(self) -> bool:
        """Waits for the lock, and takes it; it may be taken several times.

        Returns:
          True, as Optuna's interface asks.

        Raises:
          UserError: the file cannot be created.
        """
        if self._depth == 0:
            try:
                self._descriptor = file_locks.open_lock_file(self._path)
                self._lock()
            except OSError as error:
                raise write_error(self._path, error) from None
        self._depth += 1
        return True

    def release(self) -> None:
        """Releases the lock, once it has been called as often as `acquire`."""
        self._depth -= 1
        if self._depth == 0:
            os.close(self._descriptor)

    def __enter__(self) -> StudyLock:
        self.acquire()
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _lock(self) -> None:
        try:
            file_locks.wait_for_lock(self._descriptor)
        except file_locks.LocksUnsupported as error:
            if not self._warned:
                self._warned = True
                print(
                    f"{self._path}: the file system has no locks ({error.strerror}); run only one driver on this study",
                    file=sys.stderr,
                )


class Lease:
    """This driver's lease of one running trial; made by the function `acquire`."""

    def __init__(self, workdir: Path, descriptor: int, driver: str):
        """Writes lease.json, completely or not at all.

        Args:
          workdir: of the trial.
          descriptor: of the open, locked lock file; the lease closes it.
          driver: name of this driver.

        Raises:
          UserError: the file cannot be written.
        """
        self._workdir, self._descriptor, self._driver = workdir, descriptor, driver
        holder = {"host": socket.gethostname(), "boot_id": boot_id(), "pid": os.getpid(), "driver": driver}
        try:  # atomically: an unreadable lease would count as alive
            replace_bytes(workdir / LEASE, json.dumps(holder).encode() + b"\n", sync=False)
        except UserError:
            os.close(descriptor)
            raise

    def renew(self) -> bool:
        """Writes the heartbeat, for machines that do not see the lock.

        Returns:
          Whether the lease is still this driver's. After a long pause (a suspended machine) another driver may have
          taken over the trial.
        """
        with contextlib.suppress(OSError, ValueError):  # a passing file system error; the next heartbeat is soon
            os.utime(self._workdir / LEASE)
            return json.loads((self._workdir / LEASE).read_text(encoding="utf-8"))["driver"] == self._driver
        return True

    def release(self) -> None:
        """Releases the lease, so that another driver may have the trial at once; a second call does nothing."""
        if self._descriptor >= 0:
            if self.renew():
                with contextlib.suppress(OSError):
                    (self._workdir / LEASE).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def acquire(workdir: Path, driver: str, stale: float) -> Lease | None:
    """Takes the lease of a trial, unless a driver that is alive holds it.

    On one machine the lock decides: the kernel released the lock of a dead driver. For a driver on another machine,
    where the file system may not share locks, the age of the heartbeat decides.

    Args:
      workdir: of the trial.
      driver: name of this driver.
      stale: seconds without a heartbeat after which a driver of another machine counts as dead.

    Returns:
      The lease; None where another driver holds it, or may hold it.

    Raises:
      UserError: a file cannot be written.
    """
    descriptor = _open_locked(workdir / LOCK)
    if descriptor is None:
        return None
    if _is_alive_elsewhere(workdir, stale):
        os.close(descriptor)
        return None
    return Lease(workdir, descriptor, driver)


def last_heartbeat(workdir: Path) -> float | None:
    """Time of the last heartbeat of the trial's driver.

    Args:
      workdir: of the trial.

    Returns:
      Seconds since 1970 by the file system's clock; None where there is no lease.
    """
    try:
        return os.stat(workdir / LEASE).st_mtime
    except OSError:
        return None


def file_system_time(directory: Path) -> float:
    """The current time by the clock that stamps the files of a directory.

    Clocks of the machines that share the directory need not agree.

    Args:
      directory: of the file system.

    Returns:
      Seconds since 1970.

    Raises:
      UserError: a file cannot be written there.
    """
    mark = directory / f".clock.{socket.gethostname()}.{os.getpid()}"
    try:
        with open(mark, "w", encoding="utf-8") as file:
            file.write("now")
            file.flush()
            return os.stat(mark).st_mtime
    except OSError as error:
        raise write_error(mark, error) from None
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def boot_id() -> str:
    """The kernel's id of this machine's current boot; the host name where the kernel has no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _is_alive_elsewhere(workdir: Path, stale: float) -> bool:
    """Returns whether another machine's driver may be alive; an unreadable lease counts as another machine's."""
    heartbeat = last_heartbeat(workdir)
    if heartbeat is None:
        return False
    try:
        here = json.loads((workdir / LEASE).read_text(encoding="utf-8"))["boot_id"] == boot_id()
    except (OSError, ValueError, KeyError, TypeError):
        here = False
    return not here and file_system_time(workdir) - heartbeat <= stale


@contextlib.contextmanager
def try_file_lock(path: Path) -> Iterator[bool]:
    """Tries to lock a file for the duration of the block, without waiting.

    Args:
      path: of the lock file; created where it is missing.

    Yields:
      Whether this process has the lock; True where the file system has no locks.

    Raises:
      UserError: the file cannot be created.
    """
    descriptor = _open_locked(path)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_locked(path: Path) -> int | None:
    """The descriptor of a locked file, or of a file in a file system without locks; None: another process has it.

    Raises:
      UserError: the file cannot be created or locked.
    """
    try:
        descriptor = file_locks.open_lock_file(path)
        try:
            if file_locks.try_lock(descriptor):
                return descriptor
        except file_locks.LocksUnsupported:
            return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None
    except OSError as error:
        raise write_error(path, error) from None


def new_driver_name() -> str:
    """A unique name for this driver: host, process id, start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.time_ns():x}"
