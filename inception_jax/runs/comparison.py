"""Compares runs: their results, the config fields that differ, and what makes their numbers incomparable.

`comparison_report.py` formats it as text, `comparison_plot.py` draws the curves.
"""

from __future__ import annotations

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, must_be_one_of
from inception_jax.metric_definitions import DEFAULT_METRIC, METRICS, TO_TARGET, Metric, describe
from inception_jax.metrics import accuracy_interval
from inception_jax.runs import environment, listing, remote_workdir, run_state, time_to_target
from inception_jax.runs.file_forms import NUMBER, OBJECT, has_type
from inception_jax.runs.formatting import per_head
from inception_jax.runs.manifest import ABSENT, flatten, same_value
from inception_jax.runs.run_state import RunState

_LOG_HEAD_BYTES = 1 << 14  # bytes of train.log in which the first start logs the number of parameters

# The fields that decide which images an accuracy is of, and which part of each image the network sees.
_DATA = ("data.name", "data.eval_split")
_CROPS = ("evaluation.protocol", "evaluation.crop", "evaluation.crop_fraction")
# Likewise, where the value is not the one that runs had before the field existed: {field: that value}.
_RESIZES = {"evaluation.resize": None, "evaluation.interpolation": "bilinear", "evaluation.image_size": None}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The results of a run up to now; None stands for what is not known.

    Attributes:
      entry: the line of the listing.
      split, weights: of the final evaluation, or of the newest one where there is no final one.
      top1, top5: accuracies, 0 to 1.
      top1_interval: (low, high) of the accuracy, 95 %, by Wilson's score.
      loss: of the evaluation.
      value: of the comparison's metric.
      count: examples evaluated.
      best: (value, epoch) of the best evaluation by the comparison's metric.
      train_losses: {head: loss} of the newest training row; "total" is the weighted sum.
      wall_seconds, compile_seconds, data_wait_seconds: summed over all starts.
      images_per_second: median over the rows.
      parameters: number of parameters of the network, auxiliary heads included.
      fingerprint: SHA-256 of the final state, as `result.fingerprint` computes it.
      goodput: fraction of the wall time in training steps that were kept, 0 to 1.
      target: of the run, and what it needed to reach it, as in result.json.
    """

    entry: listing.RunEntry
    split: str | None
    weights: str | None
    top1: float | None
    top5: float | None
    top1_interval: tuple[float, float] | None
    loss: float | None
    value: float | None
    count: int | None
    best: tuple[float, float] | None
    train_losses: Mapping[str, float]
    wall_seconds: float | None
    compile_seconds: float | None
    data_wait_seconds: float | None
    images_per_second: float | None
    parameters: int | None
    fingerprint: str | None
    goodput: float | None = None
    target: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class FieldDifference:
    """A field that differs between runs: its name, and its value per run (`manifest.ABSENT` where a run has none)."""

    name: str
    values: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison of runs; everything that is "per run" is in the order of `runs`.

    Attributes:
      runs: the contents of their workdirs.
      labels: short, distinct names, per run.
      metric: it ranks the runs.
      weights: "raw", "ema", or None: the EMA of each run that has one, and the raw weights of the others.
      outcomes: results, per run.
      config: the config fields that differ.
      same_fields: number of config fields that are equal.
      circumstances: differences of revision, versions, devices, host and environment.
      warnings: what makes the numbers incomparable, one sentence each.
      equal: groups of labels whose final states are equal, bit for bit.
    """

    runs: tuple[RunState, ...]
    labels: tuple[str, ...]
    metric: Metric
    weights: str | None
    outcomes: tuple[Outcome, ...]
    config: tuple[FieldDifference, ...]
    same_fields: int
    circumstances: tuple[FieldDifference, ...]
    warnings: tuple[str, ...]
    equal: tuple[tuple[str, ...], ...]

    def ranked(self) -> list[int]:
        """Returns the indices of the runs, best first: by the metric of the evaluation, then by the training loss."""
        sign = 1 if self.metric.better == "lower" else -1

        def key(index: int) -> tuple:
            outcome = self.outcomes[index]
            value, loss = outcome.value, outcome.train_losses.get("total")
            return _last_unless_finite(value, sign), _last_unless_finite(loss, 1), index

        return sorted(range(len(self.runs)), key=key)


