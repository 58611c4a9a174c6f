"""Parallel coordinates plot: each trial is a line over one axis per parameter; the last axis is the metric."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inception_jax.runs import plot_style
from inception_jax.runs.plot_style import BLACK, GREY, ORANGE
from inception_jax.sweeps import scales
from inception_jax.sweeps.parameters import Parameter
from inception_jax.sweeps.plots import COLORMAP, PALE
from inception_jax.sweeps.study_files import StoredStudy, StoredTrial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BAND = 0.6  # fraction of a category's height over which its lines are spread
_LONGEST = 14  # characters of a tick label


def parallel_coordinates(study: StoredStudy, path: str | os.PathLike) -> Figure | None:
    """Draws the finished trials as lines, coloured by rank, the best on top; pruned trials are pale, behind them.

    A parameter whose condition does not hold in a trial leaves a gap in the line of the trial.

    Args:
      study: as `study_files.read` gives it.
      path: of the PNG file.

    Returns:
      The figure, with one axes; None, without a file, where no trial has finished or the space is empty.

    Raises:
      UserError: the file cannot be written.
    """
    ranked = study.ranked()
    if not ranked or not study.space:
        return None
    drawn = [*(trial for trial in study.with_status("pruned") if trial.has_value), *reversed(ranked)]
    fields = _beside_conditions(study.space)
    axis_scales = {
        field: scales.AxisScale(study.space[field], [one.params[field] for one in drawn if field in one.params])
        for field in fields
    }
    heights = _heights(study, axis_scales, drawn)
    count = len(fields) + 1
    with plot_style.saved_figure(path, max(6.0, 1.45 * count + 0.8), 4.6) as figure:
        axes = figure.subplots()
        plot_style.hide_axes(axes)
        _lines(axes, study, drawn, ranked, heights)
        for place, (field, scale) in enumerate(axis_scales.items()):
            _axis(axes, place, field, scale.ticks(), "log" if scale.log else "")
        _axis(axes, count - 1, study.metric.axis_label, _value_ticks(study, drawn), "")
        axes.set_xlim(-0.55, count - 1 + 0.45)
        axes.set_ylim(-0.04, 1.2)
        handles = [axes.plot([], [], color=ORANGE, linewidth=2.4, label=f"best: trial {ranked[0].number}")[0]]
        if len(drawn) > len(ranked):
            label = f"pruned ({len(drawn) - len(ranked)}): last evaluation"
            handles += axes.plot([], [], color=PALE, linewidth=1.0, label=label)
        label = f"finished ({len(ranked)}): lighter is better"
        handles += axes.plot([], [], color=_colours([0.6])[0], linewidth=1.4, label=label)
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
    return figure


def _lines(
    axes: Axes, study: StoredStudy, drawn: Sequence[StoredTrial], ranked: Sequence[StoredTrial], heights: np.ndarray
) -> None:
    """Draws the lines: pruned trials first, then from the worst to the best."""
    pale = len(drawn) - len(ranked)
    alpha = 0.85 if len(drawn) <= 40 else 0.5 if len(drawn) <= 120 else 0.3
    # By rank: by value, a few bad trials would use the whole scale, and all good ones would have one colour.
    _, ranks = np.unique(np.array([-trial.shown_value for trial in ranked])[::-1], return_inverse=True)
    colours = _colours(1 - ranks / max(1, ranks.max()) if study.maximize else ranks / max(1, ranks.max()))
    for index, (trial, line) in enumerate(zip(drawn, heights, strict=True)):
        is_best = trial.number == ranked[0].number
        colour = ORANGE if is_best else PALE if index < pale else colours[index - pale]
        axes.plot(
            range(len(line)),
            line,
            color=colour,
            linewidth=2.6 if is_best else 0.6 if index < pale else 1.1,
            alpha=1.0 if is_best else alpha,
            zorder=2 + index / len(drawn),
            solid_joinstyle="round",
            marker=".",
            markersize=6 if is_best else 2.5,
        )


def _colours(ranks: Sequence[float] | np.ndarray) -> np.ndarray:
    """Colours from dark for the worst (0) to light for the best (1); the lightest yellow is invisible on white."""
    from matplotlib import colormaps

    return colormaps[COLORMAP](0.85 * np.asarray(ranks))


def _beside_conditions(space: Mapping[str, Parameter]) -> list[str]:
    """Orders conditional parameters next to those in their conditions: gaps are adjacent, and not beside the metric."""
    ordered = [field for field, one in space.items() if not one.when]
    for field, one in space.items():
        if one.when:
            places = [place for place, other in enumerate(ordered) if {other, *space[other].when} & {*one.when}]
            ordered.insert(max(places, default=len(ordered) - 1) + 1, field)
    return ordered


def _heights(
    study: StoredStudy, axis_scales: Mapping[str, scales.AxisScale], drawn: Sequence[StoredTrial]
) -> np.ndarray:
    """Heights from 0 to 1 where each line crosses each axis: float64 [trials, parameters + 1]; NaN at a gap."""
    columns = []
    numbers = [trial.number for trial in drawn]
    for field, scale in axis_scales.items():
        column = np.array([scale.position(trial.params[field]) if field in trial.params else np.nan for trial in drawn])
        if scale.is_choice:
            column = column + scales.jitter(numbers) * _BAND / len(scale.choices)
        columns.append(column)
    columns.append(_value_heights(study, [trial.shown_value for trial in drawn], drawn))
    return np.array(columns).T


def _value_heights(study: StoredStudy, values: Sequence[float], drawn: Sequence[StoredTrial]) -> np.ndarray:
    """Heights of values on the last axis, with the same transform as in the other plots."""
    every = scales.metric_to_axis([trial.shown_value for trial in drawn] + list(values), study)
    low, high = every.min(), every.max()
    return (every[len(drawn) :] - low) / (high - low) if high > low else np.full(len(values), 0.5)


def _value_ticks(study: StoredStudy, drawn: Sequence[StoredTrial]) -> list[tuple[float, str]]:
    from matplotlib.ticker import MaxNLocator

    values = sorted(trial.shown_value for trial in drawn)
    best_first = [values[-1], values[0]] if study.maximize else [values[0], values[-1]]
    wanted = [*best_first, *(v / 100 for v in (99.5, 99, 98, 95, 90, 80, 50, 20))]
    if not study.metric.percent:
        wanted = [*best_first, *(factor * 10.0**power for power in range(-4, 3) for factor in (1, 2, 5))]
    even = np.asarray(MaxNLocator(5).tick_values(study.unit * values[0], study.unit * values[-1])) / study.unit
    ticks: list[tuple[float, str]] = []
    for value in (*wanted, *even):
        if values[0] <= value <= values[-1]:
            at = float(_value_heights(study, [value], drawn)[0])
            if all(abs(at - other) > 0.06 for other, _ in ticks):
                ticks.append((at, f"{study.unit * value:.4g}"))
    return ticks


def _axis(axes: Axes, place: int, name: str, ticks: Sequence[tuple[float, str]], note: str) -> None:
    """Draws a vertical axis with its name above it (section and field in two lines), and its ticks to the left."""
    axes.plot([place, place], [0, 1], color=GREY, linewidth=0.8, zorder=4)
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for at, label in ticks:
        axes.plot([place - 0.025, place], [at, at], color=GREY, linewidth=0.8, zorder=4)
        axes.text(
            place - 0.04,
            at,
            plot_style.shorten(label, _LONGEST),
            ha="right",
            va="center",
            fontsize=7,
            zorder=6,
            bbox=box,
        )
    section, dot, field = name.rpartition(".") if "," not in name else ("", "", name)
    field += f" ({note})" if note else ""
    axes.text(place, 1.06, field, ha="center", va="bottom", fontsize=8, fontweight="bold", color=BLACK)
    axes.text(place, 1.125, section + dot, ha="center", va="bottom", fontsize=7, color=GREY)
