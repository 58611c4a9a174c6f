"""The definition of a study and its file study.json: recipe, space, sampler, pruner, objective."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import operator
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, overload

from inception_jax import schema
from inception_jax.config import Config, from_dict
from inception_jax.errors import UserError
from inception_jax.metric_definitions import METRICS, TO_TARGET, describe
from inception_jax.runs.manifest import CONFIG, config_differences, flatten, read_json_object, replace_text, versions
from inception_jax.sweeps import trials
from inception_jax.sweeps.overrides import override_arguments
from inception_jax.sweeps.space import Space
from inception_jax.training.early_stopping import BestEvaluation
from inception_jax.training.target import Target

FILE = "study.json"


# Fields that may differ between machines that share a study, and between starts: no result depends on them.
MAY_CHANGE = (
    "data.cache_mb",
    "data.data_dir",
    "data.prefetch",
    "data.threads",
    "data.workers",
    "extensions",
    "faults.stall_",
)


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Everything that determines the trials of a study, their order and their objective values.

    Attributes:
      config_arguments: `--config=…` and the overrides of the recipe, as command-line arguments.
      overrides: {field: value} of these overrides.
      config: the whole config of the recipe, as plain values.
      space: None where only the listed trials run.
      listed: configs that are tried first, {field: value} each; with the sampler "grid", followed by the grid points.
      sampler: as `--sampler`, or "list" where there is no space.
      seed: of the sampler.
      pruner: as `--pruner`.
      min_evaluations: number of evaluations of a trial before it may be pruned.
      reduction_factor: of successive halving: one of this many trials continues at each rung.
      metric: name of a metric of the evaluations, or of `TO_TARGET`: what a trial needs to reach `stop.target`.
      weights: "ema" or "raw": the weights whose evaluations count, unless a trial sets `ema.decay`.
      objective: as `--objective`: the evaluation of a trial that counts.
      storage: URL of a database, without its password; None: the journal file.
    """

    config_arguments: tuple[str, ...]
    overrides: Mapping[str, Any]
    config: Mapping[str, Any]
    space: Space | None
    listed: tuple[dict[str, Any], ...]
    sampler: str
    seed: int
    pruner: str
    min_evaluations: int
    reduction_factor: int
    metric: str
    weights: str
    objective: str
    storage: str | None = None

    @property
    def direction(self) -> str:
        """Direction of the optimization, as Optuna spells it."""
        return optuna_direction(self.metric)

    @property
    def is_endless(self) -> bool:
        """Whether the sampler always has another trial."""
        return self.sampler in ("tpe", "random", "quasi")

    def evaluated_weights(self, fields: Mapping[str, Any]) -> str:
        """The weights whose evaluations count in a trial: "ema" where it maintains an EMA, else "raw".

        Args:
          fields: {field: value} that the trial sets.
        """
        return "ema" if fields.get("ema.decay", self.config["ema"]["decay"]) > 0 else "raw"

    @property
    def is_to_target(self) -> bool:
        """Whether the objective is what a trial needs to reach its target."""
        return self.metric in TO_TARGET

    def evaluated_metric(self, fields: Mapping[str, Any]) -> str:
        """The metric of each evaluation of a trial: the objective, or that of the target which the objective is about.

        Args:
          fields: {field: value} that the trial sets.
        """
        if not self.is_to_target:
            return self.metric
        best = fields.get("checkpoint.best_metric", self.config["checkpoint"]["best_metric"])
        return str(fields.get("stop.target_metric", self.config["stop"]["target_metric"]) or best)

    def follow_end(self, fields: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
        """Starts to follow the evaluations of a trial as its own run does, for early stopping and its target.

        Args:
          fields: {field: value} that the trial sets.

        Returns:
          A function that takes each evaluation row in turn, and returns whether the run ends there.
        """

        def value(section: str, name: str) -> Any:
            return fields.get(f"{section}.{name}", self.config[section][name])

        chosen = value("checkpoint", "best_metric")
        best = BestEvaluation(METRICS[chosen], value("stop", "patience"), value("stop", "min_improvement"))
        wanted, target = value("stop", "target"), None
        if wanted is not None and value("stop", "at_target"):
            target = Target(METRICS[value("stop", "target_metric") or chosen], wanted, ends_run=True)

        def ends(row: Mapping[str, Any]) -> bool:
            best.add(row["step"], float(row[chosen]))
            return best.is_exhausted or (target is not None and target.is_reached(float(row[target.metric.name])))

        return ends

    def is_final_evaluation(self, fields: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
        """Returns whether an evaluation is the last one of a trial.

        Args:
          fields: {field: value} that the trial sets.
          evaluation: {"step", "epoch", …} of the evaluation, as `trials.EvaluationReader` gives it.
        """
        if evaluation.get("last"):
            return True
        num_steps = fields.get("num_steps", self.config["num_steps"])
        if num_steps is not None:
            return evaluation["step"] >= num_steps
        # A run ends at the step nearest to its number of epochs, which may be just before it.
        steps_per_epoch = evaluation["step"] / evaluation["epoch"] if evaluation["epoch"] else 0.0
        return evaluation["step"] >= round(fields.get("num_epochs", self.config["num_epochs"]) * steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        """The part of study.json that is the same at every start."""
        return {
            "recipe": self.config_arguments[0].partition("=")[2],
            "overrides": dict(self.overrides),
            "config": self.config,
            "space": self.space.to_json() if self.space else [],
            "listed": [dict(trial) for trial in self.listed] if self.sampler != "grid" else [],
            "sampler": self.sampler,
            "seed": self.seed,
            "pruner": self.pruner,
            "min_evaluations": self.min_evaluations,
            "reduction_factor": self.reduction_factor,
            "metric": self.metric,
            "metric_properties": describe(self.metric).to_json(),
            "evaluated_metric_properties": describe(self.evaluated_metric({})).to_json(),
            "weights": self.weights,
            "objective": self.objective,
            "direction": self.direction,
            "storage": without_password(self.storage),
        }


def optuna_direction(metric: str) -> str:
    """The direction in which a metric becomes better, as Optuna spells it."""
    return "maximize" if describe(metric).better == "higher" else "minimize"


def write_or_compare(directory: Path, study_config: StudyConfig, command: list[str]) -> dict[str, Any]:
    """Writes study.json, or checks that the existing one describes this study. Call it under the study's lock.

    Args:
      directory: an existing directory.
      study_config: of the study.
      command: the command line, which is recorded.

    Returns:
      The content of study.json.

    Raises:
      UserError: the directory has other files, or a study that differs; the message names the first difference.
    """
    before = read(directory)
    if before is None:
        check_new_directory(directory)
        name = directory.resolve().name
        if study_config.storage:  # a database may have studies of other directories with this name
            name = f"{name}-{secrets.token_hex(3)}"
        content = {
            "name": name,
            **study_config.to_json(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command,
            "cwd": os.getcwd(),
            "versions": versions(),
        }
        replace_text(directory / FILE, json.dumps(content, indent=2) + "\n")
        return content
    new = json.loads(json.dumps(keep_earlier_values(study_config, before).to_json()))
    for field, old, now in config_differences(_comparable(before), _comparable(new)):
        if not field.removeprefix("config.").startswith(MAY_CHANGE):
            raise UserError(
                f"{directory}: {field} = {now!r}, but the study there began with {old!r}; continue it with "
                "that, or choose another --study"
            )
    return before


def keep_earlier_values(study_config: StudyConfig, content: Mapping[str, Any]) -> StudyConfig:
    """Sets the fields by which an earlier version computed otherwise, so that a study's trials are of one kind.

    Args:
      study_config: of this start.
      content: of study.json. What it does not have, an earlier version that began the study did not have.

    Returns:
      The study config whose trials get, in those of these fields that it leaves unset, the value that the earlier
      version worked with (`Field.earlier`).
    """
    recorded, config = dict(flatten(content["config"])), dict(flatten(study_config.config))
    earlier = {
        path: field.earlier
        for path, field in schema.fields()
        if field.earlier is not None and path not in recorded and config[path] is None
    }
    changed = copy.deepcopy(dict(study_config.config))
    for path, value in earlier.items():
        *sections, name = path.split(".")
        functools.reduce(operator.getitem, sections, changed)[name] = value
    arguments = (*study_config.config_arguments, *override_arguments(earlier))
    return dataclasses.replace(study_config, config=changed, config_arguments=arguments)


def read(directory: Path) -> dict[str, Any] | None:
    """Reads study.json.

    Args:
      directory: of the study.

    Returns:
      Its content; None where the file does not exist.

    Raises:
      UserError: it is damaged.
    """
    content = read_json_object(directory / FILE)
    if content is not None and (missing := [name for name in ("name", "config", "space") if name not in content]):
        raise UserError(f"{directory / FILE} is damaged: it has no {missing[0]!r}")
    return content


@overload
def without_password(url: str) -> str: ...
@overload
def without_password(url: None) -> None: ...
def without_password(url: str | None) -> str | None:
    """The URL of a database without its password, for display: `postgresql://user@host/name`."""
    return None if url is None else re.sub(r"(//[^/@:]*):[^/]*@", r"\1@", url)


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of study.json that must not change, with the names that an error message shows.

    A config field that is missing because an earlier version did not have it counts as what that version did.
    """
    fields = {
        name: content.get(name)
        for name in (
            "config",
            "sampler",
            "seed",
            "pruner",
            "min_evaluations",
            "reduction_factor",
            "metric",
            "weights",
            "objective",
            "storage",
        )
    }
    fields["config"] = Config(from_dict(content["config"])).to_dict()
    fields["space"] = {
        entry["field"]: {name: value for name, value in entry.items() if name != "field"} for entry in content["space"]
    }
    fields["get_trials()"] = {f"[{index}]": trial for index, trial in enumerate(content.get("listed", []))}
    return fields


def check_new_directory(directory: Path) -> None:
    """Checks that a new study may begin in a directory without a study.json.

    Args:
      directory: an existing directory.

    Raises:
      UserError: it is the workdir of a run, has lost its study.json, or has other files.
    """
    if (directory / CONFIG).exists() or (directory / "checkpoints").exists():
        raise UserError(f"--study={directory} is the workdir of a training run; choose another directory")
    if (directory / trials.FOLDER).is_dir() and any((directory / trials.FOLDER).iterdir()):
        raise UserError(
            f"--study={directory}: it has trials, but its {FILE} is missing; restore it, or choose another directory"
        )
    known = {"lock", "sweep.log", "hosts", "journal.log", "worked.json", "report.lock"}
    if others := sorted(
        entry.name for entry in directory.iterdir() if entry.name not in known and not entry.name.startswith(".")
    ):
        raise UserError(
            f"--study={directory} is not empty and is not a study: it has {others[0]!r}; choose another directory"
        )
