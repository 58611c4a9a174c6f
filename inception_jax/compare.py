"""`python -m inception_jax.compare`: compares runs, or lists all runs under a folder."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from inception_jax import command_line
from inception_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Prints a comparison or a list of runs; writes the curves and Markdown of a comparison to a folder."""
    arguments = command_line.parser("compare", "Compare runs, or list them with --list.")
    arguments.add_argument(
        "paths",
        nargs="*",
        metavar="RUN",
        help="workdirs, or folders (also a sweep's) of workdirs; with --list: one folder, default: the current one",
    )
    arguments.add_argument("--list", action="store_true", help="list every run under a folder and its status")
    arguments.add_argument("--json", action="store_true", help="with --list: print a JSON list, not a table")
    arguments.add_argument(
        "--output",
        metavar="DIR",
        help="where the curves and the Markdown are written; default: `comparison` in the runs' common folder",
    )
    arguments.add_argument(
        "--metric",
        metavar="NAME",
        help="metric of the evaluations for the curves and the ranking, such as loss or macro_f1; "
        "default: the checkpoint.best_metric that all runs have, otherwise top1, or mean_average_precision of several "
        "labels per image",
    )
    arguments.add_argument(
        "--weights", choices=("raw", "ema"), help="evaluated weights; default: ema where a run has an EMA"
    )
    arguments.add_argument("--x", choices=("epoch", "step", "seconds"), help="x axis of the curves; default: epoch")
    flags = arguments.parse_args(argv)
    if flags.list:
        arguments.refuse_unread({"paths", "list", "json"}, "has no effect with --list")
        return _list(flags)
    arguments.refuse_unread({"paths", "output", "metric", "weights", "x"}, "has an effect only with --list")
    if not flags.paths:
        raise UserError("name the runs to compare, or --list and a folder")
    return _compare(flags)


def _list(flags: argparse.Namespace) -> int:
    from inception_jax.runs import listing, remote_workdir

    for path in flags.paths:
        remote_workdir.refuse_address("--list", path, "name the runs without --list, to compare them")
    if len(flags.paths) > 1:
        raise UserError(f"--list takes one folder, not {len(flags.paths)}")
    folder = Path(flags.paths[0] if flags.paths else ".")
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such directory")
    entries = [listing.read_entry(path) for path in listing.find_runs(folder)]
    if flags.json:
        print(json.dumps(listing.to_json(entries), indent=2, allow_nan=False))
    else:
        print(listing.format_text(entries, folder) if entries else f"no runs under {folder}")
    return 0


def _compare(flags: argparse.Namespace) -> int:
    from inception_jax.data import storage
    from inception_jax.runs import comparison, comparison_report, listing, remote_workdir

    if flags.output:
        remote_workdir.refuse_address("--output", flags.output, "name a local folder")
    elif any(map(storage.is_remote, flags.paths)):
        flags.output = "comparison"
    paths = listing.expand_paths([remote_workdir.local_copy(path, checkpoints=False) for path in flags.paths])
    found = comparison.compare(paths, metric=flags.metric, weights=flags.weights)
    print(comparison_report.format_text(found, width=shutil.get_terminal_size((160, 24)).columns))
    folder = Path(flags.output) if flags.output else listing.common_folder(paths) / "comparison"
    try:
        written = comparison_report.write(found, folder, x=flags.x or "epoch")
    except UserError as error:
        if flags.output:
            raise
        print(
            f"note: curves and Markdown were not written: {error}; --output=DIR names another folder", file=sys.stderr
        )
        return 0
    print("\nwritten: " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    command_line.run(main)
