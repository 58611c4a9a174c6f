"""A trial that this driver runs: its lease, its training process, its record, and its outcome."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs import lock, result, time_to_target
from inception_jax.sweeps import overrides, trial_process, trials
from inception_jax.sweeps.lease import Lease, last_heartbeat
from inception_jax.sweeps.resources import Slot
from inception_jax.sweeps.study import Trial
from inception_jax.sweeps.study_config import StudyConfig
from inception_jax.sweeps.trial_process import TrainingProcess

CommandBuilder = Callable[[Sequence[str], Sequence[int] | None], list[str]]
"""Builds the command of a training process from the arguments of train and the CPU cores that it may use."""


@dataclasses.dataclass(frozen=True)
class TrialTiming:
    """Intervals of a driver in seconds; tests use shorter ones.

    Attributes:
      poll: between two polls of the processes and their metrics.
      scan: between two scans for trials to adopt or to begin, while a worker is idle.
      heartbeat: between two heartbeats of a lease.
      stale: age of a heartbeat after which a driver of another machine counts as dead.
      backoff: delay before a process that died is started again; doubled with each consecutive death, up to
        `max_backoff`.
      max_backoff: the longest such delay.
      locked_retry: delay before a workdir that is in use is tried again.
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
    """The outcome of a trial that has ended, or has been interrupted.

    Attributes:
      status: one of `trials.ENDED`, or "interrupted": it can be continued.
      message: the reason, in one line.
      value: the objective of a finished trial; infinity where it has not reached its target.
    """

    status: str
    message: str = ""
    value: float | None = None


