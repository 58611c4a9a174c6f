"""Plots a measurement: the roofline bound of every block, and the step time of each block of steps."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inception_jax.benchmarks.measure import KIND_NAMES
from inception_jax.benchmarks.report import format_milliseconds
from inception_jax.runs import plot_style
from inception_jax.runs.plot_style import BLACK, BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _ROW, _HEAD = 11.0, 0.17, 1.5  # inches: the figure, one block's row, margins
_NO_BLOCKS_HEIGHT = 3.2


def draw(result: Mapping[str, Any], path: str | os.PathLike) -> Figure:
    """Plots a measurement.

    For each kind of step: two bars per block of the network, compute time and memory time, the larger (the bound) in
    full colour; and the time of each block of steps, with the sum of the bounds as a line.

    Args:
      result: from `measure.measure` or `report.read_measurement`.
      path: path of the PNG file.

    Returns:
      The figure; two axes per kind of step if there is a roofline, else one.

    Raises:
      UserError: the file cannot be written.
    """
    kinds = [kind for kind in KIND_NAMES if kind in result]
    bounded = [kind for kind in kinds if result[kind]["roofline"]]
    most = max((len(result[kind]["roofline"]["blocks"]) for kind in bounded), default=0)
    height = max(_NO_BLOCKS_HEIGHT, _HEAD + _ROW * most)
    columns = 2 if bounded else 1
    with plot_style.saved_figure(path, _WIDTH, height * len(kinds)) as figure:
        grid = figure.subplots(len(kinds), columns, squeeze=False, width_ratios=(1.5, 1.0)[:columns])
        for kind, axes in zip(kinds, grid, strict=True):
            if bounded:
                _draw_blocks(axes[0], result[kind]["roofline"], KIND_NAMES[kind])
            _draw_times(axes[-1], result[kind], KIND_NAMES[kind])
        figure.suptitle(_title(result), x=0.01, ha="left", fontsize=9.5, fontweight="bold")
    return figure


def _title(result: Mapping[str, Any]) -> str:
    """Workload and device in one line."""
    workload, device = result["task"], result["device"]
    return (
        f"{workload['model']}, {workload['image_size']} pixels, batch {workload['batch_size']:,}, {workload['dtype']}, "
        f"on {device['count']} x {device['kind']}"
    )


def _draw_blocks(axes: Axes, content: Mapping[str, Any] | None, name: str) -> None:
    axes.set_title(f"{name}: roofline bound of each block")
    if not content:
        plot_style.hide_axes(axes)
        return
    blocks = content["blocks"]
    for row, bound in enumerate(blocks):
        for offset, limit, color in ((-0.2, "compute", BLUE), (0.2, "memory", ORANGE)):
            alpha = 1.0 if bound["side"] == limit else 0.3
            axes.barh(row + offset, 1e3 * bound[f"{limit}_seconds"], 0.38, color=color, alpha=alpha)
    axes.set_yticks(range(len(blocks)), [bound["block"] for bound in blocks], fontsize=6.5)
    axes.set_ylim(len(blocks) - 0.4, -0.6)
    axes.set_xlabel("ms per step")
    axes.set_xlim(0, 1.4 * axes.get_xlim()[1])  # room for the legend
    axes.grid(True, axis="x")
    handles = [
        axes.barh(0, 0, color=color, label=label)
        for color, label in ((BLUE, "compute, FLOPs / peak"), (ORANGE, "memory, bytes / bandwidth"))
    ]
    axes.legend(handles=handles, loc="lower right", title="the longer one is the bound", title_fontsize=7)


def _draw_times(axes: Axes, content: Mapping[str, Any], name: str) -> None:
    times = [1e3 * seconds for seconds in content["blocks"]]
    spread = content["step_seconds"]
    axes.set_title(f"{name}: {format_milliseconds(spread['median'])}, {content['images_per_second']:,.4g} images/s")
    axes.axhspan(1e3 * spread["p10"], 1e3 * spread["p90"], color=BLUE, alpha=0.12, linewidth=0, label="p10 to p90")
    axes.axhline(1e3 * spread["median"], color=BLUE, linewidth=1.0, label="median")
    axes.plot(
        range(1, len(times) + 1),
        times,
        color=BLACK,
        linestyle="none",
        marker=".",
        markersize=4,
        label=f"block of {content['steps_per_block']} steps",
    )
    if content["roofline"]:
        bound = content["roofline"]
        axes.axhline(
            1e3 * bound["seconds"],
            color=GREY,
            linestyle="--",
            linewidth=1.0,
            label=f"sum of the bounds ({100 * bound['fraction']:.0f} %)",
        )
    axes.set_ylim(0, 1.15 * max(times))
    axes.set_xlim(0.5, len(times) + 0.5)
    axes.set_xlabel("block, in the order of measurement")
    axes.set_ylabel("ms per step")
    axes.grid(True, axis="y")
    axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none")
