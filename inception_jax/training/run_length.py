"""Run length, intervals of logging, evaluation and checkpoints, and fault-tolerance limits."""

from __future__ import annotations

import dataclasses

from inception_jax.config import Config, ConfigError
from inception_jax.ranges import INT32_MAX


@dataclasses.dataclass(frozen=True)
class RunLength:
    """The length of a run and the intervals of what it does repeatedly; all in steps.

    Attributes:
      steps_per_epoch: examples of the training split over the batch size; not rounded.
      total: steps of the whole run.
      evaluate_every: between evaluations.
      save_every: between checkpoints.
      log_every: between rows of metrics.jsonl.
    """

    steps_per_epoch: float
    total: int
    evaluate_every: int
    save_every: int
    log_every: int

    def is_due(self, step: int, every: int) -> bool:
        """Returns whether an action with the interval `every` is due after `step`; all are due after the last step."""
        return step % every == 0 or step == self.total

    def steps_until_due(self, step: int, limit: int) -> int:
        """The number of steps after `step` until something is due after a step, or `limit` if that is less."""
        due = min(every - step % every for every in (self.evaluate_every, self.save_every, self.log_every))
        return min(limit, due, self.total - step)

    def longest_execution(self, limit: int) -> int:
        """The most steps that are taken without anything due between them, or `limit` if that is less."""
        return min(limit, self.evaluate_every, self.save_every, self.log_every, self.total)

    def epoch(self, step: int) -> float:
        """The number of passes over the training split after `step` steps."""
        return step / self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class FaultLimits:
    """Limits of fault tolerance.

    Attributes:
      max_skipped_steps: consecutive steps that may be skipped; 0: the first bad loss ends the run.
      loss_limit: mean loss above which a step counts as diverged; None: no limit.
      max_corrupt: undecodable images that may be masked.
      stall_warning_seconds: without a batch, until a warning.
      stall_limit_seconds: without a batch, until the run ends.
    """

    max_skipped_steps: int
    loss_limit: float | None
    max_corrupt: int
    stall_warning_seconds: float
    stall_limit_seconds: float


def compute_run_length(config: Config, steps_per_epoch: float) -> RunLength:
    """Computes the length and the intervals of a run from its config.

    Args:
      config: its length and interval fields are read.
      steps_per_epoch: examples of the training split over the batch size.

    Raises:
      ConfigError: neither num_epochs nor num_steps is set, or there are more steps than an int32 counts.
    """
    num_epochs, num_steps = config.num_epochs, config.num_steps
    if num_epochs is None and num_steps is None:
        raise ConfigError("config.num_epochs and config.num_steps are both unset: set one of them")
    total = num_steps or max(1, round(num_epochs * steps_per_epoch))
    if total > INT32_MAX:  # which the step and the updates are counted in
        raise ConfigError(
            f"config.num_epochs = {num_epochs:g}: {total:,} steps; a run has at most {INT32_MAX:,}; lower num_epochs"
        )

    def steps(epochs: float) -> int:
        return min(total, max(1, round(epochs * steps_per_epoch)))

    return RunLength(
        steps_per_epoch=steps_per_epoch,
        total=total,
        evaluate_every=steps(config.evaluation.every_epochs),
        save_every=steps(config.checkpoint.every_epochs),
        log_every=config.logging.every_steps,
    )


def what_depends_on_length(config: Config) -> str | None:
    """Names what depends on the length of the run, so that it cannot be extended; None: it can be."""
    if config.schedule.name not in ("constant", "exponential"):
        return "its learning rate"
    return "its batch-norm momentum" if config.model.bn_initial_fraction is not None else None


def read_fault_limits(config: Config) -> FaultLimits:
    """Reads the config's section `faults`."""
    return FaultLimits(**config.faults.read(*(field.name for field in dataclasses.fields(FaultLimits))))
