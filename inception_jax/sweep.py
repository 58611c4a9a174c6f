"""`python -m inception_jax.sweep`: a hyperparameter sweep over the fields of one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inception_jax import command_line
from inception_jax.sweeps import run_sweep, settings
from inception_jax.sweeps import storage as storages
from inception_jax.sweeps.study_config import METRICS, OBJECTIVES, PRUNERS, SAMPLERS


def main(argv: list[str], **injected: Any) -> int:
    """Begins a study or goes on with it, says what came out, and returns the exit code.

    Args:
      argv: arguments after the program's name.
      injected: keyword arguments of `run_sweep.run`, for tests.
    """
    arguments = command_line.parser("sweep", "Try values of a recipe's fields, or go on with an earlier sweep.")
    command_line.add_config(arguments)
    arguments.add_argument(
        "--space",
        metavar="FILE.py",
        help="has get_space(): what is varied, or get_trials(): a list of configs, or both",
    )
    arguments.add_argument(
        "--study",
        required=True,
        metavar="DIR",
        help="where the study lives; the same command, there or on another machine that sees it, continues it",
    )
    arguments.add_argument("--trials", type=int, metavar="N", help="begin so many trials, by all drivers together")
    arguments.add_argument("--hours", type=float, metavar="H", help="begin no trial after so many hours of work")
    arguments.add_argument(
        "--workers", type=int, metavar="N", help="trials at once; default: one per accelerator, else 1"
    )
    arguments.add_argument("--devices", metavar="0,1,…", help="the accelerators to use; default: all")
    arguments.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="how values are chosen")
    arguments.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampler")
    arguments.add_argument("--pruner", choices=PRUNERS, default="halving", help="how trials are ended early")
    arguments.add_argument(
        "--min_evaluations", type=int, metavar="N", help="of a trial, before it may be pruned; default: 2"
    )
    arguments.add_argument(
        "--reduction_factor",
        type=int,
        metavar="N",
        help="halving: at each rung, one of so many trials goes on; default: 3",
    )
    arguments.add_argument("--metric", choices=METRICS, help="default: checkpoint.best_metric")
    arguments.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default="final",
        help="of the evaluations of a trial, the one that counts",
    )
    arguments.add_argument(
        "--storage",
        metavar="URL",
        help="a database, such as postgresql://user@host/name; default: a journal file in the study's directory",
    )
    arguments.add_argument(
        "--retries",
        type=int,
        default=3,
        metavar="N",
        help="deaths of a trial's process in a row, without a newer checkpoint, that are borne; default: 3",
    )
    arguments.add_argument(
        "--report",
        action="store_true",
        help="only write the report of the study as it stands; the flags that it does not need may stay",
    )
    if "--report" in argv:
        known, _ = arguments.parse_known_args(argv)
        return run_sweep.write_report(Path(known.study), known.storage)
    flags, recipe, overrides = command_line.parse_with_config(arguments, argv)
    storages.import_optuna()
    study_config = settings.make_study_config(flags, recipe, overrides, argv)
    return run_sweep.run(flags, study_config, settings.make_budget(flags, study_config), **injected)


if __name__ == "__main__":
    command_line.run(main)
