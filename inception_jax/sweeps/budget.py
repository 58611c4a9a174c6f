"""When a sweep stops, and how far it has come."""

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
    """When no new trial begins.

    Attributes:
      trials: so many have been begun by all drivers; None: no matter.
      hours: drivers have worked for so long; None: no matter.
    """

    trials: int | None = None
    hours: float | None = None

    def allows(self, study: Study, seconds: float) -> bool:
        """Whether another trial may begin, after so many seconds of work."""
        return (
            (self.trials is None or study.num_begun() < self.trials)
            and (self.hours is None or seconds < 3600 * self.hours)
            and study.has_next()
        )

    def progress(self, name: str, study: Study, seconds: float) -> SweepProgress:
        """How far the study has come, after so many seconds of work."""
        counts = study.status_counts()
        ended = sum(counts.get(status, 0) for status in trials.ENDED)
        known = self.trials is not None and 0 < ended < self.trials
        words = f"{self.trials}" if self.trials is not None else f"{self.hours:g} h" if self.hours is not None else ""
        return SweepProgress(
            name,
            study.num_begun(),
            words,
            counts,
            next(iter(study.ranking()), None),
            (self.trials - ended) * seconds / ended if known else None,
        )


class WorkedTime:
    """Seconds in which at least one driver worked on a study; stored on disk, so it survives their deaths."""

    FILE = "worked.json"
    LONGEST_GAP = 60.0
    """Seconds between two beats, of whichever driver; in a longer gap nobody worked."""

    def __init__(self, directory: Path):
        """Args:
        directory: of the study; `update` is called under its lock.
        """
        self._directory, self.seconds = directory, 0.0

    def update(self) -> None:
        """Adds the time since the last beat.

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
