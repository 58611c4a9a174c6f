"""Handles SIGTERM, SIGINT and SIGHUP: the first saves a checkpoint and stops, a second ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any


class Interrupts:
    """Turns the first SIGTERM, SIGINT or SIGHUP into a flag that the loop polls; a second ends the process at once.

    (Not a second SIGHUP: where a terminal is closed, both the kernel and the shell may send one.)

    The interpreter runs signal handlers in the main thread between two bytecodes, so a handler alone does nothing while
    XLA compiles (minutes, for a large network). Here the C-level handler wakes a thread through a socket: the thread
    reports the signal, or exits, while the main thread is still compiling. (A thread in `sigwait` would need the
    signals blocked in all threads, and every child process would inherit that.)

    A signal that the parent set to be ignored (`nohup`, a shell's background job and SIGINT) stays ignored. Outside
    the main thread Python cannot catch signals: then nothing is caught and `requested()` stays None.

    The previous handlers are restored at the end of `with Interrupts() as interrupts:`.
    """

    REPEAT_SECONDS = 0.2
    """Signals within this time after the first count as the same one: `timeout` and some schedulers signal a process
    twice, once by itself and once with its group."""

    def __init__(
        self,
        report: Callable[[str], None] | None = None,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    ):
        """Stores the options; signals are caught only inside the `with` block.

        Args:
          report: called with one line at the first signal, from another thread; default: a line on stderr.
          signals: to catch.
        """
        self._report = report or (lambda text: print(text, file=sys.stderr, flush=True))
        self._signals = tuple(signals)
        self._previous: dict[int, Any] = {}
        self._name: str | None = None
        self._time = 0.0

    def requested(self) -> str | None:
        """The name of the first signal received, such as "SIGTERM"; None: no signal."""
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
                self._previous[number] = signal.signal(number, _handled_by_thread)
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
            with contextlib.suppress(Exception):  # a closed terminal must not end this thread
                self._report(
                    f"{number.name}: finishing this step and saving a checkpoint; a second signal stops without saving"
                )
        elif number != signal.SIGHUP and time.monotonic() - self._time > self.REPEAT_SECONDS:
            with contextlib.suppress(OSError):
                os.write(2, f"{number.name} again: stopped at once\n".encode())
            os._exit(128 + number.value)


def _handled_by_thread(number: int, frame: object) -> None:
    """Does nothing. With a Python handler, the C-level one is installed, too, which wakes the thread."""
