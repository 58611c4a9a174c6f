"""A trial that this driver works on: its process, its record, and what comes after the process has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, write_error
from inception_jax.runs import lock, result
from inception_jax.sweeps import overrides, trial_process, trials
from inception_jax.sweeps.lease import Lease, last_heartbeat
from inception_jax.sweeps.resources import Slot
from inception_jax.sweeps.study import Trial
from inception_jax.sweeps.study_config import StudyConfig
from inception_jax.sweeps.trial_process import TrainingProcess

CommandBuilder = Callable[[Sequence[str], Sequence[int] | None], list[str]]


@dataclasses.dataclass(frozen=True)
class TrialTiming:
    """Seconds; tests have shorter ones.

    Attributes:
      poll: between two looks at the processes and their metrics.
      scan: between two looks for trials to adopt or to begin, where a worker is idle.
      heartbeat: between two signs of life.
      stale: without one, until another machine's driver counts as dead.
      backoff: before a process that died is started again; doubled with every death in a row, up to `max_backoff`.
      locked_retry: before a workdir that is in use is tried again.
    """

    poll: float = 0.25
    scan: float = 2.0
    heartbeat: float = 5.0
    stale: float = 60.0
    backoff: float = 1.0
    max_backoff: float = 60.0
    locked_retry: float = 2.0


@dataclasses.dataclass(frozen=True)
class TrialOutcome:
    """What a trial has come to.

    Attributes:
      status: one of `trials.ENDED`, or "interrupted": to be continued.
      message: why, in a line.
      value: of a finished one.
    """

    status: str
    message: str = ""
    value: float | None = None


class RunningTrial:
    """One trial, from its lease to its outcome."""

    def __init__(
        self,
        trial: Trial,
        record: trials.TrialRecord,
        lease: Lease,
        slot: Slot,
        workdir: Path,
        study_config: StudyConfig,
    ):
        """Args:
        trial: as the storage has it.
        record: as the disk has it.
        lease: of the workdir; let go of by `release`.
        slot: where its process runs.
        workdir: of the trial.
        study_config: of the study.
        """
        self.trial, self.record, self.slot, self.workdir = trial, record, slot, workdir
        self.stop_reason: str | None = None  # to end: "pruned" or "stopped"
        self.process: TrainingProcess | None = None
        self.began = time.monotonic()
        self.start_after = 0.0  # by the monotonic clock
        self.logged_waiting = False  # for another process to leave the workdir; said once
        self._lease, self._study_config = lease, study_config
        self._evaluations = trials.EvaluationReader(
            workdir, study_config.evaluated_weights(trial.fields), study_config.metric
        )
        self._last_heartbeat = 0.0
        if record.starts and record.starts[-1]["ended"] is None:  # it was lost with its driver
            record.record_exit(None, last_heartbeat(workdir))

    def start(self, command: CommandBuilder) -> None:
        """Starts the training process: for the first time, or on from its checkpoint.

        Args:
          command: makes the command of the arguments of train and the cores.

        Raises:
          UserError: a file that cannot be written.
        """
        words = [
            *self._study_config.config_arguments,
            *overrides.override_arguments(self.trial.fields),
            f"--workdir={self.workdir}",
        ]
        self.process = TrainingProcess(command(words, self.slot.cores), self.workdir, self.slot.environment)
        self.record.status = "running"
        self.record.record_start(self.process.pid, self.slot.name)
        self.save()

    def read_evaluations(self) -> list[dict[str, Any]]:
        """The evaluations so far; the record gets them, too."""
        self.record.evaluations = list(self._evaluations.read())
        return self.record.evaluations

    def heartbeat(self, every: float) -> bool:
        """A sign of life, where one is due; False where the trial is another driver's by now."""
        if time.monotonic() - self._last_heartbeat < every:
            return True
        self._last_heartbeat = time.monotonic()
        return self._lease.renew()

    def request_stop(self, why: str) -> None:
        """Has the process save and leave; `why` is "pruned" or "stopped"."""
        self.stop_reason = self.stop_reason or why
        if self.process is not None:
            self.process.terminate()

    def earlier_outcome(self) -> TrialOutcome | None:
        """What an earlier driver, or the run itself, had come to before anyone could say so to the study."""
        record = self.record
        if record.status in trials.ENDED:
            return TrialOutcome(record.status, record.message, record.value)
        if self.trial.pruned_at is not None:
            return self.pruned_outcome()
        # A run that is finished or has diverged would only do again what it did.
        status = self._result().get("status")
        if lock.is_locked(self.workdir):
            return None
        return {"finished": self.finished_outcome, "diverged": self.diverged_outcome}.get(status, lambda: None)()

    def handle_exit(self, code: int) -> TrialOutcome | str:
        """What the end of the process means.

        Args:
          code: its exit code.

        Returns:
          The trial's outcome, or what is to be done: "locked", "disk full" or "died".
        """
        self.record.record_exit(code)
        self.process = None
        self.read_evaluations()
        exit_class = trial_process.classify_exit(code)
        if self.stop_reason == "pruned":
            return self.pruned_outcome()
        if exit_class == "finished":
            return self.finished_outcome()
        if exit_class == "diverged":
            return self.diverged_outcome()
        if exit_class == "failed":
            return TrialOutcome("failed", trials.error_line(self.workdir) or trial_process.format_exit_code(code))
        if exit_class == "disk full":
            return exit_class
        return TrialOutcome("interrupted", "stopped with its driver") if self.stop_reason == "stopped" else exit_class

    def record_death(self, code: int, retries: int, timing: TrialTiming) -> TrialOutcome | None:
        """Counts a death: without a newer checkpoint, so many in a row are too many.

        Args:
          code: of the process.
          retries: how many are borne.
          timing: says when to start again.

        Returns:
          The trial's outcome where there were too many; None: it is to be started again.
        """
        record, checkpoint = self.record, trials.newest_checkpoint(self.workdir)
        record.deaths = 1 if checkpoint > record.checkpoint else record.deaths + 1
        record.checkpoint = checkpoint
        if record.deaths > retries:
            words = trials.output_tail(self.workdir)
            return TrialOutcome(
                "failed",
                f"died {record.deaths} times in a row without a newer checkpoint, at last by "
                f"{trial_process.format_exit_code(code)}" + (f": {words}" if words else ""),
            )
        record.status = "waiting"
        self.save()
        pause = min(timing.backoff * 2 ** (record.deaths - 1), timing.max_backoff)
        self.start_after = time.monotonic() + pause
        return None

    def finished_outcome(self) -> TrialOutcome:
        """Of a run that has come to its end."""
        value = trials.objective_value(
            self.read_evaluations(), self._study_config.objective, self._study_config.direction
        )
        if value is not None:
            return TrialOutcome("finished", "", value)
        if self.record.evaluations:
            return TrialOutcome(
                "diverged", f"its evaluation gave {self._study_config.metric} = {self.record.evaluations[-1]['value']}"
            )
        return TrialOutcome("failed", "it finished without an evaluation")

    def diverged_outcome(self) -> TrialOutcome:
        """Of a run whose loss became infinite."""
        self.read_evaluations()
        return TrialOutcome("diverged", self._result().get("message") or trials.error_line(self.workdir))

    def _result(self) -> dict[str, Any]:
        """The content of result.json; {} where there is none that can be read."""
        with contextlib.suppress(UserError):
            return result.read_result(self.workdir) or {}
        return {}

    def pruned_outcome(self) -> TrialOutcome:
        """Of a run that others of its age have left behind."""
        at = self.record.pruned_at = self.trial.pruned_at
        value = next(
            (
                f", with {self._study_config.metric} {evaluation['value']:.4f}"
                for evaluation in self.read_evaluations()
                if evaluation["index"] == at
            ),
            "",
        )
        why = {
            "halving": f"not among the best 1 of {self._study_config.reduction_factor} of those that came as far",
            "median": "behind the median of the others",
        }.get(self._study_config.pruner, "")
        return TrialOutcome("pruned", f"at evaluation {at}{value}: {why}")

    def save_outcome(self, outcome: TrialOutcome) -> None:
        """Puts the outcome into the record: from here on, any driver can tell it to the study.

        Raises:
          UserError: it cannot be written.
        """
        self.record.status, self.record.message, self.record.value = outcome.status, outcome.message, outcome.value
        self.save()

    def save(self) -> None:
        """Writes the record."""
        self.record.params, self.record.overrides = dict(self.trial.values), dict(self.trial.overrides)
        self.record.save(self.workdir)

    def release(self) -> None:
        """Lets other drivers have the trial; ends a process that still runs, at once."""
        if self.process is not None:
            self.process.kill()
        self._lease.release()


def make_workdir(workdir: Path) -> None:
    """Makes the directory of a trial.

    Raises:
      UserError: it cannot be made.
    """
    try:
        os.makedirs(workdir, exist_ok=True)
    except OSError as error:
        raise write_error(workdir, error) from None
