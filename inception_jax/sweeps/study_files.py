"""Reads the files of a study, complete or damaged, without Optuna.

The report uses this module alone for the keys of study.json and trial.json. A trial whose trial.json is damaged or
missing becomes a note in the report, which has the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.config import to_tuples
from inception_jax.errors import UserError
from inception_jax.metric_definitions import METRICS, TO_TARGET, Metric, describe
from inception_jax.runs.file_forms import TRIAL
from inception_jax.runs.manifest import read_json_object, replace_text
from inception_jax.runs.run_state import STUDY
from inception_jax.sweeps.parameters import Parameter, from_json

TRIALS = "trials"
TABLE = "trials.csv"

_FIELD_TYPES = (
    ("config", dict, "an object"),
    ("overrides", dict, "an object"),
    ("space", list, "a list"),
    ("listed", list, "a list"),
    ("command", list, "a list"),
    ("metric", str, "a string"),
    ("metric_properties", dict, "an object"),
    ("evaluated_metric_properties", dict, "an object"),
)

UNKNOWN = "unknown"
"""The status of a trial whose trial.json is damaged or missing."""


@dataclasses.dataclass(frozen=True)
class StoredTrial:
    """A trial, as trial.json has it.

    Attributes:
      number: from 0.
      status: finished, pruned, diverged, failed, running, interrupted, waiting; or `UNKNOWN`.
      params: {field: value} of the parameters of the space; lists have become tuples.
      overrides: {field: value} of other fields that it sets.
      value: the objective; None unless the trial has finished.
      message: the reason for its status, in one line.
      starts: one entry per start of its process: {"time", "host", "ended", "exit", …}.
      evaluations: (epoch, value of the evaluated metric) of each, in order; a value may be NaN.
      pruned_at: index of the evaluation, from 1, at which it was pruned.
      seconds: total run time of its processes.
      workdir: of its run.
      is_to_target: whether the objective is what it needed to reach its target, which no evaluation has.
    """

    number: int
    status: str
    params: Mapping[str, Any]
    overrides: Mapping[str, Any]
    value: float | None
    message: str
    starts: Sequence[Mapping[str, Any]]
    evaluations: Sequence[tuple[float, float]]
    pruned_at: int | None
    seconds: float
    workdir: Path
    is_to_target: bool = False

    @property
    def shown_value(self) -> float:
        """The value that plots show: the objective, or else its last finite evaluation; NaN where there is neither."""
        if self.value is not None:
            return self.value
        if self.is_to_target:
            return math.nan
        return next((value for _, value in reversed(self.evaluations) if math.isfinite(value)), math.nan)

    @property
    def has_value(self) -> bool:
        """Whether there is a value to show."""
        return not math.isnan(self.shown_value)


@dataclasses.dataclass(frozen=True)
class StoredStudy:
    """A study, as its files have it.

    Attributes:
      path: the study's directory.
      content: the whole content of study.json.
      config: the config that all trials start from.
      space: {field: parameter}, in the order of the file.
      metric: of the objective.
      evaluated: the metric of the evaluations: that of the objective, or of the target which trials are to reach.
      objective: "final" or "best": the evaluation of a trial that counts.
      maximize: whether a larger value is better.
      trials: all trials, by number.
      notes: one line per unreadable file.
    """

    path: Path
    content: Mapping[str, Any]
    config: Mapping[str, Any]
    space: Mapping[str, Parameter]
    metric: Metric
    evaluated: Metric
    objective: str
    maximize: bool
    trials: tuple[StoredTrial, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the study."""
        return str(self.content.get("name") or self.path.absolute().name)

    @property
    def unit(self) -> float:
        """The factor by which values are shown: 100 for per cent."""
        return self.metric.unit

    def with_status(self, *statuses: str) -> list[StoredTrial]:
        """The trials that have one of these statuses, by number."""
        return [trial for trial in self.trials if trial.status in statuses]

    def ranked(self) -> list[StoredTrial]:
        """The finished trials that have a value, the best first; of equal ones the earlier first."""
        sign = -1 if self.maximize else 1
        finished = [trial for trial in self.with_status("finished") if trial.value is not None]
        return sorted(finished, key=lambda trial: (sign * trial.shown_value, trial.number))


