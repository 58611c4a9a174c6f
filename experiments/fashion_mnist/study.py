"""Fashion-MNIST in long runs: plain, wider networks, more pixels or epochs, crops, erasing, smoothing."""

from __future__ import annotations

from pathlib import Path

from studies import (
    LONG_FASHION_MNIST,
    Row,
    draw_curves,
    draw_differences,
    final,
    format_cpu_seconds,
    format_mean,
    paired,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = LONG_FASHION_MNIST | {"data.image_size": 64, "data.cache_mb": 100, "num_epochs": 12.0}
ERASING = {"augmentation.erasing_probability": 0.25}
SMOOTHING = {"loss.label_smoothing": 0.1}
WIDE = {"model.width_multiplier": 1.0, "data.image_size": 48, "num_epochs": 10.0}  # in about the same time
WIDE_NAME = "full width, 48 pixels, 10 epochs"
LONG_NAME = "erasing, 20 epochs"
PIXELS_NAME = "80 pixels"
LONG_WIDE_NAME = "full width, erasing, 24 epochs, bfloat16"
LONG_WIDE = {"model.width_multiplier": 1.0, "model.dtype": "bfloat16", "num_epochs": 24.0}
ONEDNN = {"model.convolution": "onednn_winograd", "parallel.steps_per_execution": 4}  # 485 for 322 images/s
LARGE_CROPS = {"augmentation.area": (0.9, 1.0), "augmentation.aspect": (0.9, 1 / 0.9)}
VARIANTS = {
    "plain": {},
    WIDE_NAME: WIDE,
    LONG_NAME: ERASING | {"num_epochs": 20.0},
    PIXELS_NAME: {"data.image_size": 80},
    "large crops": ONEDNN | LARGE_CROPS,
    "smoothing": ONEDNN | SMOOTHING,
    "full width": ONEDNN | {"model.width_multiplier": 1.0},
    "full width, bfloat16": ONEDNN | {"model.width_multiplier": 1.0, "model.dtype": "bfloat16"},
    "full width, large crops": ONEDNN | LARGE_CROPS | {"model.width_multiplier": 1.0},
    "full width, large crops, bfloat16": ONEDNN
    | LARGE_CROPS
    | {"model.width_multiplier": 1.0, "model.dtype": "bfloat16"},
    "full width, large crops, erasing, 24 epochs, bfloat16": ONEDNN | LARGE_CROPS | ERASING | LONG_WIDE,
    LONG_WIDE_NAME: ONEDNN | ERASING | LONG_WIDE,
}


def tables(rows: list[Row]) -> str:
    """Accuracy on the held-out images of each variant, of both weights, and the differences from the plain recipe."""
    lines = ["| recipe | seeds | raw weights | EMA weights | minus plain | CPU s |", "|---|" + 5 * "---:|"]
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        cells = [format_mean([final(row, weights) for row in own], "{:.2f}") for weights in ("raw", "ema")]
        gain = paired(rows, name, "plain", lambda row: final(row, "ema"))
        cells.append("" if name == "plain" else format_mean(gain, "{:+.2f}"))
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {format_cpu_seconds(rows, name)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws curves of the variants that were run, and differences over several seeds."""
    from inception_jax.runs.plot_style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION, saved_figure

    gains = {name: paired(rows, name, "plain", lambda row: final(row, "ema")) for name in VARIANTS if name != "plain"}
    gains = {name: gain for name, gain in gains.items() if len(gain) > 1}
    with saved_figure(path, 8.0 if gains else 4.5, 3.2) as figure:
        panels = figure.subplots(1, 2 if gains else 1, squeeze=False)[0]
        curves = [("plain", "raw", BLUE), ("plain", "ema", ORANGE)]
        curves += [(LONG_WIDE_NAME, "ema", GREEN), (LONG_NAME, "ema", PURPLE), (PIXELS_NAME, "ema", VERMILLION)]
        curves += [("full width, bfloat16", "ema", BLACK), ("large crops", "ema", SKY)]
        for name, weights, colour in curves:
            label = "full width, 24 epochs" if name == LONG_WIDE_NAME else name
            draw_curves(panels[0], rows, {name: (f"{label}, {weights} weights", colour)}, weights)
        if gains:
            draw_differences(panels[1], list(gains), list(gains.values()), "minus plain, EMA weights (points)")
