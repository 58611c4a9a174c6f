"""What runs needed to reach the target of their config: as text, and scored over seeds.

The score is that of the AlgoPerf benchmark (https://arxiv.org/abs/2306.07179, section 4): the time to a fixed target,
infinite for a run that has not reached it, and the median over repetitions.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from inception_jax.metric_definitions import TO_TARGET, Metric, describe
from inception_jax.runs.formatting import format_duration, format_metric
from inception_jax.runs.manifest import flatten
from inception_jax.runs.run_state import RunState

SUFFIX = "_to_target"


def describe_target(target: Mapping[str, Any]) -> tuple[Metric, str]:
    """The metric of an entry "target", and the target as text: `top-1 accuracy >= 97.00 %`."""
    metric = describe(target["metric"], target)
    sign = ">=" if metric.better == "higher" else "<="
    return metric, f"{metric.title} {sign} {format_metric(metric, target['value'])}"


def format_reached(target: Mapping[str, Any]) -> str:
    """Formats an entry "target" of result.json as one line; it names the wall time of a run that has measured it."""
    metric, text = describe_target(target)
    reached = target.get("reached") or {}
    if not reached.keys() >= {"value", "steps", "epochs", "images"}:
        return f"target not reached: {text}"
    line = (
        f"target reached: {text} at step {reached['steps']:,} (epoch {reached['epochs']:.4g}, "
        f"{reached['images']:,} images): {format_metric(metric, reached['value'])}"
    )
    if not reached.keys() >= {"wall_seconds", "training_seconds", "starts"}:
        return f"{line}, before the run had this target"
    starts = f", {reached['starts']:,} starts" if reached["starts"] > 1 else ""
    return (
        f"{line}, after {format_duration(reached['wall_seconds'])}, of which "
        f"{format_duration(reached['training_seconds'])} in training{starts}"
    )


def value_of(target: Mapping[str, Any] | None, name: str) -> float:
    """What a run needed to reach its target; infinity where it has not, NaN where it has, but that was not measured.

    Args:
      target: the entry "target" of its result.json; None: it has none.
      name: of `TO_TARGET`, such as "steps_to_target".
    """
    reached = (target or {}).get("reached")
    return float(reached.get(name.removesuffix(SUFFIX), math.nan)) if reached else math.inf


def find(run: RunState) -> dict[str, Any] | None:
    """The entry "target" of a run; without its result, that of its config with the step that metrics.jsonl has.

    Returns:
      None: the run has no target.
    """
    if run.result.get("target"):
        return dict(run.result["target"])
    stop, checkpoint = run.config.get("stop") or {}, run.config.get("checkpoint") or {}
    value, name = stop.get("target"), stop.get("target_metric") or checkpoint.get("best_metric")
    if not isinstance(value, int | float) or not isinstance(name, str):
        return None
    recorded = (run.manifest.get("metrics") or {}).get(name)
    metric = describe(name, recorded)
    found = {"metric": name, "value": value, "reached": None, **metric.to_json()}
    for row in run.evaluations():
        if name in row and (row[name] >= value if metric.better == "higher" else row[name] <= value):
            images = row["step"] * run.config.get("batch_size", 0)
            return found | {
                "reached": {"value": row[name], "steps": row["step"], "epochs": row.get("epoch", 0.0), "images": images}
            }
    return found


def median_over_seeds(
    runs: Sequence[RunState], targets: Sequence[Mapping[str, Any] | None]
) -> list[tuple[list[int], dict[str, float]]]:
    """Scores groups of runs that have one config but for the seed, and a target.

    Args:
      runs: finished or not; one that runs, or was interrupted, counts as what its evaluations show until now: as one
        that has reached its target, or as one that has not.
      targets: their entries "target", from `find`.

    Returns:
      (indices of the runs of a group, {name of `TO_TARGET`: median, infinity where half of them or more have not
      reached the target}), of the groups of at least two.
    """
    groups: dict[str, list[int]] = {}
    for index, (run, target) in enumerate(zip(runs, targets, strict=True)):
        if target and run.config:
            fields = {path: value for path, value in flatten(run.config) if path != "seed"}
            groups.setdefault(json.dumps(fields, sort_keys=True, default=str), []).append(index)
    return [
        (group, {name: median([value_of(targets[index], name) for index in group]) for name in TO_TARGET})
        for group in groups.values()
        if len(group) > 1
    ]


def median(values: Sequence[float]) -> float:
    """The median, infinity counted as a value: between a finite and an infinite one it is infinite; NaN of any NaN."""
    return math.nan if any(map(math.isnan, values)) else statistics.median(values)
