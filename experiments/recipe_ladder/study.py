"""A training recipe step by step: label smoothing, random erasing, mixup, twice the epochs, alone and together.

Every run keeps an EMA and is evaluated with both kinds of weights; `evaluate --all` adds 12 crops (crops.csv).
"""

from __future__ import annotations

import csv
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
    workdir,
)

RECIPE = "configs/fashion_mnist.py"
FIELDS = LONG_FASHION_MNIST | {
    "data.image_size": 32,
    "num_epochs": 4.0,
    "model.convolution": "onednn_winograd",
    "model.dtype": "bfloat16",
    "parallel.steps_per_execution": 4,
}
SMOOTHING = {"loss.label_smoothing": 0.1}
ERASING = {"augmentation.erasing_probability": 0.25}
MIXUP = {"augmentation.mixup_alpha": 0.2}
LONG = {"num_epochs": 8.0}
VARIANTS = {
    "plain": {},
    "smoothing": SMOOTHING,
    "erasing": ERASING,
    "mixup": MIXUP,
    "erasing, mixup, smoothing": ERASING | MIXUP | SMOOTHING,
    "8 epochs": LONG,
    "8 epochs, erasing": LONG | ERASING,
    "8 epochs, erasing, mixup, smoothing": LONG | ERASING | MIXUP | SMOOTHING,
}
CROPS = Path(__file__).with_name("crops.csv")


def ema(row: Row) -> float:
    """The accuracy of the EMA weights at the end, of one crop."""
    return final(row, "ema")


def crops(path: Path = CROPS) -> dict[tuple[str, int], float]:
    """{(variant, seed): accuracy with 12 crops} from the table of `evaluate --all`; {}: there is none."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        found = {tuple(Path(row["workdir"]).parts[-2:]): float(row["top1"]) / 100 for row in csv.DictReader(file)}
    names = {workdir(Path(), name, 0).parts[-2]: name for name in VARIANTS}
    return {(names[folder], int(seed)): value for (folder, seed), value in found.items()}


def tables(rows: list[Row]) -> str:
    """Accuracy on the held-out images of each recipe, by weights and crops, and the differences from the plain one."""
    many = crops()
    lines = ["| recipe | seeds | raw weights | EMA weights | minus plain | EMA, 12 crops | minus plain | CPU s |"]
    lines.append("|---|" + 7 * "---:|")
    for name in VARIANTS:
        seeds = sorted(row["seed"] for row in rows if row["variant"] == name)
        cells = [format_mean([final(row, "raw") for row in rows if row["variant"] == name], "{:.2f}")]
        cells.append(format_mean([ema(row) for row in rows if row["variant"] == name], "{:.2f}"))
        cells.append("" if name == "plain" else format_mean(paired(rows, name, "plain", ema), "{:+.2f}"))
        cells.append(format_mean([many[name, seed] for seed in seeds if (name, seed) in many], "{:.2f}"))
        gains = [many[name, s] - many["plain", s] for s in seeds if (name, s) in many and ("plain", s) in many]
        cells.append("" if name == "plain" else format_mean(gains, "{:+.2f}"))
        lines.append(f"| {name} | {len(seeds)} | {' | '.join(cells)} | {format_cpu_seconds(rows, name)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws curves of the plain and the long recipes, and the differences from the plain one."""
    from inception_jax.runs.plot_style import BLUE, GREEN, ORANGE, VERMILLION, saved_figure

    gains = {name: paired(rows, name, "plain", ema) for name in VARIANTS if name != "plain"}
    gains = {name: gain for name, gain in gains.items() if gain}
    with saved_figure(path, 8.0, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        for name, weights, colour in (
            ("plain", "raw", BLUE),
            ("plain", "ema", ORANGE),
            ("8 epochs", "ema", GREEN),
            ("8 epochs, erasing", "ema", VERMILLION),
        ):
            draw_curves(left, rows, {name: (f"{name}, {weights} weights", colour)}, weights)
        draw_differences(right, list(gains), list(gains.values()), "minus plain, EMA weights (points)")
