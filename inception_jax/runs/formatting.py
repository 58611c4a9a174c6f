"""The progress of a run, and its values as text: for the terminal, the log file and the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from inception_jax.metric_definitions import METRICS, Metric

INPUT_BOUND = 0.2  # a run that waits for data for a larger fraction of the time is called input-bound


@dataclasses.dataclass
class Phase:
    """A period of a run in which no training step ends, such as compilation or an evaluation.

    Attributes:
      text: what is being done.
      recurs: whether it happens again and again, as an evaluation does, so that it counts in the remaining time.
      note: a result that the caller may set; shown with the seconds at the end.
      seconds: how long it took, phases inside it included; 0.0 until it has ended.
      started: when it began, by the clock of its `ProgressStatus`.
      inner_seconds: how long the phases inside it took.
    """

    text: str
    recurs: bool = False
    note: str = ""
    seconds: float = 0.0
    started: float = 0.0
    inner_seconds: float = 0.0


@dataclasses.dataclass
class ProgressStatus:
    """The progress of a run, from which the terminal display is drawn.

    Attributes:
      title: the model's name, or another name for this run.
      step: steps done.
      total_steps: steps of the whole run.
      steps_per_epoch: None where epochs do not apply.
      clock: returns seconds; the times below and `Phase.started` are of this clock.
      started: when the run began.
      values: the last row of metrics and timing.
      phases: the active phases, outermost first.
      eta: seconds that remain; None while unknown.
      ended: when the run was closed; None before.
    """

    title: str
    step: int
    total_steps: int
    steps_per_epoch: float | None
    clock: Callable[[], float]
    started: float
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    phases: list[Phase] = dataclasses.field(default_factory=list)
    eta: float | None = None
    ended: float | None = None


def format_progress(status: ProgressStatus) -> str:
    """Formats a row of values as one line: `step 550/1,800  epoch 12.25/40  loss …  top-1 main 98.1 %, aux1 …`."""
    values = status.values
    parts = [f"step {format_steps(status)}"]
    if status.steps_per_epoch:
        parts.append(f"epoch {format_epochs(status)}")
    if "loss" in values:
        heads = ", ".join(f"{head} {format_number(value)}" for head, value in per_head(values, "loss"))
        parts.append(f"loss {format_number(values['loss'])}" + (f" ({heads})" if heads else ""))
    if tops := per_head(values, "top1"):
        parts.append("top-1 " + ", ".join(f"{head} {100 * value:.1f} %" for head, value in tops))
    if "learning_rate" in values:
        parts.append(f"lr {values['learning_rate']:.4g}")
    if "gradient_norm" in values:
        parts.append(f"gradient norm {format_number(values['gradient_norm'])}")
    if "images_per_second" in values:
        parts.append(f"{format_rate(values['images_per_second'])} images/s")
    if "data_wait_fraction" in values:
        wait = values["data_wait_fraction"]
        parts.append(f"data wait {100 * wait:.0f} %" + (" (input-bound)" if wait > INPUT_BOUND else ""))
    if status.eta is not None:
        parts.append(f"ETA {format_duration(status.eta)}")
    return "  ".join(parts)


def format_scores(values: Mapping[str, Any]) -> str:
    """Formats the metrics of an evaluation that are read first: `top-1 98.61 %, top-5 100.00 %, loss 0.0521`.

    Of several labels per example: `mAP 83.20 %, micro F1 80.00 %, loss 0.0521`.
    """
    first = ("mean_average_precision", "micro_f1") if is_multi_label(values) else ("top1", "top5")
    shown = [f"{METRICS[name].column} {format_metric(METRICS[name], values[name])}" for name in first]
    return ", ".join([*shown, f"loss {format_number(values['loss'])}"])


def is_multi_label(values: Mapping[str, Any]) -> bool:
    """Whether the metrics of an evaluation are those of several labels per example."""
    return "mean_average_precision" in values


def per_head(values: Mapping[str, Any], name: str) -> list[tuple[str, float]]:
    """Returns [(head, value)] of the keys `{name}_{head}`: main first, then aux1, aux2, …"""
    heads = {key.removeprefix(f"{name}_"): value for key, value in values.items() if key.startswith(f"{name}_")}
    return sorted(heads.items(), key=lambda head: (head[0] != "main", len(head[0]), head[0]))


def format_number(value: float) -> str:
    """Formats a loss or a norm: with four decimals, or in scientific notation below 0.001 and from 10,000 on."""
    return f"{value:.4f}" if not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def format_metric(metric: Metric, value: float | None) -> str:
    """Formats a value of a metric: `98.61 %`, or `0.0521` where it is not shown in per cent; None as unknown.

    What a run needed to reach a target: `1,234`, or `not reached`.
    """
    if value is None or (metric.decimals is not None and math.isnan(value)):
        return "–"
    if metric.decimals is not None:
        return f"{value:,.{metric.decimals}f}" if math.isfinite(value) else "not reached"
    return f"{100 * value:.2f} %" if metric.percent else format_number(value)


def format_rate(value: float) -> str:
    """Formats a number of images per second."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def format_duration(seconds: float) -> str:
    """Formats seconds: `42 s`, `3:05` (minutes), `2:03:45` (hours), `1 d 02:03`."""
    rounded = math.ceil(seconds) if math.isfinite(seconds) else 0
    minutes, second = divmod(rounded, 60)
    hours, minute = divmod(minutes, 60)
    if rounded < 60:
        return f"{rounded} s"
    if hours == 0:
        return f"{minutes}:{second:02d}"
    return f"{hours}:{minute:02d}:{second:02d}" if hours < 24 else f"{hours // 24} d {hours % 24:02d}:{minute:02d}"


def format_steps(status: ProgressStatus) -> str:
    """Formats the steps done and their total, `550/1,800`, padded to a constant width."""
    total = f"{status.total_steps:,}"
    return f"{status.step:>{len(total)},}/{total}"


def format_epochs(status: ProgressStatus) -> str:
    """Formats the epochs done and their total, `12.25/40`, padded to a constant width."""
    assert status.steps_per_epoch is not None  # only shown where epochs apply
    epochs = status.total_steps / status.steps_per_epoch
    total = f"{epochs:.4g}" if epochs < 1000 else f"{epochs:,.0f}"
    width = len(f"{epochs:,.2f}")
    return f"{status.step / status.steps_per_epoch:>{width},.2f}/{total}"
