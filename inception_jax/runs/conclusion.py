"""The lines that a command prints for a person when a run or an evaluation has ended."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any

from inception_jax.metric_definitions import METRICS, describe
from inception_jax.metrics import wilson_interval
from inception_jax.runs import remote_workdir, report, result, time_to_target
from inception_jax.runs.file_forms import NUMBER, has_type
from inception_jax.runs.formatting import format_metric, format_number, format_scores, is_multi_label

_MULTI_LABEL = ("mean_average_precision", "micro_f1", "exact_match")
_WEIGHTS = {"ema": "EMA weights", "raw": "raw weights"}


def format_conclusion(workdir: str | os.PathLike, content: Mapping[str, Any]) -> str:
    """Formats the end of a run: accuracy and best step, where the files are, what to do next.

    Args:
      workdir: of the run.
      content: of its result.json.

    Returns:
      Three lines for a finished run, one more with a target, after early stopping and for each warning; "" for any
      other, whose log has said why it ended.
    """
    if content.get("status") != "finished":
        return ""
    here = shlex.quote(str(workdir))
    lines = []
    for split, by_weights in content["metrics"].items():
        weights = next((name for name in _WEIGHTS if _has_accuracy(by_weights, name)), None)
        if weights:  # "train" beside the splits is {metric: value}
            best = _format_best(content.get("best") or {}, content["steps"], by_weights[weights])
            lines.append(f"{split}: {format_accuracy(by_weights[weights])}, {_WEIGHTS[weights]}{best}")
    target = content.get("target") or {}
    if target.keys() >= {"metric", "value"}:
        lines.append(time_to_target.format_reached(target))
    if str(content.get("ended")).startswith("early"):
        lines.append(content["ended"])
    warnings = content.get("warnings")
    lines += [f"warning: {line}" for line in warnings if isinstance(line, str)] if isinstance(warnings, list) else []
    plots = len(content.get("pictures") or ())
    has_page = (remote_workdir.copy_of(workdir) / report.PAGE).exists()  # runs of earlier versions have none
    page = f"{report.PAGE}, " if has_page else ""
    files = f"{page}{report.FILE}, {result.FILE}{_format_tables(content)}" + (f" and {plots} plots" if plots else "")
    return "\n".join([*lines, f"{files}: {here}", f"next: python -m inception_jax.predict --workdir={here} IMAGE …"])


def _has_accuracy(by_weights: Any, weights: str) -> bool:
    """Returns whether an entry of "metrics" holds an evaluation of these weights; a changed file may hold anything."""
    values = by_weights.get(weights) if isinstance(by_weights, Mapping) else None
    if not isinstance(values, Mapping):
        return False
    needed = ("count", *_MULTI_LABEL) if is_multi_label(values) else ("count", "top1")
    return all(has_type(values.get(name), NUMBER) for name in needed)


def format_evaluation(content: Mapping[str, Any], folder: str | os.PathLike) -> str:
    """Formats the result of `evaluate` as two lines: the metrics, and where the files are.

    Args:
      content: of its result.json.
      folder: that the files were written to.
    """
    what = f"{content['dataset']} {content['split']}, {_WEIGHTS[content['weights']]} of step {content['step']:,}"
    if content.get("crops", 1) > 1:
        what += f", {content['protocol']}"
    what += _format_left_out(content)
    values = f"{format_accuracy(content)}, {_format_rest(content)}"
    return f"{what}: {values}\n{result.FILE}{_format_tables(content)} and plots: {shlex.quote(str(folder))}"


def _format_tables(content: Mapping[str, Any]) -> str:
    """The names of the tables of an evaluation, each with a comma before it; results of earlier versions have none."""
    tables = content.get("tables")
    names = tables if isinstance(tables, list) else []
    return "".join(f", {name}" for name in names if isinstance(name, str))


def format_ensemble(content: Mapping[str, Any]) -> str:
    """Formats the result of `evaluate --ensemble` or `--from`: a line per member, and one for the mean of all.

    Args:
      content: the result.
    """
    lines = [f"{member['name']}{_format_member(member)}: {format_scores(member)}" for member in content["members"]]
    alone = _format_member(content["members"][0]) if len(lines) == 1 else ""
    what = f"{content['dataset']} {content['split']}, {content['model']}{alone}{_format_left_out(content)}"
    whole = f"{what}: {format_accuracy(content)}, {_format_rest(content)}"
    return "\n".join([*(lines if len(lines) > 1 else []), whole])


def _format_rest(content: Mapping[str, Any]) -> str:
    loss = f"loss {format_number(content['loss'])}"
    return loss if is_multi_label(content) else f"top-5 {100 * content['top5']:.2f} %, {loss}"


def _format_member(member: Mapping[str, Any]) -> str:
    """What a network of an ensemble was evaluated with; nothing of a file that is an ensemble's itself."""
    if "weights" not in member:
        return ""
    return f" ({member['weights']}, step {member['step']}, {member['protocol']}, {member['image_size']} pixels)"


def _format_left_out(content: Mapping[str, Any]) -> str:
    return f", {content['left_out']:,} examples left out" if content.get("left_out") else ""


def format_accuracy(values: Mapping[str, Any]) -> str:
    """Formats top-1 of an evaluation: `top-1 98.61 % (95 % interval 96.77 to 99.41 %; 355 of 360)`.

    Of several labels per example: `mAP 83.20 % (micro F1 80.00 %, exact match 55.00 %; 360 examples)`.
    """
    count = values["count"]
    if is_multi_label(values):
        average, *others = (
            f"{METRICS[name].column} {format_metric(METRICS[name], values[name])}" for name in _MULTI_LABEL
        )
        return f"{average} ({', '.join(others)}; {count:,} examples)"
    right = round(values["top1"] * count)
    low, high = wilson_interval(right, count)
    interval = f"95 % interval {100 * low:.2f} to {100 * high:.2f} %; {right:,} of {count:,}"
    return f"top-1 {100 * values['top1']:.2f} % ({interval})"


def _format_best(best: Mapping[str, Any], last: int, final: Mapping[str, Any]) -> str:
    """Formats the best evaluation, beside the final one; "" where there is none, or no other than the final one."""
    if any(best.get(name) is None for name in ("metric", "value", "step")) or best.get("evaluations") == 1:
        return ""
    metric = describe(best["metric"], best)
    value = format_metric(metric, best["value"])
    if best["step"] == last or final.get(metric.name) == best["value"]:  # earlier versions: the first of equal ones
        # The line begins with these.
        shown = "" if metric.name in ("top1", "mean_average_precision") else f" ({value})"
        return f"; no evaluation before had a better {metric.title}{shown}"
    return f"; best at step {best['step']:,} of {last:,}: {metric.column} {value}"
