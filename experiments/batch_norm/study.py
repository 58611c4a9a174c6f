"""LRN against batch norm at learning rates x1, x5 and x30 (arXiv:1502.03167, section 4.2 and figure 2).

x1 is 0.01: of 0.003, 0.01 and 0.03 the best for the network with LRN (seed 0). The runs of "LRN x1" and "BN x5" are
those of experiments/auxiliary_heads with the paper's loss weight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from studies import (
    BATCH_NORM,
    LRN,
    SMALL_FASHION_MNIST,
    Row,
    draw_curves,
    final,
    format_mean,
    format_range,
    read_rows,
    steps_to,
    values,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = SMALL_FASHION_MNIST | {"loss.aux_weights": (0.3, 0.3)}
VARIANTS = {
    f"{name} x{factor}": network | {"optimizer.learning_rate": 0.01 * factor}
    for factor in (1, 5, 30)
    for name, network in (("LRN", LRN), ("BN", BATCH_NORM))
    if (name, factor) not in (("LRN", 1), ("BN", 5))
}
OTHERS = {"v1 0.3": "LRN x1", "v1_bn 0.3": "BN x5"}
ORDER = ("LRN x1", "LRN x5", "LRN x30", "BN x1", "BN x5", "BN x30")
ACCURACIES = (0.6, 0.7)


def all_rows(rows: list[Row]) -> list[Row]:
    """The rows of this study, and those of the other one that belong to it."""
    other = read_rows(Path(__file__).parents[1] / "auxiliary_heads" / "results.jsonl")
    return rows + [row | {"variant": OTHERS[row["variant"]]} for row in other if row["variant"] in OTHERS]


def tables(rows: list[Row]) -> str:
    """Steps to two accuracies (median and range of the seeds), and the accuracy of the runs that took all steps."""
    rows = all_rows(rows)
    lines = ["| variant | ended | steps to 60 % | steps to 70 % | accuracy at the end |", "|---|" + 4 * "---:|"]
    for name in ORDER:
        runs = [row for row in rows if row["variant"] == name]
        cells = [f"{sum(row['ended'] == 'all steps' for row in runs)} of {len(runs)}"]
        for accuracy in ACCURACIES:
            steps = sorted(values(rows, name, lambda row, goal=accuracy: steps_to(row, goal)).values())
            middle = f"{np.median(steps):.0f}".replace("inf", "never") if steps else "–"
            cells.append(f"{middle} ({format_range(steps)})" if steps and np.isfinite(steps[0]) else middle)
        accuracies = [value for value in values(rows, name, final).values() if np.isfinite(value)]
        cells.append(format_mean(accuracies, "{:.1f}") if accuracies else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves, and the steps of each seed to 70 %."""
    from inception_jax.runs.plot_style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, saved_figure

    rows = all_rows(rows)
    colours = dict(zip(ORDER, (ORANGE, VERMILLION, PURPLE, SKY, BLUE, GREEN), strict=True))
    with saved_figure(path, 8.0, 3.4) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
        draw_curves(left, rows, {name: (name, colours[name]) for name in ORDER})
        if left.get_legend():
            left.legend(loc="lower right", ncols=2, bbox_to_anchor=(1, 0.08))
        for place, name in enumerate(ORDER):
            steps = list(values(rows, name, lambda row: steps_to(row, 0.7)).values())
            reached = [step for step in steps if np.isfinite(step)]
            right.plot(reached, [place] * len(reached), "o", color=colours[name], markersize=4)
            right.text(288, place, f"{len(reached)} of {len(steps)}", va="center")
        right.set_yticks(range(len(ORDER)), ORDER)
        right.invert_yaxis()
        right.set_xlim(0, 330)
        right.grid(True, axis="x")
        right.set_xlabel("steps to 70 %, a dot per seed that reached it")
