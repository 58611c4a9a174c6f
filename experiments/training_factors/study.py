"""Main effects of optimizer, label smoothing, dropout, batch size, learning rate and EMA (arXiv:1512.00567, 7 and 8).

Eight of the 4 · 2 · 2 · 2 · 2 combinations: an orthogonal array, in which every pair of levels of two factors meets
equally often. So main effects do not mix with one another, but with interactions of two factors they do. Every run
keeps an EMA, and is evaluated with and without.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from studies import BATCH_NORM, SMALL_FASHION_MNIST, Row, draw_differences, final, format_mean

RECIPE = "configs/fashion_mnist.py"
FIELDS = (
    SMALL_FASHION_MNIST
    | BATCH_NORM
    | {"model.aux_heads": False, "ema.decay": 0.98}
    | {
        "num_epochs": 2.0,
        "evaluation.every_epochs": 2.0,
    }
)
OPTIMIZERS = {
    "SGD": {"optimizer.name": "sgd"},
    "Nesterov": {"optimizer.name": "sgd", "optimizer.nesterov": True},
    "RMSProp": {"optimizer.name": "rmsprop"},  # decay and momentum 0.9, epsilon 1.0: slim's
    "AdamW": {"optimizer.name": "adamw"},
}
FACTORS = {
    "optimizer": tuple(OPTIMIZERS),
    "label smoothing": (0.0, 0.1),
    "dropout": (0.0, 0.4),
    "batch": (64, 256),
    "factor on the rate": (1, 3),
}
"""{factor: levels}; the learning rate is a factor on 0.02 (AdamW: 0.001) for a batch of 64."""


def _fields(optimizer: str, smoothing: float, dropout: float, batch: int, factor: float) -> dict[str, object]:
    rate = 0.001 if optimizer == "AdamW" else 0.02
    scale = batch / 64  # AdamW: its square root
    return OPTIMIZERS[optimizer] | {
        "loss.label_smoothing": smoothing,
        "model.dropout_rate": dropout,
        "batch_size": batch,
        "optimizer.learning_rate": rate * factor * (scale**0.5 if optimizer == "AdamW" else scale),
    }


def _runs() -> list[tuple]:
    """The levels of each run: an L8 array whose columns a, b and ab are the four optimizers."""
    rows = []
    for a, b, c in itertools.product((0, 1), repeat=3):
        places = (2 * a + b, c, a ^ c, b ^ c, a ^ b ^ c)
        rows.append(tuple(levels[place] for levels, place in zip(FACTORS.values(), places, strict=True)))
    return rows


LEVELS = {f"{run[0]}, smoothing {run[1]}, dropout {run[2]}, batch {run[3]}, rate x{run[4]}": run for run in _runs()}
VARIANTS = {name: _fields(*run) for name, run in LEVELS.items()}


def effects(rows: list[Row], weights: str) -> dict[str, list[float]]:
    """{effect: its value in each seed}: the mean accuracy of the runs with a level, minus that with the first level."""
    found: dict[str, list[float]] = {}
    for seed in sorted({row["seed"] for row in rows}):
        runs = {row["variant"]: final(row, weights) for row in rows if row["seed"] == seed}
        if len(runs) < len(VARIANTS):
            continue
        for place, (factor, levels) in enumerate(FACTORS.items()):
            means = [np.mean([runs[name] for name, run in LEVELS.items() if run[place] == level]) for level in levels]
            for level, mean in zip(levels[1:], means[1:], strict=True):
                found.setdefault(f"{factor}: {level}, not {levels[0]}", []).append(100 * float(mean - means[0]))
    return found


def all_effects(rows: list[Row]) -> dict[str, list[float]]:
    """`effects` on the accuracy without EMA, and the effect of the EMA in the eight runs of each seed."""
    found = effects(rows, "raw")
    with_ema, without = mean_by_seed(rows, "ema"), mean_by_seed(rows, "raw")
    return found | {"EMA: 0.98, not none": [100 * (with_ema[seed] - without[seed]) for seed in without]}


def mean_by_seed(rows: list[Row], weights: str) -> dict[int, float]:
    """{seed: mean accuracy of its runs}, of the seeds of which all runs are there."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append(final(row, weights))
    return {seed: float(np.mean(found)) for seed, found in by_seed.items() if len(found) == len(VARIANTS)}


def shares(rows: list[Row]) -> dict[str, float]:
    """{factor: its share of the variance of all runs, 0 to 1}; {} where a variant has no run."""
    if {row["variant"] for row in rows} != {*VARIANTS}:
        return {}
    means = {name: np.mean([final(row) for row in rows if row["variant"] == name]) for name in VARIANTS}
    whole = float(np.mean([final(row) for row in rows]))
    total = sum((final(row) - whole) ** 2 for row in rows) / len(rows)
    found = {}
    for place, (factor, levels) in enumerate(FACTORS.items()):
        by_level = [np.mean([means[name] for name, run in LEVELS.items() if run[place] == level]) for level in levels]
        found[factor] = float(np.mean((np.asarray(by_level) - whole) ** 2) / total)
    return found


def tables(rows: list[Row]) -> str:
    """The main effects, the runs, and each factor's share of the variance."""
    lines = ["| effect | points |", "|---|---:|"]
    lines += [f"| {name} | {format_mean(sample, '{:+.1f}', 1)} |" for name, sample in all_effects(rows).items()]
    lines += ["", "| run | accuracy | with EMA |", "|---|---:|---:|"]
    for name in VARIANTS:
        own = [row for row in rows if row["variant"] == name]
        cells = [format_mean([final(row, weights) for row in own], "{:.1f}") for weights in ("raw", "ema")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| factor | share of the variance |", "|---|---:|"]
    return "\n".join(lines + [f"| {factor} | {100 * share:.0f} % |" for factor, share in shares(rows).items()])


def plot(rows: list[Row], path: Path) -> None:
    """Draws the main effects."""
    from inception_jax.runs.plot_style import saved_figure

    found = {name: [value / 100 for value in sample] for name, sample in all_effects(rows).items()}
    with saved_figure(path, 6.4, 3.4) as figure:
        draw_differences(figure.subplots(), list(found), list(found.values()), "effects on the accuracy (points)")
