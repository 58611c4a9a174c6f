"""A trial on disk: its workdir, its record `trial.json`, and the metrics and output that its run has written."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.manifest import config_differences, read_json_object, replace_text
from inception_jax.runs.metric_files import METRICS, FollowedFile
from inception_jax.runs.result import to_json_values

FILE = "trial.json"
FOLDER = "trials"
OUTPUT = "output.log"

ENDED = ("finished", "pruned", "diverged", "failed")
"""The final statuses of a trial; the others are running, waiting (to be started again) and interrupted."""


def workdir(study: Path, number: int) -> Path:
    """The workdir of trial `number`: `STUDY/trials/0007`."""
    return study / FOLDER / f"{number:04d}"


@dataclasses.dataclass
class TrialRecord:
    """The content of `trial.json`.

    Attributes:
      number: of the trial, from 0.
      status: one of running, finished, pruned, diverged, failed, interrupted, waiting.
      params: {field: value} of the parameters of the space.
      overrides: {field: value} of other fields that the trial sets.
      value: the objective; None until the trial has finished, and where it has not reached the target of a study whose
        objective is what trials need to reach it.
      message: the reason for its status, in one line.
      starts: one entry per start of its training process: {"time", "host", "pid", "slot", "ended", "exit"}; times in
        seconds since 1970.
      evaluations: [{"index", "epoch", "step", "value"}], index from 1.
      pruned_at: index of the evaluation at which it was pruned.
      seconds: total run time of its processes.
      deaths: consecutive deaths of its process without a newer checkpoint than `checkpoint`.
      checkpoint: step of the newest checkpoint at the last death; -1: none.
    """

    number: int
    status: str = "running"
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    value: float | None = None
    message: str = ""
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    pruned_at: int | None = None
    seconds: float = 0.0
    deaths: int = 0
    checkpoint: int = -1

    def save(self, directory: Path) -> None:
        """Writes trial.json, completely or not at all.

        Args:
          directory: the trial's workdir.

        Raises:
          UserError: it cannot be written.
        """
        content = to_json_values(dataclasses.asdict(self))
        if self.value is not None and not math.isfinite(self.value):
            content["value"] = None
        replace_text(directory / FILE, json.dumps(content, indent=2) + "\n")

    def record_start(self, pid: int, slot: str) -> None:
        """Records the start of a training process.

        Args:
          pid: of the process.
          slot: name of its slot.
        """
        self.starts.append(
            {"time": time.time(), "host": os.uname().nodename, "pid": pid, "slot": slot, "ended": None, "exit": None}
        )

    def record_exit(self, exit_code: int | None, ended: float | None = None) -> None:
        """Records the exit of the last process; does nothing where it is recorded already.

        Args:
          exit_code: as `subprocess` gives it; None: unknown, since the driver died too.
          ended: seconds since 1970; default: now.
        """
        if self.starts and self.starts[-1]["ended"] is None:
            self.starts[-1]["ended"] = max(self.starts[-1]["time"], time.time() if ended is None else ended)
            self.starts[-1]["exit"] = exit_code
            self.seconds = sum(start["ended"] - start["time"] for start in self.starts)


def load_record(directory: Path) -> TrialRecord | None:
    """Reads the record of a trial.

    Args:
      directory: the trial's workdir.

    Returns:
      The record; None where there is none that can be read (Optuna's storage has what is needed to go on).
    """
    try:
        content = read_json_object(directory / FILE)
        if content is None:
            return None
        names = {field.name for field in dataclasses.fields(TrialRecord)}
        record = TrialRecord(**{name: value for name, value in content.items() if name in names})
        for evaluation in record.evaluations:
            evaluation["value"] = float(evaluation["value"])
    except (UserError, TypeError, KeyError, ValueError):
        return None
    return record


def refuse_other_params(directory: Path, record: TrialRecord | None, values: Mapping[str, Any]) -> None:
    """Compares the parameters of a trial that is continued with those that it began with.

    Args:
      directory: the trial's workdir.
      record: of the trial; None, or without parameters: there is nothing to compare with.
      values: {field: value}, of the storage.

    Raises:
      UserError: they differ.
    """
    if record and record.params and (differences := config_differences(record.params, values)):
        field, began, now = differences[0]
        raise UserError(
            f"{directory / FILE}: trial {record.number} began with {field} = {began!r}, and the storage of the study "
            f"has {now!r}: restore the storage that belongs to these trials, or begin another study"
        )


StartFollowing = Callable[[], Callable[[Mapping[str, Any]], bool]]


class EvaluationReader:
    """Reads the evaluations of a run from metrics.jsonl while the file grows.

    A restored run truncates the file at its checkpoint and writes the later rows again: then this reads the file from
    its beginning, too.
    """

    def __init__(self, directory: Path, weights: str, metric: str, start: StartFollowing | None = None):
        """Starts at the beginning of the file, which need not exist yet.

        Args:
          directory: the trial's workdir.
          weights: "raw" or "ema": the rows that are read.
          metric: key of the value in a row: the objective, or the metric of the target.
          start: starts to follow the evaluation rows, and returns a function that says whether the run ends at the
            next one; None: it never ends early.
        """
        self._path, self._weights, self._metric, self._start = directory / METRICS, weights, metric, start
        self._reset(None)

    def _reset(self, inode: int | None) -> None:
        self._inode, self._file = inode, FollowedFile(self._path)
        self._evaluations: list[dict[str, Any]] = []
        self._ends = self._start() if self._start else None

    def read(self) -> list[dict[str, Any]]:
        """Returns all evaluations so far: [{"index", "epoch", "step", "value"}], index from 1.

        The evaluation at which early stopping or its target ends the run has the key "last", too.

        Raises:
          UserError: an evaluation lacks a metric that the study needs.
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            self._reset(None)
            return self._evaluations
        if status.st_size < self._file.offset or status.st_ino != self._inode:
            self._reset(status.st_ino)
        if status.st_size > self._file.offset:
            for row in self._file.new_rows():
                self._add(row)
        return self._evaluations

    def _add(self, row: Mapping[str, Any]) -> None:
        if row.get("kind") != "evaluation" or row.get("weights") != self._weights:
            return
        try:
            evaluation = {
                "index": len(self._evaluations) + 1,
                "epoch": row["epoch"],
                "step": row["step"],
                "value": float(row[self._metric]),
            }
            if self._ends is not None and self._ends(row):
                evaluation["last"] = True
        except KeyError as missing:
            raise UserError(
                f"{self._path}: the evaluation at step {row.get('step')} has no {missing}, which the study needs; it "
                f"has {', '.join(row)}: begin a study whose --metric, stop.target_metric and checkpoint.best_metric "
                "are among these"
            ) from None
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self._path}: the evaluation at step {row.get('step')} has a value that is no number ({error}); "
                "remove the trial's workdir to begin the trial anew"
            ) from None
        self._evaluations.append(evaluation)


