"""Where the time of a run goes, over all the times that it was started."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

PHASES = ("compile", "data_wait", "evaluation", "checkpoint")


class Clock:
    """Wall seconds of a run by phase; what is in no phase is stepping.

    A checkpoint carries `totals()`, so that the clock of a continued run goes on from there.
    """

    def __init__(self, previous: dict[str, float] | None = None):
        """Args:
        previous: `totals()` of the run that is continued.
        """
        self._before = previous or {}
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._start = self._lap_start = time.perf_counter()
        self._lap_spent = dict(self._spent)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens inside as one of `PHASES`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Counts seconds that were measured elsewhere."""
        self._spent[name] += seconds

    def totals(self) -> dict[str, float]:
        """{"wall_seconds", "compile_seconds", "data_wait_seconds", "evaluation_seconds", "checkpoint_seconds"}."""
        spent = {f"{name}_seconds": seconds for name, seconds in self._spent.items()}
        spent["wall_seconds"] = time.perf_counter() - self._start
        return {name: seconds + self._before.get(name, 0.0) for name, seconds in spent.items()}

    def start_lap(self) -> None:
        """Begins the first lap now: what came before, such as compiling, belongs to none."""
        self._lap_start, self._lap_spent = time.perf_counter(), dict(self._spent)

    def lap(self, steps: int, batch_size: int) -> dict[str, float]:
        """Speed since the last lap, compilation, evaluation and saving left out.

        Args:
          steps: steps since then.
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
