"""`python -m inception_jax.sweep`: a hyperparameter sweep over the fields of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inception_jax import command_line, recipe_files
from inception_jax.errors import ArgumentParser


def main(argv: list[str], **injected: Any) -> int:
    """Begins or continues a study, writes its report, and returns the exit code.

    Args:
      argv: arguments after the program's name.
      injected: keyword arguments of `run_sweep.run`, for tests.
    """
    arguments = _arguments()
    flags, of_config = recipe_files.parse(arguments, argv)

    from inception_jax.runs import remote_workdir
    from inception_jax.sweeps import run_sweep, settings
    from inception_jax.sweeps import storage as storages

    remote_workdir.refuse_address("--study", flags.study, "the locks and leases of a study need a file system")
    if flags.report:
        arguments.refuse_unread({"report", "study", "storage"}, "has no effect with --report")
        return run_sweep.write_report(Path(flags.study), flags.storage)
    recipe, overrides = recipe_files.load_config(of_config)
    storages.import_optuna()
    study_config = settings.make_study_config(flags, recipe, overrides, of_config)
    return run_sweep.run(flags, study_config, settings.make_budget(flags, study_config), **injected)


def _arguments() -> ArgumentParser:
    """The flags of the command."""
    arguments = command_line.parser(
        "sweep", "Search hyperparameters: fields of a recipe's config. Begins a study, or continues one."
    )
    recipe_files.add_config(arguments)
    arguments.add_argument(
        "--space",
        metavar="FILE.py",
        help="defines get_space(): the search space, or get_trials(): a list of configs, or both",
    )
    arguments.add_argument(
        "--study",
        required=True,
        metavar="DIR",
        help="directory of the study; the same command, also on another machine that sees it, continues it",
    )
    arguments.add_argument(
        "--trials", type=command_line.whole(), metavar="N", help="begin at most N trials, all drivers together"
    )
    arguments.add_argument(
        "--hours", type=command_line.real(0, 1e6), metavar="H", help="begin no trial after H hours of work"
    )
    arguments.add_argument(
        "--workers",
        type=command_line.whole(1, 1024),
        metavar="N",
        help="trials to run at once; default: one per accelerator, else 1",
    )
    arguments.add_argument("--devices", metavar="0,1,…", help="ids of the accelerators to use; default: all")
    arguments.add_argument(
        "--sampler",
        choices=("tpe", "random", "quasi", "grid"),
        default="tpe",
        help="how values are chosen; default: tpe",
    )
    arguments.add_argument(
        "--seed", type=command_line.whole(0, 2**32 - 1), default=0, metavar="N", help="seed of the sampler; default: 0"
    )
    arguments.add_argument(
        "--pruner",
        choices=("halving", "median", "none"),
        help="how trials are stopped early; default: halving, or none where --metric is what reaching a target needs",
    )
    arguments.add_argument(
        "--min_evaluations",
        type=command_line.whole(),
        metavar="N",
        help="number of evaluations before a trial may be pruned; default: 2",
    )
    arguments.add_argument(
        "--reduction_factor",
        type=command_line.whole(2),
        metavar="N",
        help="halving: one of N trials continues at each rung; default: 3",
    )
    arguments.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of the evaluations that is the objective, such as loss or macro_f1, or what a trial needs to "
        "reach stop.target: steps_to_target, epochs_, images_, wall_seconds_ or training_seconds_to_target; default: "
        "checkpoint.best_metric",
    )
    arguments.add_argument(
        "--objective",
        choices=("final", "best"),
        default="final",
        help="the evaluation of a trial that counts; default: final",
    )
    arguments.add_argument(
        "--storage",
        metavar="URL",
        help="URL of a database, such as postgresql://user@host/name; default: a journal file in the study's directory",
    )
    arguments.add_argument(
        "--retries",
        type=command_line.whole(0),
        default=3,
        metavar="N",
        help="allowed number of consecutive deaths of a trial's process without a newer checkpoint; default: 3",
    )
    arguments.add_argument(
        "--report",
        action="store_true",
        help="only write the report of the study in its current state; reads --study and --storage",
    )
    return arguments


if __name__ == "__main__":
    command_line.run(main)