def objective_value(evaluations: list[dict[str, Any]], objective: str, direction: str) -> float | None:
    """The objective of a finished trial.

    Args:
      evaluations: as `EvaluationReader.read` gives them.
      objective: "final" or "best": which of them counts.
      direction: "maximize" or "minimize".

    Returns:
      The value; None where that evaluation is missing or not finite.
    """
    values = [evaluation["value"] for evaluation in evaluations]
    if objective == "final":
        return values[-1] if values and math.isfinite(values[-1]) else None
    finite = [value for value in values if math.isfinite(value)]
    return (max if direction == "maximize" else min)(finite) if finite else None


def newest_checkpoint(directory: Path) -> int:
    """Step of the newest checkpoint in a workdir; -1 where there is none."""
    try:
        names = os.listdir(directory / "checkpoints")
    except OSError:
        return -1
    return max((int(name) for name in names if name.isdigit()), default=-1)


def output_tail(directory: Path) -> str:
    """The last three lines of output.log of a workdir, joined into one line."""
    try:
        with open(directory / OUTPUT, "rb") as file:
            file.seek(max(0, os.stat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in [line for line in lines if line.strip()][-3:])


def error_line(directory: Path) -> str:
    """The newest `error: …` line of output.log, without `error: `; where there is none, its last lines.

    Args:
      directory: the trial's workdir.
    """
    try:
        text = (directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else output_tail(directory)
