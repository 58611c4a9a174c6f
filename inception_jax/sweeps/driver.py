"""The main loop of a sweep: begins, adopts, polls, prunes and ends trials until the budget is spent.

Several drivers may work on one study, and each of them may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

from inception_jax.errors import DiskFull, ExitCode, UserError, counted, signal_exit_code
from inception_jax.runs import lock
from inception_jax.runs.manifest import make_folder
from inception_jax.sweeps import lease, trial_process, trials
from inception_jax.sweeps.budget import SweepBudget, WorkedTime
from inception_jax.sweeps.display import LOG, SweepDisplay, TrialRow, format_params
from inception_jax.sweeps.resources import Slot
from inception_jax.sweeps.running_trial import CommandBuilder, RunningTrial, TrialOutcome, TrialTiming
from inception_jax.sweeps.study import Study, Trial
from inception_jax.sweeps.study_config import StudyConfig, optuna_direction
from inception_jax.training.interrupts import Interrupts

_MAX_FAILURES = 8  # consecutive failed trials with sampled values: the recipe or the data is at fault


class Driver:
    """Works on one study until nothing is left to do, or a signal arrives."""

    def __init__(
        self,
        directory: Path,
        study_config: StudyConfig,
        study: Study,
        slots: Sequence[Slot],
        budget: SweepBudget,
        display: SweepDisplay,
        *,
        retries: int = 3,
        timing: TrialTiming | None = None,
        command: CommandBuilder = trial_process.train_command,
    ):
        """Prepares the driver; `run` runs it.

        Args:
          directory: of the study.
          study_config: of the study.
          study: the open study.
          slots: one per worker.
          budget: limits of the sweep.
          display: shows and logs events.
          retries: allowed number of consecutive deaths of a trial's process without a newer checkpoint.
          timing: intervals of the loop; default: `TrialTiming()`.
          command: builds the command of a training process.
        """
        self._directory, self._study_config, self._study, self._slots = directory, study_config, study, list(slots)
        self._budget, self._display, self._retries, self._command = budget, display, retries, command
        self._timing = timing or TrialTiming()
        self._name = lease.new_driver_name()
        self._worked_time = WorkedTime(directory)
        self._trials: list[RunningTrial] = []
        self._next_scan = self._next_heartbeat = 0.0
        self._done = self._disk_full = self._logged_waiting = False
        self._failures = 0  # consecutive

    def run(self) -> int:
        """Runs the loop.

        Returns:
          The exit code: 0, or 128 + the number of the signal that stopped the driver.

        Raises:
          DiskFull: no space is left; running trials have saved a checkpoint where they could.
          UserError: a file or the storage cannot be used, or too many trials failed in a row.
        """
        signal = None
        with Interrupts(self._log_stopping, (SIGTERM, SIGINT, SIGHUP)) as interrupts:
            try:
                while not (self._done and not self._trials):
                    if signal := interrupts.requested():
                        break
                    self._schedule()
                    self._watch()
                    self._raise_if_hopeless()
                    time.sleep(self._timing.poll)
            finally:
                self._stop()
        if signal:
            self._display.log("stopped; the same command continues the study")
        return signal_exit_code(signal) if signal else int(ExitCode.DONE)

    def _raise_if_hopeless(self) -> None:
        """Ends a sweep that cannot succeed: the disk is full, or every trial fails."""
        if self._disk_full:
            raise DiskFull("the disk is full: free some space, then run the same command to continue the study")
        if self._study_config.is_endless and self._failures >= _MAX_FAILURES:
            raise UserError(
                f"{self._failures} trials in a row have failed; {self._directory / LOG} has the reasons. The "
                "same command begins further trials"
            )

    def _log_stopping(self, text: str) -> None:
        self._display.log(
            f"{text.partition(':')[0]}: saves a checkpoint of {counted(len(self._trials), 'running trial')} and stops; "
            "a second signal stops at once"
        )

    def _schedule(self) -> None:
        """Fills idle workers, when a scan is due: with trials of dead drivers first, then with new trials."""
        idle = len(self._trials) < len(self._slots) and time.monotonic() >= self._next_scan
        if not idle and time.monotonic() < self._next_heartbeat:
            return
        self._next_scan = time.monotonic() + self._timing.scan
        self._next_heartbeat = time.monotonic() + self._timing.heartbeat
        with self._study.exclusive():
            self._worked_time.update()
            while len(self._trials) < len(self._slots):
                if not self._adopt() and not self._begin():
                    break
            mine = {running.trial.number for running in self._trials}
            others = [number for number in self._study.running_numbers() if number not in mine]
            self._done = not mine and not others and not self._budget.allows(self._study, self._worked_time.seconds)
            self._update_progress()
        if len(self._trials) < len(self._slots) and others and not mine and not self._logged_waiting:
            self._logged_waiting = True
            self._display.log(
                f"waiting for {counted(len(others), 'trial')} of other drivers; a trial whose driver dies is taken over"
            )

    def _adopt(self) -> bool:
        """Takes over one running trial whose driver has died; returns whether there was one."""
        mine = {running.trial.number for running in self._trials}
        for number in self._study.running_numbers():
            if number in mine:
                continue
            workdir = trials.workdir(self._directory, number)
            make_folder(workdir)
            trial_lease = lease.acquire(workdir, self._name, self._timing.stale)
            if trial_lease is None:
                continue
            trial, record = self._study.resume_trial(number), trials.load_record(workdir)
            trials.refuse_other_params(workdir, record, trial.values)
            self._study.set_workdir(trial, workdir)
            running = self._add(trial, record or trials.TrialRecord(number), trial_lease, workdir)
            outcome = running.earlier_outcome()
            if outcome is not None:
                self._finish(running, outcome)
            else:
                self._display.log(f"trial {number}: taken over; {_format_trial(trial)}")
            return True
        return False

    def _begin(self) -> bool:
        """Begins a new trial, where the budget allows one; returns whether it did."""
        if not self._budget.allows(self._study, self._worked_time.seconds):
            return False
        trial = self._study.begin_trial()
        workdir = trials.workdir(self._directory, trial.number)
        if (workdir / trials.FILE).exists():
            raise UserError(
                f"{workdir} exists already, but the storage has only now begun trial {trial.number}: "
                "restore the storage that belongs to these trials, or choose another --study"
            )
        make_folder(workdir)
        trial_lease = lease.acquire(workdir, self._name, self._timing.stale)
        if trial_lease is None:
            raise UserError(f"{workdir} is in use by another process, but its trial has only now begun")
        self._study.set_workdir(trial, workdir)
        running = self._add(trial, trials.TrialRecord(trial.number), trial_lease, workdir)
        running.save()
        self._display.log(f"trial {trial.number}: begun on {running.slot.name}; {_format_trial(trial)}")
        return True

    def _add(self, trial: Trial, record: trials.TrialRecord, trial_lease: lease.Lease, workdir: Path) -> RunningTrial:
        used = [running.slot for running in self._trials]
        slot = next(slot for slot in self._slots if not any(slot is other for other in used))
        running = RunningTrial(trial, record, trial_lease, slot, workdir, self._study_config)
        self._trials.append(running)
        row = TrialRow(trial.number, "waiting", slot.name, format_params(trial.fields), started=running.began)
        self._display.rows[trial.number] = row
        return running

    def _watch(self) -> None:
        """Renews the lease of every trial of this driver once, starts its process or polls it."""
        for running in list(self._trials):
            if not running.heartbeat(self._timing.heartbeat):
                self._display.log(
                    f"trial {running.trial.number}: another driver has taken it over while this one was "
                    "suspended; released"
                )
                self._release(running)
            elif running.process is None:
                self._start(running)
            else:
                self._poll(running)

    def _poll(self, running: RunningTrial) -> None:
        """Reads what the process of a trial has done since the last poll."""
        assert running.process is not None  # `_watch` polls started trials only
        code = running.process.poll()  # before the metrics are read: after an exit they are complete
        known = len(running.record.evaluations)
        evaluations = running.read_evaluations()
        if len(evaluations) > known:
            self._show(running, evaluations)
            self._report_evaluations(running, may_prune=code is None)
        if code is not None:
            self._handle_exit(running, code)

    def _start(self, running: RunningTrial) -> None:
        if time.monotonic() < running.start_after or self._disk_full:
            return
        if lock.is_locked(running.workdir):  # by a process whose driver died: it is still saving
            self._wait_for_workdir(running)
            return
        running.start(self._command)
        self._display.rows[running.trial.number].status = "running"

    def _wait_for_workdir(self, running: RunningTrial) -> None:
        running.start_after = time.monotonic() + self._timing.locked_retry
        if not running.logged_waiting:
            running.logged_waiting = True
            self._display.log(
                f"trial {running.trial.number}: another process holds its workdir; waiting for it to exit"
            )

    def _report_evaluations(self, running: RunningTrial, may_prune: bool) -> None:
        """Reports new evaluations to Optuna, and stops a trial that its pruner prunes."""
        evaluations = running.record.evaluations
        may_prune = (
            may_prune
            and running.stop_reason is None
            and not self._study_config.is_final_evaluation(running.trial.fields, evaluations[-1])
        )
        with self._study.exclusive():
            pruned_at = self._study.report(running.trial, evaluations, may_prune)
        if pruned_at is not None and running.stop_reason is None:
            running.trial = dataclasses.replace(running.trial, pruned_at=pruned_at)
            running.request_stop("pruned")
            self._display.rows[running.trial.number].status = "saving"
        running.save()

    def _show(self, running: RunningTrial, evaluations: Sequence[dict]) -> None:
        newest, row = evaluations[-1], self._display.rows[running.trial.number]
        row.evaluations = f"{newest['index']} (epoch {newest['epoch']:.4g})"
        row.now = newest["value"]
        row.best = trials.objective_value(list(evaluations), "best", optuna_direction(self._display.evaluated))
        self._display.log(
            f"trial {running.trial.number}: evaluation {newest['index']}, epoch {newest['epoch']:.4g}: "
            f"{self._display.evaluated} {self._display.format_evaluation(newest['value'])}"
        )

    def _handle_exit(self, running: RunningTrial, code: int) -> None:
        """Handles the exit of a training process: ends the trial, or schedules another start."""
        result = running.handle_exit(code)
        number = running.trial.number
        if result == "locked":
            self._wait_for_workdir(running)
            running.save()
            return
        if result == "disk full":
            self._disk_full = True
            outcome = TrialOutcome("interrupted", "the disk was full")
        elif isinstance(result, TrialOutcome):
            outcome = result
        else:  # "died"
            failure = running.record_death(code, self._retries, self._timing)
            if failure is None:
                self._display.rows[number].status = "waiting"
                self._display.log(f"trial {number}: died ({trial_process.format_exit_code(code)}); it is started again")
                return
            outcome = failure
        with self._study.exclusive():
            self._finish(running, outcome)
            self._update_progress()
        self._next_scan = 0.0

    def _finish(self, running: RunningTrial, outcome: TrialOutcome) -> None:
        """Stores the outcome of a trial and releases it. Call it inside `Study.exclusive`."""
        running.save_outcome(outcome)
        if outcome.status != "interrupted":
            if running.record.evaluations:
                self._study.report(running.trial, running.record.evaluations, may_prune=False)
            self._study.finish_trial(running.trial, outcome.status, outcome.value, outcome.message)
            self._failures = self._failures + 1 if outcome.status == "failed" else 0
        value = (
            f" with {self._study_config.metric} {self._display.format_value(outcome.value)}"
            if outcome.value is not None
            else ""
        )
        message = f": {outcome.message}" if outcome.message else ""
        self._display.log(f"trial {running.trial.number}: {outcome.status}{value}{message}")
        self._release(running)

    def _release(self, running: RunningTrial) -> None:
        running.release()
        self._trials.remove(running)
        self._display.rows.pop(running.trial.number, None)

    def _update_progress(self) -> None:
        """Updates the status line."""
        self._display.progress = self._budget.progress(
            self._display.progress.name, self._study, self._worked_time.seconds
        )

    def _stop(self) -> None:
        """Asks every process to save a checkpoint and exit, waits for them, and releases the trials."""
        with contextlib.suppress(UserError):
            for running in self._trials:
                running.request_stop("stopped")
        while any(running.process is not None for running in self._trials):
            for running in list(self._trials):
                running.heartbeat(self._timing.heartbeat)
                code = running.process.poll() if running.process is not None else None
                if code is not None:
                    self._finish_stopped(running, code)
            time.sleep(min(self._timing.poll, 0.1))
        for running in list(self._trials):
            self._finish_stopped(running, None)

    def _finish_stopped(self, running: RunningTrial, code: int | None) -> None:
        """Stores the outcome of a trial whose process was asked to stop, where files and storage can be written."""
        try:
            outcome = "stopped" if code is None else running.handle_exit(code)
            if isinstance(outcome, str):
                outcome = TrialOutcome("interrupted", "stopped with its driver")
            with self._study.exclusive():
                self._finish(running, outcome)
        except UserError as error:
            self._display.log(f"trial {running.trial.number}: {error}")
            if running in self._trials:
                self._release(running)


def _format_trial(trial: Trial) -> str:
    return format_params(trial.fields) or "the unchanged recipe"
