"""Plots the curves of several runs together: training loss, evaluation loss and accuracy, a colour per run."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from inception_jax.metric_definitions import METRICS, Metric
from inception_jax.runs import curves, plot_style
from inception_jax.runs.comparison import Comparison
from inception_jax.runs.formatting import format_metric
from inception_jax.runs.manifest import ABSENT
from inception_jax.runs.plot_style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from inception_jax.runs.run_state import RunState
from inception_jax.runs.tables import format_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X_AXES = {"epoch": "epoch", "step": "step", "seconds": "seconds since the start, pauses left out"}
WIDTH, PANEL_HEIGHT = 11.0, 3.5  # inches

_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK)
_STYLES: tuple[Literal["-", "--"], ...] = ("-", "--")
_MANY = 10  # with more runs, only the best are in colour …
_BEST = 6  # … this many of them
_FADED = "#BBBBBB"
_MAX_POINTS = 200  # of a curve; of more, neighbouring points are averaged
_FEW = 25  # curves of at most so many points have markers
_LEGEND_LINE = 0.17  # inches
_LONGEST = 60  # characters of a name in the legend
_NAMED_FIELDS, _LONGEST_FIELD = 2, 24  # at most so many differing fields are named there, with so many characters


@dataclasses.dataclass(frozen=True)
class _LineStyle:
    colour: str
    line: Literal["-", "--"]
    width: float
    order: float
    name: str | None


def draw(comparison: Comparison, path: str | os.PathLike, *, x: str = "epoch") -> Figure | None:
    """Draws the curves of all runs over each other.

    Each of up to ten runs has its own colour and line style. Of more, only the best by the comparison's metric have;
    the others are grey.

    Args:
      comparison: as `comparison.compare` gives it.
      path: of the PNG file.
      x: "epoch", "step" or "seconds" (the run's own clock, without the time between two starts).

    Returns:
      The figure, with an axes for the training loss, one for the evaluation loss, and one for the metric unless it is
      the loss; None where no run has a row to draw; no file is written then.

    Raises:
      ValueError: an unknown `x`.
      UserError: the file cannot be written.
    """
    if x not in X_AXES:
        raise ValueError(f"x = {x!r}: one of {', '.join(X_AXES)}")
    if not any(run.rows for run in comparison.runs):
        return None
    styles = _line_styles(comparison)
    loss = METRICS["loss"]
    panels = [("train", loss), ("evaluation", loss)]
    panels += [("evaluation", comparison.metric)] if comparison.metric.name != "loss" else []
    named = [
        styles[run] for run in (comparison.ranked() if len(styles) > _MANY else range(len(styles))) if styles[run].name
    ]
    columns = _legend_columns([style.name or "" for style in named])
    height = PANEL_HEIGHT + 0.2 + _LEGEND_LINE * -(-(len(named) + 2) // columns)
    with plot_style.saved_figure(path, WIDTH, height) as figure:
        grid, has_broken = figure.subplots(1, len(panels)), False
        for axes, (kind, metric) in zip(grid, panels, strict=True):
            axes.set_title("training loss" if kind == "train" else _evaluation_title(comparison, metric))
            for run, style in zip(comparison.runs, styles, strict=True):
                rows = run.of_kind("train") if kind == "train" else run.evaluations(comparison.weights)
                has_broken |= _curve(axes, run, rows, metric, x, style)
            _finish_axes(axes, metric, x)
        handles = _handles(named, len(styles) - len(named), has_broken)
        figure.legend(handles=handles, loc="outside lower left", ncols=columns, handlelength=2.2)
    return figure


def _line_styles(comparison: Comparison) -> list[_LineStyle]:
    """Returns the style of each run; it is the same in all panels."""
    ranked, count = comparison.ranked(), len(comparison.runs)
    in_colour = ranked[:_BEST] if count > _MANY else range(count)
    places = {run: place for place, run in enumerate(in_colour)}
    styles = []
    for run in range(count):
        if run not in places:
            styles.append(_LineStyle(_FADED, "-", 0.7, 1.0, None))
            continue
        colour = _COLOURS[places[run] % len(_COLOURS)]
        line = _STYLES[places[run] // len(_COLOURS) % len(_STYLES)]
        styles.append(_LineStyle(colour, line, 1.5, 3.0 - places[run] / 100, _name(comparison, run)))
    return styles


def _name(comparison: Comparison, run: int) -> str:
    """Returns the legend's text: the label, the config fields that differ where they are few, and the result."""
    name = _shorten_middle(comparison.labels[run])
    if 0 < len(comparison.config) <= _NAMED_FIELDS:
        fields = [
            f"{one.name.rpartition('.')[2]} {plot_style.shorten(format_values(one.values)[run], _LONGEST_FIELD)}"
            for one in comparison.config
            if one.values[run] != ABSENT
        ]
        name += f" ({', '.join(fields)})" if fields else ""
    value = comparison.outcomes[run].value
    return name if value is None else f"{name}  {format_metric(comparison.metric, value)}"


def _shorten_middle(name: str) -> str:
    """Cuts the middle out of a long name: related runs have names that begin alike, or end alike."""
    part = (_LONGEST - 1) // 2
    return name if len(name) <= _LONGEST else f"{name[:part]}…{name[-part:]}"


def _legend_columns(names: Sequence[str]) -> int:
    """Returns the number of legend columns that fit the longest name."""
    return max(1, min(4, 150 // (max(map(len, names), default=1) + 10)))


def _evaluation_title(comparison: Comparison, metric: Metric) -> str:
    """Returns the title of an evaluation panel, with split and weights where they are the same for all runs."""
    kinds = {(one.split, one.weights) for one in comparison.outcomes if one.split and one.weights}
    return f"evaluation, {metric.title}" + (f" ({', '.join(kinds.pop())})" if len(kinds) == 1 else "")


def _handles(named: Sequence[_LineStyle], faded: int, has_broken: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.colour, linestyle=style.line, linewidth=style.width, label=style.name)
        for style in named
    ]
    if faded:
        handles.append(Line2D([], [], color=_FADED, linewidth=0.7, label=f"{faded} others"))
    if has_broken:
        handles.append(Line2D([], [], color=GREY, linestyle="none", marker="x", markersize=6, label="not finite after"))
    return handles


def _curve(
    axes: Axes, run: RunState, rows: Sequence[Mapping[str, Any]], metric: Metric, x: str, style: _LineStyle
) -> bool:
    """Draws one run's curve, with a cross where its values stop being finite; returns whether there is a cross."""
    rows = [row for row in rows if metric.name in row]
    xs = _x_coordinates(run, rows, x)
    values = metric.unit * np.array([row[metric.name] for row in rows], np.float64)
    good = np.isfinite(values) & np.isfinite(xs)
    broken = len(values) > 0 and not np.isfinite(values[-1])  # a skipped update in between is a gap
    xs, values = xs[good], values[good]
    if len(values) == 0:
        return False
    if broken:
        axes.plot(
            xs[-1],
            values[-1],
            marker="x",
            color=style.colour,
            markersize=7,
            markeredgewidth=1.6,
            zorder=style.order + 0.5,
        )
    if len(values) > _MAX_POINTS:
        parts = np.array_split(np.arange(len(values)), _MAX_POINTS)
        xs, values = (np.array([array[part].mean() for part in parts]) for array in (xs, values))
    marker = "." if len(values) == 1 or (len(values) <= _FEW and style.name) else None
    axes.plot(
        xs,
        values,
        color=style.colour,
        linestyle=style.line,
        linewidth=style.width,
        zorder=style.order,
        marker=marker,
        markersize=3.5,
    )
    return broken


def _x_coordinates(run: RunState, rows: Sequence[Mapping[str, Any]], x: str) -> np.ndarray:
    """Returns the x coordinates of the rows; NaN where one is not known."""
    if x != "seconds":
        return np.array([row.get(x, np.nan) for row in rows], np.float64)
    clock = [(row["step"], row["wall_seconds"]) for row in run.timing if "wall_seconds" in row]
    if not clock:
        return np.full(len(rows), np.nan)
    steps, seconds = np.array(clock, np.float64).T
    return np.interp(np.array([row["step"] for row in rows]), steps, seconds, left=np.nan, right=np.nan)


def _finish_axes(axes: Axes, metric: Metric, x: str) -> None:
    axes.set_xlabel(X_AXES[x])
    axes.grid(True)
    if not axes.lines:
        axes.text(0.5, 0.5, "no rows", transform=axes.transAxes, ha="center", va="center", color=GREY)
        plot_style.hide_axes(axes)
        return
    axes.set_xlim(left=0)
    if metric.name == "loss":
        curves.log_where_sensible(axes)
        return
    if not metric.percent:
        return
    values = np.concatenate([line.get_ydata() for line in axes.lines])
    axes.set_ylabel("%")
    if values.max() > 95:
        curves.spread_near_100(axes, values.min())
    else:
        axes.set_ylim(0, min(101, 1.08 * values.max() or 1))
