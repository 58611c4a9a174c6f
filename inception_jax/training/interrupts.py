"""Signals that end a run: the first one saves and stops, the second one stops at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence


class Interrupts:
    """Turns the first SIGTERM or SIGINT into a flag for the loop to poll; the second ends the process at once.

    The interpreter runs signal handlers in the main thread between two bytecodes, so a handler alone stays silent for
    as long as XLA compiles (minutes, for a large network). Here the C-level handler wakes a thread through a socket:
    it says what will happen, or exits, while the main thread is still compiling. (A thread in `sigwait` would need the
    signals blocked in all threads, and every child process would inherit that.)

    A signal that the parent set to be ignored (`nohup`, a shell's background job and SIGINT) stays ignored. Outside
    the main thread Python cannot catch signals: then nothing is caught and `requested()` stays None.

    `with Interrupts() as interrupts:` puts the previous handlers back at its end.
    """

    REPEAT_SECONDS = 0.2
    """Signals this close after the first are the same one: `timeout` and some schedulers signal a process twice, once
    by itself and once with its group."""

    def __init__(
        self,
        report: Callable[[str], None] | None = None,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
    ):
        """Nothing is caught before the `with`.

        Args:
          report: gets one line when the first signal comes, from another thread; default: a line on stderr.
          signals: what to catch.
        """
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))
        self._signals = tuple(signals)
        self._previous: dict[signal.Signals, object] = {}
        self._name: str | None = None
        self._time = 0.0

    def requested(self) -> str | None:
        """The name of the first signal that came ("SIGTERM"), or None: run on."""
        return self._name

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)  # `set_wakeup_fd` asks for it
        self._previous_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._thread.start()
        for number in self._signals:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, _leave_to_the_thread)
        return self

    def __exit__(self, *exception: object) -> None:
        if not hasattr(self, "_thread"):
            return
        for number, handler in self._previous.items():
            # None: a handler that was not installed from Python; it cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        signal.set_wakeup_fd(self._previous_wakeup)
        self._writer.close()  # the thread reads the end of the stream
        self._thread.join()
        self._reader.close()
        del self._thread

    def _watch(self) -> None:
        while received := self._reader.recv(1):
            if received[0] in self._previous:
                self._receive(signal.Signals(received[0]))

    def _receive(self, number: signal.Signals) -> None:
        if self._name is None:
            self._name, self._time = number.name, time.monotonic()
            with contextlib.suppress(Exception):  # a terminal that has gone must not stop the watch
                self._report(f"{number.name}: finishing this step and saving; a second signal stops without saving")
        elif time.monotonic() - self._time > self.REPEAT_SECONDS:
            with contextlib.suppress(OSError):
                os.write(2, f"{number.name} again: stopped at once\n".encode())
            os._exit(128 + number.value)


def _leave_to_the_thread(number: int, frame: object) -> None:
    """The handler in the main thread: a Python function, or else the C-level one would not be installed."""
