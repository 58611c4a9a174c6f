"""Runs a sweep: opens the study, claims slots, runs the driver, writes the report."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax.errors import ExitCode, UserError, counted
from inception_jax.runs.manifest import make_folder
from inception_jax.sweeps import resources, study_data, trial_process, trials
from inception_jax.sweeps.budget import SweepBudget
from inception_jax.sweeps.display import SweepDisplay, format_best_table, format_params, format_status_line
from inception_jax.sweeps.driver import Driver
from inception_jax.sweeps.lease import StudyLock
from inception_jax.sweeps.running_trial import CommandBuilder, TrialTiming
from inception_jax.sweeps.study import Study
from inception_jax.sweeps.study_config import (
    FILE,
    StudyConfig,
    check_new_directory,
    keep_earlier_values,
    read,
    without_password,
    write_or_compare,
)

if TYPE_CHECKING:
    import optuna

LOCK = "lock"
REPORT_LOCK = "report.lock"
_NUM_BEST = 5


def run(
    flags: argparse.Namespace,
    study_config: StudyConfig,
    budget: SweepBudget,
    *,
    command: CommandBuilder = trial_process.train_command,
    timing: TrialTiming | None = None,
) -> int:
    """Begins or continues a study, and writes its report when the budget is spent.

    Args:
      flags: of the command.
      study_config: of the study.
      budget: limits of the sweep.
      command: builds the command of a training process.
      timing: intervals of the driver; default: `TrialTiming()`.

    Returns:
      The exit code.

    Raises:
      DiskFull: no space is left.
      UserError: a directory, a storage or a device cannot be used.
    """
    directory = Path(flags.study)
    devices = [device.strip() for device in flags.devices.split(",")] if flags.devices is not None else None
    places, wanted = resources.make_slots(resources.detect(), flags.workers, devices)
    with contextlib.ExitStack() as stack:
        lock, content = _open_directory(directory, study_config)
        study_config = keep_earlier_values(study_config, content)
        display = SweepDisplay(directory, study_config.metric, evaluated=study_config.evaluated_metric({}))
        stack.callback(display.close)
        with lock:
            study_data.record(directory, study_config, display.log)
            study = Study(directory, study_config, content["name"], lock, display.log, flags.storage)
        claimed = resources.claim_slots(directory, places, wanted, stack, display.log)
        display.log(
            f"study {content['name']} in {directory}: {study_config.sampler}, "
            f"pruner {study_config.pruner}, {study_config.objective} {study_config.metric} "
            f"of the {study_config.weights} weights, {counted(len(claimed), 'worker')}"
        )
        driver = Driver(
            directory,
            study_config,
            study,
            claimed,
            budget,
            display,
            retries=flags.retries,
            timing=timing,
            command=command,
        )
        code = driver.run()
        if code == ExitCode.DONE:
            display.log(format_status_line(display.progress, display.format_value))
            _report_results(directory, study, display)
    return code


def write_report(directory: Path, storage: str | None) -> int:
    """Writes the report of a study in its current state, and prints its path.

    Args:
      directory: of the study.
      storage: URL of its database, with the password; None: the journal file.

    Returns:
      The exit code.

    Raises:
      UserError: the directory has no study.
    """
    content = read(directory)
    if content is None:
        raise UserError(f"--study={directory}: this directory has no study ({FILE} is missing)")
    from inception_jax.sweeps import report

    with StudyLock(directory / REPORT_LOCK):
        path = report.write(directory, _load_optuna_study(directory, content, storage))
    print(path)
    return int(ExitCode.DONE)


def _open_directory(directory: Path, study_config: StudyConfig) -> tuple[StudyLock, dict[str, Any]]:
    """Creates the study's directory where it is missing; returns its lock and the content of study.json."""
    if directory.exists() and not directory.is_dir():
        raise UserError(f"--study={directory} is a file, not a directory")
    if directory.is_dir() and read(directory) is None:
        check_new_directory(directory)  # before anything is written there
    make_folder(directory)
    lock = StudyLock(directory / LOCK)
    with lock:
        command = [without_password(argument) if "://" in argument else argument for argument in sys.orig_argv]
        return lock, write_or_compare(directory, study_config, command)


def _report_results(directory: Path, study: Study, display: SweepDisplay) -> None:
    """Logs a table of the best trials, and writes the report."""
    from inception_jax.sweeps import report

    with study.exclusive():
        best = [
            (number, value, format_params(_values(directory, number))) for number, value in study.ranking()[:_NUM_BEST]
        ]
    if best:
        display.log(format_best_table(best, display.format_value))
    else:
        display.log("no trial has finished")
    with StudyLock(directory / REPORT_LOCK):
        path = report.write(directory, study.optuna_study)
    display.log(f"report: {path}")


def _values(directory: Path, number: int) -> dict[str, Any]:
    record = trials.load_record(trials.workdir(directory, number))
    return record.params | record.overrides if record else {}


def _load_optuna_study(directory: Path, content: Mapping[str, Any], storage: str | None) -> optuna.Study | None:
    """Opens the study in Optuna; None where it has no storage to read (the report then uses the files alone)."""
    from inception_jax.sweeps import storage as storages

    journal = None if content.get("storage") else directory / storages.JOURNAL
    if journal is None and storage is None:
        return None
    if journal is not None and not journal.exists():
        return None
    lock = StudyLock(directory / LOCK)
    module = storages.import_optuna()
    with lock, storages.wrap_errors(journal, storage):
        storages.repair_journal(journal, lambda text: print(text, file=sys.stderr))
        try:
            return module.load_study(
                study_name=content["name"],
                storage=storages.open_storage(journal, storage if journal is None else None, lock),
            )
        except KeyError:
            return None
