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
from inception_jax.sweeps.lease import Lease, last_beat
from inception_jax.sweeps.resources import Slot
from inception_jax.sweeps.study import Trial
from inception_jax.sweeps.study_config import Plan
from inception_jax.sweeps.trial_process import Training

Command = Callable[[Sequence[str], Sequence[int] | None], list[str]]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds; tests have shorter ones.

    Attributes:
      poll: between two looks at the processes and their metrics.
      turn: between two looks for trials to adopt or to begin, where a worker is idle.
      heartbeat: between two signs of life.
      stale: without one, until another machine's driver counts as dead.
      backoff: before a process that died is started again; doubled with every death in a row, up to `longest_backoff`.
      locked: before a workdir that is in use is tried again.
    """

    poll: float = 0.25
    turn: float = 2.0
    heartbeat: float = 5.0
    stale: float = 60.0
    backoff: float = 1.0
    longest_backoff: float = 60.0
    locked: float = 2.0


@dataclasses.dataclass(frozen=True)
class Ending:
    """What a trial has come to.

    Attributes:
      status: one of `trials.ENDED`, or "interrupted": to be continued.
      message: why, in a line.
      value: of a finished one.
    """

    status: str
    message: str = ""
    value: float | None = None


class Work:
    """One trial, from its lease to its ending."""

    def __init__(self, trial: Trial, record: trials.Record, lease: Lease, slot: Slot, workdir: Path, plan: Plan):
        """Args:
        trial: as the storage has it.
        record: as the disk has it.
        lease: of the workdir; let go of by `release`.
        slot: where its process runs.
        workdir: of the trial.
        plan: of the study.
        """
        self.trial, self.record, self.slot, self.workdir = trial, record, slot, workdir
        self.asked: str | None = None  # to end: "pruned" or "stopped"
        self.training: Training | None = None
        self.began = time.monotonic()
        self.start_after = 0.0  # by the monotonic clock
        self.waits = False  # for another process to leave the workdir; said once
        self._lease, self._plan = lease, plan
        self._evaluations = trials.Evaluations(workdir, plan.weights_of(trial.fields), plan.metric)
        self._beat = 0.0
        if record.starts and record.starts[-1]["ended"] is None:  # it was lost with its driver
            record.end_start(None, last_beat(workdir))

    def start(self, command: Command) -> None:
        """Starts the training process: for the first time, or on from its checkpoint.

        Args:
          command: makes the command of the arguments of train and the cores.

        Raises:
          UserError: a file that cannot be written.
        """
        words = [*self._plan.base, *overrides.words(self.trial.fields), f"--workdir={self.workdir}"]
        self.training = Training(command(words, self.slot.cores), self.workdir, self.slot.environment)
        self.record.status = "running"
        self.record.begin_start(self.training.pid, self.slot.name)
        self.save()

    def read(self) -> list[dict[str, Any]]:
        """The evaluations so far; the record gets them, too."""
        self.record.evaluations = list(self._evaluations.read())
        return self.record.evaluations

    def heartbeat(self, every: float) -> bool:
        """A sign of life, where one is due; False where the trial is another driver's by now."""
        if time.monotonic() - self._beat < every:
            return True
        self._beat = time.monotonic()
        return self._lease.touch()

    def ask_to_end(self, why: str) -> None:
        """Has the process save and leave; `why` is "pruned" or "stopped"."""
        self.asked = self.asked or why
        if self.training is not None:
            self.training.terminate()

    def already(self) -> Ending | None:
        """What an earlier driver, or the run itself, had come to before anyone could say so to the study."""
        record = self.record
        if record.status in trials.ENDED:
            return Ending(record.status, record.message, record.value)
        if self.trial.pruned_at is not None:
            return self.pruned()
        # A run that is finished or has diverged would only do again what it did.
        status = self._result().get("status")
        if lock.is_held(self.workdir):
            return None
        return {"finished": self.finished, "diverged": self.diverged}.get(status, lambda: None)()

    def after(self, code: int) -> Ending | str:
        """What the end of the process means.

        Args:
          code: its exit code.

        Returns:
          The trial's ending, or what is to be done: "locked", "disk full" or "died".
        """
        self.record.end_start(code)
        self.training = None
        self.read()
        meaning = trial_process.meaning(code)
        if self.asked == "pruned":
            return self.pruned()
        if meaning == "finished":
            return self.finished()
        if meaning == "diverged":
            return self.diverged()
        if meaning == "failed":
            return Ending("failed", trials.error_line(self.workdir) or trial_process.words_of(code))
        if meaning == "disk full":
            return meaning
        return Ending("interrupted", "stopped with its driver") if self.asked == "stopped" else meaning

    def note_death(self, code: int, retries: int, timing: Timing) -> Ending | None:
        """Counts a death: without a newer checkpoint, so many in a row are too many.

        Args:
          code: of the process.
          retries: how many are borne.
          timing: says when to start again.

        Returns:
          The trial's ending where there were too many; None: it is to be started again.
        """
        record, checkpoint = self.record, trials.newest_checkpoint(self.workdir)
        record.deaths = 1 if checkpoint > record.checkpoint else record.deaths + 1
        record.checkpoint = checkpoint
        if record.deaths > retries:
            words = trials.last_words(self.workdir)
            return Ending(
                "failed",
                f"died {record.deaths} times in a row without a newer checkpoint, at last by "
                f"{trial_process.words_of(code)}" + (f": {words}" if words else ""),
            )
        record.status = "waiting"
        self.save()
        pause = min(timing.backoff * 2 ** (record.deaths - 1), timing.longest_backoff)
        self.start_after = time.monotonic() + pause
        return None

    def finished(self) -> Ending:
        """Of a run that has come to its end."""
        value = trials.objective_value(self.read(), self._plan.objective, self._plan.direction)
        if value is not None:
            return Ending("finished", "", value)
        if self.record.evaluations:
            return Ending(
                "diverged", f"its evaluation gave {self._plan.metric} = {self.record.evaluations[-1]['value']}"
            )
        return Ending("failed", "it finished without an evaluation")

    def diverged(self) -> Ending:
        """Of a run whose loss became infinite."""
        self.read()
        return Ending("diverged", self._result().get("message") or trials.error_line(self.workdir))

    def _result(self) -> dict[str, Any]:
        """The content of result.json; {} where there is none that can be read."""
        with contextlib.suppress(UserError):
            return result.read_result(self.workdir) or {}
        return {}

    def pruned(self) -> Ending:
        """Of a run that others of its age have left behind."""
        at = self.record.pruned_at = self.trial.pruned_at
        value = next(
            (
                f", with {self._plan.metric} {evaluation['value']:.4f}"
                for evaluation in self.read()
                if evaluation["index"] == at
            ),
            "",
        )
        why = {
            "halving": f"not among the best 1 of {self._plan.reduction_factor} of those that came as far",
            "median": "behind the median of the others",
        }.get(self._plan.pruner, "")
        return Ending("pruned", f"at evaluation {at}{value}: {why}")

    def write(self, ending: Ending) -> None:
        """Puts the ending into the record: from here on, any driver can tell it to the study.

        Raises:
          UserError: it cannot be written.
        """
        self.record.status, self.record.message, self.record.value = ending.status, ending.message, ending.value
        self.save()

    def save(self) -> None:
        """Writes the record."""
        self.record.params, self.record.overrides = dict(self.trial.values), dict(self.trial.overrides)
        self.record.save(self.workdir)

    def release(self) -> None:
        """Lets other drivers have the trial; ends a process that still runs, at once."""
        if self.training is not None:
            self.training.kill()
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
