"""`python -m inception_jax.evaluate`: evaluates runs on a split, every example exactly once."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inception_jax import command_line, recipe_files
from inception_jax.errors import ArgumentParser, UserError
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.evaluation.split_evaluation import Request

_SOURCES = ("workdir", "ensemble", "saved", "all")


def main(argv: list[str]) -> int:
    """Evaluates, prints the metrics (`--json`: all of the result), and writes result and plots to the workdir."""
    arguments = _arguments()
    flags, of_config = recipe_files.parse(arguments, argv)
    if of_config and recipe_files.recipe_of(of_config) is None:
        run = flags.workdir or "RUN"
        raise UserError(
            f"{of_config[0]}: needs --config; to evaluate a run with other fields: --config={run}/config.json "
            f"--checkpoint={run} --workdir=OUT, where the results are written"
        )
    recipe = recipe_files.load_config(of_config)[0] if of_config else None
    _check(flags, recipe, arguments)

    from inception_jax.evaluation import split_evaluation
    from inception_jax.multihost import processes
    from inception_jax.training import host_devices, parallel, restore

    request = split_evaluation.Request(
        flags.split, flags.weights, command_line.step(flags.step), flags.exclude, flags.labels, flags.save_predictions
    )
    parallel.enable_compilation_cache()
    launch = processes.find_launch(flags)
    if launch is None and flags.devices != 1:
        host_devices.use_two()
    with processes.initialize(launch):
        restore.refuse_unequal_settings()
        processes.check_equal("the command", command_line.shared_flags(flags))
        command_line.check_devices(flags.devices)
        split_evaluation.check_writable(flags.save_predictions)
        if flags.workdir:
            return _evaluate_run(flags, recipe, request)
        if flags.all:
            return _evaluate_all(flags, request)
        return _evaluate_several(flags, request)


def _arguments() -> ArgumentParser:
    """The flags of the command."""
    arguments = command_line.parser("evaluate", "Evaluate a run, or a checkpoint on the data of a config.")
    add = arguments.add_argument
    recipe_files.add_config(arguments)
    command_line.add_processes(arguments)
    command_line.add_devices(arguments)
    add("--workdir", help="the run, also an address; with --config: where the results are written")
    add("--checkpoint", help="with --config: the checkpoint's directory, or a workdir")
    add(
        "--weights",
        metavar="raw|ema",
        help="default: ema where the run keeps it; a publisher's file becomes a run by python -m inception_jax.convert",
    )
    add("--step", help="'best' or a step; default: the newest checkpoint")
    add("--split", help="default: the config's evaluation split")
    add("--protocol", help="single, flip, 10-crop, 12-crop or 144-crop; default: the config's")
    add("--batch_size", type=command_line.whole(1, MAX_BATCH), help="crops per step; default: the config's")
    command_line.add_image_size(arguments, "height and width of the network's input; default: as in training")
    add(
        "--batch_norm_images",
        type=command_line.whole(0),
        metavar="N",
        help="estimate the batch-norm statistics from N training images first; 0: the running statistics; default: "
        "the config's evaluation.batch_norm_images",
    )
    add("--exclude", metavar="FILE", help="leave out the images of a list, such as ILSVRC's")
    add("--labels", metavar="FILE.json", help="other labels: several right classes per image, or none")
    add("--save_predictions", metavar="FILE.npz", help="also write the probabilities of all classes")
    add("--ensemble", metavar="DIR,DIR", help="instead of --workdir: runs whose probabilities are averaged")
    add("--from", dest="saved", metavar="FILE.npz,…", help="instead: files of --save_predictions, averaged")
    add(
        "--all",
        nargs="+",
        metavar="ENTRY",
        help="instead: runs and weights, each by itself, into one table: a workdir, MODEL=FILE, RECORD=FILE, FILE, or "
        "the RECORD of a published file (convert --list)",
    )
    add(
        "--data",
        metavar="NAME",
        help="another data set of the same classes, as config.data.name; with --all only for entries that are weights "
        "(default: imagenet2012)",
    )
    command_line.add_data_fields(arguments, "class_names", "image_key", "label_key")
    add("--output", metavar="PATH", help="with --ensemble, --from: a folder for result.json; with --all: a CSV file")
    add("--json", action="store_true", help="print the content of result.json, not two lines")
    return arguments


def _check(flags: argparse.Namespace, recipe: ConfigDict | None, arguments: ArgumentParser) -> None:
    given = [name for name in _SOURCES if getattr(flags, name)]
    if not given:
        raise UserError("--workdir is missing")
    flag = {"saved": "--from"}.get(given[0], f"--{given[0]}")
    if len(given) > 1:
        other = {"saved": "--from"}.get(given[1], f"--{given[1]}")
        raise UserError(f"{other}: not allowed with {flag}; give one of --workdir, --ensemble, --from and --all")
    if flags.weights not in (None, "raw", "ema"):
        raise UserError(
            f"--weights={flags.weights}: 'raw' or 'ema'; a publisher's file becomes a run, with its crops "
            "and classes, by: python -m inception_jax.convert --weights=FILE --output=DIR"
        )
    if bool(recipe) != bool(flags.checkpoint):
        raise UserError("--config (the data) and --checkpoint (the weights) are only allowed together")
    if given[0] != "workdir":
        arguments.refuse({"config", "checkpoint", "batch_norm_images"}, f"not allowed with {flag}")
    else:
        arguments.refuse({"output"}, "has no effect with --workdir, where the results are written")
    if given[0] == "saved":
        network = {"weights", "step", "split", "protocol", "batch_size", "image_size", "mode", "devices"}
        arguments.refuse(network, "has no effect with --from: the predictions are made already")
    if given[0] == "all":
        fields = {"class_names", "image_key", "label_key"}
        arguments.refuse({"step", "save_predictions", "json"} | fields, "not allowed with --all")
    if given[0] == "saved" or recipe is not None:
        reason = "the predictions are made already" if recipe is None else "name the data with --config.data.name"
        fields = {"data", "class_names", "image_key", "label_key"}
        arguments.refuse(fields, f"has no effect with {'--from' if recipe is None else '--config'}: {reason}")
    command_line.other_data(flags)


def _evaluate_run(flags: argparse.Namespace, recipe: ConfigDict | None, request: Request) -> int:
    from inception_jax.evaluation import split_evaluation, trained_network
    from inception_jax.multihost import processes
    from inception_jax.runs import conclusion, remote_workdir

    given, flags.workdir = flags.workdir, remote_workdir.local_copy(flags.workdir)
    flags.checkpoint = flags.checkpoint and remote_workdir.local_copy(flags.checkpoint)
    recipe = recipe or trained_network.load_config(flags.workdir)
    _set_fields(recipe, flags)
    if flags.batch_norm_images is not None:
        recipe.evaluation.batch_norm_images = flags.batch_norm_images or None
    _set_data(recipe, flags)
    with _naming_flags(flags):
        result, folder = split_evaluation.evaluate_run(recipe, flags.workdir, flags.checkpoint, request)
    if processes.is_first():
        remote_workdir.upload_results(given, folder)
        _print(flags, result, conclusion.format_evaluation(result, remote_workdir.display_name(folder)))
    return 0


def _evaluate_several(flags: argparse.Namespace, request: Request) -> int:
    """An ensemble of runs or of saved predictions."""
    from inception_jax.evaluation import ensembles, split_predictions, trained_network
    from inception_jax.multihost import processes
    from inception_jax.runs import conclusion, remote_workdir

    names = [name for name in (flags.ensemble or flags.saved).split(",") if name]
    if not names:
        raise UserError(f"--{'ensemble' if flags.ensemble else 'from'}: no name")
    if flags.ensemble:
        recipes = {}
        for name in names:
            workdir = remote_workdir.local_copy(name)
            if str(workdir) in recipes:
                raise UserError(f"--ensemble: {name} is named twice")
            recipes[str(workdir)] = trained_network.load_config(workdir, "--ensemble")
            _set_fields(recipes[str(workdir)], flags)
            _set_data(recipes[str(workdir)], flags)
        with _naming_flags(flags):
            result = ensembles.evaluate_ensemble(recipes, request)
    else:
        parts = [split_predictions.load(name) for name in names]
        result = ensembles.evaluate_predictions(parts, names, request)
    if flags.output:
        ensembles.write(flags.output, result)
    if processes.is_first():
        _print(flags, result, conclusion.format_ensemble(result))
    return 0


def _evaluate_all(flags: argparse.Namespace, request: Request) -> int:
    """Many runs and files of weights, each by itself; a line for each."""
    from inception_jax.evaluation import results_table
    from inception_jax.pretrained import networks

    if flags.data is not None and not any(map(results_table.is_weights, flags.all)):
        raise UserError("--data: only for entries that are weights, and all are runs, whose configs name their data")
    table = results_table.TableRequest(
        request,
        set_fields=lambda recipe: _set_fields(recipe, flags),
        open_weights=lambda entry: networks.open_weights(entry, flags.data),
        report=command_line.report,
    )
    return results_table.evaluate_all(flags.all, flags.output, table)


def _set_fields(recipe: ConfigDict, flags: argparse.Namespace) -> None:
    """Sets the fields of a run's config to evaluate with."""
    recipe.evaluation.batch_size = flags.batch_size or recipe.evaluation.batch_size
    recipe.evaluation.protocol = flags.protocol or recipe.evaluation.protocol
    if flags.image_size:
        _set_image_size(recipe, flags.image_size)
    command_line.set_devices(recipe, flags)


