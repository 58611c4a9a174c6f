"""Who may change a study, and who works on a trial: locks that die with their holder, and heartbeats beside them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from inception_jax import file_locks
from inception_jax.errors import write_error

LOCK = "driver.lock"
LEASE = "lease.json"


class StudyLock:
    """One driver at a time: a file lock that one process may take several times over.

    The kernel lets it go when the process ends in whatever way, so that a killed driver is in nobody's way. Optuna's
    journal gets this very object as its lock (`acquire`, `release`): what happens inside `with lock:` is one change.
    """

    def __init__(self, path: str | os.PathLike, warn: Callable[[str], None] | None = None):
        """Args:
        path: of the lock file; made when it is first taken.
        warn: gets one line where the file system has no locks; default: a line on stderr.
        """
        self._path, self._depth, self._descriptor = Path(path), 0, -1
        self._warn = warn or (lambda text: print(text, file=sys.stderr))
        self._warned = False

    @property
    def held(self) -> bool:
        """Whether this process holds it."""
        return self._depth > 0

    def acquire(self) -> bool:
        """Waits for the lock; True.

        Raises:
          UserError: the file cannot be made.
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
        """Lets go, when it has been called as often as `acquire`."""
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
                self._warn(
                    f"{self._path}: its file system has no locks ({error.strerror}): only one driver may work "
                    "on this study"
                )


class Lease:
    """This driver's hold on one running trial. Made by `acquire`."""

    def __init__(self, workdir: Path, descriptor: int, driver: str):
        self._workdir, self._descriptor, self._driver = workdir, descriptor, driver
        holder = {"host": socket.gethostname(), "boot_id": boot_id(), "pid": os.getpid(), "driver": driver}
        new = workdir / f".{LEASE}.{os.getpid()}.new"
        try:
            new.write_text(json.dumps(holder) + "\n", encoding="utf-8")
            os.replace(new, workdir / LEASE)  # never a part: what cannot be read would have to be taken for alive
        except OSError as error:
            os.close(descriptor)
            raise write_error(workdir / LEASE, error) from None

    def renew(self) -> bool:
        """The heartbeat, for machines that do not see the lock.

        Returns:
          Whether the lease is still this driver's: one that stood still for too long (a suspended machine) may find
          that another has taken over.
        """
        with contextlib.suppress(
            OSError, ValueError
        ):  # a moment's trouble with the file system; the next heartbeat is soon
            os.utime(self._workdir / LEASE)
            return json.loads((self._workdir / LEASE).read_text(encoding="utf-8"))["driver"] == self._driver
        return True

    def release(self) -> None:
        """Lets the next driver have the trial at once; a second call does nothing."""
        if self._descriptor >= 0:
            if self.renew():
                with contextlib.suppress(OSError):
                    (self._workdir / LEASE).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def acquire(workdir: Path, driver: str, stale: float) -> Lease | None:
    """The lease of a trial that no living driver works on; None where one does, or may do.

    On one machine the lock tells: the kernel let go of a dead driver's. Of another machine's driver, where the file
    system does not share locks, the heartbeat tells.

    Args:
      workdir: of the trial.
      driver: the name of this driver.
      stale: seconds without a heartbeat after which another machine's driver counts as dead.

    Raises:
      UserError: files that cannot be written.
    """
    try:
        descriptor = file_locks.open_lock_file(workdir / LOCK)
    except OSError as error:
        raise write_error(workdir / LOCK, error) from None
    try:
        locked = file_locks.try_lock(descriptor)
    except file_locks.LocksUnsupported:
        locked = True  # the heartbeat alone tells
    except OSError as error:
        os.close(descriptor)
        raise write_error(workdir / LOCK, error) from None
    if not locked:
        os.close(descriptor)
        return None
    if _is_alive_elsewhere(workdir, stale):
        os.close(descriptor)
        return None
    return Lease(workdir, descriptor, driver)


def last_heartbeat(workdir: Path) -> float | None:
    """When the trial's driver last gave a sign, as the file system's clock has it; None where there is no lease."""
    try:
        return os.stat(workdir / LEASE).st_mtime
    except OSError:
        return None


def file_system_time(directory: Path) -> float:
    """The time by the clock that stamps this directory's files: machines that share it need not agree on theirs.

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
    """What tells this machine, since it was switched on, from every other; its name where the kernel has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def _is_alive_elsewhere(workdir: Path, stale: float) -> bool:
    """Whether a driver of another machine may be alive; a lease that cannot be read counts as another machine's."""
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
    """Whether this process got the lock of a file, for as long as the block lasts; it does not wait.

    Raises:
      UserError: the file cannot be made.
    """
    try:
        descriptor = file_locks.open_lock_file(path)
    except OSError as error:
        raise write_error(path, error) from None
    try:
        try:
            locked = file_locks.try_lock(descriptor)
        except file_locks.LocksUnsupported:
            locked = True
        except OSError as error:
            raise write_error(path, error) from None
        yield locked
    finally:
        os.close(descriptor)


def new_driver_name() -> str:
    """A name for this driver that no other has: host, process, start."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.time_ns():x}"
