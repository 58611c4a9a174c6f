"""Reads a workdir, complete or damaged, and infers the run's status.

Every file may be missing, truncated or damaged: what is wrong with one becomes a note, and the rest is used.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, counted
from inception_jax.runs import lock, manifest, metric_files, remote_workdir, result
from inception_jax.runs.file_forms import NUMBER, TEXT, TRIAL, has_type, keep_valid_fields

STUDY = "study.json"
IMPORTED = "pretrained.json"
"""The file of a workdir that `convert` made: where its weights are from."""

_RUN_FILES = (manifest.MANIFEST, metric_files.METRICS, "train.log", TRIAL)  # a directory with one of them is a workdir
_TAIL_BYTES = 1 << 16  # bytes of a metric file that are read first, where only its newest rows are wanted
_ALIVE_SECONDS = 900.0  # seconds after its last row in which a run counts as alive where the file system has no locks


class RunStatus(enum.StrEnum):
    """The status of a run, inferred from its workdir."""

    RUNNING = "running"
    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"
    PREEMPTED = "preempted"
    """Stopped by a signal, or killed; the same command continues it."""
    PRUNED = "pruned"
    """A trial that its sweep stopped early."""
    IMPORTED = "imported"
    """Published weights, imported by `convert`."""
    NEW = "new"
    """Nothing has been trained."""


_STATUS_OF_RESULT = {
    "finished": RunStatus.FINISHED,
    "diverged": RunStatus.DIVERGED,
    "failed": RunStatus.FAILED,
    "interrupted": RunStatus.PREEMPTED,
}
_STATUS_OF_TRIAL = {
    "finished": RunStatus.FINISHED,
    "diverged": RunStatus.DIVERGED,
    "failed": RunStatus.FAILED,
    "pruned": RunStatus.PRUNED,
}


@dataclasses.dataclass(frozen=True)
class RunState:
    """The content of a workdir, and the status that follows from it.

    Attributes:
      path: of the workdir.
      status: inferred from the lock, the result, the trial file and the rows.
      why: what ended the run (a signal, an error message); "" where nothing did or it is not known.
      config: content of config.json; {} where there is none.
      manifest: content of manifest.json; {} where there is none.
      result: content of result.json; {} also where it is of an earlier start than the newest.
      trial: content of trial.json, where the run is a trial of a sweep.
      rows: of metrics.jsonl.
      timing: rows of timing.jsonl.
      age: seconds since the last row was written; None where there is none.
      notes: one line per file that cannot be read or trusted.
    """

    path: Path
    status: RunStatus
    why: str
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    result: Mapping[str, Any]
    trial: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    timing: Sequence[Mapping[str, Any]]
    age: float | None
    notes: Sequence[str]

    @property
    def step(self) -> int | None:
        """Steps done, by the last rows and the result; None where there are neither."""
        steps = [row["step"] for row in (*self.rows[-1:], *self.timing[-1:])]
        if isinstance(self.result.get("steps"), int):
            steps.append(self.result["steps"])
        return max(steps, default=None)

    @property
    def steps_per_epoch(self) -> float | None:
        """Steps per pass over the training split; None before the first row."""
        row = next((row for row in reversed(self.rows) if row.get("epoch")), None)
        return row["step"] / row["epoch"] if row else None

    @property
    def total_steps(self) -> int | None:
        """Steps of the whole run, counted as by `training.run_length.compute_run_length`; None where unknown."""
        if self.status == RunStatus.FINISHED and "steps" in self.result:
            return self.result["steps"]
        steps, epochs = self.config.get("num_steps"), self.config.get("num_epochs")
        if steps or not epochs or not self.steps_per_epoch:
            return steps
        return max(1, round(epochs * self.steps_per_epoch))

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """Returns the rows of a kind: "train" or "evaluation"."""
        return [row for row in self.rows if row.get("kind") == kind]

    def evaluations(self, weights: str | None = None) -> list[Mapping[str, Any]]:
        """Returns the evaluation rows of one kind of weights, on the split of the newest one.

        Args:
          weights: "raw" or "ema"; None: "ema" where the run has an EMA of its weights, otherwise "raw".
        """
        rows = self.of_kind("evaluation")
        weights = weights or ("ema" if any(row.get("weights") == "ema" for row in rows) else "raw")
        return [row for row in rows if row.get("weights") == weights and row.get("split") == rows[-1].get("split")]


def is_run(path: Path) -> bool:
    """Returns whether a directory is the workdir of a run that has begun or is starting."""
    if (path / STUDY).exists():
        return False
    return any((path / name).is_file() for name in _RUN_FILES) or bool(lock.read_holder(path))


def read(path: Path, *, all_rows: bool = True) -> RunState:
    """Reads a workdir.

    Args:
      path: of a run.
      all_rows: whether to read all rows; otherwise only the newest ones, enough to have one of each kind.
    """
    notes: list[str] = []
    # Before the files: if the run ends meanwhile, its result is then either missing or of this start.
    running = None if remote_workdir.is_copy(path) else lock.is_locked(path)
    config = read_valid(manifest.read_config, path / manifest.CONFIG, notes)
    manifest_ = read_valid(manifest.read, path / manifest.MANIFEST, notes)
    outcome = read_valid(result.read_result, path / result.FILE, notes)
    trial = read_valid(lambda workdir: manifest.read_json_object(workdir / TRIAL), path / TRIAL, notes)
    rows, timing = (_rows(path / name, notes, all_rows) for name in (metric_files.METRICS, metric_files.TIMING))
    age = _age(path)
    if outcome and _is_stale(path, outcome, manifest_, rows):
        outcome = {}
    if running is None:
        running = age is not None and age < _ALIVE_SECONDS
        where = remote_workdir.display_name(path)
        notes.append(f"{where}: its file system has no locks; the age of the last row decides whether the run is alive")
    status, why = _status(running, outcome, trial, bool(rows) or _has_checkpoint(path))
    if why == "killed" and not rows and (path / IMPORTED).is_file():
        status, why = RunStatus.IMPORTED, ""
    return RunState(path, status, why, config, manifest_, outcome, trial, rows, timing, age, tuple(notes))


def _status(running: bool, outcome: Mapping, trial: Mapping, has_trained: bool) -> tuple[RunStatus, str]:
    if running:
        return RunStatus.RUNNING, ""
    # The sweep's file comes first: the trial itself records a pruning as a signal that stopped it.
    recorded = trial.get("status")
    if recorded in _STATUS_OF_TRIAL:
        return _STATUS_OF_TRIAL[recorded], str(outcome.get("message") or trial.get("message") or "")
    if recorded := outcome.get("status"):
        why = outcome.get("signal") if recorded == "interrupted" else outcome.get("message")
        return _STATUS_OF_RESULT.get(recorded, RunStatus.FAILED), str(why or "")
    return (RunStatus.PREEMPTED, "killed") if has_trained else (RunStatus.NEW, "")


def _is_stale(path: Path, outcome: Mapping, starts: Mapping, rows: Sequence[Mapping]) -> bool:
    """Returns whether a result is of an earlier start than the newest.

    Decided by the rows, or, where the run was killed before it wrote one, by the times of the files: the result must be
    older than the newest start and than the manifest that records it. (Neither alone is enough: a copy may have changed
    the times of files, and the clocks of two machines may differ.)
    """
    train = (outcome.get("metrics") or {}).get("train")
    last_step = outcome.get("steps", train.get("step") if isinstance(train, Mapping) else None)
    if isinstance(last_step, int) and rows and rows[-1]["step"] > last_step:
        return True
    try:
        written = (path / result.FILE).stat().st_mtime
        begun = datetime.datetime.fromisoformat(starts["starts"][-1]["time"]).timestamp()
        return written < min(begun, (path / manifest.MANIFEST).stat().st_mtime)
    except (OSError, KeyError, IndexError, TypeError, ValueError):
        return False


def _has_checkpoint(path: Path) -> bool:
    return any(step.name.isdigit() for step in (path / "checkpoints").glob("*"))


def read_valid(read: Callable[[Path], Any], path: Path, notes: list[str]) -> Mapping[str, Any]:
    """Returns the valid fields of a file, or {} and a note where it cannot be read; `read` takes the workdir."""
    try:
        return keep_valid_fields(path, read(path.parent) or {}, notes)
    except UserError as error:
        notes.append(str(error))
        return {}


def _age(path: Path) -> float | None:
    times = [
        file.stat().st_mtime
        for name in (metric_files.METRICS, metric_files.TIMING)
        if (file := path / name).is_file() and file.stat().st_size
    ]
    return max(0.0, time.time() - max(times)) if times else None


def _rows(path: Path, notes: list[str], all_rows: bool) -> list[dict[str, Any]]:
    """Returns the rows of a metric file; skips invalid lines, with a note where a crash does not explain them."""
    try:
        size = path.stat().st_size
        length = size if all_rows else min(size, _TAIL_BYTES)
        while True:
            with open(path, "rb") as file:
                file.seek(size - length)
                lines = file.read(length).split(b"\n")
            rows = [metric_files.parse_row(line) for line in lines[length < size :]]
            found = [keep_valid_values(row) for row in rows if row is not None]
            # One row of each kind, of a file that has kinds; the rows of timing.jsonl have none.
            if (
                length == size
                or {row.get("kind") for row in found} >= {"train", "evaluation"}
                or (found and "kind" not in found[-1])
            ):
                break
            length = min(size, 4 * length)
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"cannot read {path}: {error.strerror or error}")
        return []
    bad = sum(row is None for row in rows[:-1])  # the last is empty, or incomplete: being written, or cut by a kill
    if bad:
        notes.append(f"{path}: skips {counted(bad, 'line')} without a row")
    return found


_TEXTS_OF_ROWS = ("kind", "split", "weights")


def keep_valid_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the values of a metric row that have a wrong type: all but three are numbers."""
    return {name: value for name, value in row.items() if has_type(value, TEXT if name in _TEXTS_OF_ROWS else NUMBER)}
