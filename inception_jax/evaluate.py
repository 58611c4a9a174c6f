"""`python -m inception_jax.evaluate`: evaluates a run on a split, every example exactly once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax import command_line, recipe_files
from inception_jax.errors import UserError
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: list[str]) -> int:
    """Evaluates, prints the metrics (`--json`: all of the result), and writes result and plots to the workdir."""
    arguments = command_line.parser("evaluate", "Evaluate a run, or a checkpoint on the data of a config.")
    recipe_files.add_config(arguments)
    command_line.add_processes(arguments)
    arguments.add_argument("--workdir", help="the run, also an address; with --config: where the results are written")
    arguments.add_argument("--checkpoint", help="with --config: the checkpoint's directory, or a workdir")
    arguments.add_argument(
        "--weights",
        metavar="raw|ema",
        help="default: ema where the run keeps it; a publisher's file becomes a run by python -m inception_jax.convert",
    )
    arguments.add_argument("--step", help="'best' or a step; default: the newest checkpoint")
    arguments.add_argument("--split", help="default: the config's evaluation split")
    arguments.add_argument("--protocol", help="default: the config's, 'single'")
    arguments.add_argument("--batch_size", type=command_line.whole(1, MAX_BATCH), help="default: the config's")
    arguments.add_argument(
        "--batch_norm_images",
        type=command_line.whole(0),
        metavar="N",
        help="estimate the batch-norm statistics from N training images first; 0: the running statistics; default: "
        "the config's evaluation.batch_norm_images",
    )
    arguments.add_argument("--json", action="store_true", help="print the content of result.json, not two lines")
    if any(argument.startswith("--config") for argument in argv):
        flags, recipe, _ = recipe_files.parse_with_config(arguments, argv)
    else:
        flags, recipe = arguments.parse_args(argv), None
    if not flags.workdir:
        raise UserError("--workdir is missing")
    if flags.weights not in (None, "raw", "ema"):
        raise UserError(
            f"--weights={flags.weights}: 'raw' or 'ema'; a publisher's file becomes a run, with its crops "
            "and classes, by: python -m inception_jax.convert --weights=FILE --output=DIR"
        )
    if bool(recipe) != bool(flags.checkpoint):
        raise UserError("--config (the data) and --checkpoint (the weights) are only allowed together")

    from inception_jax.evaluation import trained_network
    from inception_jax.multihost import processes
    from inception_jax.runs import conclusion, remote_workdir
    from inception_jax.runs.result import to_json_values
    from inception_jax.training import parallel

    given, flags.workdir = flags.workdir, remote_workdir.local_copy(flags.workdir)
    flags.checkpoint = flags.checkpoint and remote_workdir.local_copy(flags.checkpoint)
    recipe = recipe or trained_network.load_config(flags.workdir)
    recipe.evaluation.batch_size = flags.batch_size or recipe.evaluation.batch_size
    recipe.evaluation.protocol = flags.protocol or recipe.evaluation.protocol
    if flags.batch_norm_images is not None:
        recipe.evaluation.batch_norm_images = flags.batch_norm_images or None
    parallel.enable_compilation_cache()
    with processes.initialize(processes.find_launch(flags)):
        result, folder = _evaluate(flags, recipe)
        if processes.is_first():
            remote_workdir.upload_results(given, folder)
            text = conclusion.format_evaluation(result, remote_workdir.display_name(folder))
            print(json.dumps(to_json_values(result), indent=2) if flags.json else text)
    return 0


def _evaluate(flags: argparse.Namespace, recipe: ConfigDict) -> tuple[dict[str, Any], Path]:
    """Evaluates on all processes; process 0 writes the result and the plots to the workdir.

    Returns:
      (the result, the folder of its files).
    """
    from inception_jax.errors import write_error
    from inception_jax.evaluation import trained_network
    from inception_jax.multihost import processes
    from inception_jax.runs import class_tables, data_record, environment, manifest, report
    from inception_jax.runs.result import write_result
    from inception_jax.training import restore, setup, warm_start

    step = command_line.step(flags.step)
    restore.refuse_unequal_settings()
    with processes.fail_together():
        (source,) = setup.load_splits(recipe, flags.split or recipe.data.eval_split)
        run = warm_start.find_workdir(Path(flags.checkpoint or flags.workdir))
        if run is not None:
            remedy = "evaluate on data with the same classes in the same order"
            data_record.refuse_other_classes(run, source, remedy)
        examples = data_record.describe_split(source)
        trained = trained_network.load(
            recipe, flags.checkpoint or flags.workdir, source.class_names, weights=flags.weights, step=step
        )
        data = setup.build_eval_data(trained.config, source, trained.input, trained.devices)
    processes.check_equal("the step of the checkpoint", trained.step)
    processes.check_equal("the data", [source.class_names, examples], "all processes need the same files")
    if processes.is_first():
        notes = data_record.note_other_examples(run, source) if run is not None else []
        notes += environment.note_changed_settings((manifest.read(run) if run is not None else None) or {})
        for line in [*source.account, *notes]:
            print(line, file=sys.stderr)
    evaluation, images = trained.evaluate(data), recipe.evaluation.batch_norm_images
    result = {
        "model": trained.config.model.name,
        "dataset": data.dataset.name,
        "split": data.dataset.split,
        "weights": trained.weights,
        "step": trained.step,
        "protocol": recipe.evaluation.protocol,
        **({"batch_norm_images": images} if images else {}),
        **evaluation.result(),
        "top1_interval_95": list(evaluation.top1_interval()),
        "environment": environment.describe(),
    }
    name = f"{data.dataset.split}_{trained.weights}_{trained.step}_{recipe.evaluation.protocol}"
    name += f"_batch_norm_{images}" if images else ""
    folder = Path(flags.workdir) / "evaluations" / name.replace("/", "_")
    if processes.is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            result["tables"] = class_tables.write(folder, evaluation, trained.class_names)
            report.draw_plots(folder, evaluation, data, trained.class_names)
        except OSError as error:
            raise write_error(folder, error) from None
        write_result(folder, result)
    return result, folder


if __name__ == "__main__":
    command_line.run(main)
