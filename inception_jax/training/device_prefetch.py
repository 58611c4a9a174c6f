"""`DevicePrefetcher`: transfers batches to the devices ahead of the step, and watches for a stalled input.

While the devices work on one batch, the next ones are being transferred. A run whose storage hangs reports which record
it is waiting for, obeys signals, and ends by itself after a while.
"""

from __future__ import annotations

import collections
import sys
import time
from collections.abc import Callable
from typing import Any

from inception_jax.data.loader import DataLoader
from inception_jax.errors import ExitCode, UserError

_POLL_SECONDS = 0.1
# A pause longer than this, between two looks at the loader, was this process's own (Ctrl-Z, a frozen container) and
# says nothing about the input.
_LONGEST_PAUSE_SECONDS = 5.0


class InputStalled(UserError):
    """No batch came for too long."""

    exit_code = ExitCode.STALLED


class DevicePrefetcher:
    """Batches on the devices, in order; counts how long the run waited for the host, and watches for a stalled input.

    It has no thread: `next_batch` starts the transfers, of as many batches as the data loader has ready. The loader's
    threads or worker processes make batches meanwhile, and a wait for them can be ended at any time.
    """

    def __init__(
        self,
        batches: DataLoader,
        put: Callable[[Any], Any],
        prefetch: int,
        *,
        warn_after: float = 60.0,
        give_up_after: float = 1800.0,
        report: Callable[[str], None] | None = None,
        should_stop: Callable[[], object] | None = None,
    ):
        """Makes a prefetcher; the first transfer starts with the first `next_batch`.

        Args:
          batches: this process's rows of each global batch; `close` closes it.
          put: starts the transfer of a batch and returns its device arrays.
          prefetch: >= 1; batches that are being transferred or wait on the devices at any time, as far as the host has
            them ready.
          warn_after: seconds without a batch until `report` gets a line on what the input is waiting for; again after
            2, 4, … times that.
          give_up_after: seconds without a batch until `next_batch` raises `InputStalled`.
          report: receives one line; default: a line on standard error.
          should_stop: called while `next_batch` waits; a true result ends the wait.
        """
        self._batches, self._put, self._prefetch = batches, put, prefetch
        self._warn_after, self._give_up_after = warn_after, give_up_after
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))
        self._should_stop = should_stop or (lambda: False)
        self._on_device: collections.deque[Any] = collections.deque()
        self._end: Exception | None = None  # what came instead of a batch: the end of the data, or an error
        self._waited = 0.0
        self._closed = False

    def next_batch(self) -> Any | None:
        """The next batch on the devices, or None: `should_stop()` became true before there was one.

        Raises:
          StopIteration: there are no more batches.
          InputStalled: no batch came for `give_up_after` seconds.
          Exception: of `batches`, in the place of its batch, and again at every later call.
        """
        if self._closed:
            raise ValueError("the prefetcher is closed")
        while len(self._on_device) < self._prefetch and self._end is None:
            if not self._batches.wait(0):
                if self._on_device:
                    break  # the step need not wait for the batches after its own
                if not self._wait():
                    return None
            try:
                batch = next(self._batches)
            except Exception as error:
                self._end = error
            else:
                self._on_device.append(self._put(batch))
        if self._on_device:
            return self._on_device.popleft()
        assert self._end is not None
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
        """Closes the data loader; waits for a few seconds at most for a thread or worker that hangs."""
        self._closed = True
        self._on_device.clear()
        self._batches.close()

    def _wait(self) -> bool:
        """Waits until the loader has the next batch, its error or its end; False if `should_stop()` becomes true."""
        before, waited, warn_at = time.monotonic(), 0.0, self._warn_after
        try:
            while not self._batches.wait(_POLL_SECONDS):
                if self._should_stop():
                    return False
                now = time.monotonic()
                waited += min(now - before, _LONGEST_PAUSE_SECONDS)
                before = now
                if waited >= self._give_up_after:
                    raise InputStalled(
                        f"{self._describe_stall(waited)}; the same command continues from the last checkpoint, "
                        "once the storage answers"
                    )
                if waited >= warn_at:
                    self._report(f"{self._describe_stall(waited)}; giving up after {self._give_up_after:g} s")
                    warn_at *= 2
            return True
        finally:
            self._waited += waited + (time.monotonic() - before)

    def _describe_stall(self, waited: float) -> str:
        return f"the input has stalled: no batch for {waited:.0f} s; {self._batches.describe_activity()}"