def compare(paths: Sequence[Path], *, metric: str | None = None, weights: str | None = None) -> Comparison:
    """Compares runs, finished or not.

    Args:
      paths: workdirs, at least one.
      metric: name of a metric of the evaluations; None: the one that chose the best checkpoint of all runs, or top-1
        where that differs.
      weights: "raw" or "ema", for all runs; None: the EMA of each run that has one, and the raw weights of the others.

    Returns:
      The comparison.

    Raises:
      UserError: no run has evaluated that metric.
    """
    runs = tuple(run_state.read(path) for path in paths)
    found = _find_metric(runs, metric) if metric else _common_metric(runs)
    labels = short_labels([Path(remote_workdir.display_name(run.path)) for run in runs])
    config, same = _differences([run.config for run in runs])
    circumstances = _differences([_circumstances(run.manifest) for run in runs])[0]
    circumstances += _differences([environment.rows(run.manifest) for run in runs])[0]
    outcomes = tuple(outcome(run, found, weights) for run in runs)
    by_fingerprint: dict[str, list[str]] = {}
    for label, one in zip(labels, outcomes, strict=True):
        if one.fingerprint:
            by_fingerprint.setdefault(one.fingerprint, []).append(label)
    return Comparison(
        runs=runs,
        labels=labels,
        metric=found,
        weights=weights,
        outcomes=outcomes,
        config=config,
        same_fields=same,
        circumstances=circumstances,
        warnings=tuple(_warnings(runs, labels, outcomes)),
        equal=tuple(tuple(group) for group in by_fingerprint.values() if len(group) > 1),
    )


def _common_metric(runs: Sequence[RunState]) -> Metric:
    """The metric that chose the best checkpoint of every run; the usual one where they differ or do not describe it.

    That is top-1, or the mean average precision where all runs have several labels per image.
    """
    kinds = {label_kind(run) for run in runs}
    usual = METRICS[DEFAULT_METRIC[kinds.pop()] if len(kinds) == 1 else "top1"]
    names = {run.config.get("checkpoint", {}).get("best_metric") or usual.name for run in runs}
    try:
        return _find_metric(runs, *names) if len(names) == 1 else usual
    except UserError:
        return usual


def label_kind(run: RunState) -> str:
    """`config.data.labels` of a run: "single", as in runs of earlier versions, or "multi"."""
    return "multi" if dict(flatten(run.config)).get("data.labels") == "multi" else "single"


def _find_metric(runs: Sequence[RunState], name: str) -> Metric:
    """The metric of a name: one of this package, or one that a recipe registered and a run's manifest describes."""
    recorded: dict[str, Any] = {}
    for run in runs:
        recorded |= {
            key: value for key, value in (run.manifest.get("metrics") or {}).items() if has_type(value, OBJECT)
        }
    if name not in METRICS and name not in recorded:
        known = [*METRICS, *recorded]
        if name in TO_TARGET:
            raise UserError(
                f"--metric={name}: no evaluation has it, so it ranks no runs; leave it out: the table "
                "'Time to target' has it for runs with config.stop.target. Metrics of evaluations: "
                f"{', '.join(known)}"
            )
        raise UserError(f"--metric={name}: {must_be_one_of(name, known)}")
    return describe(name, recorded.get(name))


def outcome(run: RunState, metric: Metric = METRICS["top1"], weights: str | None = None) -> Outcome:
    """Returns the results of one run by a metric; `weights` as in `compare`."""
    evaluations = run.evaluations(weights)
    final = evaluations[-1] if evaluations else _of_result(run.result, weights)
    count = final.get("count")
    last = (run.of_kind("train") or [{}])[-1]
    losses = ({"total": last["loss"]} if "loss" in last else {}) | dict(per_head(last, "loss"))
    speeds = [row["images_per_second"] for row in run.timing if "images_per_second" in row]
    wall = run.timing[-1].get("wall_seconds") if run.timing else None
    return Outcome(
        entry=listing.make_entry(run),
        split=final.get("split"),
        weights=final.get("weights"),
        top1=final.get("top1"),
        top5=final.get("top5"),
        loss=final.get("loss"),
        value=final.get(metric.name),
        count=count,
        top1_interval=accuracy_interval(final.get("top1"), count),
        best=_best(evaluations, metric),
        train_losses=losses,
        wall_seconds=run.result.get("wall_seconds", wall),
        compile_seconds=run.result.get("compile_seconds"),
        data_wait_seconds=run.result.get("data_wait_seconds"),
        images_per_second=statistics.median(speeds) if speeds else None,
        parameters=_parameters(run.path),
        fingerprint=run.result.get("fingerprint"),
        goodput=run.result.get("goodput"),
        target=time_to_target.find(run),
    )


def short_labels(paths: Sequence[Path]) -> tuple[str, ...]:
    """Shortens paths to their distinct parts: drops the folders that all begin with, and those that all end with."""
    parts = [path.absolute().parts for path in paths]
    start = end = 0
    shortest = min(map(len, parts))
    while start < shortest - 1 and len({part[start] for part in parts}) == 1:
        start += 1
    while end < shortest - start - 1 and len({part[-1 - end] for part in parts}) == 1:
        end += 1
    return tuple("/".join(part[start : len(part) - end]) for part in parts)


