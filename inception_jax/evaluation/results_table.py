"""`evaluate --all`: runs and imported weights, each by itself, into one CSV table with the columns of timm's tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from inception_jax.errors import UserError, is_disk_full
from inception_jax.evaluation import split_evaluation, trained_network
from inception_jax.evaluation.split_evaluation import NamedWeights, Request
from inception_jax.multihost import peer_loss, processes
from inception_jax.runs import conclusion, manifest, remote_workdir, run_state
from inception_jax.runs.manifest import replace_text
from inception_jax.training.memory_check import TooLarge

T = TypeVar("T")

# The first nine are timm's (results/results-imagenet.csv): accuracies in per cent, parameters in millions.
COLUMNS = (
    "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
    "protocol", "weights", "step", "dataset", "split", "count", "batch_size", "record", "workdir", "error",
    "mean_average_precision",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TableRequest:
    """What a table is of.

    Attributes:
      request: what is evaluated.
      set_fields: sets the fields of a run's config to evaluate with.
      open_weights: takes an entry that is no folder and no address, and opens the weights that it names.
      report: gets a line per entry.
    """

    request: Request
    set_fields: Callable[[ConfigDict], None]
    open_weights: Callable[[str], NamedWeights]
    report: Callable[[str], None]


def evaluate_all(entries: Sequence[str], output: str | None, table: TableRequest) -> int:
    """Evaluates runs and imported weights, one after another; one that fails does not stop the others.

    The table is written anew after every entry, the best first. Where memory runs out, an entry is evaluated again with
    half the batch size, down to one example per device. Of several processes, all go on with the next entry after an
    error that all of them raise; any other error ends the command, since the others may wait in a collective.

    Args:
      entries: workdirs of runs, and whatever `open_weights` takes.
      output: the CSV file; None: standard output, at the end.
      table: what it is of.

    Returns:
      0.

    Raises:
      UserError: the table cannot be written; one of several processes failed alone; or at the end: some entries failed.
      PeerLost: another process has ended.
    """
    if output and Path(output).suffix != ".csv":
        raise UserError(f"--output={output}: with --all the name must end with .csv")
    rows: list[dict[str, Any]] = []
    for entry in entries:
        try:
            row = _evaluate(entry, table)
        except Exception as error:  # whatever is wrong with one entry
            alone = not getattr(error, "on_all_processes", False) and jax.process_count() > 1
            if alone or peer_loss.as_peer_lost(error) is not None:
                raise
            line = " ".join(str(error).split()) or type(error).__name__
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            row = {"workdir": entry, "error": kind + line}
            table.report(f"{entry}: {row['error']}")
        rows.append(row)
        rows.sort(key=lambda row: -row.get("top1", row.get("mean_average_precision", -math.inf)))
        if output and processes.is_first():
            replace_text(Path(output), format_table(rows))
    if not output and processes.is_first():
        print(format_table(rows), end="")
    if failed := [row["workdir"] for row in rows if "error" in row]:
        raise UserError(f"{len(failed)} of {len(rows)} could not be evaluated: {', '.join(failed[:3])}")
    return 0


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the table, with a line per run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@dataclasses.dataclass(frozen=True)
class _Opened:
    """An entry: a run in a local folder, or weights."""

    recipe: ConfigDict
    source: Path | NamedWeights


def _open_together(entry: str, table: TableRequest) -> _Opened:
    """Opens an entry on all processes: process 0 first, so that in a shared cache only one of them downloads.

    Raises:
      UserError: one of them cannot open it, or it is another entry there.
    """
    opened: _Opened | None = None
    for first in (True, False):
        with processes.fail_together():
            if processes.is_first() == first:
                opened = _open(entry, table)
    assert opened is not None
    fields = json.loads(opened.recipe.to_json_best_effort())
    fields.pop("extensions", None)  # paths, of each machine's own copy
    kind = type(opened.source).__name__
    processes.check_equal(f"{entry}: the config", [kind, fields], "all processes need the same files")
    return opened


def is_weights(entry: str) -> bool:
    """Whether an entry is weights, and no run."""
    return not (remote_workdir.is_remote(entry) or Path(entry).is_dir())


def _open(entry: str, table: TableRequest) -> _Opened:
    try:
        source: Path | NamedWeights
        if not is_weights(entry):
            source = remote_workdir.local_copy(entry)
            recipe = trained_network.load_config(source, "")
        else:
            if table.request.weights == "ema":
                raise UserError("--weights=ema: published weights have no EMA beside them; leave the flag out")
            source = table.open_weights(entry)
            recipe = source.recipe
        table.set_fields(recipe)
    except UserError:
        raise
    except Exception as error:  # `fail_together` tells the others of a UserError
        raise UserError(f"{type(error).__name__}: {error}") from error
    return _Opened(recipe, source)


def _evaluate(entry: str, table: TableRequest) -> dict[str, Any]:
    """The line of an entry."""
    opened = _open_together(entry, table)
    recipe, source = opened.recipe, opened.source
    if isinstance(source, NamedWeights):
        return _evaluate_weights(entry, source, table)
    result, folder = _with_smaller_batches(
        entry, recipe, lambda: split_evaluation.evaluate_run(recipe, str(source), None, table.request), table.report
    )
    with processes.fail_together():
        if processes.is_first():
            remote_workdir.upload_results(entry, folder)
            line = conclusion.format_evaluation(result, remote_workdir.display_name(folder)).splitlines()[0]
            table.report(f"{entry}: {line}")
        imported = manifest.read_json_object(source / run_state.IMPORTED) or {}
    return _row(recipe, entry, str(imported.get("record") or ""), result)


def _evaluate_weights(entry: str, weights: NamedWeights, table: TableRequest) -> dict[str, Any]:
    result = _with_smaller_batches(
        entry, weights.recipe, lambda: split_evaluation.evaluate_weights(weights, table.request), table.report
    )
    if processes.is_first():
        table.report(f"{entry}: {conclusion.format_evaluation(result, '').splitlines()[0]}")
    return _row(weights.recipe, entry, weights.record, result)


def _with_smaller_batches(
    entry: str, recipe: ConfigDict, evaluate: Callable[[], T], report: Callable[[str], None]
) -> T:
    """Evaluates; where memory runs out, again with half the batch size, which stays in the config."""
    while True:
        try:
            return evaluate()
        except Exception as error:  # jaxlib's error is a RuntimeError, and only its text says what happened
            batch = recipe.evaluation.batch_size or recipe.batch_size
            least = min(recipe.parallel.devices or jax.device_count(), jax.device_count())
            smaller = batch // 2 // least * least
            if not is_out_of_memory(error) or smaller < least or jax.process_count() > 1:
                raise
            report(f"{entry}: out of memory with a batch of {batch:,}; again with {smaller:,}")
            recipe.evaluation.batch_size = smaller


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a device was not enough."""
    found = isinstance(error, MemoryError | TooLarge) or "RESOURCE_EXHAUSTED" in str(error)
    return found and not is_disk_full(error)


def _row(recipe: ConfigDict, entry: str, record: str, result: dict[str, Any]) -> dict[str, Any]:
    fields = recipe.evaluation
    size = result["image_size"]
    kept = fields.crop_fraction if fields.resize is None else size / fields.resize
    accuracies: dict[str, float] = {}
    if "mean_average_precision" in result:  # several labels per image
        accuracies = {"mean_average_precision": round(100 * result["mean_average_precision"], 3)}
    for name in ("top1", "top5") if not accuracies else ():
        accuracies |= {name: round(100 * result[name], 3), f"{name}_err": round(100 * (1 - result[name]), 3)}
    return {
        "model": result["model"],
        **accuracies,
        "param_count": round(result["parameters"] / 1e6, 2),
        "img_size": size,
        "crop_pct": round(kept, 3),
        "interpolation": fields.interpolation,
        **{name: result[name] for name in ("protocol", "weights", "step", "dataset", "split", "count")},
        "batch_size": recipe.evaluation.batch_size or recipe.batch_size,
        "record": record,
        "workdir": entry,
    }
