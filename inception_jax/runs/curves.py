"""Plots learning curves: losses and accuracies of every head, and the learning rate, over the epochs of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.runs import plot_style
from inception_jax.runs.formatting import format_number, per_head
from inception_jax.runs.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 11.0, 4.1  # inches
_MAX_TRAIN, _MAX_EVALUATIONS = 80, 400  # points of a curve; of more, neighbouring points are drawn as mean and spread
_PER_POINT = 3  # rows in such a mean, at least
_FEW = 30  # curves of at most so many points have markers

# (colour, line, marker)
_HEADS = {"main": (BLUE, "-", "."), "aux1": (ORANGE, "-", "."), "aux2": (GREEN, "-", ".")}
_WEIGHTS = {"raw": (VERMILLION, "--", "o"), "ema": (PURPLE, "-", "s")}
_TOTAL, _OTHER = (BLACK, ":", "."), (SKY, "-", "^")


def learning_curves(rows: Iterable[Mapping[str, Any]], path: str | os.PathLike, *, title: str = "") -> Figure:
    """Draws losses, top-1 accuracies (of several labels mean average precision) and learning rate of a run.

    Args:
      rows: of metrics.jsonl, from `metric_files.read_rows`; at least one.
      path: of the PNG file.
      title: e.g. the model and the data set.

    Returns:
      The figure, with three axes: loss, top-1, learning rate.

    Raises:
      ValueError: there is not a single training or evaluation row.
      UserError: the file cannot be written.
    """
    rows = list(rows)
    train = [row for row in rows if row.get("kind") == "train"]
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    if not train and not evaluations:
        raise ValueError("no row to draw: neither training nor evaluation")
    with plot_style.saved_figure(path, WIDTH, HEIGHT) as figure:
        loss, top1, rate = figure.subplots(1, 3, width_ratios=(1.25, 1.25, 0.8))
        _draw_losses(loss, train, evaluations)
        _draw_accuracies(top1, train, evaluations)
        _draw_rate(rate, train)
        last = max(row["epoch"] for row in [*train, *evaluations])
        for axes in (loss, top1, rate):
            axes.set_xlabel("epoch")
            axes.set_xlim(0, 1.02 * last or 1)
            axes.grid(True)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _draw_losses(axes: Axes, train: list, evaluations: list) -> None:
    axes.set_title("loss")
    heads = [head for head, _ in per_head(train[-1], "loss")] if train else []
    if len(heads) > 1:
        _curve(axes, train, "loss", "train, total (heads weighted)", *_TOTAL)
    for head in heads:
        _curve(axes, train, f"loss_{head}", f"train, {head}", *_HEADS.get(head, _OTHER))
    if train and not heads:
        _curve(axes, train, "loss", "train", *_HEADS["main"])
    for (split, weights), group in _groups(evaluations):
        _curve(axes, group, "loss", f"{split}, {weights}", *_WEIGHTS.get(weights, _OTHER), limit=_MAX_EVALUATIONS)
    log_where_sensible(axes)
    broken = [row["epoch"] for row in train if not np.isfinite(row.get("loss", 0.0))]
    if broken:
        axes.axvline(broken[0], color=GREY, linestyle=":", linewidth=1.0)
        axes.annotate(
            "not finite",
            (broken[0], 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            ha="right",
            va="bottom",
            color=GREY,
            fontsize=7,
        )
    _legend(axes)


def _draw_accuracies(axes: Axes, train: list, evaluations: list) -> None:
    several = any("mean_average_precision" in row for row in evaluations)
    axes.set_title("mean average precision" if several else "top-1 accuracy")
    for head, _ in per_head(train[-1], "top1") if train else []:
        _curve(axes, train, f"top1_{head}", f"train, {head}", *_HEADS.get(head, _OTHER), scale=100)
    for (split, weights), group in _groups(evaluations):
        look = _WEIGHTS.get(weights, _OTHER)
        key = "mean_average_precision" if several else "top1"
        _curve(axes, group, key, f"{split}, {weights}", *look, scale=100, limit=_MAX_EVALUATIONS)
    axes.set_ylabel("%")
    axes.set_ylim(0, 101)
    if max((np.asarray(line.get_ydata())[-1] for line in axes.lines), default=0.0) > 95:
        spread_near_100(axes)
    _legend(axes)


def _draw_rate(axes: Axes, train: list) -> None:
    axes.set_title("learning rate")
    x, y = _column(train, "learning_rate")
    if len(x) == 0:
        return
    axes.plot(x, y, color=BLACK, marker="." if len(x) == 1 else None)
    positive = y[y > 0]
    # Half of the run is below a fifth of the maximum: a linear axis would show that half near zero.
    if len(positive) and np.median(y) < positive.max() / 5:
        axes.set_yscale("log", nonpositive="mask")
        plain_log_ticks(axes, positive.min(), positive.max())
    else:
        axes.set_ylim(0, 1.05 * y.max() or 1)


def _curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    key: str,
    label: str,
    color: str,
    style: str,
    marker: str,
    *,
    scale: float = 1.0,
    limit: int = _MAX_TRAIN,
) -> None:
    """Draws a curve, with its last value in the legend; many rows as mean and spread (10 % to 90 %)."""
    x, y = _column(rows, key)
    y = scale * y
    if len(y) == 0:
        return
    if len(y) > limit:
        parts = np.array_split(np.arange(len(y)), min(limit, len(y) // _PER_POINT))
        low, high = np.array([np.quantile(y[part], (0.1, 0.9)) for part in parts]).T
        x, y = (np.array([values[part].mean() for part in parts]) for values in (x, y))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    last = f"{y[-1]:.2f} %" if scale == 100 else format_number(y[-1])
    axes.plot(
        x,
        y,
        color=color,
        linestyle=style,
        marker=marker if len(x) <= _FEW else None,
        markersize=3.5,
        label=f"{label}  {last}",
    )


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (epochs, values) of the rows that have a finite value."""
    points = [(row["epoch"], row[key]) for row in rows if key in row and np.isfinite(row[key])]
    epochs, values = np.array(points, np.float64).reshape(-1, 2).T
    return epochs, values


