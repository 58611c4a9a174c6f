"""How long a run is, when it does what, and what it bears before it ends."""

from __future__ import annotations

import dataclasses

from inception_jax.config import Config, ConfigError


@dataclasses.dataclass(frozen=True)
class RunLength:
    """How long a run is, and when it does what; all in steps.

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
        """Whether a thing that happens every so many steps happens after `step`; everything happens at the end."""
        return step % every == 0 or step == self.total

    def epoch(self, step: int) -> float:
        """Passes over the training split that `step` steps make."""
        return step / self.steps_per_epoch


@dataclasses.dataclass(frozen=True)
class FaultLimits:
    """What a run bears before it ends; the fields are those of the config's section."""

    max_skipped_steps: int
    loss_limit: float | None
    max_corrupt: int
    stall_warning_seconds: float
    stall_limit_seconds: float


def compute_run_length(config: Config, steps_per_epoch: float) -> RunLength:
    """The length that a config asks for.

    Args:
      config: its lengths and intervals are read.
      steps_per_epoch: examples of the training split over the batch size.

    Raises:
      ConfigError: it has no length.
    """
    num_epochs, num_steps = config.num_epochs, config.num_steps
    if num_epochs is None and num_steps is None:
        raise ConfigError("config.num_epochs and config.num_steps are both unset: one gives the length of the run")
    total = num_steps or max(1, round(num_epochs * steps_per_epoch))

    def steps(epochs: float) -> int:
        return min(total, max(1, round(epochs * steps_per_epoch)))

    return RunLength(
        steps_per_epoch=steps_per_epoch,
        total=total,
        evaluate_every=steps(config.evaluation.every_epochs),
        save_every=steps(config.checkpoint.every_epochs),
        log_every=config.logging.every_steps,
    )


def is_extendable(config: Config) -> bool:
    """Whether a finished run may go on with more steps: its learning rate so far must not depend on its length."""
    return config.schedule.name in ("constant", "exponential")


def read_fault_limits(config: Config) -> FaultLimits:
    """The config's section `faults`."""
    return FaultLimits(**config.faults.read(*(field.name for field in dataclasses.fields(FaultLimits))))
