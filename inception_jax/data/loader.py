"""Iterators of batches that are made ahead: what they have in common, and the one whose threads are this process's."""

from __future__ import annotations

import abc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from inception_jax.data.activity import ActivityTable, ThreadActivity

# How long `close()` waits for a thread to end. One that hangs in a read ends when the process does: it is a daemon.
_JOIN_SECONDS = 2.0
_PLACES_NAMED = 8


class DataLoader(abc.ABC):
    """An iterator of batches; `close()` (or leaving the `with` block) ends its threads and processes.

    An error comes in the place of the batch that it struck, and again at every later call: no batch is ever left out.
    `close()` and `describe_activity()` may be called by another thread while one waits for a batch; they do not wait.
    """

    def __init__(self, start: int, stop: int, record_name: Callable[[int], str]):
        """Args:
        start: number of the first batch.
        stop: one past the last.
        record_name: the words for a record of the data set, by its index.
        """
        self._number, self._stop, self._record_name = start, stop, record_name
        self._error: Exception | None = None
        self._closed = threading.Event()

    def __iter__(self) -> DataLoader:
        return self

    def __next__(self) -> Any:
        if self._number >= self._stop:
            self.close()
        if self._closed.is_set():
            raise StopIteration
        if self._error is None:
            try:
                batch = self._next_batch()
            except Exception as error:
                self._error = error
            else:
                self._number += 1
                return batch
        if self._closed.is_set():
            raise StopIteration  # what broke, broke because it was closed
        raise self._error

    def describe_activity(self) -> str:
        """Which batch is due, and where the threads are that make it and those after it."""
        places = self._activity_table().activities()
        named = [self.describe(place) for place in places[:_PLACES_NAMED]]
        if len(places) > _PLACES_NAMED:
            named.append(f"and {len(places) - _PLACES_NAMED} more threads, for less long")
        return f"batch {self._number} is due; {'; '.join(named) or self._describe_idle()}"

    def describe(self, place: ThreadActivity) -> str:
        """The words for one thread's place."""
        who = "a thread" if place.worker is None else f"worker {place.worker} (process {place.pid})"
        at = "its beginning" if place.record < 0 else f"row {place.row}, {self._record_name(place.record)}"
        return f"{who} has been at batch {place.batch}, {at}, for {place.seconds:.0f} s"

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()

    @abc.abstractmethod
    def close(self) -> None:
        """Ends the threads and processes; waits for a few seconds at most for one that hangs."""

    @abc.abstractmethod
    def _next_batch(self) -> Any:
        """Batch `self._number`, as soon as it is there."""

    @abc.abstractmethod
    def _activity_table(self) -> ActivityTable:
        """Where those who make the batches note what they are at."""

    @abc.abstractmethod
    def _describe_idle(self) -> str:
        """The words for when no thread is making a batch."""


class ThreadDataLoader(DataLoader):
    """Batches made ahead by threads of this process.

    The threads are daemons, unlike those of a `ThreadPoolExecutor` (which Grain reads ahead with): Python waits for
    the latter when it exits, so that a run whose storage hangs could end only by a signal.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        start: int,
        stop: int,
        threads: int,
        ahead: int,
        record_name: Callable[[int], str],
    ):
        """Starts the threads.

        Args:
          make: makes one batch; called by several threads at once.
          start: number of the first batch.
          stop: one past the last.
          threads: batches that are made at once.
          ahead: batches made ahead, at most, those being made included; at least `threads`.
          record_name: the words for a record of the data set, by its index.
        """
        super().__init__(start, stop, record_name)
        self._shared = _Shared(make, start, stop, ahead, ActivityTable(threads))
        self._threads = [
            threading.Thread(target=self._shared.work, args=(slot,), name=f"batches-{slot}", daemon=True)
            for slot in range(threads)
        ]
        for thread in self._threads:
            thread.start()
        # Also for an iterator that nobody closed: threads inside OpenCV while Python shuts down would crash it.
        self._end = weakref.finalize(self, _end, self._shared, self._threads)

    def _next_batch(self) -> Any:
        return self._shared.take(self._number)

    def _activity_table(self) -> ActivityTable:
        return self._shared.table

    def _describe_idle(self) -> str:
        return "no thread is making one"

    def close(self) -> None:
        self._closed.set()
        self._end()


class _Shared:
    """What the threads and their consumer share. It does not know the iterator, which can so be collected."""

    def __init__(self, make: Callable[[int], Any], start: int, stop: int, ahead: int, table: ActivityTable):
        self.table = table
        self._make, self._stop, self._ahead = make, stop, ahead
        self._begun = self._taken = start  # the numbers of the next batch to make, and of the next to hand on
        self._made: dict[int, tuple[Any, BaseException | None]] = {}
        self._closed = False
        self._changed = threading.Condition()

    def work(self, slot: int) -> None:
        while (number := self._begin()) is not None:
            self.table.begin_batch(slot, number)
            try:
                made = self._make(number), None
            except BaseException as error:  # for the consumer, whatever it is: a thread that ends leaves it waiting
                made = None, error
            finally:
                self.table.end_batch()
            with self._changed:
                self._made[number] = made
                self._changed.notify_all()
            del made

    def _begin(self) -> int | None:
        """The number of a batch to make, when there is room for it; None: there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._begun < self._taken + self._ahead)
            if self._closed or self._begun >= self._stop:
                return None
            self._begun += 1
            return self._begun - 1

    def take(self, number: int) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or number in self._made)
            if self._closed:
                raise ValueError("closed while a batch was waited for")
            batch, error = self._made[number]
            if error is not None:  # it stays, and the threads with it: nobody will take what comes after
                raise error
            del self._made[number]
            self._taken = number + 1
            self._changed.notify_all()
        return batch

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self.table.cancel()
            self._made.clear()
            self._changed.notify_all()


def _end(shared: _Shared, threads: list[threading.Thread]) -> None:
    shared.close()
    deadline = time.monotonic() + _JOIN_SECONDS
    for thread in threads:
        if thread is not threading.current_thread():  # the collector runs in whatever thread is there
            thread.join(max(0.0, deadline - time.monotonic()))
