"""One trial on disk: its workdir, its record `trial.json`, and what its run has written so far."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.manifest import read_json_object, replace_text
from inception_jax.runs.metric_files import METRICS

FILE = "trial.json"
FOLDER = "trials"
OUTPUT = "output.log"

ENDED = ("finished", "pruned", "diverged", "failed")
"""Statuses that do not change any more; the others are running, waiting (to be started again), interrupted."""


def workdir(study: Path, number: int) -> Path:
    """Where trial `number` lives."""
    return study / FOLDER / f"{number:04d}"


@dataclasses.dataclass
class TrialRecord:
    """What `trial.json` says.

    Attributes:
      number: of the trial, from 0.
      status: one of running, finished, pruned, diverged, failed, interrupted, waiting.
      params: {field: value} of the space.
      overrides: {field: value} that the trial sets beside it.
      value: the objective; None until it has finished.
      message: why it ended as it did, in a line.
      starts: of its training process: {"time", "host", "pid", "slot", "ended", "exit"}; times in seconds since 1970.
      evaluations: [{"index", "epoch", "step", "value"}], index from 1.
      pruned_at: index of the evaluation that it was pruned at.
      seconds: that its processes ran.
      deaths: in a row, without a newer checkpoint than `checkpoint`.
      checkpoint: the newest step that was saved at the last death; -1: none.
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
        """Writes it, whole or not at all.

        Raises:
          UserError: it cannot be written.
        """
        content = dataclasses.asdict(self)
        for evaluation in content["evaluations"]:  # JSON has no NaN; the texts are those of metrics.jsonl
            evaluation["value"] = _json_number(evaluation["value"])
        replace_text(directory / FILE, json.dumps(content, indent=2) + "\n")

    def record_start(self, pid: int, slot: str) -> None:
        """Notes that a process was started."""
        self.starts.append(
            {"time": time.time(), "host": os.uname().nodename, "pid": pid, "slot": slot, "ended": None, "exit": None}
        )

    def record_exit(self, exit_code: int | None, ended: float | None = None) -> None:
        """Notes how the last process ended; nothing where that is known already.

        Args:
          exit_code: as `subprocess` gives it; None: unknown, it was lost with its driver.
          ended: seconds since 1970; default: now.
        """
        if self.starts and self.starts[-1]["ended"] is None:
            self.starts[-1]["ended"] = max(self.starts[-1]["time"], time.time() if ended is None else ended)
            self.starts[-1]["exit"] = exit_code
            self.seconds = sum(start["ended"] - start["time"] for start in self.starts)


def load_record(directory: Path) -> TrialRecord | None:
    """The record of a trial; None where there is none that can be read (the storage knows what is needed).

    Args:
      directory: the trial's workdir.
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


class EvaluationReader:
    """The evaluations that a run has written to metrics.jsonl, read as the file grows.

    A run that is started again cuts its file back to its checkpoint and writes the same rows anew: then this begins
    anew, too.
    """

    def __init__(self, directory: Path, weights: str, metric: str):
        """Args:
        directory: the trial's workdir.
        weights: "raw" or "ema": which rows count.
        metric: the row's key.
        """
        self._path, self._weights, self._metric = directory / METRICS, weights, metric
        self._reset()

    def _reset(self) -> None:
        self._inode, self._offset, self._evaluations = None, 0, []

    def read(self) -> list[dict[str, Any]]:
        """All evaluations so far: [{"index", "epoch", "step", "value"}], index from 1."""
        try:
            status = os.stat(self._path)
            if status.st_size < self._offset or status.st_ino != self._inode:
                self._reset()
                self._inode = status.st_ino
            if status.st_size > self._offset:
                with open(self._path, "rb") as file:
                    file.seek(self._offset)
                    new = file.read()
                whole = new[: new.rfind(b"\n") + 1]
                self._offset += len(whole)
                for line in whole.splitlines():
                    self._add(line)
        except FileNotFoundError:
            self._reset()
        return self._evaluations

    def _add(self, line: bytes) -> None:
        try:
            row = json.loads(line)
            if row["kind"] == "evaluation" and row["weights"] == self._weights:
                self._evaluations.append(
                    {
                        "index": len(self._evaluations) + 1,
                        "epoch": row["epoch"],
                        "step": row["step"],
                        "value": float(row[self._metric]),
                    }
                )
        except (ValueError, KeyError, TypeError):
            return  # a torn line, which the run will cut away when it is started again


def objective_value(evaluations: list[dict[str, Any]], objective: str, direction: str) -> float | None:
    """What a finished trial is judged by; None where it has no finite evaluation to show.

    Args:
      evaluations: as `EvaluationReader.read` gives them.
      objective: "final" or "best" of them.
      direction: "maximize" or "minimize".
    """
    values = [evaluation["value"] for evaluation in evaluations]
    if objective == "final":
        return values[-1] if values and math.isfinite(values[-1]) else None
    finite = [value for value in values if math.isfinite(value)]
    return (max if direction == "maximize" else min)(finite) if finite else None


def newest_checkpoint(directory: Path) -> int:
    """The newest step that was saved; -1 where there is none."""
    try:
        names = os.listdir(directory / "checkpoints")
    except OSError:
        return -1
    return max((int(name) for name in names if name.isdigit()), default=-1)


def output_tail(directory: Path, count: int = 3) -> str:
    """The last lines that the trial's processes wrote, in one line."""
    try:
        with open(directory / OUTPUT, "rb") as file:
            file.seek(max(0, os.stat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return " | ".join(line.strip() for line in [line for line in lines if line.strip()][-count:])


def error_line(directory: Path) -> str:
    """The newest `error: …` line that the trial's processes wrote, without its first word."""
    try:
        text = (directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return lines[-1] if lines else output_tail(directory)


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
