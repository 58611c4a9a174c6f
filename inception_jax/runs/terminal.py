"""The progress bar: two lines at the bottom of a terminal, redrawn four times a second.

    inception_v1  ━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━  epoch 12.25/40  step   550/1,800  ETA 2:31
    loss 0.4321  top-1 main 98.1 %  aux1 96.0 %  aux2 97.1 %  4,321 images/s  data wait 3 %

During a phase, the second line shows it instead (`⠹ compiling train step  43 s`). There are always two lines, so that
the display does not jump. A narrow terminal gets shorter texts first, then fewer values.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.text import Text

from inception_jax.runs import formatting
from inception_jax.runs.formatting import INPUT_BOUND, Phase, ProgressStatus

_MIN_BAR, _MAX_BAR = 10, 60  # columns
_GAP = "  "
_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"


def start_live(display: RenderableType, stream: TextIO) -> Live:
    """Starts to draw a display at the bottom of a terminal, four times a second; other output appears above it."""
    console = Console(file=stream, force_terminal=True, force_jupyter=False, highlight=False, markup=False)
    live = Live(
        display,
        console=console,
        refresh_per_second=4,
        # Only streams that are this terminal: `> file` must still write to the file.
        redirect_stdout=sys.stdout.isatty(),
        redirect_stderr=sys.stderr.isatty(),
    )
    live.start(refresh=True)
    console.show_cursor(True)  # rich hides it until the end; a process that is killed would leave none
    return live


class TerminalDisplay:
    """Draws a `ProgressStatus` on a terminal until it is closed; other output appears above it."""

    def __init__(self, status: ProgressStatus, stream: Any):
        """Starts to draw.

        Args:
          status: its current values are drawn at each refresh; its owner changes them.
          stream: the terminal.
        """
        self._live = start_live(RunDisplay(status), stream)
        self._handlers = [(handler, handler.stream) for handler in _log_handlers() if handler.stream.isatty()]
        for handler, _ in self._handlers:
            handler.setStream(sys.stderr)

    def refresh(self) -> None:
        """Does nothing: a thread draws the current values four times a second."""

    def print(self, text: str) -> None:
        """Writes a text above the bar."""
        self._live.console.print(Text(text))

    def close(self) -> None:
        """Draws the last state and restores the terminal."""
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._live.stop()


def _log_handlers() -> Iterator[logging.StreamHandler]:
    """Yields the stream handlers of `logging`, also absl's: they would overwrite the bar."""
    for logger in (logging.getLogger(), logging.getLogger("absl")):
        for handler in logger.handlers:
            handler = getattr(handler, "python_handler", handler)  # absl's handler wraps one
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                yield handler


class RunDisplay:
    """Renders the two lines for the current width of the terminal."""

    def __init__(self, status: ProgressStatus):
        """Stores the status, which is read at each rendering."""
        self._status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        status, width = self._status, options.max_width
        yield from _bar_line(status, console, options)
        innermost = status.phases[-1:]  # read once: the run may end the phase while this thread draws it
        if innermost:
            yield _cropped(_phase_text(innermost[0], status.clock(), options.ascii_only), width)
        else:
            yield _cropped(_first_fitting(_value_layouts(status.values), width), width)


def _bar_line(status: ProgressStatus, console: Console, options: ConsoleOptions) -> Iterator[Any]:
    columns = 0
    for before, after in _bar_layouts(status):
        text = _GAP.join(filter(None, (*before, *after)))
        columns = options.max_width - len(text) - len(_GAP)
        if columns >= _MIN_BAR:
            break
    if columns < _MIN_BAR:
        yield _cropped(Text(text), options.max_width)
        return
    yield from console.render(Text("".join(part + _GAP for part in before), end="", style="bold"), options)
    bar = ProgressBar(
        total=max(1, status.total_steps),
        completed=status.step,
        width=min(columns, _MAX_BAR),
        complete_style="cyan",
        finished_style="green",
    )
    yield from console.render(bar, options)
    yield from console.render(Text("".join(_GAP + part for part in after), end=""), options)
    yield Segment.line()


