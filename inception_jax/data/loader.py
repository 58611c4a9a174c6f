"""`DataLoader`: an iterator whose background threads make batches ahead and which returns them in order.

The host has one buffer of batches, the loader's; the devices have one, that of `training.device_prefetch`. What makes
the batches is a `Producer`: `ThreadProducer` here, in the loader's own threads, or `workers.WorkerProducer`, in worker
processes.
"""

from __future__ import annotations

import abc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from inception_jax.data.activity import ActivityTable

# `close()` first waits this long for threads that are about to finish their batch, and cancels the batches after that.
_GRACE_SECONDS = 0.2
# How long it then waits for a thread to end. One that hangs in a read ends when the process does: it is a daemon.
_JOIN_SECONDS = 2.0
_THREADS_LISTED = 8


class Producer(abc.ABC):
    """Makes the batches of one `DataLoader`.

    Attributes:
      threads: threads of the loader that call `make` at the same time.
    """

    threads: int

    @property
    @abc.abstractmethod
    def activity(self) -> ActivityTable:
        """The activity of the threads that make the batches."""

    @abc.abstractmethod
    def make(self, number: int, slot: int) -> Any:
        """Returns batch `number`; called by thread `slot` of the loader, 0 <= slot < threads.

        The numbers ascend without a gap. With more than one thread, several calls run at the same time.
        """

    @abc.abstractmethod
    def describe_idle(self) -> str:
        """The text for when no thread is making a batch."""

    @abc.abstractmethod
    def close(self) -> None:
        """Cancels all batches that are being made, and ends the worker processes, if there are any."""

    def finish(self) -> None:  # noqa: B027  # most have nothing to do
        """Called after `close`, when no thread holds a batch any more."""


class ThreadProducer(Producer):
    """Makes the batches in the threads of the loader."""

    def __init__(self, make: Callable[[int], Any], threads: int):
        """Makes a producer.

        Args:
          make: makes one batch; several threads call it at the same time.
          threads: batches that are made at the same time.
        """
        self.threads = threads
        self._make, self._activity = make, ActivityTable(threads)

    @property
    def activity(self) -> ActivityTable:
        return self._activity

    def make(self, number: int, slot: int) -> Any:
        self._activity.begin_batch(slot, number)
        try:
            return self._make(number)
        finally:
            self._activity.end_batch()

    def describe_idle(self) -> str:
        return "no thread is making one"

    def close(self) -> None:
        self._activity.cancel()


class DataLoader:
    """An iterator of batches that are made ahead; `close()` (or leaving the `with` block) ends its threads.

    An error is raised in the place of its batch, and again at every later call: no batch is ever left out. `close()`
    and `describe_activity()` may be called by another thread while one waits for a batch; they do not wait for it.

    The threads are daemons, unlike those of a `ThreadPoolExecutor` (with which Grain reads ahead): Python waits for
    the latter when it exits, so that a run whose storage hangs could only be ended by a signal.
    """

    def __init__(self, producer: Producer, start: int, stop: int, ahead: int, record_name: Callable[[int], str]):
        """Starts the threads.

        Args:
          producer: makes the batches; the loader closes it.
          start: number of the first batch.
          stop: one past the last.
          ahead: batches that are made or wait in the buffer at any time, at most; at least `producer.threads`.
          record_name: the name of a record in messages, by its index in the data set.
        """
        self._number, self._stop, self._record_name = start, stop, record_name
        self._buffer = _Buffer(producer, start, stop, ahead)
        self._threads = [
            threading.Thread(target=self._buffer.fill, args=(slot,), name=f"data-loader-{slot}", daemon=True)
            for slot in range(producer.threads)
        ]
        for thread in self._threads:
            thread.start()
        # Also for a loader that nobody closed: threads inside OpenCV while Python shuts down would crash it.
        self._end = weakref.finalize(self, _end, self._buffer, self._threads)

    def __iter__(self) -> DataLoader:
        return self

    def __next__(self) -> Any:
        """Returns the next batch, after however long it takes.

        Raises:
          StopIteration: there are no more batches, or the loader is closed.
          Exception: what making this batch raised.
        """
        if self._number >= self._stop:
            self.close()
        batch = self._buffer.take(self._number)
        self._number += 1
        return batch

    def wait(self, timeout: float) -> bool:
        """Waits until `next` would return or raise at once.

        Args:
          timeout: in seconds, at most.

        Returns:
          False if the timeout came first.
        """
        return self._number >= self._stop or self._buffer.wait(self._number, timeout)

    def describe_activity(self) -> str:
        """The number of the batch that is due, and which records the threads are at that make it and the next ones."""
        producer = self._buffer.producer
        activities = producer.activity.activities()
        listed = [activity.describe(self._record_name) for activity in activities[:_THREADS_LISTED]]
        if len(activities) > _THREADS_LISTED:
            listed.append(f"and {len(activities) - _THREADS_LISTED} more threads, for less long")
        return f"batch {self._number} is due; {'; '.join(listed) or producer.describe_idle()}"

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads and worker processes; waits for a few seconds at most for one that hangs."""
        self._end()


class _Buffer:
    """The batches that are made and not yet taken, by number.

    Shared by the threads and the loader, which it does not refer to: a loader that nobody uses can be collected.
    """

    def __init__(self, producer: Producer, start: int, stop: int, ahead: int):
        self.producer = producer
        self._stop, self._ahead = stop, ahead
        self._begun = self._taken = start  # the numbers of the next batch to make, and of the next to take
        self._made: dict[int, tuple[Any, BaseException | None]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def fill(self, slot: int) -> None:
        """Makes batches until the last one or until the buffer is closed; runs in thread `slot`."""
        while (number := self._begin()) is not None:
            made: tuple[Any, BaseException | None]
            try:
                made = self.producer.make(number, slot), None
            except BaseException as error:  # of any kind: the consumer would wait forever for a thread that ended
                made = None, error
            with self._changed:
                if not self._closed:
                    self._made[number] = made
                    self._changed.notify_all()
            del made

    def _begin(self) -> int | None:
        """The number of the next batch to make, when there is room for it; None: nothing is left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun < self._taken + self._ahead)
            if self._closed or self._begun >= self._stop:
                return None
            self._begun += 1
            return self._begun - 1

    def wait(self, number: int, timeout: float | None = None) -> bool:
        """Waits until batch `number` is made or the buffer is closed; False after `timeout` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or number in self._made, timeout)

    def take(self, number: int) -> Any:
        """Removes batch `number` as soon as it is made, and returns it; raises its error, or StopIteration."""
        with self._changed:
            self.wait(number)
            if self._closed:
                raise StopIteration
            batch, error = self._made[number]
            if error is not None:  # it stays, and so do the threads: nobody will take the batches after it
                raise error
            del self._made[number]
            self._taken = number + 1
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        """Ends all waits; after it, no thread begins another batch."""
        with self._changed:
            self._closed = True
            self._made.clear()
            self._changed.notify_all()


def _end(buffer: _Buffer, threads: list[threading.Thread]) -> None:
    buffer.close()
    _join(threads, _GRACE_SECONDS)
    buffer.producer.close()
    _join(threads, _JOIN_SECONDS)
    buffer.producer.finish()


def _join(threads: list[threading.Thread], seconds: float) -> None:
    """Waits for the threads to end, for so long at most in all."""
    deadline = time.monotonic() + seconds
    for thread in threads:
        if thread is not threading.current_thread():  # the garbage collector runs in whatever thread is there
            thread.join(max(0.0, deadline - time.monotonic()))
