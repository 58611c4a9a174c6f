"""Plots of a study: history, learning curves, slices, importance.

In all plots, blue is a finished trial, grey a pruned one, and a cross one without a value.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.runs import plot_style
from inception_jax.runs.plot_style import BLACK, BLUE, GREY, ORANGE, PURPLE, SKY, VERMILLION
from inception_jax.sweeps import scales
from inception_jax.sweeps.importance import Importance
from inception_jax.sweeps.study_files import StoredStudy, StoredTrial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

PALE = "#BDBDBD"
COLORMAP = "viridis"
"""Matplotlib colormap: ordered by lightness, so it is readable with any colour vision and in greyscale."""

# status: (colour, marker)
_STYLES = {
    "finished": (BLUE, "o"),
    "pruned": (GREY, "v"),
    "running": (SKY, "o"),
    "interrupted": (SKY, "s"),
    "diverged": (VERMILLION, "x"),
    "failed": (PURPLE, "+"),
}
_END_MARKERS = {"pruned": "|", "diverged": "x", "failed": "+", "running": "."}  # of a curve that stops early
_BASELINE = 0.025  # fraction of the axes' height where trials without a value are marked
_JITTER = 0.5  # fraction of the distance between two categories
_SLICE_COLUMNS = 3


def history(study: StoredStudy, path: str | os.PathLike) -> Figure | None:
    """Draws the value of each trial over its number, and the best value so far.

    Args:
      study: as `study_files.read` gives it.
      path: of the PNG file.

    Returns:
      The figure, with one axes; None, without a file, where no trial has a value to show yet.

    Raises:
      UserError: the file cannot be written.
    """
    placed = [trial for trial in study.trials if not _has_no_position(trial)]
    if not placed:
        return None
    size = 5.5 if len(study.trials) <= 60 else 3.2
    with plot_style.saved_figure(path, 8.0, 3.9) as figure:
        axes = figure.subplots()
        for status, (colour, marker) in _STYLES.items():
            trials = study.with_status(status)
            if not trials:
                continue
            whole = status in ("finished", "diverged", "failed") or trials[0].is_to_target
            label = f"{status} ({len(trials)})" + ("" if whole else ": last evaluation")
            _points(axes, study, trials, colour, marker, size, label)
        ranked = study.ranked()
        if ranked:
            _best_so_far(axes, study)
            best = ranked[0]
            axes.plot(
                best.number,
                study.unit * best.shown_value,
                marker="o",
                markersize=size + 5,
                markerfacecolor="none",
                markeredgecolor=ORANGE,
                markeredgewidth=1.8,
                linestyle="none",
                zorder=5,
                label=f"best: trial {best.number}",
            )
        scales.set_metric_axis(axes, [trial.shown_value for trial in placed], study)
        axes.set_xlim(-0.6, max(trial.number for trial in study.trials) + 0.6)
        _integer_ticks(axes.xaxis)
        axes.set_xlabel("trial")
        axes.grid(True)
        figure.legend(loc="outside lower left", ncols=4)
    return figure


def _points(
    axes: Axes, study: StoredStudy, trials: Sequence[StoredTrial], colour: str, marker: str, size: float, label: str
) -> None:
    """Draws the trials of one status at their values; diverged, failed and valueless ones at the bottom."""
    without_position = [trial for trial in trials if _has_no_position(trial)]
    placed = [trial for trial in trials if not _has_no_position(trial)]
    faces = {} if marker in "x+" or trials[0].status == "finished" else {"markerfacecolor": "white"}
    common: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "markersize": size,
        "linestyle": "none",
        "zorder": 3,
        **faces,
    }
    axes.plot(
        [trial.number for trial in placed], [study.unit * trial.shown_value for trial in placed], label=label, **common
    )
    axes.plot(
        [trial.number for trial in without_position],
        [_BASELINE] * len(without_position),
        transform=axes.get_xaxis_transform(),
        markeredgewidth=1.5,
        **common,
    )


def _has_no_position(trial: StoredTrial) -> bool:
    return not trial.has_value or trial.status in ("diverged", "failed")


def _integer_ticks(axis: Axis) -> None:
    """Puts ticks at integers only."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(integer=True, min_n_ticks=1)


