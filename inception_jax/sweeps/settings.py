"""Builds the study config and the budget from the flags of a sweep, and checks them."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from inception_jax.config import Config
from inception_jax.errors import UserError, must_be_one_of
from inception_jax.metric_definitions import METRICS, TO_TARGET, names_of
from inception_jax.sweeps import space_file
from inception_jax.sweeps.budget import SweepBudget
from inception_jax.sweeps.space import Space
from inception_jax.sweeps.study_config import StudyConfig, without_password

MIN_EVALUATIONS = 2  # the first evaluation often lies in the warm-up
REDUCTION_FACTOR = 3  # Hyperband's authors advise 3 or 4 (arXiv:1603.06560, section 3)


def make_study_config(
    flags: argparse.Namespace, recipe: ConfigDict, recipe_overrides: Mapping[str, Any], config_arguments: Sequence[str]
) -> StudyConfig:
    """Builds the study config from the flags, the recipe and the space file.

    Args:
      flags: of the command, without `--config`.
      recipe: config, as `recipe_files.load_config` gives it.
      recipe_overrides: {field: value}, as `recipe_files.load_config` gives them.
      config_arguments: the arguments `--config=…` and `--config.FIELD=…`, as `recipe_files.parse` gives them.

    Returns:
      The checked study config.

    Raises:
      UserError: a flag or a field that cannot be used, or that nothing would read.
    """
    if not flags.space:
        raise UserError("--space is missing: give a file with get_space(), such as --space=space.py")
    config = Config(recipe)
    space, listed = space_file.load(flags.space, recipe, config_arguments)
    if flags.sampler == "grid":
        if space is None:
            raise UserError(f"--sampler=grid: {flags.space} has no get_space() to make a grid of")
        listed += tuple(space.grid())
    metric = _metric(flags, config)
    pruner = flags.pruner or ("none" if metric in TO_TARGET else "halving")
    if metric in TO_TARGET:
        _check_target(flags, config, {field for trial in listed for field in trial}, space)
    min_evaluations, reduction_factor = _pruning(flags, pruner)
    return StudyConfig(
        config_arguments=tuple(config_arguments),
        overrides=dict(recipe_overrides),
        config=config.to_dict(),
        space=space,
        listed=listed,
        sampler=flags.sampler if space else "list",
        seed=flags.seed,
        pruner=pruner,
        min_evaluations=min_evaluations,
        reduction_factor=reduction_factor,
        metric=metric,
        weights="ema" if config.ema.decay > 0 else "raw",
        objective=flags.objective,
        storage=without_password(flags.storage),
    )


def make_budget(flags: argparse.Namespace, study_config: StudyConfig) -> SweepBudget:
    """Builds the budget of the sweep.

    Args:
      flags: of the command.
      study_config: of the study.

    Returns:
      The budget; a grid or a list also ends after its last config.

    Raises:
      UserError: the budget is missing.
    """
    if flags.trials is None and flags.hours is None and study_config.is_endless:
        raise UserError(
            f"--sampler={study_config.sampler} never ends; give a budget: --trials=N or --hours=H"
            f"{_grid_instead(study_config.space)}"
        )
    if study_config.is_endless:
        return SweepBudget(flags.trials, flags.hours)
    count = len(study_config.listed)
    return SweepBudget(count if flags.trials is None else min(flags.trials, count), flags.hours)


def _grid_instead(space: Space | None) -> str:
    """The end of an error: that a grid ends by itself, where the space has one."""
    try:
        count = sum(1 for _ in space.grid()) if space else 0
    except UserError:
        return ""
    return f"; --sampler=grid takes each of the {count:,} configs of the space once" if count else ""


def _metric(flags: argparse.Namespace, config: Config) -> str:
    name = flags.metric or config.checkpoint.best_metric
    known = [*METRICS, *TO_TARGET]
    if name not in known:
        raise UserError(f"--metric={name}: {must_be_one_of(name, known)}")
    labels = config.data.labels
    if name in METRICS and not METRICS[name].is_of(labels):
        names = ", ".join([*names_of(labels), *TO_TARGET])
        raise UserError(f"--metric={name}: with config.data.labels = {labels!r} the metrics are {names}")
    return name


def _check_target(flags: argparse.Namespace, config: Config, listed: Collection[str], space: Space | None) -> None:
    """Refuses a study of what trials need to reach their target whose values could not be compared."""
    given = f"--metric={flags.metric}"
    if config.stop.target is None:
        raise UserError(f"{given}: the recipe has no target; set one, such as --config.stop.target=0.97")
    fixed = {"stop.target", "stop.target_metric"} | (set() if config.stop.target_metric else {"checkpoint.best_metric"})
    if varied := sorted({*listed, *(space.parameters if space else ())} & fixed):
        raise UserError(f"{given}: --space={flags.space} varies {varied[0]}; all trials need one target")
    if flags.pruner not in (None, "none"):
        raise UserError(
            f"{given}: --pruner={flags.pruner} compares evaluations, which have no such value; leave it out"
        )
    if flags.objective == "best":
        raise UserError(
            f"{given}: --objective=best chooses among evaluations, and a run has one such value; leave it out"
        )


def _pruning(flags: argparse.Namespace, pruner: str) -> tuple[int, int]:
    """(--min_evaluations, --reduction_factor) or their defaults; each may be given only where the pruner reads it."""
    if flags.min_evaluations is not None and pruner == "none":
        raise UserError(f"--min_evaluations={flags.min_evaluations}: --pruner=none prunes nothing")
    if flags.reduction_factor is not None and pruner != "halving":
        raise UserError(f"--reduction_factor={flags.reduction_factor}: only --pruner=halving reads it")
    least = MIN_EVALUATIONS if flags.min_evaluations is None else flags.min_evaluations
    factor = REDUCTION_FACTOR if flags.reduction_factor is None else flags.reduction_factor
    return least, factor
