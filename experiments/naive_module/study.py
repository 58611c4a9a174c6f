"""Inception modules without 1x1 reductions (arXiv:1409.4842, figure 2a) beside those with them (figure 2b)."""

from __future__ import annotations

from pathlib import Path

from studies import (
    BATCH_NORM,
    SMALL_FASHION_MNIST,
    Row,
    draw_curves,
    draw_differences,
    final,
    format_cpu_seconds,
    format_mean,
    paired,
    values,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = (
    SMALL_FASHION_MNIST | BATCH_NORM | {"model.aux_heads": False, "optimizer.learning_rate": 0.05, "num_epochs": 2.0}
)
REDUCED, NAIVE, WIDE = "reduced, width 0.125", "naive, width 0.125", "reduced, width 0.42"
VARIANTS = {
    REDUCED: {"model.options.module": "reduced", "model.width_multiplier": 0.125},
    NAIVE: {"model.options.module": "naive", "model.width_multiplier": 0.125},
    WIDE: {"model.options.module": "reduced", "model.width_multiplier": 0.42},  # about the MACs of the naive one
}


COUNTS = {REDUCED: (169_418, 1_620_480), NAIVE: (1_893_258, 6_439_756), WIDE: (1_085_187, 6_363_957)}
"""{variant: (parameters, MACs)} with ten classes; `count` counts them."""


def count(name: str) -> tuple[int, int]:
    """Parameters and MACs of a variant, with ten classes at 32 pixels."""
    from inception_jax import create_model
    from inception_jax.models.cost import count_cost

    options = {path.rpartition(".")[2]: value for path, value in VARIANTS[name].items()}
    cost = count_cost(create_model("inception_v1_bn", num_classes=10, **options), 32)
    return cost.parameters, cost.macs


def tables(rows: list[Row]) -> str:
    """Size, accuracy and time of each variant."""
    lines = ["| modules | parameters | MACs | accuracy | naive minus it | CPU s |", "|---|" + 5 * "---:|"]
    for name in VARIANTS:
        parameters, macs = COUNTS[name]
        mean = format_mean(list(values(rows, name, final).values()), "{:.1f}")
        difference = "" if name == NAIVE else format_mean(paired(rows, NAIVE, name, final), "{:+.1f}")
        size = f"{parameters:,} | {macs / 1e6:.2f} M"
        lines.append(f"| {name} | {size} | {mean} | {difference} | {format_cpu_seconds(rows, name)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves, and the differences of the naive modules from the reduced ones."""
    from inception_jax.runs.plot_style import BLUE, ORANGE, VERMILLION, saved_figure

    with saved_figure(path, 7.6, 3.0) as figure:
        left, right = figure.subplots(1, 2)
        colours = {REDUCED: BLUE, NAIVE: VERMILLION, WIDE: ORANGE}
        draw_curves(left, rows, {name: (name, colour) for name, colour in colours.items()})
        samples = [paired(rows, NAIVE, name, final) for name in (REDUCED, WIDE)]
        draw_differences(right, ["equal width", "equal MACs"], samples, "naive minus reduced, at the end (points)")
