"""What each decoding thread is at: which record, and since when. For the words about an input that has stalled.

A thread that hangs in a read cannot say so; its last note can. Notes are a few bytes in memory that the trainer shares
with its workers, so that they can be read while their writer hangs, and after it was killed.
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

_NOTE = struct.Struct("=qqqd")  # batch, row, record, since; batch -1: nothing is being made
_NUMBER = struct.Struct("=q")
_IDLE = (-1, -1, -1, 0.0)
_thread = threading.local()


class Cancelled(Exception):
    """Nobody wants the batch any more that the thread is making."""


def update(row: int, record: int) -> None:
    """Notes what the calling thread turns to now; does nothing in a thread that makes no batch of a board.

    Args:
      row: of the batch.
      record: index in the data set.

    Raises:
      Cancelled: the board's `cancel` was called.
    """
    here = getattr(_thread, "here", None)
    if here is not None:
        buffer, offset, batch = here
        if buffer[0]:
            raise Cancelled
        _NOTE.pack_into(buffer, offset, batch, row, record, time.monotonic())


@dataclasses.dataclass(frozen=True)
class ThreadActivity:
    """Where one thread is.

    Attributes:
      worker: number of its process, or None in this one.
      pid: id of that process; 0 where it has not said.
      batch: number of the batch that it makes.
      row: of the batch; -1: not at a row yet.
      record: index in the data set; -1: not at a record yet.
      seconds: since it got there.
    """

    worker: int | None
    pid: int
    batch: int
    row: int
    record: int
    seconds: float


class ActivityTable:
    """The notes of all threads that make batches for one consumer.

    It pickles as a reference to the same memory, for the worker processes of the process that made it.
    """

    # In memory: whether all is cancelled, the workers' process ids, and the notes of worker after worker.

    def __init__(self, slots: int, workers: int = 0):
        """Args:
        slots: batches that are made at once, per worker or in this process.
        workers: processes; 0 for none.
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

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_buffer"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        size = self._size()
        try:
            with open(self._path, "r+b") as file:
                # The trainer may have closed this crew while the worker started, and the number be another file's.
                if self._name not in os.readlink(f"/proc/self/fd/{file.fileno()}"):
                    raise OSError(f"{self._path}: not the board")
                self._buffer = mmap.mmap(file.fileno(), size)
        except OSError:
            self._buffer = bytearray(size)  # a system that hides /proc: batches are worth more than notes on them
            self._clear()

    def _clear(self) -> None:
        for worker in range(max(1, self._workers)):
            for slot in range(self._slots):
                _NOTE.pack_into(self._buffer, self._offset(worker, slot), *_IDLE)

    def _size(self) -> int:
        return self._offset(max(1, self._workers), 0)

    def _offset(self, worker: int, slot: int) -> int:
        return (1 + self._workers) * _NUMBER.size + (worker * self._slots + slot) * _NOTE.size

    def register_worker(self, worker: int) -> None:
        """Notes that worker number `worker` is the calling process."""
        _NUMBER.pack_into(self._buffer, (1 + worker) * _NUMBER.size, os.getpid())

    def worker_pids(self) -> list[int]:
        """The process ids of the workers that have said theirs, in order; 0 for one that has not."""
        return [_NUMBER.unpack_from(self._buffer, (1 + worker) * _NUMBER.size)[0] for worker in range(self._workers)]

    def cancel(self) -> None:
        """Lets every thread break off its batch, at the next record that it turns to."""
        self._buffer[0] = 1

    def begin_batch(self, slot: int, batch: int, worker: int = 0) -> None:
        """The calling thread begins to make a batch; until `leave`, its `note`s are written to `slot`."""
        _thread.here = self._buffer, self._offset(worker, slot), batch
        _NOTE.pack_into(*_thread.here[:2], batch, -1, -1, time.monotonic())

    def end_batch(self) -> None:
        """The calling thread has made its batch."""
        buffer, offset, _ = _thread.here
        _thread.here = None
        _NOTE.pack_into(buffer, offset, *_IDLE)

    def activities(self) -> list[ThreadActivity]:
        """Where every thread is that makes a batch now; the one that has been there the longest first."""
        now, pids, found = time.monotonic(), self.worker_pids(), []
        for worker in range(max(1, self._workers)):
            for slot in range(self._slots):
                batch, row, record, since = _NOTE.unpack_from(self._buffer, self._offset(worker, slot))
                if batch >= 0:
                    process = (worker, pids[worker]) if self._workers else (None, os.getpid())
                    found.append(ThreadActivity(*process, batch, row, record, max(0.0, now - since)))
        return sorted(found, key=lambda place: -place.seconds)


_lock = threading.Lock()
_named: set[str] = set()


def warn(text: str) -> None:
    """One line, with its end in the same write: the lines of several processes must not run into each other."""
    sys.stderr.write(f"warning: {text}\n")
    sys.stderr.flush()


def warn_once(record: str, text: str) -> None:
    """One line about a record; nothing where this process has said one about the same record before.

    Args:
      record: its name, unlike that of any other.
      text: what to say of it.
    """
    with _lock:
        if record in _named:
            return
        _named.add(record)
    warn(text)
