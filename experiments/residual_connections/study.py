"""Inception-ResNets beside the plain networks at equal multiply-adds: narrow forms on 75 pixels, one recipe for all."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

from studies import (
    SMALL_FASHION_MNIST,
    Row,
    draw_curves,
    draw_differences,
    final,
    first_half,
    format_cpu_seconds,
    format_mean,
    format_range,
    paired,
    steps_to,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = SMALL_FASHION_MNIST | {
    "data.image_size": 75,  # the smallest that these networks take
    "data.eval_split": "train[59000:]",
    "batch_size": 32,
    "num_epochs": 1.0,
    "schedule.warmup_epochs": 0.25,
    "evaluation.every_epochs": 0.25,
    "model.options.bn_momentum": 0.9,
    "optimizer.learning_rate": 0.025,  # half of that of experiments/auxiliary_heads, for half the batch
}
WIDTHS = {
    "inception_v3": 0.225,
    "inception_resnet_v1": 0.19,
    "inception_v4": 0.115,
    "inception_resnet_v2": 0.04,
}
"""With 15 to 16 million multiply-adds. No layer has fewer than 16 filters: 16.0 million are the least of the last."""

VARIANTS = {name: {"model.name": name, "model.width_multiplier": width} for name, width in WIDTHS.items()}
PAIRS = {
    "Inception-ResNet-v1 and v3": ("inception_resnet_v1", "inception_v3"),
    "Inception-ResNet-v2 and v4": ("inception_resnet_v2", "inception_v4"),
}


def count(name: str) -> tuple[int, int]:
    """Parameters and MACs of a variant, without heads, with ten classes."""
    from inception_jax import create_model
    from inception_jax.models.cost import count_cost

    cost = count_cost(create_model(name, num_classes=10, width_multiplier=WIDTHS[name]), FIELDS["data.image_size"])
    return cost.parameters, cost.macs


COUNTS = {
    "inception_v3": (1_121_335, 15_185_697),
    "inception_resnet_v1": (796_594, 15_075_520),
    "inception_v4": (592_935, 15_077_393),
    "inception_resnet_v2": (500_966, 16_019_426),
}
"""{network: (parameters, MACs)}: `count`."""


def loss(row: Row) -> float:
    """The loss of the last evaluation, in nats."""
    return final(row, metric="loss")


def early(row: Row) -> float:
    """The mean training loss of the classifier in the first half of the run, in nats."""
    found = [step["loss_main"] for step in first_half(row, "train")]
    return fmean(found) if found else float("nan")


def tables(rows: list[Row]) -> str:
    """Size, losses, accuracy, steps to 60 % and time of each network; the residual forms beside the others."""
    columns = (
        "| network | width | parameters | MACs | early loss | loss at the end | accuracy | steps to 60 % | CPU s |"
    )
    lines = [columns, "|---|" + 8 * "---:|"]
    for name, width in WIDTHS.items():
        parameters, macs = COUNTS[name]
        own = [row for row in rows if row["variant"] == name]
        cells = [f"{width}", f"{parameters:,}", f"{macs / 1e6:.1f} M"]
        cells += [format_mean([measure(row) for row in own], "{:.2f}", 1) for measure in (early, loss)]
        cells += [format_mean([final(row) for row in own], "{:.1f}")]
        cells += [format_range(steps_to(row, 0.6) for row in own), format_cpu_seconds(rows, name)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| residual form minus plain form | early loss | loss at the end | accuracy |", "|---|" + 3 * "---:|"]
    for label, pair in PAIRS.items():
        cells = [format_mean(paired(rows, *pair, measure), "{:+.2f}", 1) for measure in (early, loss)]
        lines.append(f"| {label} | {' | '.join(cells)} | {format_mean(paired(rows, *pair, final), '{:+.1f}')} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves, and the differences of each pair."""
    from inception_jax.runs.plot_style import BLUE, ORANGE, SKY, VERMILLION, saved_figure

    colours = dict(zip(WIDTHS, (SKY, ORANGE, BLUE, VERMILLION), strict=True))
    with saved_figure(path, 8.0, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        draw_curves(left, rows, {name: (name, colour) for name, colour in colours.items()})
        samples = [paired(rows, *pair, final) for pair in PAIRS.values()]
        draw_differences(right, list(PAIRS), samples, "residual minus plain, at the end (points)")
