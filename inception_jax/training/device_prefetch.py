"""Host to devices, ahead of the step: while the devices work on one batch, the next ones are on their way.

And the watch over the input: a run whose storage hangs says where, obeys signals, and ends by itself after a while.
"""

from __future__ import annotations

import collections
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from inception_jax.errors import ExitCode, UserError

_POLL_SECONDS = 0.1
# A pause longer than this, between two looks at the queue, was this process's own (Ctrl-Z, a frozen container) and
# says nothing about the input.
_LONGEST_PAUSE_SECONDS = 5.0
_JOIN_SECONDS = 5.0


class InputStalled(UserError):
    """No batch came for too long."""

    exit_code = ExitCode.STALLED


class DevicePrefetcher:
    """Batches on the devices, in order; counts how long the run waited for the host, and watches over the input.

    A thread draws the batches into a queue; it is a daemon, so that no hanging read keeps the process from ending. The
    devices are served by the calling thread alone.
    """

    def __init__(
        self,
        batches: Iterator[dict[str, np.ndarray]],
        put: Callable[[dict], Any],
        prefetch: int,
        *,
        warn_after: float = 60.0,
        give_up_after: float = 1800.0,
        report: Callable[[str], None] | None = None,
        should_stop: Callable[[], object] | None = None,
    ):
        """Starts to draw.

        Args:
          batches: this process's share of each global batch. Its `describe_activity()`, if it has one, tells
            where it is; its `close()`, if it has one, may be called while another thread waits for a batch of it.
          put: starts the transfer of a batch and returns its device arrays.
          prefetch: >= 1; batches that are on their way to the devices or wait there at any time, as far as the host has
            them ready, and as many again that wait on the host.
          warn_after: seconds without a batch until `report` is told where the input is; again after 2, 4, … times that.
          give_up_after: seconds without a batch until `next_batch` raises `InputStalled`.
          report: gets one line; default: a line on standard error.
          should_stop: asked while `next_batch` waits; what is true ends the wait.
        """
        self._batches, self._put, self._prefetch = batches, put, prefetch
        self._warn_after, self._give_up_after = warn_after, give_up_after
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))
        self._should_stop = should_stop or (lambda: False)
        self._ahead: collections.deque[Any] = collections.deque()
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(prefetch)
        self._end: BaseException | None = None  # what came instead of a batch: the end of the data, or an error
        self._waited, self._count = 0.0, 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._thread.start()

    def next_batch(self) -> Any | None:
        """The next batch on the devices, or None: `should_stop()` became true before there was one.

        Raises:
          StopIteration: the batches are at their end.
          InputStalled: no batch came for `give_up_after` seconds.
          Exception: of `batches`, in the place of the batch that it struck, and again at every later call.
        """
        if self._closed.is_set():
            raise ValueError("the feed is closed")
        while len(self._ahead) < self._prefetch and self._end is None:
            try:
                batch, end = self._queue.get_nowait()
            except queue.Empty:
                if self._ahead:
                    break  # the step need not wait for those that are to follow
                if (taken := self._wait()) is None:
                    return None
                batch, end = taken
            if end is None:
                self._ahead.append(self._put(batch))
                self._count += 1
            self._end = end
        if self._ahead:
            return self._ahead.popleft()
        raise self._end

    def __iter__(self) -> DevicePrefetcher:
        return self

    def __next__(self) -> Any:
        if (batch := self.next_batch()) is None:
            raise StopIteration
        return batch

    def pop_wait_seconds(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self) -> None:
        """Stops the pipeline's threads and processes; waits for a few seconds at most for what hangs."""
        self._closed.set()
        self._ahead.clear()
        with contextlib.suppress(queue.Empty):
            self._queue.get_nowait()
        self._thread.join(2 * _POLL_SECONDS)  # most are between two batches, and need not be broken off in one
        if hasattr(self._batches, "close"):
            try:
                self._batches.close()
            except ValueError:  # "generator already executing": one that hangs cannot be closed
                if not self._thread.is_alive():
                    raise
        self._thread.join(_JOIN_SECONDS)

    def _work(self) -> None:
        """Draws batches until they end or the feed is closed; in the feed's own thread."""
        end: BaseException | None = None
        while end is None and not self._closed.is_set():
            batch = None
            try:
                batch = next(self._batches)
            except BaseException as error:  # for the caller of `next_batch`, whatever it is
                end = error
            while not self._closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._queue.put((batch, end), timeout=_POLL_SECONDS)
                    break

    def _wait(self) -> tuple[Any, BaseException | None] | None:
        """What comes next out of the queue, however long that takes; None where `should_stop()` becomes true."""
        before, waited, warn_at = time.monotonic(), 0.0, self._warn_after
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    return self._queue.get(timeout=_POLL_SECONDS)
                if self._should_stop():
                    return None
                now = time.monotonic()
                waited += min(now - before, _LONGEST_PAUSE_SECONDS)
                before = now
                if waited >= self._give_up_after:
                    raise InputStalled(
                        f"{self._where(waited)}; the same command goes on from the last checkpoint, "
                        "once the storage answers"
                    )
                if waited >= warn_at:
                    self._report(f"{self._where(waited)}; giving up after {self._give_up_after:g} s")
                    warn_at *= 2
        finally:
            self._waited += waited + (time.monotonic() - before)

    def _where(self, waited: float) -> str:
        """The words for what the input is waiting for."""
        if hasattr(self._batches, "describe_activity"):
            place = self._batches.describe_activity()
        else:
            place = f"it has given {self._count}"
        return f"the input has stalled: no batch for {waited:.0f} s; {place}"