def _best_so_far(axes: Axes, study: StoredStudy) -> None:
    finished = [trial for trial in study.with_status("finished") if trial.value is not None]
    numbers = [trial.number for trial in finished]
    accumulate = np.maximum.accumulate if study.maximize else np.minimum.accumulate
    best = accumulate([study.unit * trial.shown_value for trial in finished])
    last = max(trial.number for trial in study.trials)
    axes.step(
        [*numbers, last], [*best, best[-1]], where="post", color=ORANGE, linewidth=1.6, zorder=2, label="best so far"
    )


def learning_curves(study: StoredStudy, path: str | os.PathLike) -> Figure | None:
    """Draws the evaluated metric of every trial over the epoch; the curve of a pruned trial ends where it was pruned.

    Args:
      study: as `study_files.read` gives it.
      path: of the PNG file.

    Returns:
      The figure, with one axes; None, without a file, where no trial was evaluated.

    Raises:
      UserError: the file cannot be written.
    """
    study = dataclasses.replace(study, metric=study.evaluated)  # what the axis shows; the ranking stays
    curves = [(trial, _finite(trial)) for trial in study.trials]
    curves = [(trial, points) for trial, points in curves if points]
    if not curves:
        return None
    ranked = study.ranked()
    best = ranked[0].number if ranked else None
    alpha = 0.9 if len(curves) <= 30 else 0.5 if len(curves) <= 100 else 0.3
    with plot_style.saved_figure(path, 8.0, 4.1) as figure:
        axes = figure.subplots()
        labelled: set[str] = set()
        for trial, points in sorted(curves, key=lambda curve: [*_STYLES, curve[0].status].index(curve[0].status)):
            epochs, values = np.array(points).T
            if trial.number == best:
                axes.plot(
                    epochs,
                    study.unit * values,
                    color=ORANGE,
                    linewidth=2.4,
                    zorder=5,
                    marker=".",
                    markersize=5,
                    label=f"best: trial {best}",
                )
                continue
            colour, _ = _STYLES.get(trial.status, (SKY, "o"))
            label = None if trial.status in labelled else f"{trial.status} ({len(study.with_status(trial.status))})"
            labelled.add(trial.status)
            axes.plot(
                epochs,
                study.unit * values,
                color=colour,
                linewidth=0.9,
                alpha=alpha,
                zorder=2,
                label=label,
                marker=_END_MARKERS.get(trial.status, "." if len(points) == 1 else None),
                markersize=4,
                markevery=[len(points) - 1],
            )
        scales.set_metric_axis(axes, [value for _, points in curves for _, value in points], study)
        axes.set_xlim(0, 1.02 * max(points[-1][0] for _, points in curves))
        axes.set_xlabel("epoch")
        axes.grid(True)
        for handle in figure.legend(loc="outside lower left", ncols=5).get_lines():
            handle.set_alpha(1.0)
            handle.set_linewidth(1.6)
    return figure


def _finite(trial: StoredTrial) -> list[tuple[float, float]]:
    return [(epoch, value) for epoch, value in trial.evaluations if math.isfinite(value)]


