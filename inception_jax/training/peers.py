"""Whether the other processes of the run still live, for a process that waits for them in a collective.

A collective does not always notice that a process has gone (NCCL's never do), and the watch that JAX keeps ends the
waiting process by SIGABRT and a page of C++. Here each process counts aloud in the key-value store of
`jax.distributed`; one that falls silent, or says that an error ended it, ends the others, by an exit code of ours and
one line. Only where process 0 dies, in which that store lives, is JAX's own client quicker: SIGABRT at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Protocol

_PREFIX = "inception_jax/signs_of_life/"
_DONE = "done"
_FAILED = "failed"


class Store(Protocol):
    """What is used of JAX's distributed client."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """Writes one value."""

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        """(key, value) of everything under a prefix."""


class Signs:
    """What the others have said, and since when they have been silent."""

    def __init__(self, others: list[int], patience: float, now: float):
        """All of them have just been met.

        Args:
          others: their process ids.
          patience: seconds without a new sign after which a process counts as lost.
          now: seconds on any clock that only goes forward.
        """
        self._heard: dict[int, tuple[str | None, float]] = {other: (None, now) for other in others}
        self._patience = patience

    def lost(self, said: Mapping[int, str], now: float) -> str | None:
        """The first process that is lost, as the beginning of a sentence, or None.

        Args:
          said: the newest sign of each process.
          now: on the clock of before.
        """
        for other, (before, since) in self._heard.items():
            sign = said.get(other)
            if sign == _FAILED:
                return f"process {other} of this run has ended with an error"
            if sign != before:
                self._heard[other] = (sign, now)
            elif sign != _DONE and now - since > self._patience:
                return f"process {other} of this run has given no sign of life for {now - since:.0f} s"
        return None

    def all_left(self, said: Mapping[int, str]) -> bool:
        """Whether every other process has said that it leaves."""
        return all(said.get(other) in (_DONE, _FAILED) for other in self._heard)


class Watch(threading.Thread):
    """Gives this process's own signs, listens to the others', and ends this process when one of them is lost."""

    def __init__(self, store: Store, process: int, processes: int, *, patience: float, exit_code: int, advice: str):
        """Does not start it.

        Args:
          store: JAX's distributed client.
          process: the id of this one.
          processes: how many there are.
          patience: seconds without a sign after which another counts as lost.
          exit_code: with which this process then ends.
          advice: the end of the sentence that it says then.
        """
        super().__init__(name="peers", daemon=True)
        self._store, self._process, self._exit_code, self._advice = store, process, exit_code, advice
        self._signs = Signs([id for id in range(processes) if id != process], patience, time.monotonic())
        self._interval = min(5.0, patience / 5)
        # Whoever is not stuck, but about to fail for a reason of its own, gets time to say it. Process 0 goes last, for
        # with it goes the store, and JAX ends the others.
        self._grace = 2 * self._interval if process else 3 * self._interval
        self._last_sign, self._stays = _DONE, False
        self._ended = threading.Event()

    def end(self, *, failed: bool, stay: bool = False) -> None:
        """Tells the others that this process leaves; from then on it does not watch them.

        Args:
          failed: by an error, so that they must leave too.
          stay: process 0 returns when the others have left, or have had the time to: they read this in its store.
        """
        self._last_sign = _FAILED if failed else _DONE
        self._stays = stay and self._process == 0
        self._ended.set()
        if self.is_alive():
            self.join(timeout=5 * self._interval)  # where process 0 is gone, the store may not answer

    def run(self) -> None:
        """The thread's work."""
        count = 0
        while not self._ended.is_set():
            count += 1
            lost = self._signs.lost(self._exchange(str(count)), time.monotonic())
            if lost and not self._ended.wait(self._grace):
                sys.stdout.flush()
                print(f"error: {lost}; {self._advice}", file=sys.stderr, flush=True)
                self._exchange(_FAILED)
                os._exit(self._exit_code)
            self._ended.wait(self._interval)
        limit = time.monotonic() + 4 * self._interval
        while not self._signs.all_left(self._exchange(self._last_sign)) and self._stays and time.monotonic() < limit:
            time.sleep(self._interval / 10)

    def _exchange(self, sign: str) -> dict[int, str]:
        """The newest sign of each process; of none where the store does not answer, which is JAX's own to judge."""
        try:
            self._store.key_value_set(f"{_PREFIX}{self._process}", sign, allow_overwrite=True)
            found: Any = self._store.key_value_dir_get(_PREFIX)
        except RuntimeError:
            return {}
        return {int(key.rpartition("/")[2]): value for key, value in found}
