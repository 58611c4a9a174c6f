"""Measures the wall seconds of a run by phase, over all its starts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PHASES = ("startup", "compile", "data_wait", "evaluation", "checkpoint", "plots")


class Clock:
    """Wall seconds of a run by phase; time in no phase is that of training steps.

    A checkpoint holds `totals()`, from which the clock of a resumed run continues.
    """

    def __init__(self, previous: dict[str, float] | None = None, began: float | None = None):
        """Starts the clock.

        Args:
          previous: `totals()` in the checkpoint of a resumed run.
          began: when this start began, by `time.perf_counter`: the time since is the phase "startup"; None: now.
        """
        self._before = previous or {}
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._start = self._lap_start = time.perf_counter()
        if began is not None:
            self.add("startup", self._start - began)
            self._start = began
        self._lap_spent = dict(self._spent)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the duration of the `with` block to one of `PHASES`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Adds seconds that were measured elsewhere to a phase."""
        self._spent[name] += seconds

    def totals(self) -> dict[str, float]:
        """Seconds since the first start of the run, as JSON.

        Returns:
          {"wall_seconds", "startup_seconds", "compile_seconds", "data_wait_seconds", "evaluation_seconds",
          "checkpoint_seconds", "plots_seconds"}.
        """
        spent = {f"{name}_seconds": seconds for name, seconds in self._spent.items()}
        spent["wall_seconds"] = time.perf_counter() - self._start
        return {name: seconds + self._before.get(name, 0.0) for name, seconds in spent.items()}

    def start_lap(self) -> None:
        """Starts a lap now; time before it, such as compilation, belongs to no lap."""
        self._lap_start, self._lap_spent = time.perf_counter(), dict(self._spent)

    def lap(self, steps: int, batch_size: int) -> dict[str, float]:
        """Ends a lap and returns its speed, without compilation, evaluation and checkpoints.

        Args:
          steps: training steps of the lap.
          batch_size: examples per step, over all devices.

        Returns:
          "step_seconds", "images_per_second", "data_wait_fraction" (of the step time) and "wall_seconds" (of the run).
        """
        lap = {name: self._spent[name] - self._lap_spent[name] for name in PHASES}
        passed = time.perf_counter() - self._lap_start
        stepping = max(passed - lap["compile"] - lap["evaluation"] - lap["checkpoint"], 1e-9)
        self.start_lap()
        return {
            "step_seconds": stepping / steps,
            "images_per_second": batch_size * steps / stepping,
            "data_wait_fraction": min(1.0, lap["data_wait"] / stepping),
            "wall_seconds": self.totals()["wall_seconds"],
        }
