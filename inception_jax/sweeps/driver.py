"""The story of a sweep: trials begun, adopted, watched, pruned, ended, until the budget is spent.

Any number of drivers may run this on one study, and any of them may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM

from inception_jax.errors import DiskFull, ExitCode, UserError, signal_exit_code
from inception_jax.runs import lock
from inception_jax.sweeps import lease, trial_process, trials
from inception_jax.sweeps.budget import Budget, Hours
from inception_jax.sweeps.display import LOG, Display, Row, in_short
from inception_jax.sweeps.resources import Slot
from inception_jax.sweeps.running_trial import Command, Ending, Timing, Work, make_workdir
from inception_jax.sweeps.study import Study, Trial
from inception_jax.sweeps.study_config import Plan
from inception_jax.training.interrupts import Interrupts

_HOPELESS = 8  # failed trials in a row, of values that the sampler chose: the recipe or the data is at fault


class Driver:
    """Works on one study until there is nothing left to do, or a signal comes."""

    def __init__(
        self,
        directory: Path,
        plan: Plan,
        study: Study,
        slots: Sequence[Slot],
        budget: Budget,
        display: Display,
        *,
        retries: int = 3,
        timing: Timing | None = None,
        command: Command = trial_process.command,
    ):
        """Args:
        directory: of the study.
        plan: what it is.
        study: in its storage.
        slots: one for each worker.
        budget: when to stop.
        display: shows and logs what happens.
        retries: deaths of a trial's process in a row, without a newer checkpoint, that are borne.
        timing: how often to look.
        command: makes the command of a training process.
        """
        self._directory, self._plan, self._study, self._slots = directory, plan, study, list(slots)
        self._budget, self._display, self._retries, self._command = budget, display, retries, command
        self._timing = timing or Timing()
        self._name = lease.new_driver_name()
        self._hours = Hours(directory)
        self._works: list[Work] = []
        self._next_turn = self._next_beat = 0.0
        self._over = self._full = self._said_waiting = False
        self._failures = 0  # in a row

    def run(self) -> int:
        """Drives the study.

        Returns:
          The exit code: 0, or 128 + the signal that stopped it.

        Raises:
          DiskFull: there is no room left; running trials have saved, if they could.
          UserError: files or a storage that cannot be used.
        """
        signal = None
        with Interrupts(self._say_stopping, (SIGTERM, SIGINT, SIGHUP)) as interrupts:
            try:
                while not (self._over and not self._works):
                    if signal := interrupts.requested():
                        break
                    self._take_turn()
                    self._watch()
                    self._refuse_to_go_on()
                    time.sleep(self._timing.poll)
            finally:
                self._stop()
        if signal:
            self._display.say("stopped; the same command continues the study")
        return signal_exit_code(signal) if signal else int(ExitCode.DONE)

    def _refuse_to_go_on(self) -> None:
        """Ends a sweep that would only do harm: on a full disk, or trial after trial failing for ever."""
        if self._full:
            raise DiskFull("the disk is full: make room, and the same command continues the study")
        if self._plan.is_endless and self._failures >= _HOPELESS:
            raise UserError(
                f"{self._failures} trials in a row have failed; {self._directory / LOG} says of what. The "
                "same command tries further ones"
            )

    def _say_stopping(self, text: str) -> None:
        self._display.say(
            f"{text.partition(':')[0]}: {len(self._works)} running trial(s) save and stop; a second "
            "signal stops at once"
        )

    def _take_turn(self) -> None:
        """Fills idle workers, where it is time to look: with trials that others left, then with new ones."""
        idle = len(self._works) < len(self._slots) and time.monotonic() >= self._next_turn
        if not idle and time.monotonic() < self._next_beat:
            return
        self._next_turn = time.monotonic() + self._timing.turn
        self._next_beat = time.monotonic() + self._timing.heartbeat
        with self._study.changes():
            self._hours.beat()
            while len(self._works) < len(self._slots):
                if not self._adopt() and not self._begin():
                    break
            mine = {work.trial.number for work in self._works}
            others = [number for number in self._study.running() if number not in mine]
            self._over = not mine and not others and not self._budget.allows(self._study, self._hours.seconds)
            self._stand()
        if len(self._works) < len(self._slots) and others and not mine and not self._said_waiting:
            self._said_waiting = True
            self._display.say(f"waiting for {len(others)} trial(s) of other drivers, to take them over if need be")

    def _adopt(self) -> bool:
        """Takes over a running trial whose driver has gone; whether there was one."""
        mine = {work.trial.number for work in self._works}
        for number in self._study.running():
            if number in mine:
                continue
            workdir = trials.workdir(self._directory, number)
            make_workdir(workdir)
            held = lease.take(workdir, self._name, self._timing.stale)
            if held is None:
                continue
            trial, record = self._study.resume(number), trials.load(workdir)
            self._study.place(trial, workdir)
            work = self._add(trial, record or trials.Record(number), held, workdir)
            ending = work.already()
            if ending is not None:
                self._end(work, ending)
            else:
                self._display.say(f"trial {number}: taken over; {_words(trial)}")
            return True
        return False

    def _begin(self) -> bool:
        """Begins a new trial, where the budget has one; whether it did."""
        if not self._budget.allows(self._study, self._hours.seconds):
            return False
        trial = self._study.begin()
        workdir = trials.workdir(self._directory, trial.number)
        if (workdir / trials.FILE).exists():
            raise UserError(
                f"{workdir} is there already, though the study has only now come to trial {trial.number}: "
                "put back the storage that belongs to these trials, or choose another --study"
            )
        make_workdir(workdir)
        held = lease.take(workdir, self._name, self._timing.stale)
        if held is None:
            raise UserError(f"{workdir} is in use by another process, though its trial has only now begun")
        self._study.place(trial, workdir)
        work = self._add(trial, trials.Record(trial.number), held, workdir)
        work.save()
        self._display.say(f"trial {trial.number}: begun on {work.slot.name}; {_words(trial)}")
        return True

    def _add(self, trial: Trial, record: trials.Record, held: lease.Lease, workdir: Path) -> Work:
        used = [work.slot for work in self._works]
        slot = next(slot for slot in self._slots if not any(slot is other for other in used))
        work = Work(trial, record, held, slot, workdir, self._plan)
        self._works.append(work)
        row = Row(trial.number, "waiting", slot.name, in_short(trial.fields), started=work.began)
        self._display.rows[trial.number] = row
        return work

    def _watch(self) -> None:
        """Looks once at every trial of this driver."""
        for work in list(self._works):
            if not work.heartbeat(self._timing.heartbeat):
                self._display.say(
                    f"trial {work.trial.number}: another driver has taken it over while this one stood "
                    "still; left to it"
                )
                self._drop(work)
            elif work.training is None:
                self._start(work)
            else:
                self._look(work)

    def _look(self, work: Work) -> None:
        """What the process of a trial has done since the last look."""
        code = work.training.poll()  # before the metrics are read: then these are all
        known = len(work.record.evaluations)
        evaluations = work.read()
        if len(evaluations) > known:
            self._show(work, evaluations)
            self._judge(work, may_prune=code is None)
        if code is not None:
            self._after(work, code)

    def _start(self, work: Work) -> None:
        if time.monotonic() < work.start_after or self._full:
            return
        if lock.is_held(work.workdir):  # by the process of a dead driver, which is still saving
            self._wait_for_workdir(work)
            return
        work.start(self._command)
        self._display.rows[work.trial.number].status = "running"

    def _wait_for_workdir(self, work: Work) -> None:
        work.start_after = time.monotonic() + self._timing.locked
        if not work.waits:
            work.waits = True
            self._display.say(f"trial {work.trial.number}: another process holds its workdir; waiting for it to leave")

    def _judge(self, work: Work, may_prune: bool) -> None:
        """Tells the study of new evaluations, and ends a trial that is not worth going on."""
        evaluations = work.record.evaluations
        may_prune = may_prune and work.asked is None and not self._plan.is_last(work.trial.fields, evaluations[-1])
        with self._study.changes():
            pruned_at = self._study.report(work.trial, evaluations, may_prune)
        if pruned_at is not None and work.asked is None:
            work.trial = dataclasses.replace(work.trial, pruned_at=pruned_at)
            work.ask_to_end("pruned")
            self._display.rows[work.trial.number].status = "saving"
        work.save()

    def _show(self, work: Work, evaluations: Sequence[dict]) -> None:
        newest, row = evaluations[-1], self._display.rows[work.trial.number]
        row.evaluations = f"{newest['index']} (epoch {newest['epoch']:.4g})"
        row.now = newest["value"]
        row.best = trials.objective_value(list(evaluations), "best", self._plan.direction)
        self._display.say(
            f"trial {work.trial.number}: evaluation {newest['index']}, epoch {newest['epoch']:.4g}: "
            f"{self._plan.metric} {self._display.value(newest['value'])}"
        )

    def _after(self, work: Work, code: int) -> None:
        """Does what the end of a process asks for."""
        next_step = work.after(code)
        number = work.trial.number
        if next_step == "locked":
            self._wait_for_workdir(work)
            work.save()
            return
        if next_step == "disk full":
            self._full = True
            next_step = Ending("interrupted", "the disk was full")
        elif next_step == "died":
            ending = work.note_death(code, self._retries, self._timing)
            if ending is None:
                self._display.rows[number].status = "waiting"
                self._display.say(f"trial {number}: died by {trial_process.words_of(code)}; it is started again")
                return
            next_step = ending
        with self._study.changes():
            self._end(work, next_step)
            self._stand()
        self._next_turn = 0.0

    def _end(self, work: Work, ending: Ending) -> None:
        """Ends a trial, or leaves it to be continued. Call it inside the study's changes."""
        work.write(ending)
        if ending.status != "interrupted":
            if work.record.evaluations:
                self._study.report(work.trial, work.record.evaluations, judge=False)
            self._study.finish(work.trial, ending.status, ending.value, ending.message)
            self._failures = self._failures + 1 if ending.status == "failed" else 0
        value = f" with {self._plan.metric} {self._display.value(ending.value)}" if ending.value is not None else ""
        message = f": {ending.message}" if ending.message else ""
        self._display.say(f"trial {work.trial.number}: {ending.status}{value}{message}")
        self._drop(work)

    def _drop(self, work: Work) -> None:
        work.release()
        self._works.remove(work)
        self._display.rows.pop(work.trial.number, None)

    def _stand(self) -> None:
        """Brings the head line up to date."""
        self._display.standing = self._budget.standing(self._display.standing.name, self._study, self._hours.seconds)

    def _stop(self) -> None:
        """Has every process save and leave, and lets go of the trials, however this driver ends."""
        with contextlib.suppress(UserError):
            for work in self._works:
                work.ask_to_end("stopped")
        while any(work.training is not None for work in self._works):
            for work in list(self._works):
                work.heartbeat(self._timing.heartbeat)
                code = work.training.poll() if work.training is not None else None
                if code is not None:
                    self._after_stopping(work, code)
            time.sleep(min(self._timing.poll, 0.1))
        for work in list(self._works):
            self._after_stopping(work, None)

    def _after_stopping(self, work: Work, code: int | None) -> None:
        """Notes how a trial ended whose process was asked to stop, as far as files and storage can still be written."""
        try:
            ending = work.after(code) if code is not None else Ending("interrupted", "stopped with its driver")
            if isinstance(ending, str):
                ending = Ending("interrupted", "stopped with its driver")
            with self._study.changes():
                self._end(work, ending)
        except UserError as error:
            self._display.say(f"trial {work.trial.number}: {error}")
            if work in self._works:
                self._drop(work)


def _words(trial: Trial) -> str:
    return in_short(trial.fields) or "the recipe as it is"
