"""Scales of the residuals of Inception-ResNet-v1, at two learning rates: does a small scale stabilize training?"""

from __future__ import annotations

from pathlib import Path

from studies import FASHION_MNIST_AT_75, Row, draw_curves, draw_differences, early_loss, final, format_mean, paired

RECIPE = "configs/fashion_mnist.py"
FIELDS = FASHION_MNIST_AT_75 | {
    "model.name": "inception_resnet_v1",
    "model.width_multiplier": 0.19,  # with the first scale and rate its runs are those of experiments/family
}
BLOCKS = ("block35", "block17", "block8")
SCALES = {
    "0.17, 0.10, 0.20": {},  # of the three kinds of blocks, as in Google's code of Inception-ResNet-v2
    "0.1": {f"model.options.{block}_scale": 0.1 for block in BLOCKS},
    "0.3": {f"model.options.{block}_scale": 0.3 for block in BLOCKS},
    "1": {f"model.options.{block}_scale": 1.0 for block in BLOCKS},
}
RATES = {"x1": 0.025, "x10": 0.25}
VARIANTS = {
    f"scale {scale}, rate {rate}": fields | {"optimizer.learning_rate": value}
    for scale, fields in SCALES.items()
    for rate, value in RATES.items()
}


def worst(row: Row) -> float:
    """The largest mean of the training loss over 20 steps, in nats."""
    return max(step["loss_main"] for step in row["train"])


def tables(rows: list[Row]) -> str:
    """Losses and accuracy of each variant, and the accuracy beside scale 1 at the same rate."""
    lines = ["| variant | largest loss | early loss | accuracy | minus scale 1 |", "|---|" + 4 * "---:|"]
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        cells = [format_mean([measure(row) for row in own], "{:.2f}", 1) for measure in (worst, early_loss)]
        cells.append(format_mean([final(row) for row in own], "{:.1f}"))
        base = f"scale 1, rate {name.rpartition(' ')[2]}"
        cells.append("" if name == base else format_mean(paired(rows, name, base, final), "{:+.1f}"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws the curves of each rate, and the differences from scale 1."""
    from inception_jax.runs.plot_style import BLUE, ORANGE, SKY, VERMILLION, saved_figure

    small = [scale for scale in SCALES if scale != "1"]
    with saved_figure(path, 12.0, 3.6) as figure:
        axes = figure.subplots(1, 3)
        for panel, rate in zip(axes, RATES, strict=False):
            colours = zip(SCALES, (SKY, BLUE, ORANGE, VERMILLION), strict=True)
            draw_curves(
                panel, rows, {f"scale {scale}, rate {rate}": (f"scale {scale}", colour) for scale, colour in colours}
            )
            panel.set_title(f"learning rate {rate}")
        labels = [f"{scale}, rate {rate}" for rate in RATES for scale in small]
        samples = [
            paired(rows, f"scale {scale}, rate {rate}", f"scale 1, rate {rate}", final)
            for rate in RATES
            for scale in small
        ]
        draw_differences(axes[2], labels, samples, "minus scale 1, at the end (points)")