def slices(study: StoredStudy, path: str | os.PathLike) -> Figure | None:
    """Draws the value over each parameter, coloured by the trial's number, which shows where the sampler went.

    Args:
      study: as `study_files.read` gives it.
      path: of the PNG file.

    Returns:
      The figure, with one axes per parameter and one for the colorbar; None, without a file, where no trial has
      finished or the space is empty.

    Raises:
      UserError: the file cannot be written.
    """
    shown = [trial for trial in study.trials if trial.has_value and trial.status != "failed"]
    if not study.ranked() or not study.space:
        return None
    columns = min(_SLICE_COLUMNS, len(study.space))
    rows = -(-len(study.space) // columns)
    with plot_style.saved_figure(path, 2.0 + 3.0 * columns, 0.7 + 2.6 * rows) as figure:
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        scales.set_metric_axis(grid[0, 0], [trial.shown_value for trial in shown], study)
        figure.supylabel(grid[0, 0].get_ylabel(), fontsize=8)
        grid[0, 0].set_ylabel("")
        used, unused = grid.flat[: len(study.space)], grid.flat[len(study.space) :]
        points = [_slice(axes, study, field, shown) for axes, field in zip(used, study.space, strict=True)]
        for axes in unused:
            axes.remove()
        bar = figure.colorbar(points[-1], ax=list(used), fraction=0.025, pad=0.01)
        bar.set_label("trial")
        bar.outline.set_visible(False)
        _integer_ticks(bar.ax.yaxis)
        if any(trial.status != "finished" for trial in shown):
            handle = figure.axes[0].plot(
                [],
                [],
                color=PALE,
                marker="v",
                markersize=4,
                linestyle="none",
                label="pruned or not finished: last evaluation",
            )
            figure.legend(handles=handle, loc="outside lower left")
    return figure


def _slice(axes: Axes, study: StoredStudy, field: str, shown: Sequence[StoredTrial]) -> PathCollection:
    """Draws one parameter; returns the coloured points of the finished trials."""
    with_it = [trial for trial in shown if field in trial.params]
    scale = scales.AxisScale(study.space[field], [trial.params[field] for trial in with_it])
    spots = np.array([scale.position(trial.params[field]) for trial in with_it], np.float64)
    if scale.is_choice:
        spots = spots + scales.jitter([trial.number for trial in with_it]) * _JITTER / len(scale.choices)
    values = np.array([study.unit * trial.shown_value for trial in with_it])
    whole = np.array([trial.status == "finished" for trial in with_it], bool)
    numbers = np.array([trial.number for trial in with_it])
    size = 26 if len(shown) <= 60 else 11
    axes.scatter(spots[~whole], values[~whole], color=PALE, marker="v", s=0.6 * size, linewidth=0, zorder=2)
    points = axes.scatter(
        spots[whole],
        values[whole],
        c=numbers[whole],
        cmap=COLORMAP,
        s=size,
        zorder=3,
        vmin=0,
        vmax=max(1, study.trials[-1].number),
        edgecolor="white",
        linewidth=0.3,
    )
    ticks = scale.ticks()
    axes.set_xlim(-0.04, 1.04)
    axes.set_xticks([at for at, _ in ticks], [plot_style.shorten(label, 16) for _, label in ticks])
    if scale.is_choice and sum(len(label) for _, label in ticks) > 30:
        axes.tick_params(axis="x", labelrotation=25)
    axes.set_xlabel(field + (" (log)" if scale.log else ""))
    axes.grid(True)
    return points


def importance(found: Importance, path: str | os.PathLike) -> Figure:
    """Draws the importance of each parameter as a bar.

    Args:
      found: an estimate that is not empty.
      path: of the PNG file.

    Returns:
      The figure, with one axes.

    Raises:
      UserError: the file cannot be written.
    """
    names, shares = list(found.shares), list(found.shares.values())
    with plot_style.saved_figure(path, 7.0, 0.8 + 0.32 * len(names)) as figure:
        axes = figure.subplots()
        bars = axes.barh(range(len(names)), shares, color=BLUE, height=0.62)
        axes.bar_label(bars, [f"{100 * share:.0f} %" for share in shares], padding=3, color=BLACK, fontsize=7.5)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.12 * max(shares) or 1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"share of the variance ({found.method}, {found.trials} finished trials)")
    return figure
