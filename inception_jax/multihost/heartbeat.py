"""Heartbeats between the processes of a run: ends a process that waits in a collective for one that is gone.

A collective does not always notice that a process has gone (NCCL's never do), and JAX's own heartbeat ends the waiting
process by SIGABRT and a page of C++ output. Here each process writes a counter to the key-value store of
`jax.distributed`. When one process stops counting, or writes that it failed, the others end with an exit code of this
package and one line. They also end when process 0, which holds that store, no longer answers. JAX's own client is
quicker in one case only: process 0 is killed and its machine closes the connection, which is SIGABRT at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

_PREFIX = "inception_jax/heartbeats/"
_DONE = "done"  # and a number, which goes on to change
_FAILED = "failed"
_GONE = "gone"  # failed, has printed its error, and ends now


class KeyValueStore(Protocol):
    """The methods of JAX's distributed client that are used here."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Writes one value."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """Returns (key, value) of everything under a prefix."""


class PeerHeartbeats:
    """The last heartbeat of each other process, and when it last changed."""

    def __init__(self, others: list[int], timeout: float, now: float):
        """Starts with all of them alive.

        Args:
          others: their process ids.
          timeout: seconds without a new heartbeat after which a process counts as lost.
          now: seconds, of any monotonic clock.
        """
        self._last: dict[int, tuple[str | None, float]] = {other: (None, now) for other in others}
        self._timeout = timeout

    def find_lost(self, heartbeats: Mapping[int, str], now: float) -> str | None:
        """Describes the first process that is lost, as the beginning of a sentence; None where there is none.

        Args:
          heartbeats: the newest value of each process.
          now: seconds, of the same clock.
        """
        self._note(heartbeats, now)
        for other, (value, since) in self._last.items():
            if value in (_FAILED, _GONE):
                return f"process {other} of this run has ended with an error"
            if not _is_done(value) and now - since > self._timeout:
                return f"process {other} of this run has sent no heartbeat for {now - since:.0f} s"
        return None

    def all_gone(self, heartbeats: Mapping[int, str], now: float, silence: float) -> bool:
        """Returns whether every other process has written that it ends, or has sent no heartbeat for `silence` s."""
        self._note(heartbeats, now)
        return all(value == _GONE or now - since > silence for value, since in self._last.values())

    def _note(self, heartbeats: Mapping[int, str], now: float) -> None:
        for other, (before, _) in self._last.items():
            if (value := heartbeats.get(other)) != before:
                self._last[other] = (value, now)


def _is_done(value: str | None) -> bool:
    return value is not None and value.startswith(_DONE)


def _heartbeat_interval(timeout: float) -> float:
    """Seconds between two heartbeats, and between two checks of the others'."""
    return min(5.0, timeout / 5)


def longest_detection_seconds(timeout: float) -> float:
    """Seconds from a process's last heartbeat until a `HeartbeatMonitor` ends its own, at most."""
    return timeout + 5 * _heartbeat_interval(timeout)


