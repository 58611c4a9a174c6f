"""Tracks which record each decoding thread is reading, for messages about a stalled input.

A thread that hangs in a read cannot report it; its last entry can. The entries are a few bytes in memory that the
trainer shares with its worker processes, so that they can be read while their writer hangs and after it was killed.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import secrets
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

_ENTRY = struct.Struct("=qqqd")  # batch, row, record, since (monotonic clock); batch -1: nothing is being made
_NUMBER = struct.Struct("=q")
_IDLE = (-1, -1, -1, 0.0)
_thread = threading.local()


class Cancelled(Exception):
    """The batch that the thread is making is no longer needed."""


def update(row: int, record: int) -> None:
    """Records what the calling thread turns to now; does nothing in a thread that makes no batch of a table.

    Args:
      row: of the batch.
      record: index in the data set.

    Raises:
      Cancelled: the table's `cancel` was called.
    """
    entry = getattr(_thread, "entry", None)
    if entry is not None:
        buffer, offset, batch = entry
        if buffer[0]:
            raise Cancelled
        _ENTRY.pack_into(buffer, offset, batch, row, record, time.monotonic())


@dataclasses.dataclass(frozen=True)
class ThreadActivity:
    """The batch, row and record that one thread is at.

    Attributes:
      worker: number of its worker process, or None in the trainer.
      pid: id of its process; 0 where a worker has not registered yet.
      batch: number of the batch that it makes.
      row: of the batch; -1: before the first one.
      record: index in the data set; -1: before the first one.
      seconds: since it began with this record.
    """

    worker: int | None
    pid: int
    batch: int
    row: int
    record: int
    seconds: float

    def describe(self, record_name: Callable[[int], str]) -> str:
        """One clause for a message.

        Args:
          record_name: the name of a record, by its index in the data set.
        """
        thread = "a thread" if self.worker is None else f"worker {self.worker} (process {self.pid})"
        position = "its beginning" if self.record < 0 else f"row {self.row}, {record_name(self.record)}"
        return f"{thread} has been at batch {self.batch}, {position}, for {self.seconds:.0f} s"


class ActivityTable:
    """The entries of all threads that make batches for one data loader.

    It pickles as a reference to the same memory, for the worker processes of the process that made it.
    """

    # Layout: whether everything is cancelled, the workers' process ids, and the entries of worker after worker.

    def __init__(self, slots: int, workers: int = 0):
        """Allocates the memory.

        Args:
          slots: batches that are made at the same time, per worker or in this process.
          workers: worker processes; 0 for none.
        """
        self._slots, self._workers = slots, workers
        self._path = self._name = ""
        size = self._size()
        if workers:
            # A file without a name: it is gone with the last process that has it open, however these end.
            self._name = f"activity-{secrets.token_hex(8)}"
            descriptor = os.memfd_create(self._name)
            weakref.finalize(self, os.close, descriptor)
            os.ftruncate(descriptor, size)
            self._path = f"/proc/{os.getpid()}/fd/{descriptor}"
            self._buffer: mmap.mmap | bytearray = mmap.mmap(descriptor, size)
        else:
            self._buffer = bytearray(size)
        self._clear()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_buffer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        size = self._size()
        try:
            with open(self._path, "r+b") as file:
                # The trainer may have closed its table while the worker started, and reused the number for a file.
                if self._name not in os.readlink(f"/proc/self/fd/{file.fileno()}"):
                    raise OSError(f"{self._path}: not the activity table")
                self._buffer = mmap.mmap(file.fileno(), size)
        except OSError:
            self._buffer = bytearray(size)  # a system that hides /proc: the batches matter more than these entries
            self._clear()

    def _clear(self) -> None:
        for worker in range(max(1, self._workers)):
            for slot in range(self._slots):
                _ENTRY.pack_into(self._buffer, self._offset(worker, slot), *_IDLE)

    def _size(self) -> int:
        return self._offset(max(1, self._workers), 0)

    def _offset(self, worker: int, slot: int) -> int:
        return (1 + self._workers) * _NUMBER.size + (worker * self._slots + slot) * _ENTRY.size

    def register_worker(self, worker: int) -> None:
        """Records that worker number `worker` is the calling process."""
        _NUMBER.pack_into(self._buffer, (1 + worker) * _NUMBER.size, os.getpid())

    def worker_pids(self) -> list[int]:
        """The process ids of the workers, in order; 0 for one that has not registered."""
        return [_NUMBER.unpack_from(self._buffer, (1 + worker) * _NUMBER.size)[0] for worker in range(self._workers)]

    def cancel(self) -> None:
        """Makes every thread abandon its batch at the next record that it turns to."""
        self._buffer[0] = 1

    def begin_batch(self, slot: int, batch: int, worker: int = 0) -> None:
        """The calling thread begins to make a batch; until `end_batch`, its `update`s are written to `slot`."""
        _thread.entry = self._buffer, self._offset(worker, slot), batch
        _ENTRY.pack_into(*_thread.entry[:2], batch, -1, -1, time.monotonic())

    def end_batch(self) -> None:
        """The calling thread has made its batch."""
        buffer, offset, _ = _thread.entry
        _thread.entry = None
        _ENTRY.pack_into(buffer, offset, *_IDLE)

    def activities(self) -> list[ThreadActivity]:
        """The activity of each thread that makes a batch; the one that has been at its record the longest is first."""
        now, pids, active = time.monotonic(), self.worker_pids(), []
        for worker in range(max(1, self._workers)):
            for slot in range(self._slots):
                batch, row, record, since = _ENTRY.unpack_from(self._buffer, self._offset(worker, slot))
                if batch >= 0:
                    number, pid = (worker, pids[worker]) if self._workers else (None, os.getpid())
                    active.append(ThreadActivity(number, pid, batch, row, record, max(0.0, now - since)))
        return sorted(active, key=lambda activity: -activity.seconds)


_lock = threading.Lock()
_warned: set[str] = set()


def warn(text: str) -> None:
    """Writes one line to standard error, its end in the same write: lines of several processes must not mix."""
    sys.stderr.write(f"warning: {text}\n")
    sys.stderr.flush()


def warn_once(record: str, text: str) -> None:
    """Warns about a record, unless this process has warned about the same record before.

    Args:
      record: its name, unique among all records.
      text: the warning.
    """
    with _lock:
        if record in _warned:
            return
        _warned.add(record)
    warn(text)
