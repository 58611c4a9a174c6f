"""Evaluates the mean of the probabilities of several networks: of runs, or of saved predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from inception_jax.data.datasets import Dataset
from inception_jax.evaluation import split_evaluation, split_predictions
from inception_jax.evaluation.split_evaluation import Request
from inception_jax.evaluation.split_predictions import SplitPredictions
from inception_jax.multihost import processes
from inception_jax.runs.manifest import make_folder
from inception_jax.runs.result import write_result
from inception_jax.training import data_setup


def predict_split(recipe: ConfigDict, workdir: str, source: Dataset, request: Request) -> SplitPredictions:
    """Computes the predictions of a run for a split that is open already.

    Args:
      recipe: the run's config, with the fields of its section `evaluation` to evaluate with.
      workdir: of the run.
      source: the split.
      request: `weights` and `step` are read.
    """
    trained, _ = split_evaluation.load_network(recipe, workdir, source, request)
    with processes.fail_together():
        data = data_setup.build_eval_data(trained.config, source, trained.input, trained.devices)
    every: list[Any] = []
    trained.evaluate(data, every)
    return split_predictions.collect(every, source, **split_evaluation.describe_member(trained))


def evaluate_ensemble(recipes: Mapping[str, ConfigDict], request: Request) -> dict[str, Any]:
    """Evaluates the mean of the probabilities of several runs, one run after another.

    Args:
      recipes: {workdir: its config, as for `evaluate_run`}; the data is that of the first.
      request: what is evaluated.

    Returns:
      The result, with that of each member.
    """
    source = split_evaluation.open_split(next(iter(recipes.values())), request)
    parts = [predict_split(recipe, workdir, source, request) for workdir, recipe in recipes.items()]
    return evaluate_predictions(parts, list(recipes), request)


def evaluate_predictions(parts: Sequence[SplitPredictions], names: Sequence[str], request: Request) -> dict[str, Any]:
    """Evaluates saved predictions, of several files their mean.

    Args:
      parts: of each file.
      names: of the files or workdirs.
      request: `exclude`, `labels` and `save_predictions` are read.

    Returns:
      The result; of several parts with the metrics of each under "members".
    """
    whole = split_predictions.average(parts, names)
    evaluation, changes = split_evaluation.finish(whole, None, request)
    members = []
    shown = ("top1", "top5", "mean_average_precision", "micro_f1", "loss")
    for part, name in zip(parts, names, strict=True):
        own, _ = split_evaluation.finish(part, None, dataclasses.replace(request, save_predictions=None))
        values = own.result()
        about = part.about["members"]
        known = about[0] if len(about) == 1 else {"model": f"ensemble of {len(about)}"}
        members.append({"name": name, **known, **{metric: values[metric] for metric in shown if metric in values}})
    about = whole.about
    return {
        "model": members[0]["model"] if len(members) == 1 else f"ensemble of {len(about['members'])}",
        "dataset": about["dataset"],
        "split": about["split"],
        "members": members,
        **changes,
        **split_evaluation.metrics(evaluation),
    }


def write(folder: str, result: dict[str, Any]) -> None:
    """Writes result.json of an ensemble to a folder, which is made.

    Raises:
      UserError: it cannot be written.
    """
    if not processes.is_first():
        return
    make_folder(folder)
    write_result(folder, result)
