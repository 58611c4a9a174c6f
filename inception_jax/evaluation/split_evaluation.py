"""Evaluates runs on a split: one run, or an ensemble of runs or of saved predictions; the content of `evaluate`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax.data.datasets import Dataset
from inception_jax.errors import UserError, write_error
from inception_jax.evaluation import relabelling, split_predictions, trained_network
from inception_jax.evaluation.split_predictions import SplitPredictions
from inception_jax.evaluation.trained_network import Step, TrainedNetwork
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.runs import class_tables, data_record, environment, manifest, report
from inception_jax.runs.result import write_result
from inception_jax.training import data_setup, restore, warm_start


@dataclasses.dataclass(frozen=True)
class Request:
    """What is evaluated, beside the run.

    Attributes:
      split: of the data; None: the config's evaluation split.
      weights: "raw" or "ema"; None: "ema" where the run keeps it.
      step: None for the newest checkpoint, "best", or a step.
      exclude: path of a list of examples to leave out: see `relabelling.exclude`.
      labels: path of other labels: see `relabelling.relabel`.
      save_predictions: path of an .npz file that gets the probabilities of all classes.
    """

    split: str | None = None
    weights: str | None = None
    step: Step = None
    exclude: str | None = None
    labels: str | None = None
    save_predictions: str | None = None


def evaluate_run(
    recipe: ConfigDict, workdir: str, checkpoint: str | None, request: Request
) -> tuple[dict[str, Any], Path]:
    """Evaluates a run on all processes; process 0 writes the result and the plots to the workdir.

    Args:
      recipe: the run's config, with the fields of its section `evaluation` to evaluate with.
      workdir: where the results are written; the run itself where there is no `checkpoint`.
      checkpoint: of another run, or its workdir.
      request: what is evaluated.

    Returns:
      (the result, the folder of its files).
    """
    restore.refuse_unequal_settings()
    with processes.fail_together():
        (source,) = data_setup.load_splits(recipe, request.split or recipe.data.eval_split)
    trained, run, examples = _load(recipe, checkpoint or workdir, source, request)
    with processes.fail_together():
        data = data_setup.build_eval_data(trained.config, source, trained.input, trained.devices)
    processes.check_equal("the step of the checkpoint", trained.step)
    processes.check_equal("the data", [source.class_names, examples], "all processes need the same files")
    if processes.is_first():
        notes = data_record.note_other_examples(run, source) if run is not None else []
        notes += environment.note_changed_settings((manifest.read(run) if run is not None else None) or {})
        for line in [*source.account, *notes]:
            print(line, file=sys.stderr)
    every: list[Any] | None = [] if request.exclude or request.labels or request.save_predictions else None
    evaluation, images = trained.evaluate(data, every), recipe.evaluation.batch_norm_images
    changes: dict[str, Any] = {}
    if every is not None:
        predictions = split_predictions.collect(every, source, **_member(trained))
        evaluation, changes = _finish(predictions, evaluation, request)
    result = {
        "model": trained.config.model.name,
        "dataset": data.dataset.name,
        "split": data.dataset.split,
        "weights": trained.weights,
        "step": trained.step,
        "protocol": recipe.evaluation.protocol,
        "crops": data.protocol.crops,
        "image_size": data.image_size,
        "parameters": _count_parameters(trained),
        **({"batch_norm_images": images} if images else {}),
        **changes,
        **_metrics(evaluation),
    }
    name = f"{data.dataset.split}_{trained.weights}_{trained.step}_{recipe.evaluation.protocol}"
    name += f"_{data.image_size}px" if data.image_size != trained.input.image_size else ""
    name += f"_batch_norm_{images}" if images else ""
    name += "".join(f"_{field}_{Path(str(path)).stem}" for field, path in changes.items() if field in _FILES)
    folder = Path(workdir) / "evaluations" / name.replace("/", "_")
    if processes.is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            result["tables"] = class_tables.write(folder, evaluation, trained.class_names)
            report.draw_plots(folder, evaluation, data, trained.class_names)
        except OSError as error:
            raise write_error(folder, error) from None
        write_result(folder, result)
    return result, folder


_FILES = ("exclude", "labels")


def _count_parameters(trained: TrainedNetwork) -> int:
    """Trainable parameters without auxiliary heads, which evaluation does not run."""
    trunk = {name: tree for name, tree in trained.variables["params"].items() if not name.startswith("aux")}
    return sum(leaf.size for leaf in jax.tree.leaves(trunk))


def _load(
    recipe: ConfigDict, checkpoint: str, source: Dataset, request: Request
) -> tuple[TrainedNetwork, Path | None, dict[str, Any]]:
    """Loads a network for data of its classes; (it, the workdir of its run, the examples of the data)."""
    with processes.fail_together():
        run = warm_start.find_workdir(Path(checkpoint))
        if run is not None:
            remedy = "evaluate on data with the same classes in the same order"
            data_record.refuse_other_classes(run, source, remedy)
        examples = data_record.describe_split(source)
        trained = trained_network.load(
            recipe, checkpoint, source.class_names, weights=request.weights, step=request.step
        )
    return trained, run, examples


def _member(trained: TrainedNetwork) -> dict[str, Any]:
    config = trained.config
    return {
        "model": config.model.name,
        "weights": trained.weights,
        "step": trained.step,
        "protocol": config.evaluation.protocol,
        "image_size": trained.image_size,
    }


def predict_split(recipe: ConfigDict, workdir: str, source: Dataset, request: Request) -> SplitPredictions:
    """Computes the predictions of a run for a split that is open already.

    Args:
      recipe: the run's config, with the fields of its section `evaluation` to evaluate with.
      workdir: of the run.
      source: the split.
      request: `weights` and `step` are read.
    """
    trained, _, _ = _load(recipe, workdir, source, request)
    data = data_setup.build_eval_data(trained.config, source, trained.input, trained.devices)
    every: list[Any] = []
    trained.evaluate(data, every)
    return split_predictions.collect(every, source, **_member(trained))


def evaluate_ensemble(recipes: Mapping[str, ConfigDict], request: Request) -> dict[str, Any]:
    """Evaluates the mean of the probabilities of several runs, one run after another.

    Args:
      recipes: {workdir: its config, as for `evaluate_run`}; the data is that of the first.
      request: what is evaluated.

    Returns:
      The result, with that of each member.
    """
    restore.refuse_unequal_settings()
    first = next(iter(recipes.values()))
    with processes.fail_together():
        (source,) = data_setup.load_splits(first, request.split or first.data.eval_split)
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
    evaluation, changes = _finish(whole, None, request)
    members = []
    for part, name in zip(parts, names, strict=True):
        own, _ = _finish(part, None, dataclasses.replace(request, save_predictions=None))
        values = own.result()
        about = part.about["members"]
        known = about[0] if len(about) == 1 else {"model": f"ensemble of {len(about)}"}
        members.append({"name": name, **known, **{metric: values[metric] for metric in ("top1", "top5", "loss")}})
    about = whole.about
    return {
        "model": members[0]["model"] if len(members) == 1 else f"ensemble of {len(about['members'])}",
        "dataset": about["dataset"],
        "split": about["split"],
        "members": members,
        **changes,
        **_metrics(evaluation),
    }


def _finish(
    predictions: SplitPredictions, evaluation: Accumulator | None, request: Request
) -> tuple[Accumulator, dict[str, Any]]:
    """Saves predictions, and evaluates them with the labels that are asked for; also what the result says of that.

    Args:
      predictions: of all examples.
      evaluation: of the same, where it is known already.
      request: what is evaluated.
    """
    if request.save_predictions and processes.is_first():
        predictions.save(request.save_predictions)
    changes: dict[str, Any] = {}
    changed = predictions
    if request.exclude:
        changed = relabelling.exclude(changed, request.exclude)
        changes["exclude"] = request.exclude
    if request.labels:
        changed = relabelling.relabel(changed, request.labels)
        changes["labels"] = request.labels
    if changes:
        changes["left_out"] = len(predictions.index) - len(changed.index)
        evaluation = None
    return evaluation or changed.accumulate(), changes


def _metrics(evaluation: Accumulator) -> dict[str, Any]:
    return {
        **evaluation.result(),
        "top1_interval_95": list(evaluation.top1_interval()),
        "environment": environment.describe(),
    }


def write_ensemble(folder: str, result: dict[str, Any]) -> None:
    """Writes result.json of an ensemble to a folder, which is made.

    Raises:
      UserError: it cannot be written.
    """
    if not processes.is_first():
        return
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from None
    write_result(folder, result)


def check_writable(path: str | None) -> None:
    """Refuses a file of predictions that could not be written, before anything is computed.

    Raises:
      UserError: its name does not end with .npz, or its folder is not there.
    """
    if path is None:
        return
    if Path(path).suffix != ".npz":
        raise UserError(f"--save_predictions={path}: the name must end with .npz")
    if not Path(path).absolute().parent.is_dir():
        raise UserError(f"--save_predictions={path}: its folder is not there; make it first")
