"""Shows a sweep: a live table in a terminal, one line per event elsewhere; the log file gets the same lines."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

from inception_jax.errors import write_error
from inception_jax.metric_definitions import describe
from inception_jax.runs.formatting import format_duration, format_metric
from inception_jax.standard_streams import is_terminal

LOG = "sweep.log"


@dataclasses.dataclass
class TrialRow:
    """One row of the table: a trial of this driver.

    Attributes:
      number: of the trial.
      status: running, saving, waiting, or a final status.
      slot: name of the slot where it runs.
      params: its values, as `format_params` gives them.
      evaluations: index and epoch of the newest evaluation, as text.
      now: evaluated metric at the newest evaluation.
      best: the best so far.
      started: `time.monotonic()` at its start.
    """

    number: int
    status: str
    slot: str
    params: str
    evaluations: str = ""
    now: float | None = None
    best: float | None = None
    started: float = 0.0


@dataclasses.dataclass
class SweepProgress:
    """The content of the status line.

    Attributes:
      name: of the study.
      begun: number of trials that all drivers have begun.
      budget: as text: "24" for trials, "3 h"; "" while it is not known.
      counts: {status: number of trials}.
      best: (number, value) of the best finished trial.
      eta: seconds that remain; None while unknown.
    """

    name: str
    begun: int = 0
    budget: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    best: tuple[int, float] | None = None
    eta: float | None = None


class SweepDisplay:
    """Writes a sweep's events to a stream and to the study's log; several drivers may append to one log."""

    def __init__(self, directory: Path, metric: str, stream: TextIO | None = None, *, evaluated: str | None = None):
        """Opens the log, and starts the live table where the stream is a terminal.

        Args:
          directory: of the study.
          metric: name of the metric of the objective.
          stream: default: sys.stderr.
          evaluated: name of the metric of the evaluations; default: that of the objective.

        Raises:
          UserError: the log cannot be opened.
        """
        self._stream, self._live = stream or sys.stderr, None
        self.metric, self.evaluated, self.progress = metric, evaluated or metric, SweepProgress(directory.name)
        self.rows: dict[int, TrialRow] = {}
        try:
            self._log_file = open(directory / LOG, "a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise write_error(directory / LOG, error) from None
        if is_terminal(self._stream):
            from inception_jax.runs.terminal import start_live

            self._live = start_live(_LiveTable(self), self._stream)

    def log(self, text: str) -> None:
        """Writes a message to the log file and to the stream (above the table where there is one)."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # a full disk: the driver notices it by itself, and reports it
            self._log_file.write("".join(f"{now} {line}\n" for line in text.splitlines()))
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the sweep
            if self._live is not None:
                from rich.text import Text

                self._live.console.print(Text(text))
            else:
                self._stream.write(text + "\n")
                self._stream.flush()

    def format_value(self, value: float | None) -> str:
        """Formats a value of the objective: `98.61 %` or `0.0521`; "" for None."""
        return _format_value(self.metric, value)

    def format_evaluation(self, value: float | None) -> str:
        """Formats the evaluated metric of an evaluation, as `format_value`."""
        return _format_value(self.evaluated, value)

    def close(self) -> None:
        """Stops the live table, whose last state stays, and closes the log; a second call does nothing."""
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
            self._live = None
        self._log_file.close()


def _format_value(name: str, value: float | None) -> str:
    if value is None:
        return ""
    metric = describe(name)
    if metric.decimals is not None:
        return format_metric(metric, value)
    if not math.isfinite(value):
        return str(value)
    return f"{100 * value:.2f} %" if metric.percent else f"{value:.4f}"


def format_params(values: Mapping[str, Any]) -> str:
    """Formats the values of a trial as one line: `learning_rate 0.0123, name sgd`.

    A field is named by its last component, or by its whole path where two fields have the same last component.

    Args:
      values: {field: value}.
    """
    parts = [field.split(".")[-1] for field in values]
    names = {field: part if parts.count(part) == 1 else field for field, part in zip(values, parts, strict=True)}
    return ", ".join(f"{names[field]} {_format_param(value)}" for field, value in values.items())


def _format_param(value: Any) -> str:
    if isinstance(value, list | tuple):  # one that came from JSON is a list
        return f"({', '.join(map(_format_param, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_best_table(ranking: Sequence[tuple[int, float, str]], format_value: Callable[[float], str]) -> str:
    """Formats the best trials, one per line.

    Args:
      ranking: (number, value, parameters as text) per trial, the best first.
      format_value: formats a value.
    """
    texts = [format_value(value) for _, value, _ in ranking]
    width = max(map(len, texts), default=0)
    rows = zip(ranking, texts, strict=True)
    return "\n".join(f"  trial {number:>4}  {text:>{width}}  {params}" for (number, _, params), text in rows)


def format_status_line(progress: SweepProgress, format_value: Callable[[float | None], str]) -> str:
    """Formats the status line: `digits: 12/24 begun, 7 finished, 3 pruned, best 99.17 % (trial 4), ETA 12:30`.

    Args:
      progress: of the study.
      format_value: formats a value of the metric.
    """
    counts = [
        f"{progress.counts[status]} {status}"
        for status in ("finished", "pruned", "diverged", "failed")
        if progress.counts.get(status)
    ]
    best = [f"best {format_value(progress.best[1])} (trial {progress.best[0]})"] if progress.best else []
    eta = [f"ETA {format_duration(progress.eta)}"] if progress.eta is not None else []
    begun = f"{progress.begun}{f'/{progress.budget}' if progress.budget else ''} begun"
    return f"{progress.name}: " + ", ".join([begun, *counts, *best, *eta])


class _LiveTable:
    """Renders the status line and the table for the current width of the terminal."""

    def __init__(self, display: SweepDisplay):
        self._display = display

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table
        from rich.text import Text

        display = self._display
        yield Text(
            format_status_line(display.progress, display.format_value), style="bold", no_wrap=True, overflow="ellipsis"
        )
        rows = sorted(display.rows.copy().values(), key=lambda row: row.number)  # the driver may add one meanwhile
        if not rows:
            return
        columns = {
            "trial": [f"{row.number}" for row in rows],
            "status": [row.status for row in rows],
            "evaluation": [row.evaluations for row in rows],
            display.evaluated: [display.format_evaluation(row.now) for row in rows],
            "best": [display.format_evaluation(row.best) for row in rows],
            "values": [row.params for row in rows],
            "on": [row.slot for row in rows],
            "elapsed": [format_duration(time.monotonic() - row.started) for row in rows],
        }
        for name in ("on", "best", "elapsed"):
            if options.max_width < _WIDE:
                del columns[name]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        widths = {name: max(map(len, (name, *cells))) + 2 for name, cells in columns.items()}
        # Only the column of values is shortened where there is no room.
        room = max(len("values"), options.max_width - sum(widths.values()) + widths["values"] - 2)
        columns["values"] = [text if len(text) <= room else text[: room - 1] + "…" for text in columns["values"]]
        for name in columns:
            justify: Literal["left", "right"] = (
                "right" if name in ("trial", display.evaluated, "best", "elapsed") else "left"
            )
            table.add_column(name, no_wrap=True, overflow="crop", justify=justify)
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in cells))
        yield table


_WIDE = 90  # characters; a narrower table omits some columns
_STYLES = {"running": "cyan", "waiting": "yellow", "saving": "yellow"}
