"""The best evaluation of a run so far, and early stopping: ends a run that has not improved for some evaluations."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from inception_jax.errors import counted
from inception_jax.metric_definitions import Metric


@dataclasses.dataclass
class BestEvaluation:
    """Follows the evaluations of a run. A checkpoint holds its `state`, so an interruption changes no decision.

    Attributes:
      metric: of the evaluations, by which they are compared (`config.checkpoint.best_metric`).
      patience: evaluations without an improvement after which the run ends; None: it never ends early.
      min_improvement: the smallest difference from the best value that counts as an improvement.
      value: the best value; None before the first evaluation that is not NaN.
      step: of the best value; of equal ones the latest.
      since: evaluations since the last improvement.
      reference: the value that the next one must improve on.
    """

    metric: Metric
    patience: int | None = None
    min_improvement: float = 0.0
    value: float | None = None
    step: int | None = None
    since: int = 0
    reference: float | None = None

    def add(self, step: int, value: float) -> None:
        """Adds an evaluation; NaN is no improvement. Of equal values the later is the best one, as for checkpoints."""
        if self.metric.is_better(value, self.value) or value == self.value:
            self.value, self.step = value, step
        needed = self.reference
        if needed is not None and math.isfinite(needed):
            needed += self.min_improvement if self.metric.better == "higher" else -self.min_improvement
        if self.metric.is_better(value, needed):
            self.reference, self.since = value, 0
        else:
            self.since += 1

    @property
    def is_exhausted(self) -> bool:
        """Whether the run is to end now."""
        return self.patience is not None and self.since >= self.patience

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it: values that JSON holds exactly."""
        return {
            "metric": self.metric.name,
            "min_improvement": self.min_improvement,
            **{name: getattr(self, name) for name in ("value", "step", "since", "reference")},
        }

    def restore(self, state: Mapping[str, Any] | None) -> bool:
        """Continues where an interrupted run was.

        Args:
          state: from `state`, in the checkpoint; None in one of an earlier version.

        Returns:
          False where the state is missing, or of another metric or smallest improvement; nothing is restored then.
        """
        known = state or {}
        if (known.get("metric"), known.get("min_improvement")) != (self.metric.name, self.min_improvement):
            return False
        self.value, self.step = known["value"], known["step"]
        self.since, self.reference = known["since"], known["reference"]
        return True

    def to_json(self) -> dict[str, Any]:
        """The best evaluation, for result.json, whose reader need not have the metric registered."""
        return {"metric": self.metric.name, "value": self.value, "step": self.step, **self.metric.to_json()}

    def summary(self) -> str:
        """Why the run ends early, in one line."""
        best = "no value" if self.value is None else f"{self.metric.unit * self.value:.4g}{' %' * self.metric.percent}"
        at = "" if self.step is None else f" at step {self.step:,}"
        return (
            f"early stopping: {counted(self.since, 'evaluation')} without a better {self.metric.title} than {best}{at}"
        )
