"""The target of a run: the first evaluation whose metric has reached a value, and what the run needed to get there."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inception_jax.config import Config, ConfigError
from inception_jax.metric_definitions import METRICS, Metric
from inception_jax.runs import time_to_target


@dataclasses.dataclass(frozen=True)
class Target:
    """What `config.stop` asks for.

    Attributes:
      metric: of the evaluations, of the EMA weights where there are any.
      value: that it is to reach: at least, or, where lower is better, at most.
      ends_run: whether the run ends at the evaluation that reaches it.
    """

    metric: Metric
    value: float
    ends_run: bool

    def is_reached(self, value: float) -> bool:
        """Whether a value of the metric has reached the target; NaN has not."""
        return value >= self.value if self.metric.better == "higher" else value <= self.value


@dataclasses.dataclass
class TargetRecord:
    """Whether a run has reached its target. A checkpoint holds its `state`, so that no interruption loses it.

    Attributes:
      target: of the run; None: it has none.
      reached: the record of the first evaluation that reached it, as in result.json; None: none has.
    """

    target: Target | None = None
    reached: dict[str, Any] | None = None

    def add(self, values: Mapping[str, float], measure: Callable[[], dict[str, Any]]) -> bool:
        """Adds an evaluation.

        Args:
          values: {metric: value}, of the weights that count.
          measure: returns what the run has needed up to now; called where this evaluation is the first at the target.

        Returns:
          Whether it is.
        """
        if self.target is None or self.reached or not self.target.is_reached(values[self.target.metric.name]):
            return False
        self.reached = {"value": values[self.target.metric.name], **measure()}
        return True

    @property
    def ends_run(self) -> bool:
        """Whether the run is to end now."""
        return self.target is not None and self.target.ends_run and self.reached is not None

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds of it: values that JSON holds exactly; None without a target."""
        if self.target is None:
            return None
        return {"metric": self.target.metric.name, "value": self.target.value, "reached": self.reached}

    def restore(self, state: Mapping[str, Any] | None) -> bool:
        """Continues where an interrupted run was.

        Args:
          state: from `state`, in the checkpoint; None in one of a start without a target.

        Returns:
          False where the state is missing, or of another target; nothing is restored then.
        """
        known = state or {}
        if self.target is None or (known.get("metric"), known.get("value")) != (
            self.target.metric.name,
            self.target.value,
        ):
            return False
        self.reached = known.get("reached")
        return True

    def replay(self, rows: Iterable[Mapping[str, Any]], batch_size: int) -> None:
        """Looks for the target in evaluations that were made before the run had it; their times were not measured.

        Args:
          rows: of metrics.jsonl, of the weights that count.
          batch_size: examples per step.
        """
        for row in rows:
            if self.target is not None and self.target.metric.name in row:
                self.add(row, lambda row=row: describe_progress(row["step"], row["epoch"], batch_size))  # type: ignore[misc]

    def to_json(self) -> dict[str, Any] | None:
        """The entry "target" of result.json, whose reader need not have the metric registered; None: no target."""
        if self.target is None:
            return None
        metric = self.target.metric
        return {"metric": metric.name, "value": self.target.value, "reached": self.reached, **metric.to_json()}

    def summary(self) -> str:
        """The evaluation that reached the target, in one line."""
        content = self.to_json()
        assert content is not None
        return time_to_target.format_reached(content)


def describe_progress(step: int, epochs: float, batch_size: int) -> dict[str, Any]:
    """What a run has needed up to a step, without times."""
    return {"steps": step, "epochs": epochs, "images": step * batch_size}


def read_target(config: Config) -> Target | None:
    """Reads the target from `config.stop`.

    Returns:
      None: `stop.target` is unset.

    Raises:
      ConfigError: the value cannot be reached.
    """
    value = config.stop.target
    if value is None:
        return None
    metric = METRICS[config.stop.target_metric or config.checkpoint.best_metric]
    if metric.percent and value > 1:
        raise ConfigError(
            f"config.stop.target = {value:g}: {metric.title} is a fraction, at most 1: {value:g} % is {value / 100:g}"
        )
    return Target(metric, float(value), config.stop.at_target)