def read(path: Path) -> StoredStudy:
    """Reads a study.

    Args:
      path: the study's directory.

    Returns:
      The study with all its trials.

    Raises:
      UserError: there is no study.json, or it is damaged.
    """
    content = read_json_object(path / STUDY)
    if content is None:
        raise UserError(f"{path} is not a study: it has no {STUDY}")
    for name, kind, kind_name in _FIELD_TYPES:
        if content.get(name) is not None and not isinstance(content[name], kind):
            raise UserError(f"{path / STUDY} is damaged: {name!r} = {str(content[name])[:40]!r} is not {kind_name}")
    name, recorded = content.get("metric") or "top1", content.get("metric_properties")
    if name not in METRICS and name not in TO_TARGET and recorded is None:
        raise UserError(f"{path / STUDY} is damaged: 'metric' = {name!r} is none of {', '.join(METRICS)}")
    notes: list[str] = []
    folders = [folder for folder in (path / TRIALS).glob("*") if folder.name.isdigit() and folder.is_dir()]
    folders.sort(key=lambda folder: int(folder.name))
    trials = [_trial(folder, notes, is_to_target=name in TO_TARGET) for folder in folders]
    metric = describe(name, recorded)
    return StoredStudy(
        path=path,
        content=content,
        config=content.get("config") or {},
        space={str(one.get("field")): from_json(one) for one in _objects(content.get("space"))},
        metric=metric,
        evaluated=_target_metric(content) if name in TO_TARGET else metric,
        objective=content.get("objective") or "final",
        maximize=metric.better == "higher" if not content.get("direction") else content["direction"] == "maximize",
        trials=tuple(trials),
        notes=tuple(notes),
    )


def write_table(study: StoredStudy) -> Path:
    """Writes trials.csv: one line per trial, one column per parameter.

    Args:
      study: the study.

    Returns:
      Path of the file.

    Raises:
      UserError: it cannot be written.
    """
    fields = [*study.space]
    fields += sorted({field for trial in study.trials for field in (*trial.params, *trial.overrides)} - {*fields})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["number", "status", "value", *fields, "evaluations", "epoch", "seconds", "starts", "message", "workdir"]
    )
    for trial in study.trials:
        values = {**trial.overrides, **trial.params}
        epoch = trial.evaluations[-1][0] if trial.evaluations else ""
        writer.writerow(
            [
                trial.number,
                trial.status,
                "" if trial.value is None else repr(trial.value),
                *(values.get(field, "") for field in fields),
                len(trial.evaluations),
                epoch,
                round(trial.seconds, 1),
                len(trial.starts),
                trial.message,
                trial.workdir.relative_to(study.path),
            ]
        )
    replace_text(study.path / TABLE, text.getvalue())
    return study.path / TABLE


def _target_metric(content: Mapping[str, Any]) -> Metric:
    config = content.get("config") or {}
    stop, checkpoint = (config.get(name) or {} for name in ("stop", "checkpoint"))
    name = stop.get("target_metric") or checkpoint.get("best_metric") or "top1"
    return describe(str(name), content.get("evaluated_metric_properties"))


def _trial(folder: Path, notes: list[str], is_to_target: bool) -> StoredTrial:
    try:
        content = read_json_object(folder / TRIAL)
        if content is None:
            raise UserError(f"{folder} has no {TRIAL}")
    except UserError as error:
        notes.append(str(error))
        content = {"status": UNKNOWN}
    value = _number(content.get("value"))
    return StoredTrial(
        number=int(folder.name),
        status=str(content.get("status") or UNKNOWN),
        params=_values(content.get("params")),
        overrides=_values(content.get("overrides")),
        value=None if value is None or math.isnan(value) else value,
        message=str(content.get("message") or ""),
        starts=_objects(content.get("starts")),
        evaluations=tuple(
            (_number(one.get("epoch")) or 0.0, math.nan if (found := _number(one.get("value"))) is None else found)
            for one in _objects(content.get("evaluations"))
        ),
        pruned_at=content.get("pruned_at"),
        seconds=_number(content.get("seconds")) or 0.0,
        workdir=folder,
        is_to_target=is_to_target,
    )


def _objects(content: Any) -> tuple[Mapping[str, Any], ...]:
    """The objects in a list of JSON; () where the value is not a list."""
    return tuple(one for one in content if isinstance(one, Mapping)) if isinstance(content, list) else ()


def _values(content: Any) -> dict[str, Any]:
    return {str(field): to_tuples(value) for field, value in content.items()} if isinstance(content, Mapping) else {}


def _number(content: Any) -> float | None:
    """A number, also one that JSON has as a string such as "NaN"; None for anything else."""
    try:
        return float(content) if isinstance(content, int | float | str) and not isinstance(content, bool) else None
    except ValueError:
        return None