class HeartbeatMonitor:
    """Sends this process's heartbeats, reads the others', and ends this process when one of them is lost.

    One thread exchanges heartbeats with the store, which may block forever; another checks what was read, and when.
    """

    def __init__(
        self, store: KeyValueStore, process: int, processes: int, *, timeout: float, exit_code: int, advice: str
    ):
        """Prepares the threads; `start` starts them.

        Args:
          store: JAX's distributed client.
          process: the id of this process.
          processes: how many there are.
          timeout: seconds without a new heartbeat after which a process counts as lost.
          exit_code: with which this process ends then.
          advice: the end of the line that it prints then.
        """
        self._store, self._process, self._exit_code, self._advice = store, process, exit_code, advice
        self._timeout = timeout
        self._peers = PeerHeartbeats([id for id in range(processes) if id != process], timeout, time.monotonic())
        self._interval = _heartbeat_interval(timeout)
        # A process that is about to fail for a reason of its own gets time to report it. Process 0 ends last: the
        # store ends with it, and JAX then ends the others.
        self._grace = 2 * self._interval if process else 3 * self._interval
        self._heartbeats: dict[int, str] = {}
        self._answered = time.monotonic()
        self._last_value, self._waits_for_others = _DONE, False
        self._stopped, self._done = threading.Event(), threading.Event()
        self._before_exit: Callable[[str], None] | None = None
        self._exchanger = threading.Thread(target=self._exchange_loop, name="heartbeat: exchange", daemon=True)
        self._checker = threading.Thread(target=self._check_loop, name="heartbeat: check", daemon=True)

    def start(self) -> None:
        """Starts to send this process's heartbeats and to check the others'."""
        self._exchanger.start()
        self._checker.start()

    def call_before_exit(self, action: Callable[[str], None] | None) -> None:
        """Sets what is called, with the reason, before this monitor ends the process; it gets a few seconds."""
        self._before_exit = action

    def finish(self) -> str | None:
        """Tells the others that this process has done its work, and waits until it may end without disturbing them.

        Process 0 waits for all that live, as its store, and with it JAX's clients of the others, end with it. They wait
        for process 0 alone, because JAX takes a client that leaves for one that has crashed.

        Returns:
          None; or, not on process 0, why that one will never have done its work, as the beginning of a sentence.
        """
        self._done.set()
        while True:
            if self._process == 0:
                if self._peers.all_gone(self._heartbeats, time.monotonic(), 3 * self._interval):
                    return None
            elif _is_done(self._heartbeats.get(0)):
                return None
            elif lost := self._find_lost():
                return lost
            time.sleep(self._interval / 20)

    def stop(self, *, failed: bool, wait_for_others: bool = False) -> None:
        """Tells the others that this process leaves, and stops checking them.

        Args:
          failed: by an error, so that they must leave too.
          wait_for_others: process 0 returns when the others have left, or have had the time to: they read this in its
            store. It does not wait for those whose heartbeats have ended.
        """
        self._last_value = _FAILED if failed else _DONE
        self._waits_for_others = wait_for_others and self._process == 0
        self._stopped.set()
        self._done.set()
        if self._exchanger.is_alive():
            # Where process 0 is gone, the store may not answer.
            self._exchanger.join(timeout=(10 if self._waits_for_others else 5) * self._interval)

    def leave(self) -> None:
        """Tells process 0 that this process ends in the next instant.

        When process 0 ends, JAX ends by SIGABRT whoever is still printing then: it waits for this.
        """
        last_exchange = threading.Thread(target=self._exchange, args=[_GONE], daemon=True)
        last_exchange.start()
        last_exchange.join(timeout=self._interval)

    def _exchange_loop(self) -> None:
        count = 0
        while not self._done.is_set():
            count += 1
            self._exchange(str(count))
            self._done.wait(self._interval)
        while not self._stopped.is_set():
            count += 1
            self._exchange(f"{_DONE} {count}")
            self._stopped.wait(self._interval / 10)
        limit = time.monotonic() + 8 * self._interval  # the others need 4: to read it, to check, and their grace
        while (
            self._exchange(self._last_value)
            and self._waits_for_others
            and not self._peers.all_gone(self._heartbeats, time.monotonic(), 5 * self._interval)
        ):
            if time.monotonic() > limit:
                break
            time.sleep(self._interval / 10)

    def _check_loop(self) -> None:
        while not self._done.wait(self._interval):
            if not self._find_lost() or self._done.wait(self._grace):
                continue
            if lost := self._find_lost():  # still
                self._end(f"{lost}; {self._advice}")

    def _end(self, reason: str) -> None:
        """Ends this process, whose main thread waits in a collective."""
        if action := self._before_exit:
            call = threading.Thread(target=action, args=[reason], daemon=True)
            call.start()
            call.join(timeout=2 * self._interval)
        if self._process == 0:
            self.stop(failed=True, wait_for_others=True)
        with contextlib.suppress(OSError, ValueError):  # full or closed: the exit code must not be lost
            sys.stdout.flush()
        print(f"error: {reason}", file=sys.stderr, flush=True)  # last: the main thread may have logged meanwhile
        self.leave()
        os._exit(self._exit_code)

    def _find_lost(self) -> str | None:
        now = time.monotonic()
        if now - self._answered > self._timeout:  # nothing was read of anyone
            return f"process 0 of this run, the coordinator, has not answered for {now - self._answered:.0f} s"
        return self._peers.find_lost(self._heartbeats, self._answered)

    def _exchange(self, value: str) -> bool:
        """Writes a heartbeat and reads the others'; False where the store does not answer."""
        try:
            self._store.key_value_set(f"{_PREFIX}{self._process}", value, allow_overwrite=True)
            found = self._store.key_value_dir_get(_PREFIX)
        except RuntimeError:
            return False
        self._heartbeats = {int(key.rpartition("/")[2]): value for key, value in found}
        self._answered = time.monotonic()
        return True
