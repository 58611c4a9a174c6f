"""Auxiliary heads: loss weights 0 to 1, on 4a, on 4d and on both, with LRN and with batch norm.

Weight 0 is a network without heads: they get no gradient, and the rest of the network does not see them.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from studies import (
    BATCH_NORM,
    LRN,
    SMALL_FASHION_MNIST,
    Row,
    draw_curves,
    draw_differences,
    final,
    final_loss,
    first_half,
    format_mean,
    format_range,
    paired,
    steps_to,
    values,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = SMALL_FASHION_MNIST
NETWORKS = {
    "v1": LRN | {"optimizer.learning_rate": 0.01},
    "v1_bn": BATCH_NORM | {"optimizer.learning_rate": 0.05},
}
HEADS = {
    "0": (0.0, 0.0),
    "0.1": (0.1, 0.1),
    "0.3": (0.3, 0.3),  # the paper's
    "1": (1.0, 1.0),
    "0.3 on 4a": (0.3, 0.0),
    "0.3 on 4d": (0.0, 0.3),
}
VARIANTS = {
    f"{network} {heads}": fields | {"loss.aux_weights": weights}
    for network, fields in NETWORKS.items()
    for heads, weights in HEADS.items()
}

LONGER = {
    "data.train_split": "train[:20000]",
    "num_epochs": 12.0,
    "schedule.warmup_epochs": 1.0,
    "evaluation.every_epochs": 1.0,
}
"""Of runs of 3,750 steps, over the fields of the others."""

LONG = {f"{name}, long": VARIANTS[name] | LONGER for name in ("v1 0", "v1 0.3", "v1_bn 0", "v1_bn 0.3")}
VARIANTS |= LONG


def early(row: Row) -> float:
    """The mean accuracy of the evaluations in the first half of the run: area under the curve."""
    found = [one["top1"] for one in first_half(row, "evaluations") if one["weights"] == "raw"]
    return fmean(found) if found else float("nan")


def first_quarter(row: Row) -> float:
    """The mean accuracy of the evaluations in the first quarter of the run."""
    found = [one["top1"] for one in row["evaluations"] if one["weights"] == "raw"]
    return fmean(found[: len(found) // 4]) if len(found) >= 4 and row["ended"] == "all steps" else float("nan")


MEASURES = {"first half": early, "at the end": final}
LONG_MEASURES = (first_quarter, early, final)


def tables(rows: list[Row]) -> str:
    """Accuracy of each variant, its differences from weight 0, and the steps to 70 %."""
    columns = "| variant | first half | minus 0 | at the end | minus 0 | loss at the end, minus 0 | steps to 70 % |"
    lines = [columns, "|---|" + 6 * "---:|"]
    for name in (name for name in VARIANTS if name not in LONG):
        cells, base = [], f"{name.split()[0]} 0"
        for measure in MEASURES.values():
            cells.append(format_mean(list(values(rows, name, measure).values()), "{:.1f}"))
            cells.append("" if name == base else format_mean(paired(rows, name, base, measure), "{:+.1f}"))
        cells.append("" if name == base else format_mean(paired(rows, name, base, final_loss), "{:+.3f}", 1))
        cells.append(format_range(values(rows, name, lambda row: steps_to(row, 0.7)).values()))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    names = ("first quarter", "first half", "at the end", "loss at the end")
    lines += ["", f"| long runs | {' | '.join(names)} | steps to 85 % |", "|---|" + 5 * "---:|"]
    for name in LONG:
        cells = [format_mean(list(values(rows, name, measure).values()), "{:.1f}") for measure in LONG_MEASURES]
        cells.append(format_mean(list(values(rows, name, final_loss).values()), "{:.3f}", 1))
        cells.append(format_range(values(rows, name, lambda row: steps_to(row, 0.85)).values()))
        lines.append(f"| {name.removesuffix(', long')} | {' | '.join(cells)} |")
    for network in NETWORKS:
        pair = f"{network} 0.3, long", f"{network} 0, long"
        cells = [format_mean(paired(rows, *pair, measure), "{:+.1f}") for measure in LONG_MEASURES]
        cells.append(format_mean(paired(rows, *pair, final_loss), "{:+.3f}", 1))
        lines.append(f"| {network} 0.3 - 0 | {' | '.join(cells)} | |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves, and the differences from weight 0."""
    from inception_jax.runs.plot_style import BLUE, ORANGE, VERMILLION, saved_figure

    with saved_figure(path, 10.0, 5.0) as figure:
        axes = figure.subplots(2, 3, width_ratios=(1.3, 1, 1))
        for line, network in zip(axes, NETWORKS, strict=True):
            shown = {"0": BLUE, "0.3": ORANGE, "1": VERMILLION}
            draw_curves(line[0], rows, {f"{network} {name}": (f"weight {name}", shown[name]) for name in shown})
            line[0].set_title({"v1": "with LRN", "v1_bn": "with batch norm"}[network])
            for panel, (title, measure) in zip(line[1:], MEASURES.items(), strict=True):
                samples = [paired(rows, f"{network} {name}", f"{network} 0", measure) for name in list(HEADS)[1:]]
                draw_differences(panel, list(HEADS)[1:], samples, f"{title}, minus weight 0 (points)")
