"""What a study left on disk, read without Optuna, and whatever state it is in.

This is the one place that knows the names in study.json and trial.json. A file that is damaged or missing becomes a
note, and the rest is told.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.manifest import read_object, replace_text
from inception_jax.runs.run_state import STUDY, TRIAL

TRIALS = "trials"
TABLE = "trials.csv"

METRICS = ("top1", "top5", "loss")
_KINDS = (
    ("config", dict, "an object"),
    ("overrides", dict, "an object"),
    ("space", list, "a list"),
    ("listed", list, "a list"),
    ("command", list, "a list"),
    ("metric", str, "a text"),
)

UNKNOWN = "unknown"
"""The status of a trial whose record is damaged or missing."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of the space.

    Attributes:
      field: of the config.
      kind: "real", "integer" or "choice".
      low, high: ends of a range; None for a choice.
      log: whether the range is uniform in the logarithm.
      step: distance of the values of a range; None where all are allowed.
      choices: values of a choice; () for a range.
      when: {field: value or values} under which the parameter exists; {} for always.
    """

    field: str
    kind: str
    low: float | None
    high: float | None
    log: bool
    step: float | None
    choices: tuple[Any, ...]
    when: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
      number: from 0.
      status: finished, pruned, diverged, failed, running, interrupted, waiting; or `UNKNOWN`.
      params: {field: value} of the space; lists have become tuples.
      overrides: {field: value} that it sets beside them.
      value: what it is judged by; None unless it has finished.
      message: why it ended, in a line.
      starts: of its process; {"time", "host", "ended", "exit", …} each.
      evaluations: (epoch, value) each, in order; a value may be NaN.
      pruned_at: index of the evaluation, from 1, after which it was given up.
      seconds: that its processes ran.
      workdir: its run.
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

    @property
    def shown_value(self) -> float | None:
        """Its value, or of one that has none the last finite evaluation: where pictures put it."""
        if self.value is not None:
            return self.value
        return next((value for _, value in reversed(self.evaluations) if math.isfinite(value)), None)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
      path: its directory.
      said: the whole of study.json.
      config: the config that all trials start from.
      space: the parameters, in the order of the file.
      metric: "top1", "top5" or "loss".
      objective: "final" or "best" of a trial's evaluations.
      maximise: whether more is better.
      trials: by number.
      notes: one line per file that cannot be read.
    """

    path: Path
    said: Mapping[str, Any]
    config: Mapping[str, Any]
    space: tuple[Parameter, ...]
    metric: str
    objective: str
    maximise: bool
    trials: tuple[Trial, ...]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """What the study is called."""
        return str(self.said.get("name") or self.path.absolute().name)

    @property
    def unit(self) -> float:
        """What values are multiplied with to be shown: accuracies are in per cent."""
        return 1.0 if self.metric == "loss" else 100.0

    def of_status(self, *statuses: str) -> list[Trial]:
        """The trials of these statuses, by number."""
        return [trial for trial in self.trials if trial.status in statuses]

    def ranked(self) -> list[Trial]:
        """The finished trials, best first; of equals the earlier first."""
        sign = -1 if self.maximise else 1
        finished = [trial for trial in self.of_status("finished") if trial.value is not None]
        return sorted(finished, key=lambda trial: (sign * trial.value, trial.number))


def read(path: Path) -> Study:
    """Reads a study.

    Args:
      path: its directory.

    Raises:
      UserError: there is no study.json, or it is damaged.
    """
    said = read_object(path / STUDY)
    if said is None:
        raise UserError(f"{path} is no study: it has no {STUDY}")
    for name, kind, words in _KINDS:
        if said.get(name) is not None and not isinstance(said[name], kind):
            raise UserError(f"{path / STUDY} is damaged: {name!r} = {str(said[name])[:40]!r} is not {words}")
    if said.get("metric") not in (None, *METRICS):
        raise UserError(f"{path / STUDY} is damaged: 'metric' = {said['metric']!r} is none of {', '.join(METRICS)}")
    notes: list[str] = []
    folders = [folder for folder in (path / TRIALS).glob("*") if folder.name.isdigit() and folder.is_dir()]
    trials = [_trial(folder, notes) for folder in sorted(folders, key=lambda folder: int(folder.name))]
    metric = said.get("metric") or "top1"
    return Study(
        path=path,
        said=said,
        config=said.get("config") or {},
        space=tuple(map(_parameter, _objects(said.get("space")))),
        metric=metric,
        objective=said.get("objective") or "final",
        maximise=(said.get("direction") or ("minimize" if metric == "loss" else "maximize")) == "maximize",
        trials=tuple(trials),
        notes=tuple(notes),
    )


def write_table(study: Study) -> Path:
    """Writes trials.csv: one line per trial, a column per parameter.

    Returns:
      Its path.

    Raises:
      UserError: it cannot be written.
    """
    fields = [parameter.field for parameter in study.space]
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


def _parameter(said: Mapping[str, Any]) -> Parameter:
    return Parameter(
        field=str(said.get("field")),
        kind=said.get("kind") or ("choice" if said.get("choices") else "real"),
        low=said.get("low"),
        high=said.get("high"),
        log=bool(said.get("log")),
        step=said.get("step"),
        choices=tuple(frozen(value) for value in said.get("choices") or ()),
        when=said.get("when") or {},
    )


def _trial(folder: Path, notes: list[str]) -> Trial:
    try:
        said = read_object(folder / TRIAL)
        if said is None:
            raise UserError(f"{folder} has no {TRIAL}")
    except UserError as error:
        notes.append(str(error))
        said = {"status": UNKNOWN}
    value = _number(said.get("value"))
    return Trial(
        number=int(folder.name),
        status=str(said.get("status") or UNKNOWN),
        params=_values(said.get("params")),
        overrides=_values(said.get("overrides")),
        value=None if value is None or math.isnan(value) else value,
        message=str(said.get("message") or ""),
        starts=_objects(said.get("starts")),
        evaluations=tuple(
            (_number(one.get("epoch")) or 0.0, math.nan if (found := _number(one.get("value"))) is None else found)
            for one in _objects(said.get("evaluations"))
        ),
        pruned_at=said.get("pruned_at"),
        seconds=_number(said.get("seconds")) or 0.0,
        workdir=folder,
    )


def _objects(said: Any) -> tuple[Mapping[str, Any], ...]:
    """The objects of a list; () for anything else."""
    return tuple(one for one in said if isinstance(one, Mapping)) if isinstance(said, list) else ()


def _values(said: Any) -> dict[str, Any]:
    return {str(field): frozen(value) for field, value in said.items()} if isinstance(said, Mapping) else {}


def frozen(value: Any) -> Any:
    """The value with tuples where JSON has lists, also inside of it."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def _number(said: Any) -> float | None:
    """A number, also one that JSON has as the text "NaN"; None for anything else."""
    try:
        return float(said) if isinstance(said, int | float | str) and not isinstance(said, bool) else None
    except ValueError:
        return None