def _groups(evaluations: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, str], list[Mapping[str, Any]]]]:
    """Groups evaluation rows: [((split, weights), rows)], raw weights before EMA weights."""
    keys = sorted({(row["split"], row["weights"]) for row in evaluations}, key=lambda key: (key[0], key[1] != "raw"))
    return [(key, [row for row in evaluations if (row["split"], row["weights"]) == key]) for key in keys]


def log_where_sensible(axes: Axes) -> None:
    """Makes the y axis logarithmic where all values are positive and their ratio exceeds 5."""
    values = np.concatenate([line.get_ydata() for line in axes.lines] or [np.ones(1)])
    if len(values) and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log", nonpositive="mask")
        plain_log_ticks(axes, values.min(), values.max())


def plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """Labels a log axis with 0.02, 0.05, 0.1 …: with powers of ten alone, an axis of one decade has one label."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def spread_near_100(axes: Axes, lowest: float = 0.0) -> None:
    """Spaces accuracies by the logarithm of the error: above 98 %, curves on a linear axis would coincide.

    Args:
      axes: with accuracies in per cent.
      lowest: the lowest accuracy; the axis begins a little below it.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter

    margin = 0.25  # %: without it, the logarithm of the error would be infinite at 100

    axes.set_yscale(
        "function",
        functions=(
            lambda accuracy: -np.log(np.maximum(100 - accuracy, 0) + margin),
            lambda height: 100 + margin - np.exp(-height),
        ),
    )
    axes.set_ylim(max(0.0, min(99.0, lowest - 0.15 * (100 - lowest))), 100)
    axes.set_ylabel("%, spaced by the logarithm of the error")
    axes.yaxis.set_major_locator(FixedLocator([0, 50, 80, 90, 95, 98, 99, 99.5, 100]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        # Below the axes: inside them it would cover a curve of most runs.
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0.0, -0.16),
            borderaxespad=0.0,
            ncols=2,
            fontsize=7,
            handlelength=1.6,
            columnspacing=1.0,
        )
