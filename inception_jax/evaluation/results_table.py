"""`evaluate --all`: many runs, each by itself, into one CSV table, with the columns of timm's results tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from inception_jax.errors import UserError
from inception_jax.evaluation import split_evaluation, trained_network
from inception_jax.evaluation.split_evaluation import Request
from inception_jax.multihost import processes
from inception_jax.runs import conclusion, remote_workdir
from inception_jax.runs.manifest import replace_text
from inception_jax.training.memory_check import TooLarge

# The first nine are timm's (results/results-imagenet.csv): accuracies in per cent, parameters in millions.
COLUMNS = (
    "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
    "protocol", "weights", "step", "dataset", "split", "count", "batch_size", "workdir", "error",
)  # fmt: skip


def evaluate_all(
    workdirs: Sequence[str],
    request: Request,
    output: str | None,
    set_fields: Callable[[ConfigDict], None],
    report: Callable[[str], None],
) -> int:
    """Evaluates runs, also imported weights, one after another; one that fails does not stop the others.

    The table is written anew after every run, the best first. Where memory runs out, a run is evaluated again with half
    the batch size, down to one example per device.

    Args:
      workdirs: of the runs.
      request: what is evaluated.
      output: the CSV file; None: standard output, at the end.
      set_fields: sets the fields of a run's config to evaluate with.
      report: gets a line per run.

    Returns:
      0.

    Raises:
      UserError: the table cannot be written, or at the end: some runs failed.
    """
    if output and Path(output).suffix != ".csv":
        raise UserError(f"--output={output}: with --all the name must end with .csv")
    rows: list[dict[str, Any]] = []
    for workdir in workdirs:
        try:
            row = _evaluate(workdir, request, set_fields, report)
        except Exception as error:  # whatever is wrong with one run
            line = " ".join(str(error).split()) or type(error).__name__
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            row = {"workdir": workdir, "error": kind + line}
            report(f"{workdir}: {row['error']}")
        rows.append(row)
        rows.sort(key=lambda row: -row.get("top1", -math.inf))
        if output and processes.is_first():
            replace_text(Path(output), format_table(rows))
    if not output and processes.is_first():
        print(format_table(rows), end="")
    if failed := [row["workdir"] for row in rows if "error" in row]:
        raise UserError(f"{len(failed)} of {len(rows)} runs could not be evaluated: {', '.join(failed[:3])}")
    return 0


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the table, with a line per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _evaluate(
    workdir: str, request: Request, set_fields: Callable[[ConfigDict], None], report: Callable[[str], None]
) -> dict[str, Any]:
    local = remote_workdir.local_copy(workdir)
    recipe = trained_network.load_config(local, "")
    set_fields(recipe)
    while True:
        batch = recipe.evaluation.batch_size or recipe.batch_size
        try:
            result, folder = split_evaluation.evaluate_run(recipe, str(local), None, request)
            break
        except Exception as error:  # jaxlib's error is a RuntimeError, and only its text says what happened
            least = min(recipe.parallel.devices or jax.device_count(), jax.device_count())
            smaller = batch // 2 // least * least
            if not is_out_of_memory(error) or smaller < least or jax.process_count() > 1:
                raise
            report(f"{workdir}: out of memory with a batch of {batch:,}; again with {smaller:,}")
            recipe.evaluation.batch_size = smaller
    remote_workdir.upload_results(workdir, folder)
    report(conclusion.format_evaluation(result, remote_workdir.display_name(folder)).splitlines()[0])
    return _row(recipe, workdir, result, batch)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a device was not enough."""
    return isinstance(error, MemoryError | TooLarge) or "RESOURCE_EXHAUSTED" in str(error)


def _row(recipe: ConfigDict, workdir: str, result: dict[str, Any], batch: int) -> dict[str, Any]:
    fields = recipe.evaluation
    size = result["image_size"]
    kept = fields.crop_fraction if fields.resize is None else size / fields.resize
    accuracies: dict[str, float] = {}
    for name in ("top1", "top5"):
        accuracies |= {name: round(100 * result[name], 3), f"{name}_err": round(100 * (1 - result[name]), 3)}
    return {
        "model": result["model"],
        **accuracies,
        "param_count": round(result["parameters"] / 1e6, 2),
        "img_size": size,
        "crop_pct": round(kept, 3),
        "interpolation": fields.interpolation,
        **{name: result[name] for name in ("protocol", "weights", "step", "dataset", "split", "count")},
        "batch_size": batch,
        "workdir": workdir,
    }
