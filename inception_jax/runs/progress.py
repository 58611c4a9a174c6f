"""Shows the progress of a run on a terminal or stream, and writes train.log.

In a terminal and in a notebook: a progress bar with the values of the last row below it (`terminal.py`, `notebook.py`),
and messages above it. Anywhere else (a file, a pipe): one plain line per update. In the log file: the plain lines, each
with date and time.

A phase is a period in which no training step ends: compilation, evaluation, plotting. It is shown with its own seconds,
which do not count in the step time that the remaining time is computed from.
"""

from __future__ import annotations

import collections
import contextlib
import datetime
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from inception_jax.errors import write_error
from inception_jax.runs.formatting import Phase, ProgressStatus, format_progress
from inception_jax.standard_streams import SafeStream, is_terminal

if TYPE_CHECKING:
    from inception_jax.runs.notebook import NotebookDisplay
    from inception_jax.runs.terminal import TerminalDisplay

_WINDOW = 20  # updates over which the step time is averaged


class Progress:
    """Shows the progress of one run on a stream and in a log file."""

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        steps_per_epoch: float | None = None,
        log_path: str | os.PathLike | None = None,
        stream: TextIO | None = None,
        *,
        title: str = "",
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens the log file (to append), and starts the progress bar in a terminal or a notebook.

        Args:
          total_steps: the step at which the run ends.
          start_step: the step from which it continues.
          steps_per_epoch: for the display of epochs; None shows none.
          log_path: None for no log file.
          stream: sys.stderr by default.
          title: shown before the bar.
          quiet: show and write nothing (every process but process 0); phases still measure their seconds.
          clock: returns monotonic seconds.

        Raises:
          UserError: the log file cannot be opened.
        """
        self._status = ProgressStatus(title, start_step, total_steps, steps_per_epoch, clock, started=clock())
        self._step_time = _StepTime(start_step)
        self._paused = 0.0  # seconds in phases so far, of which …
        self._recurring = 0.0  # … these were in recurring phases
        self._log: TextIO | None = None
        self._stream = SafeStream(stream or sys.stderr)
        self._terminal: TerminalDisplay | NotebookDisplay | None = None
        self._quiet = quiet
        if quiet:
            return
        if log_path is not None:
            try:
                self._log = open(Path(log_path), "a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise write_error(log_path, error) from None
        if is_terminal(self._stream):
            from inception_jax.runs.terminal import TerminalDisplay

            self._terminal = TerminalDisplay(self._status, self._stream)
        elif stream is None and _is_notebook():
            from inception_jax.runs.notebook import NotebookDisplay

            self._terminal = NotebookDisplay(self._status)

    @property
    def on_terminal(self) -> bool:
        """Whether a progress bar is drawn on a terminal."""
        return self._terminal is not None

    def advance(self, step: int) -> None:
        """Moves the bar to a step and writes no line; cheap enough for every step."""
        status = self._status
        status.step = step
        recurring = self._recurring / max(1, step - self._step_time.start)
        status.eta = self._step_time.remaining(status.total_steps - step, recurring)
        if self._terminal is not None:
            self._terminal.refresh()

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Shows a row of metrics.

        Args:
          step: steps done.
          values: a training row of metrics.jsonl, together with "images_per_second" and "data_wait_fraction" of
            timing.jsonl. An absent value is not shown.
        """
        now = self._status.clock()
        self._step_time.add(step, now - self._status.started - self._paused)
        self.advance(step)
        self._status.values = dict(values)
        line = format_progress(self._status)
        self._to_log(line)
        if self._terminal is None:
            self._to_stream(line)

    def message(self, text: str) -> None:
        """Writes a text of one or more lines: above the bar, and to the log file."""
        for line in text.splitlines():
            self._to_log(line)
        if self._terminal is not None:
            self._terminal.print(text)
        else:
            self._to_stream(text)

    @contextlib.contextmanager
    def phase(self, text: str, *, recurs: bool = False) -> Iterator[Phase]:
        """Shows what is done instead of training, and for how long; phases may be nested.

        Args:
          text: e.g. "compiling train step".
          recurs: it happens again and again (an evaluation): its time counts in the remaining time, and only its end is
            logged.

        Yields:
          The `Phase`; its `seconds` are known when the block has ended.
        """
        status = self._status
        phase = Phase(text, recurs, started=status.clock())
        if not recurs:
            self._to_log(f"{text} ...")
            if self._terminal is None:
                self._to_stream(f"{text} ...")
        status.phases.append(phase)
        if self._terminal is not None:
            self._terminal.refresh()
        ended = "stopped after "
        try:
            yield phase
            ended = ""
        finally:
            status.phases.remove(phase)
            phase.seconds = status.clock() - phase.started
            own = phase.seconds - phase.inner_seconds
            if status.phases:
                status.phases[-1].inner_seconds += phase.seconds
            self._paused += own
            self._recurring += own if recurs else 0.0
            self.message(f"{text}: {ended}{phase.seconds:.1f} s" + (f"; {phase.note}" if phase.note else ""))

    def close(self) -> None:
        """Stops the progress bar and closes the log file; a second call does nothing."""
        if self._status.ended is None:
            self._status.ended = self._status.clock()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _to_log(self, line: str) -> None:
        if self._log is not None:
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            try:
                self._log.write(f"{now} {line}\n")
            except OSError as error:
                raise write_error(self._log.name, error) from None

    def _to_stream(self, text: str) -> None:
        if not self._quiet:
            self._stream.write(text + "\n")
            self._stream.flush()


def _is_notebook() -> bool:
    """Returns whether this process is the kernel of a notebook: IPython is loaded, and its shell has a kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _StepTime:
    """Estimates the remaining time from the seconds per step of the last updates."""

    def __init__(self, start_step: int):
        self.start = start_step
        self._marks = collections.deque([(start_step, 0.0)], maxlen=_WINDOW + 1)

    def add(self, step: int, seconds: float) -> None:
        """Records that `step` was reached after so many seconds of training."""
        self._marks.append((step, seconds))

    def remaining(self, steps: int, extra: float) -> float | None:
        """Returns the seconds for so many steps, with `extra` seconds added to each; None before the first update."""
        (first, began), (last, ended) = self._marks[0], self._marks[-1]
        if last <= first:
            return None
        return max(0, steps) * ((ended - began) / (last - first) + extra)
