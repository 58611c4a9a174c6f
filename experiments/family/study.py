"""The networks of the family and two earlier ones at equal multiply-adds: narrow forms on 75 pixels, one recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studies import (
    FASHION_MNIST_AT_75,
    LRN,
    Row,
    draw_curves,
    draw_differences,
    early_loss,
    final,
    final_loss,
    format_mean,
    format_range,
    paired,
    steps_to,
    values,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = FASHION_MNIST_AT_75 | {
    "optimizer.learning_rate": 0.025,  # half of that of experiments/auxiliary_heads, for half the batch
}
WIDTHS = {
    "alexnet": 0.335,
    "network_in_network": 0.36,
    "inception_v1": 0.27,
    "inception_v1_bn": 0.27,
    "inception_v2": 0.23,
    "inception_v3": 0.225,
    "inception_resnet_v1": 0.19,
    "inception_v4": 0.115,
    "inception_resnet_v2": 0.04,
    "xception": 0.14,
}
"""With 15 to 16 million multiply-adds. No layer has fewer than 16 filters: 16.0 million are the least of
Inception-ResNet-v2."""

SLOW = LRN | {"optimizer.learning_rate": 0.005}
"""The rate of experiments/auxiliary_heads for GoogLeNet with LRN, halved for half the batch; Caffe's input scale."""

OWN = {
    "alexnet": SLOW,
    "alexnet, batch norm": {"model.options.batch_norm": True},
    "network_in_network": SLOW,
    "network_in_network, batch norm": {"model.options.batch_norm": True},
    "inception_v1": SLOW,
    "inception_v3, head 0": {"loss.aux_weights": (0.0,)},
    "inception_v4, head 0": {"loss.aux_weights": (0.0,)},
}
"""Fields of variants that do not train as the others do. A head of weight 0 gets no gradient, and the rest of the
network does not see it."""

SEARCHED = (*(name for name in WIDTHS), "alexnet, batch norm", "network_in_network, batch norm")
FACTORS = (0.3, 1, 3, 10)
"""Of the learning rate of these networks; a network's own row has 1."""


def at_rate(name: str, factor: float) -> str:
    """The variant of a network with a multiple of its learning rate."""
    return name if factor == 1 else f"{name}, rate x{factor:g}"


def _fields_at(name: str, factor: float) -> dict[str, Any]:
    own = OWN.get(name, {})
    rate = own.get("optimizer.learning_rate", FIELDS["optimizer.learning_rate"])
    return own | {"optimizer.learning_rate": round(factor * rate, 6)}


OWN |= {at_rate(name, factor): _fields_at(name, factor) for name in SEARCHED for factor in FACTORS if factor != 1}


def network(variant: str) -> str:
    """The name of a variant's network."""
    return variant.partition(",")[0]


VARIANTS = {
    name: OWN.get(name, {}) | {"model.name": network(name), "model.width_multiplier": WIDTHS[network(name)]}
    for name in (*WIDTHS, *(name for name in OWN if name not in WIDTHS))
}
PAIRS = {
    "Inception-ResNet-v1 - v3": ("inception_resnet_v1", "inception_v3"),
    "Inception-ResNet-v2 - v4": ("inception_resnet_v2", "inception_v4"),
    "v3: head - none": ("inception_v3", "inception_v3, head 0"),
    "v4: head - none": ("inception_v4", "inception_v4, head 0"),
    "v1: batch norm - LRN": ("inception_v1_bn", "inception_v1"),
}


def count(name: str) -> tuple[int, int]:
    """Parameters and MACs of a variant, without heads, with ten classes."""
    from inception_jax import create_model
    from inception_jax.models.cost import count_cost

    cost = count_cost(create_model(name, num_classes=10, width_multiplier=WIDTHS[name]), FIELDS["data.image_size"])
    return cost.parameters, cost.macs


COUNTS = {
    "alexnet": (6_312_338, 15_054_536),
    "network_in_network": (859_832, 15_145_470),
    "inception_v1": (485_697, 15_152_933),
    "inception_v1_bn": (487_734, 15_152_933),
    "inception_v2": (538_147, 15_089_836),
    "inception_v3": (1_121_335, 15_185_697),
    "inception_resnet_v1": (796_594, 15_075_520),
    "inception_v4": (592_935, 15_077_393),
    "inception_resnet_v2": (500_966, 16_019_426),
    "xception": (438_722, 14_962_138),
}
"""{network: (parameters, MACs)}: `count`."""


def read_costs() -> dict[str, tuple[float, float]]:
    """{variant: (processor milliseconds of a training step, MB of its temporary arrays)}, as cost.py measured them."""
    measured = json.loads((Path(__file__).parent / "cost.json").read_text(encoding="utf-8"))["variants"]
    return {name: (row["median_milliseconds"], row["memory"]["temporary"] / 1e6) for name, row in measured.items()}


def tables(rows: list[Row]) -> str:
    """Size, losses, accuracy, steps to 60 % and cost of each network; the residual forms beside the others."""
    names = ("width", "parameters", "MACs", "early loss", "loss at the end", "accuracy", "steps to 60 %", "ms", "MB")
    lines = [f"| network | {' | '.join(names)} |", "|---|" + len(names) * "---:|"]
    costs = read_costs()
    for name in (name for name in VARIANTS if ", rate " not in name):
        width, (parameters, macs) = WIDTHS[network(name)], COUNTS[network(name)]
        own = [row for row in rows if row["variant"] == name]
        cells = [f"{width}", f"{parameters:,}", f"{macs / 1e6:.1f} M"]
        cells += [format_mean([measure(row) for row in own], "{:.2f}", 1) for measure in (early_loss, final_loss)]
        cells += [format_mean([final(row) for row in own], "{:.1f}")]
        cells += [format_range(steps_to(row, 0.6) for row in own), *(f"{value:.0f}" for value in costs[name])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| difference | early loss | loss at the end | accuracy |", "|---|" + 3 * "---:|"]
    for label, pair in PAIRS.items():
        cells = [format_mean(paired(rows, *pair, measure), "{:+.2f}", 1) for measure in (early_loss, final_loss)]
        lines.append(f"| {label} | {' | '.join(cells)} | {format_mean(paired(rows, *pair, final), '{:+.1f}')} |")
    lines += ["", f"| accuracy at the rate | {' | '.join(f'x{factor:g}' for factor in FACTORS)} |"]
    lines.append("|---|" + len(FACTORS) * "---:|")
    for name in SEARCHED:
        found = [values(rows, at_rate(name, factor), final) for factor in FACTORS]
        cells = [" and ".join(f"{100 * one[seed]:.1f}" for seed in sorted(one)[:2]) or "–" for one in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves of all networks, in two panels, and the differences of each pair."""
    from inception_jax.runs.plot_style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, saved_figure

    colours = (SKY, ORANGE, BLUE, VERMILLION, GREEN, PURPLE)
    left = ["alexnet, batch norm", "network_in_network, batch norm", "inception_v1", "inception_v1_bn", "inception_v2"]
    with saved_figure(path, 12.0, 3.6) as figure:
        axes = figure.subplots(1, 3)
        for panel, names in zip(axes, (left, [name for name in WIDTHS if name not in left]), strict=False):
            draw_curves(panel, rows, {name: (name, colour) for name, colour in zip(names, colours, strict=False)})
        samples = [paired(rows, *pair, final) for pair in PAIRS.values()]
        draw_differences(axes[2], list(PAIRS), samples, "difference at the end (points)")