class RunningTrial:
    """A trial that this driver runs, from its lease to its outcome."""

    def __init__(
        self,
        trial: Trial,
        record: trials.TrialRecord,
        lease: Lease,
        slot: Slot,
        workdir: Path,
        study_config: StudyConfig,
    ):
        """Prepares the trial; `start` starts its process.

        Args:
          trial: as Optuna's storage has it.
          record: as trial.json has it.
          lease: of the workdir; `release` releases it.
          slot: where its process runs.
          workdir: of the trial.
          study_config: of the study.
        """
        self.trial, self.record, self.slot, self.workdir = trial, record, slot, workdir
        self.stop_reason: str | None = None  # "pruned" or "stopped"
        self.process: TrainingProcess | None = None
        self.began = time.monotonic()
        self.start_after = 0.0  # in `time.monotonic()`: no start before
        self.logged_waiting = False  # for another process to leave the workdir
        self._lease, self._study_config = lease, study_config
        self._evaluations = trials.EvaluationReader(
            workdir,
            study_config.evaluated_weights(trial.fields),
            study_config.evaluated_metric(trial.fields),
            lambda: study_config.follow_end(trial.fields),
        )
        self._last_heartbeat = 0.0
        if record.starts and record.starts[-1]["ended"] is None:  # its driver died
            record.record_exit(None, last_heartbeat(workdir))

    def start(self, command: CommandBuilder) -> None:
        """Starts the training process; it restores the newest checkpoint, where there is one.

        Args:
          command: builds the command from the arguments of train and the cores.

        Raises:
          UserError: a file cannot be written.
        """
        arguments = [
            *self._study_config.config_arguments,
            *overrides.override_arguments(self.trial.fields),
            "--distributed=off",  # drivers that srun or mpirun started: their trials are runs of one process each
            f"--workdir={self.workdir}",
        ]
        self.process = TrainingProcess(command(arguments, self.slot.cores), self.workdir, self.slot.environment)
        self.record.status = "running"
        self.record.record_start(self.process.pid, self.slot.name)
        self.save()

    def read_evaluations(self) -> list[dict[str, Any]]:
        """Reads the evaluations so far, and stores them in the record."""
        self.record.evaluations = list(self._evaluations.read())
        return self.record.evaluations

    def heartbeat(self, every: float) -> bool:
        """Renews the lease where a heartbeat is due.

        Args:
          every: seconds between two heartbeats.

        Returns:
          False where another driver has taken over the trial.
        """
        if time.monotonic() - self._last_heartbeat < every:
            return True
        self._last_heartbeat = time.monotonic()
        return self._lease.renew()

    def request_stop(self, reason: str) -> None:
        """Asks the process to save a checkpoint and exit.

        Args:
          reason: "pruned" or "stopped"; the first one given stands.
        """
        self.stop_reason = self.stop_reason or reason
        if self.process is not None:
            self.process.terminate()

    def earlier_outcome(self) -> TrialOutcome | None:
        """The outcome that an earlier driver or the run itself reached, but that is not in Optuna's storage yet.

        Returns:
          The outcome; None: the trial is to be continued.
        """
        record = self.record
        if record.status == "finished" and self._study_config.is_to_target:
            return self.finished_outcome()  # trial.json has no infinity
        if record.status in trials.ENDED:
            return TrialOutcome(record.status, record.message, record.value)
        if self.trial.pruned_at is not None:
            return self.pruned_outcome()
        # Starting a finished or diverged run again would give the same result.
        status = self._result().get("status")
        if lock.is_locked(self.workdir):
            return None
        if status == "finished":
            return self.finished_outcome()
        return self.diverged_outcome() if status == "diverged" else None

    def handle_exit(self, code: int) -> TrialOutcome | str:
        """Records the exit of the process and decides what it means for the trial.

        Args:
          code: exit code of the process, or minus the number of a signal.

        Returns:
          The trial's outcome; or "locked", "disk full" or "died", where the trial has not ended.
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
        """Counts a death of the process, and schedules the next start with a backoff.

        Args:
          code: exit code of the process, or minus the number of a signal.
          retries: allowed number of consecutive deaths without a newer checkpoint.
          timing: has the backoff.

        Returns:
          The outcome "failed" where there were more; None: the process is to be started again.
        """
        record, checkpoint = self.record, trials.newest_checkpoint(self.workdir)
        record.deaths = 1 if checkpoint > record.checkpoint else record.deaths + 1
        record.checkpoint = checkpoint
        if record.deaths > retries:
            output = trials.output_tail(self.workdir)
            return TrialOutcome(
                "failed",
                f"died {record.deaths} times in a row without a newer checkpoint, the last time with "
                f"{trial_process.format_exit_code(code)}" + (f": {output}" if output else ""),
            )
        record.status = "waiting"
        self.save()
        pause = min(timing.backoff * 2 ** (record.deaths - 1), timing.max_backoff)
        self.start_after = time.monotonic() + pause
        return None

    def finished_outcome(self) -> TrialOutcome:
        """The outcome of a run that trained to its end."""
        if self._study_config.is_to_target:
            if "target" not in (content := self._result()):
                return TrialOutcome("failed", f"its {result.FILE} has no target")
            needed = time_to_target.value_of(content["target"], self._study_config.metric)
            if math.isnan(needed):
                return TrialOutcome("failed", f"its {result.FILE} does not have {self._study_config.metric}")
            message = "" if math.isfinite(needed) else time_to_target.format_reached(content["target"])
            return TrialOutcome("finished", message, needed)
        value = trials.objective_value(
            self.read_evaluations(), self._study_config.objective, self._study_config.direction
        )
        if value is not None:
            ended = str(self._result().get("ended") or "")
            early = ended.startswith(("early stopping", "target reached"))
            return TrialOutcome("finished", ended if early else "", value)
        if self.record.evaluations:
            return TrialOutcome(
                "diverged", f"its evaluation gave {self._study_config.metric} = {self.record.evaluations[-1]['value']}"
            )
        return TrialOutcome("failed", "it finished without an evaluation")

    def diverged_outcome(self) -> TrialOutcome:
        """The outcome of a run whose loss became NaN or infinite."""
        self.read_evaluations()
        return TrialOutcome("diverged", self._result().get("message") or trials.error_line(self.workdir))

    def _result(self) -> dict[str, Any]:
        """The content of result.json; {} where it is missing or unreadable."""
        with contextlib.suppress(UserError):
            return result.read_result(self.workdir) or {}
        return {}

    def pruned_outcome(self) -> TrialOutcome:
        """The outcome of a run that the pruner stopped; sets `pruned_at` in the record."""
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
            "halving": f"not in the best 1/{self._study_config.reduction_factor} of the trials that reached this rung",
            "median": "worse than the median of the other trials",
        }.get(self._study_config.pruner, "")
        return TrialOutcome("pruned", f"at evaluation {at}{value}: {why}")

    def save_outcome(self, outcome: TrialOutcome) -> None:
        """Writes the outcome to trial.json; from then on, any driver can copy it to Optuna's storage.

        Args:
          outcome: of the trial.

        Raises:
          UserError: it cannot be written.
        """
        self.record.status, self.record.message, self.record.value = outcome.status, outcome.message, outcome.value
        self.save()

    def save(self) -> None:
        """Writes the record to trial.json.

        Raises:
          UserError: it cannot be written.
        """
        self.record.params, self.record.overrides = dict(self.trial.values), dict(self.trial.overrides)
        self.record.save(self.workdir)

    def release(self) -> None:
        """Releases the lease; kills a process that still runs."""
        if self.process is not None:
            self.process.kill()
        self._lease.release()
