"""The budget of a sweep (trials, hours), its progress, and the time that drivers have worked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from inception_jax.errors import UserError
from inception_jax.runs.manifest import read_json_object, replace_text
from inception_jax.sweeps import trials
from inception_jax.sweeps.display import SweepProgress
from inception_jax.sweeps.lease import file_system_time
from inception_jax.sweeps.study import Study


@dataclasses.dataclass(frozen=True)
class SweepBudget:
    """The limits after which no new trial begins.

    Attributes:
      trials: number of trials that all drivers together may begin; None: no limit.
      hours: time that drivers may work (`WorkedTime`), in hours; None: no limit.
    """

    trials: int | None = None
    hours: float | None = None

    def allows(self, study: Study, seconds: float) -> bool:
        """Returns whether another trial may begin.

        Args:
          study: inside `study.exclusive()`.
          seconds: time that drivers have worked on it.
        """
        return (
            (self.trials is None or study.num_begun() < self.trials)
            and (self.hours is None or seconds < 3600 * self.hours)
            and study.has_next()
        )

    def progress(self, name: str, study: Study, seconds: float) -> SweepProgress:
        """Summarizes the study for the status line.

        Args:
          name: of the study.
          study: inside `study.exclusive()`.
          seconds: time that drivers have worked on it; the ETA is extrapolated from it.
        """
        counts = study.status_counts()
        ended = sum(counts.get(status, 0) for status in trials.ENDED)
        eta = None
        if self.trials is not None and 0 < ended < self.trials:
            eta = (self.trials - ended) * seconds / ended
        limit = f"{self.trials}" if self.trials is not None else f"{self.hours:g} h" if self.hours is not None else ""
        return SweepProgress(
            name,
            study.num_begun(),
            limit,
            counts,
            next(iter(study.ranking()), None),
            eta,
        )


class WorkedTime:
    """Seconds in which at least one driver worked on a study; stored on disk, so it survives their deaths."""

    FILE = "worked.json"
    LONGEST_GAP = 60.0
    """Seconds between two updates, of any drivers; during a longer gap no driver was working."""

    def __init__(self, directory: Path):
        """Prepares the clock; `update` reads the file.

        Args:
          directory: of the study; `update` is called under its lock.
        """
        self._directory, self.seconds = directory, 0.0

    def update(self) -> None:
        """Adds the time since the last update and writes the file.

        Raises:
          UserError: the file cannot be written, or is damaged.
        """
        now = file_system_time(self._directory)
        stored = read_json_object(self._directory / self.FILE) or {"seconds": 0.0, "last": now}
        try:
            seconds, gap = float(stored["seconds"]), now - float(stored["last"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f'{self._directory / self.FILE} is damaged: it needs numbers "seconds" and "last"'
            ) from None
        self.seconds = seconds + (gap if 0 < gap <= self.LONGEST_GAP else 0.0)
        replace_text(self._directory / self.FILE, json.dumps({"seconds": self.seconds, "last": now}) + "\n")