def _bar_layouts(status: ProgressStatus) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the texts before and after the bar, from the longest to the shortest."""
    title = [status.title] if status.title else []
    count = formatting.format_steps(status)
    epoch = [f"epoch {formatting.format_epochs(status)}"] if status.steps_per_epoch else []
    if status.ended is not None:
        end = f"in {formatting.format_duration(status.ended - status.started)}"
    else:
        end = f"ETA {'-' if status.eta is None else formatting.format_duration(status.eta):>4}"
    yield title, [*epoch, f"step {count}", end]
    yield title, [*epoch, count, end]
    yield [], [*epoch, count, end]
    yield [], [count, end]


def _phase_text(phase: Phase, now: float, ascii_only: bool) -> Text:
    frames = _ASCII_SPINNER if ascii_only else _SPINNER
    spinner = frames[int(4 * now) % len(frames)]
    seconds = formatting.format_duration(int(now - phase.started))
    return Text(f"{spinner} {phase.text}{_GAP}{seconds}", style="cyan")


def _value_layouts(values: Mapping[str, Any]) -> Iterator[Text]:
    """Yields the text of the values, from the longest to the shortest."""
    if not values:
        yield Text("waiting for the first row", style="dim")
        return
    tops = formatting.per_head(values, "top1")
    loss = [_loss(formatting.format_number(values["loss"]), values["loss"])] if "loss" in values else []
    short_loss = [_loss(f"{values['loss']:.3f}", values["loss"])] if "loss" in values else []
    losses = [f"{head} {formatting.format_number(value)}" for head, value in formatting.per_head(values, "loss")]
    lr = [f"lr {values['learning_rate']:.4g}"] if "learning_rate" in values else []
    rate = formatting.format_rate(values["images_per_second"]) if "images_per_second" in values else ""
    speed, short_speed = ([f"{rate} images/s"], [f"{rate}/s"]) if rate else ([], [])
    top = ["top-1 " + _GAP.join(f"{head} {100 * value:.1f} %" for head, value in tops)] if tops else []
    short_top = ["top-1 " + "/".join(f"{100 * value:.1f}" for _, value in tops) + " %"] if tops else []
    wait = _wait(values, "data wait {} %", " input-bound")
    yield _joined(*loss, *losses, *top, *lr, *speed, *wait)
    yield _joined(*loss, *top, *lr, *speed, *wait)
    yield _joined(*loss, *top, *speed, *wait)
    yield _joined(*loss, *short_top, *speed, *wait)
    yield _joined(*short_loss, *short_top, *short_speed, *_wait(values, "wait {} %", ", input-bound"))
    yield _joined(*short_loss, *short_top, *short_speed, *_wait(values, "", "input-bound"))
    yield _joined(*short_loss, *short_top, *_wait(values, "", "input-bound"))


def _loss(text: str, value: float) -> Text:
    return Text(f"loss {text}", style="" if math.isfinite(value) else "bold red")


def _wait(values: Mapping[str, Any], template: str, bound: str) -> list[Text]:
    """Formats the fraction of time spent waiting for data, with `bound` appended where it is large; [] where absent."""
    if "data_wait_fraction" not in values:
        return []
    wait = values["data_wait_fraction"]
    text = template.format(f"{100 * wait:.0f}") + (bound if wait > INPUT_BOUND else "")
    return [Text(text, style="bold yellow" if wait > INPUT_BOUND else "")] if text else []


def _joined(*parts: str | Text) -> Text:
    return Text(_GAP).join(part if isinstance(part, Text) else Text(part) for part in parts)


def _first_fitting(layouts: Iterator[Text], width: int) -> Text:
    text = Text()
    for text in layouts:
        if text.cell_len <= width:
            break
    return text


def _cropped(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="crop")
    return text
