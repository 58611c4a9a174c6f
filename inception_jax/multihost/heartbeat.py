"""Whether the other processes of the run still live, for a process that waits for them in a collective.

A collective does not always notice that a process has gone (NCCL's never do), and the watch that JAX keeps ends the
waiting process by SIGABRT and a page of C++. Here each process counts aloud in the key-value store of
`jax.distributed`; one that falls silent, or says that an error ended it, ends the others, by an exit code of ours and
one line; so does process 0, in which that store lives, when it no longer answers. Only where process 0 is killed, and
its machine closes the connection, is JAX's own client quicker: SIGABRT at once.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Protocol

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


def _interval(patience: float) -> float:
    """Seconds between two signs, and between two looks at the others'."""
    return min(5.0, patience / 5)


def longest(patience: float) -> float:
    """Seconds from the last sign of a process until a `Watch` ends its own, at the latest: to notice, and the grace."""
    return patience + 5 * _interval(patience)


class Watch:
    """Gives this process's own signs, listens to the others', and ends this process when one of them is lost.

    One thread talks to the store, which may keep it waiting for ever; another judges what it heard, and when.
    """

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
        self._store, self._process, self._exit_code, self._advice = store, process, exit_code, advice
        self._patience = patience
        self._signs = Signs([id for id in range(processes) if id != process], patience, time.monotonic())
        self._interval = _interval(patience)
        # Whoever is not stuck, but about to fail for a reason of its own, gets time to say it. Process 0 goes last, for
        # with it goes the store, and JAX ends the others.
        self._grace = 2 * self._interval if process else 3 * self._interval
        self._said: dict[int, str] = {}
        self._answered = time.monotonic()
        self._last_sign, self._stays = _DONE, False
        self._ended = threading.Event()
        self._talking = threading.Thread(target=self._talk, name="peers: talking", daemon=True)
        self._judging = threading.Thread(target=self._judge, name="peers: judging", daemon=True)

    def start(self) -> None:
        """From now on others hear of this process, and it of them."""
        self._talking.start()
        self._judging.start()

    def end(self, *, failed: bool, stay: bool = False) -> None:
        """Tells the others that this process leaves; from then on it does not watch them.

        Args:
          failed: by an error, so that they must leave too.
          stay: process 0 returns when the others have left, or have had the time to: they read this in its store.
        """
        self._last_sign = _FAILED if failed else _DONE
        self._stays = stay and self._process == 0
        self._ended.set()
        if self._talking.is_alive():
            # Where process 0 is gone, the store may not answer.
            self._talking.join(timeout=(10 if self._stays else 5) * self._interval)

    def _talk(self) -> None:
        count = 0
        while not self._ended.is_set():
            count += 1
            self._exchange(str(count))
            self._ended.wait(self._interval)
        limit = time.monotonic() + 8 * self._interval  # the others need 4: to hear it, to look, and their grace
        while self._exchange(self._last_sign) and self._stays and not self._signs.all_left(self._said):
            if time.monotonic() > limit:
                break
            time.sleep(self._interval / 10)

    def _judge(self) -> None:
        while not self._ended.wait(self._interval):
            if not self._lost() or self._ended.wait(self._grace):
                continue
            if lost := self._lost():  # still
                sys.stdout.flush()
                print(f"error: {lost}; {self._advice}", file=sys.stderr, flush=True)
                telling = threading.Thread(target=self._exchange, args=[_FAILED], daemon=True)
                telling.start()
                telling.join(timeout=self._interval)
                os._exit(self._exit_code)

    def _lost(self) -> str | None:
        now = time.monotonic()
        if now - self._answered > self._patience:  # nothing was heard of anyone
            return f"process 0 of this run, where the others meet, has not answered for {now - self._answered:.0f} s"
        return self._signs.lost(self._said, self._answered)

    def _exchange(self, sign: str) -> bool:
        """Writes a sign and reads the others'; False where the store does not answer."""
        try:
            self._store.key_value_set(f"{_PREFIX}{self._process}", sign, allow_overwrite=True)
            found = self._store.key_value_dir_get(_PREFIX)
        except RuntimeError:
            return False
        self._said = {int(key.rpartition("/")[2]): value for key, value in found}
        self._answered = time.monotonic()
        return True
