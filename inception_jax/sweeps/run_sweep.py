"""A sweep from its plan to its report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from inception_jax.errors import ExitCode, UserError
from inception_jax.sweeps import resources, study_config, trial_process, trials
from inception_jax.sweeps.budget import Budget
from inception_jax.sweeps.display import Display, best_table, head_line, in_short
from inception_jax.sweeps.driver import Driver
from inception_jax.sweeps.lease import StudyLock
from inception_jax.sweeps.running_trial import Command, Timing, make_workdir
from inception_jax.sweeps.study import Study

LOCK = "lock"
REPORT_LOCK = "report.lock"
_BEST = 5


def conduct(
    flags: argparse.Namespace,
    plan: study_config.Plan,
    budget: Budget,
    *,
    command: Command = trial_process.command,
    timing: Timing | None = None,
) -> int:
    """Begins a study, or goes on with it, and writes its report.

    Args:
      flags: of the command.
      plan: of the study.
      budget: when to stop.
      command: makes the command of a training process.
      timing: how often to look.

    Returns:
      The exit code.

    Raises:
      UserError: a directory, a storage or a device that cannot be used; DiskFull: no room is left.
    """
    directory = Path(flags.study)
    retries = flags.retries
    if retries < 0:
        raise UserError(f"--retries={retries}: it must be 0 or more")
    devices = [device.strip() for device in flags.devices.split(",")] if flags.devices is not None else None
    places, wanted = resources.make(resources.look(), flags.workers, devices)
    with contextlib.ExitStack() as stack:
        lock, content = _enter(directory, plan)
        display = Display(directory, plan.metric)
        stack.callback(display.close)
        with lock:
            study = Study(directory, plan, content["name"], lock, display.say, flags.storage)
        claimed = resources.claim(directory, places, wanted, stack, display.say)
        display.say(
            f"study {content['name']} in {directory}: {plan.sampler}, pruner {plan.pruner}, {plan.objective} "
            f"{plan.metric} of the {plan.weights} weights, {len(claimed)} worker(s)"
        )
        driver = Driver(
            directory, plan, study, claimed, budget, display, retries=retries, timing=timing, command=command
        )
        code = driver.run()
        if code == ExitCode.DONE:
            display.say(head_line(display.standing, display.value))
            _conclude(directory, study, display)
    return code


def report_only(directory: Path, storage: str | None) -> int:
    """Writes the report of a study as it stands, and says where.

    Args:
      directory: of the study.
      storage: URL of its database, with the password; None: its journal.

    Returns:
      The exit code.

    Raises:
      UserError: there is no study.
    """
    content = study_config.read(directory)
    if content is None:
        raise UserError(f"--study={directory}: there is no study there ({study_config.FILE} is missing)")
    from inception_jax.sweeps import report

    with StudyLock(directory / REPORT_LOCK):
        path = report.write(directory, _optuna_study(directory, content, storage))
    print(path)
    return int(ExitCode.DONE)


def _enter(directory: Path, plan: study_config.Plan) -> tuple[StudyLock, dict]:
    """The lock of the study's directory, and its study.json; both made where they are not there."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--study={directory} is a file, not a directory")
    if directory.is_dir() and study_config.read(directory) is None:
        study_config.refuse_foreign(directory)  # before anything is written there
    make_workdir(directory)
    lock = StudyLock(directory / LOCK)
    with lock:
        return lock, study_config.write_or_compare(directory, plan, sys.orig_argv)


def _conclude(directory: Path, study: Study, display: Display) -> None:
    """The best trials in a table, and the report."""
    from inception_jax.sweeps import report

    with study.changes():
        best = [(number, value, in_short(_values(directory, number))) for number, value in study.ranking()[:_BEST]]
    if best:
        display.say(best_table(best, display.value))
    else:
        display.say("no trial has finished")
    with StudyLock(directory / REPORT_LOCK):
        path = report.write(directory, study.optuna_study)
    display.say(f"report: {path}")


def _values(directory: Path, number: int) -> dict:
    record = trials.load(trials.workdir(directory, number))
    return record.params | record.overrides if record else {}


def _optuna_study(directory: Path, content: dict, storage: str | None):
    """The study in Optuna, to be read; None where its storage cannot be (the report does with what is on disk)."""
    from inception_jax.sweeps import storage as storages

    journal = None if content.get("storage") else directory / storages.JOURNAL
    if journal is None and storage is None:
        return None
    if journal is not None and not journal.exists():
        return None
    lock = StudyLock(directory / LOCK)
    optuna = storages.import_optuna()
    with lock, storages.explained(journal, storage):
        storages.mend(journal, lambda text: print(text, file=sys.stderr))
        try:
            return optuna.load_study(
                study_name=content["name"],
                storage=storages.open_storage(journal, storage if journal is None else None, lock),
            )
        except KeyError:
            return None
