"""Evaluates a run, or imported weights, on a split: what `evaluate` does; `ensembles` has several networks together."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax import extension_files
from inception_jax.data.datasets import Dataset
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError, write_error
from inception_jax.evaluation import relabelling, split_predictions, trained_network
from inception_jax.evaluation.split_predictions import SplitPredictions
from inception_jax.evaluation.trained_network import Step, TrainedNetwork
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.runs import class_tables, data_record, environment, manifest, report
from inception_jax.runs.result import fingerprint, write_result
from inception_jax.training import data_setup, warm_start


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


@dataclasses.dataclass(frozen=True)
class NamedWeights:
    """Imported weights that belong to no workdir.

    Attributes:
      name: the file's path; for messages.
      record: name of the published file; "" where it is none, or which one is unknown.
      recipe: the config of a run that has them, with the publisher's preprocessing.
      variables: "params" and "batch_stats", in memory.
      class_names: one per class.
      unknown_classes: whether the names are only numbers: the file has none, and its publisher's are not known.
    """

    name: str
    record: str
    recipe: ConfigDict
    variables: Any
    class_names: list[str]
    unknown_classes: bool


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
    source = open_split(recipe, request)
    trained, run = load_network(recipe, checkpoint or workdir, source, request)
    if processes.is_first():
        notes = data_record.note_other_examples(run, source) if run is not None else []
        notes += environment.note_changed_settings((manifest.read(run) if run is not None else None) or {})
        for line in [*source.account, *notes]:
            print(line, file=sys.stderr)
    data, evaluation, changes, result = _evaluate(trained, source, request)
    name = f"{data.dataset.split}_{trained.weights}_{trained.step}_{recipe.evaluation.protocol}"
    if checkpoint is None and (other := data_setup.OtherData.of(recipe)) != data_setup.OtherData.of(
        trained_network.load_config(workdir)
    ):
        digest = hashlib.sha256(repr(other).encode(errors="surrogateescape")).hexdigest()[:8]
        name += "_" + re.sub(r"[^A-Za-z0-9.-]+", "_", recipe.data.name)[-_MOST_LETTERS:] + "_" + digest
        result["data"] = {field: value for field, value in dataclasses.asdict(other).items() if value is not None}
    name += f"_{data.image_size}px" if data.image_size != trained.input.image_size else ""
    images = recipe.evaluation.batch_norm_images
    name += f"_batch_norm_{images}" if images else ""
    name += "".join(f"_{field}_{Path(str(path)).stem}" for field, path in changes.items() if field in _FILES)
    folder = Path(workdir) / "evaluations" / name.replace("/", "_")
    with processes.fail_together():
        if processes.is_first():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                result["tables"] = class_tables.write(
                    folder, evaluation, trained.class_names, data.dataset.source.record_name
                )
                report.draw_plots(folder, evaluation, data, trained.class_names)
            except OSError as error:
                raise write_error(folder, error) from None
            write_result(folder, result)
    return result, folder


def evaluate_weights(weights: NamedWeights, request: Request) -> dict[str, Any]:
    """Evaluates weights that are in memory on all processes; writes no file.

    Args:
      weights: with the config of a run that has them, and the fields of its section `evaluation` to evaluate with.
      request: what is evaluated; `weights` and `step` choose nothing here.

    Returns:
      The result.

    Raises:
      UserError: the data has other classes.
    """
    source = open_split(weights.recipe, request)
    with processes.fail_together():
        differing = data_record.class_difference(weights.class_names, source.class_names)
        if differing and not (weights.unknown_classes and len(weights.class_names) == source.num_classes):
            raise UserError(
                f"data {source.name}: {differing.replace('the run was trained on', 'the weights are of')}; evaluate on "
                "data with the same classes in the same order (--data), or import the file with python -m "
                "inception_jax.convert --classes=FILE"
            )
        trained = trained_network.build(
            weights.recipe, weights.variables, source.class_names, weights="raw", step=0, where=weights.name
        )
    _check_equal(trained, source)
    if processes.is_first():
        for line in source.account:
            print(line, file=sys.stderr)
    return _evaluate(trained, source, request)[-1]


def open_split(recipe: ConfigDict, request: Request) -> Dataset:
    """Opens the split that is asked for, else the evaluation split of a config, on all processes."""
    with processes.fail_together():
        (source,) = data_setup.load_splits(recipe, request.split or recipe.data.eval_split)
    return source


def _evaluate(
    trained: TrainedNetwork, source: Dataset, request: Request
) -> tuple[EvalPipeline, Accumulator, dict[str, Any], dict[str, Any]]:
    """Evaluates a network on a split: (the data, what was found, the changes that were asked for, the result)."""
    with processes.fail_together():
        data = data_setup.build_eval_data(trained.config, source, trained.input, trained.devices)
    every: list[Any] | None = [] if request.exclude or request.labels or request.save_predictions else None
    evaluation, images = trained.evaluate(data, every), trained.config.evaluation.batch_norm_images
    changes: dict[str, Any] = {}
    if every is not None:
        predictions = split_predictions.collect(every, source, **describe_member(trained))
        with processes.fail_together():
            evaluation, changes = finish(predictions, evaluation, request)
    result = {
        "model": trained.config.model.name,
        "dataset": data.dataset.name,
        "split": data.dataset.split,
        "weights": trained.weights,
        "step": trained.step,
        "protocol": trained.config.evaluation.protocol,
        "crops": data.protocol.crops,
        "image_size": data.image_size,
        "parameters": _count_parameters(trained),
        **({"batch_norm_images": images} if images else {}),
        **changes,
        **metrics(evaluation),
    }
    return data, evaluation, changes, result


_FILES = ("exclude", "labels")
_MOST_LETTERS = 60  # of another data set's name in the name of a folder


def _count_parameters(trained: TrainedNetwork) -> int:
    """Trainable parameters without auxiliary heads, which evaluation does not run."""
    trunk = {name: tree for name, tree in trained.variables["params"].items() if not name.startswith("aux")}
    return sum(leaf.size for leaf in jax.tree.leaves(trunk))


def load_network(
    recipe: ConfigDict, checkpoint: str, source: Dataset, request: Request
) -> tuple[TrainedNetwork, Path | None]:
    """Loads a network for data of its classes, the same on all processes; (it, the workdir of its run)."""
    fields = json.loads(recipe.to_json_best_effort())
    files = extension_files.digests(fields.pop("extensions", None) or ())  # paths, of each machine's own copy
    processes.check_equal("the config", fields, "all processes need the same files")
    processes.check_equal("the files of config.extensions", files)
    with processes.fail_together():
        run = warm_start.find_workdir(Path(checkpoint))
        if run is not None:
            data_record.refuse_other_label_kind(run, recipe.data.labels)
            remedy = "evaluate on data with the same classes in the same order"
            data_record.refuse_other_classes(run, source, remedy)
        trained = trained_network.load(
            recipe, checkpoint, source.class_names, weights=request.weights, step=request.step
        )
    _check_equal(trained, source)
    return trained, run


def _check_equal(trained: TrainedNetwork, source: Dataset) -> None:
    """Compares the weights and the data of all processes: files of one path may differ between machines."""
    processes.check_equal("the step of the checkpoint", trained.step)
    if jax.process_count() > 1:
        found = fingerprint(trained.variables)
        processes.check_equal("the weights", found, "all processes need the same files")
    with processes.fail_together():
        examples = data_record.describe_split(source)
    processes.check_equal("the data", [source.class_names, examples], "all processes need the same files")


def describe_member(trained: TrainedNetwork) -> dict[str, Any]:
    """A network in the "members" of `SplitPredictions.about`."""
    config = trained.config
    return {
        "model": config.model.name,
        "weights": trained.weights,
        "step": trained.step,
        "protocol": config.evaluation.protocol,
        "image_size": trained.image_size,
    }


def finish(
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


def metrics(evaluation: Accumulator) -> dict[str, Any]:
    """The metrics of an evaluation for its result, and where it was computed."""
    interval = evaluation.top1_interval()
    return {
        **evaluation.result(),
        **({} if interval is None else {"top1_interval_95": list(interval)}),
        "environment": environment.describe(),
    }


def check_writable(path: str | None) -> None:
    """Refuses a file of predictions that process 0 could not write, before anything is computed.

    Raises:
      UserError: its name does not end with .npz, or its folder is not there.
    """
    if path is None:
        return
    with processes.fail_together():
        if Path(path).suffix != ".npz":
            raise UserError(f"--save_predictions={path}: the name must end with .npz")
        if processes.is_first() and not Path(path).absolute().parent.is_dir():
            raise UserError(f"--save_predictions={path}: its folder is not there; make it first")