def _set_data(recipe: ConfigDict, flags: argparse.Namespace) -> None:
    """Sets the data to evaluate on."""
    from inception_jax.training import data_setup

    fields = command_line.other_data(flags)
    if fields is None or (other := data_setup.OtherData.named(recipe, fields)) == data_setup.OtherData.of(recipe):
        return
    if recipe.evaluation.batch_norm_images:
        raise UserError(
            f"--data={flags.data}: the batch-norm statistics are to be of training images "
            f"(evaluation.batch_norm_images = {recipe.evaluation.batch_norm_images}), which this data need not have; "
            "--batch_norm_images=0 uses the running statistics"
        )
    other.set_in(recipe)


@contextlib.contextmanager
def _naming_flags(flags: argparse.Namespace) -> Iterator[None]:
    """Within the context, errors name the fields of --data by their flags."""
    try:
        yield
    except UserError as error:
        if flags.data is not None:
            error.args = (error.naming_flags("class_names", "image_key", "label_key"),)
        raise


def _set_image_size(recipe: ConfigDict, image_size: int) -> None:
    """Sets the image size of the evaluation; a side before the crop, in pixels, changes in proportion."""
    from inception_jax.models import registry

    fields, size = recipe.evaluation, recipe.evaluation.image_size or recipe.data.image_size
    if fields.resize:
        size = size or registry.get_spec(recipe.model.name).image_size
        fields.resize = max(image_size, round(fields.resize * image_size / size))
    fields.image_size = image_size


def _print(flags: argparse.Namespace, result: dict[str, Any], text: str) -> None:
    from inception_jax.runs.result import to_json_values

    print(json.dumps(to_json_values(result), indent=2) if flags.json else text)


if __name__ == "__main__":
    command_line.run(main)