def _differences(trees: Sequence[Mapping[str, Any]]) -> tuple[tuple[FieldDifference, ...], int]:
    """Returns (fields that differ, number of equal fields); an empty tree, of a missing file, is left out."""
    flats = [dict(flatten(tree)) for tree in trees]
    known = [one for one in flats if one]
    names = sorted({name for one in known for name in one})
    differing = []
    for name in names:
        first, *others = [one.get(name, ABSENT) for one in known]
        if not all(same_value(first, other) for other in others):
            differing.append(FieldDifference(name, tuple(one.get(name, ABSENT) for one in flats)))
    return tuple(differing), len(names) - len(differing)


def _circumstances(manifest: Mapping[str, Any]) -> dict[str, Any]:
    if not manifest:
        return {}
    git = manifest.get("git") or {}
    revision = str(git.get("revision") or "unknown")[:10] + (" + changes" if git.get("dirty") else "")
    return {
        "revision": revision,
        **{name: version for name, version in (manifest.get("versions") or {}).items() if version is not None},
        "devices": ", ".join(map(str, manifest.get("devices") or [])),
        "host": manifest.get("hostname"),
        "platform": manifest.get("platform"),
        "starts": len(manifest.get("starts") or []),
    }


def _warnings(runs: Sequence[RunState], labels: Sequence[str], outcomes: Sequence[Outcome]) -> list[str]:
    """Returns the reasons why the numbers of the runs are not comparable."""
    found = []
    for names, what in (
        (_DATA, "evaluated on different data: their numbers are not comparable"),
        (_CROPS, "evaluated with different crops of the images"),
    ):
        groups: dict[str, list[str]] = {}
        for run, label in zip(runs, labels, strict=True):
            fields = dict(flatten(run.config))
            if all(name in fields for name in names):
                shown = [str(fields[name]) for name in names]
                if names is _CROPS:
                    shown += [str(fields[f]) for f, usual in _RESIZES.items() if fields.get(f, usual) != usual]
                groups.setdefault(", ".join(shown), []).append(label)
        if len(groups) > 1:
            details = "; ".join(f"{fields}: {', '.join(group)}" for fields, group in groups.items())
            found.append(f"{what} ({details})")
    counts = {one.count for one in outcomes if one.count}
    if len(counts) > 1 and not found:
        details = ", ".join(f"{label} {one.count:,}" for label, one in zip(labels, outcomes, strict=True) if one.count)
        found.append(f"evaluated on different numbers of examples of a split of the same name: {details}")
    from inception_jax.runs import data_record  # with the data sets, which a listing does not need

    found += data_record.differences({label: run.path for run, label in zip(runs, labels, strict=True)})
    if len({label_kind(run) for run in runs}) > 1:
        found.append(
            "some runs have one label per image, some several (config.data.labels): their losses and metrics are not "
            "comparable"
        )
    kinds = {one.weights for one in outcomes if one.weights}
    if len(kinds) > 1:
        found.append(
            "some accuracies are of EMA weights, some of raw weights; --weights=raw compares raw weights of all runs"
        )
    return found


def _best(evaluations: Sequence[Mapping[str, Any]], metric: Metric) -> tuple[float, float] | None:
    rows = [row for row in evaluations if math.isfinite(row.get(metric.name, math.nan))]
    if not rows:
        return None
    # Of equal ones the last, as the best checkpoint is.
    row = (min if metric.better == "lower" else max)(reversed(rows), key=lambda row: row[metric.name])
    return row[metric.name], row.get("epoch", math.nan)


def _of_result(result: Mapping[str, Any], weights: str | None) -> Mapping[str, Any]:
    """Returns the final evaluation of result.json, for a run without metric files; {} where there is none."""
    for split, kinds in (result.get("metrics") or {}).items():
        for kind in (weights,) if weights else ("ema", "raw"):
            if isinstance(kinds, Mapping) and isinstance(kinds.get(kind), Mapping):  # beside them is "train"
                values = {name: value for name, value in kinds[kind].items() if has_type(value, NUMBER)}
                return {"split": split, "weights": kind, "step": result.get("steps"), **values}
    return {}


def _parameters(path: Path) -> int | None:
    """Reads the number of parameters from the first lines of train.log, the only file that has it."""
    try:
        with open(path / "train.log", encoding="utf-8", errors="replace") as file:
            found = re.search(r"^\S+ ([\d,]+) parameters\b", file.read(_LOG_HEAD_BYTES), re.MULTILINE)
    except OSError:
        return None
    return int(found[1].replace(",", "")) if found else None


def _last_unless_finite(value: float | None, sign: int) -> tuple[bool, float]:
    if value is None or not math.isfinite(value):
        return True, 0.0
    return False, sign * value
