"""What a study is, as `study.json` keeps it: the recipe, what is varied, and how a trial is chosen and judged."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.manifest import CONFIG, config_differences, read_json_object, replace_text, versions
from inception_jax.sweeps import trials
from inception_jax.sweeps.space import Space

FILE = "study.json"

SAMPLERS = ("tpe", "random", "quasi", "grid")
PRUNERS = ("halving", "median", "none")
METRICS = ("top1", "top5", "loss")
OBJECTIVES = ("final", "best")

# What may differ between two machines that share a study, and between two starts: no number of a trial depends on it.
MAY_CHANGE = ("data.data_dir", "data.prefetch", "data.threads", "data.workers", "faults.stall_")


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """All that the trials of a study, their order and their values follow from.

    Attributes:
      config_arguments: the words `--config=…` that the recipe came from, with its overrides.
      overrides: {field: value} of these.
      config: the recipe, whole, as plain values.
      space: None where only the listed trials run.
      listed: configs that are tried first, {field: value}; with the sampler "grid" every point of it after them.
      sampler: one of `SAMPLERS`, or "list" where there is no space.
      seed: of the sampler.
      pruner: one of `PRUNERS`.
      min_evaluations: of a trial before it may be pruned.
      reduction_factor: halving: one of so many trials goes on at each rung.
      metric: one of `METRICS`.
      weights: "ema" or "raw": whose evaluations count, where a trial says nothing else.
      objective: one of `OBJECTIVES`.
      storage: URL of a database, None for the journal file.
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
        """As Optuna spells it."""
        return "minimize" if self.metric == "loss" else "maximize"

    @property
    def is_endless(self) -> bool:
        """Whether the sampler always has another trial."""
        return self.sampler in ("tpe", "random", "quasi")

    def evaluated_weights(self, fields: Mapping[str, Any]) -> str:
        """Whose evaluations count in a trial that sets these fields: "ema" where it keeps an average."""
        return "ema" if fields.get("ema.decay", self.config["ema"]["decay"]) > 0 else "raw"

    def is_final_evaluation(self, fields: Mapping[str, Any], evaluation: Mapping[str, Any]) -> bool:
        """Whether an evaluation is the one at the end of a trial that sets these fields."""
        num_steps = fields.get("num_steps", self.config["num_steps"])
        if num_steps is not None:
            return evaluation["step"] >= num_steps
        # A run ends at the step that is nearest to its epochs, which may be just before them.
        steps_per_epoch = evaluation["step"] / evaluation["epoch"] if evaluation["epoch"] else 0.0
        return evaluation["step"] >= round(fields.get("num_epochs", self.config["num_epochs"]) * steps_per_epoch)

    def to_json(self) -> dict[str, Any]:
        """As study.json has it, without what belongs to one start."""
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
            "weights": self.weights,
            "objective": self.objective,
            "direction": self.direction,
            "storage": without_password(self.storage),
        }


def write_or_compare(directory: Path, study_config: StudyConfig, command: list[str]) -> dict[str, Any]:
    """Begins a study in a directory, or makes sure that the study there is this one. Call it under the study's lock.

    Args:
      directory: an existing one.
      study_config: of the study.
      command: the command line.

    Returns:
      The content of study.json.

    Raises:
      UserError: the directory holds something else, or a study that differs; the first difference is named.
    """
    before = read(directory)
    if before is None:
        check_new_directory(directory)
        name = directory.resolve().name
        if study_config.storage:  # a database may hold studies of other directories of this name
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
    new = json.loads(json.dumps(study_config.to_json()))
    for field, old, now in config_differences(_comparable(before), _comparable(new)):
        if not field.removeprefix("config.").startswith(MAY_CHANGE):
            raise UserError(
                f"{directory}: {field} = {now!r}, but the study there began with {old!r}; continue it with "
                "that, or choose another --study"
            )
    return before


def read(directory: Path) -> dict[str, Any] | None:
    """The content of study.json; None where there is none.

    Raises:
      UserError: it is damaged.
    """
    content = read_json_object(directory / FILE)
    if content is not None and (missing := [name for name in ("name", "config", "space") if name not in content]):
        raise UserError(f"{directory / FILE} is damaged: it has no {missing[0]!r}")
    return content


def without_password(url: str | None) -> str | None:
    """The URL of a database, fit to be shown: `postgresql://user@host/name`."""
    return None if url is None else re.sub(r"(//[^/@:]*):[^/]*@", r"\1@", url)


def _comparable(content: Mapping[str, Any]) -> dict[str, Any]:
    """What must not change, by names that say what they are."""
    kept = {
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
    kept["space"] = {
        entry["field"]: {name: value for name, value in entry.items() if name != "field"} for entry in content["space"]
    }
    kept["get_trials()"] = {f"[{index}]": trial for index, trial in enumerate(content.get("listed", []))}
    return kept


def check_new_directory(directory: Path) -> None:
    """Makes sure that a directory without a study.json is one that a study may begin in.

    Raises:
      UserError: it is the workdir of a run, has lost its study.json, or holds other things.
    """
    if (directory / CONFIG).exists() or (directory / "checkpoints").exists():
        raise UserError(f"--study={directory} is the workdir of a training run; choose another directory")
    if (directory / trials.FOLDER).is_dir() and any((directory / trials.FOLDER).iterdir()):
        raise UserError(
            f"--study={directory}: it has trials, but its {FILE} is missing; put it back, or choose another directory"
        )
    known = {"lock", "sweep.log", "hosts", "journal.log", "worked.json", "report.lock"}
    if others := sorted(
        entry.name for entry in directory.iterdir() if entry.name not in known and not entry.name.startswith(".")
    ):
        raise UserError(
            f"--study={directory} is not empty, and no study: it has {others[0]!r}; choose another directory"
        )
