"""The progress bar in a notebook (Jupyter, Colab): the two lines of `terminal.py`, replaced in place."""

from __future__ import annotations

import html
import io
from typing import Any

from rich.console import Console

from inception_jax.runs.formatting import ProgressStatus
from inception_jax.runs.terminal import RunDisplay

_COLUMNS = 110
_SECONDS = 0.5  # between two drawings


class NotebookDisplay:
    """Draws a `ProgressStatus` in the output of a notebook's cell, until it is closed; messages appear above it."""

    def __init__(self, status: ProgressStatus):
        """Draws it for the first time.

        Args:
          status: its current values are drawn at each refresh; its owner changes them.
        """
        from IPython.display import display

        self._status = status
        self._drawn = status.clock()
        self._handle: Any = display(self._bundle(), raw=True, display_id=True)

    def refresh(self) -> None:
        """Draws the current values, unless that was done half a second ago."""
        if self._status.clock() - self._drawn >= _SECONDS:
            self._draw()

    def print(self, text: str) -> None:
        """Writes a text; on stdout, because notebooks show stderr as an error."""
        print(text, flush=True)
        self._draw()

    def close(self) -> None:
        """Draws the last state."""
        self._draw()

    def _draw(self) -> None:
        self._drawn = self._status.clock()
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        text = io.StringIO()
        Console(file=text, width=_COLUMNS, highlight=False, markup=False).print(RunDisplay(self._status))
        lines = text.getvalue().rstrip()
        return {"text/plain": lines, "text/html": f"<pre>{html.escape(lines)}</pre>"}
