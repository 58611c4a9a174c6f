"""Trains every variant of a study with every seed, in one process, and compares the variants seed by seed.

    python experiments/studies.py experiments/auxiliary_heads
    python experiments/studies.py experiments/auxiliary_heads --report

A study is a folder with a file study.py: `RECIPE`, the `FIELDS` that all runs share, `VARIANTS`, {name: fields}, and
the functions `tables` and `plot`. Each finished run is a line of results.jsonl in that folder. A second start trains
the runs that are not in it, and continues one that was interrupted. `--report` prints the tables and draws plot.png of
the runs that are there, and names those that are missing.
The runs stay in runs/NAME/VARIANT/SEED, for `evaluate --all` on the test split, which no study reads.

One process, because a start costs 16 processor seconds and a run little more: variants that differ in numbers alone
share the compiled training step.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

SEEDS = (0, 1, 2, 3, 4)

SMALL_FASHION_MNIST = {
    "data.train_split": "train[:6000]",
    "data.eval_split": "train[58000:]",  # held out of the training images; the test split is not read
    "data.image_size": 32,
    "model.width_multiplier": 0.25,
    "model.convolution": "exact",  # compiles faster; at this size both algorithms take the same time
    "batch_size": 64,
    "num_epochs": 3.0,
    "schedule.warmup_epochs": 0.5,
    "augmentation.area": (0.7, 1.0),
    "loss.label_smoothing": 0.0,
    "ema.decay": 0.0,
    "evaluation.every_epochs": 0.5,
    "evaluation.batch_size": 250,
    "checkpoint.every_epochs": 1000.0,  # the last step alone
    "logging.pictures": False,
    "logging.tensorboard": False,
}
"""Fields over configs/fashion_mnist.py with which a run takes about 20 seconds of one core."""

FASHION_MNIST_AT_75 = SMALL_FASHION_MNIST | {
    "data.image_size": 75,  # the smallest that Inception-v3, v4 and the Inception-ResNets take
    "data.eval_split": "train[59000:]",
    "batch_size": 32,
    "num_epochs": 1.0,
    "schedule.warmup_epochs": 0.25,
    "evaluation.every_epochs": 0.25,
    "model.options.bn_momentum": 0.9,
}
"""The same for networks that need larger images; about 45 seconds of one core."""

LONG_FASHION_MNIST = {
    "data.train_split": "train[:55000]",
    "data.eval_split": "train[55000:]",  # held out of the training images; the test split is not read
    "model.in_channels": 1,
    "model.width_multiplier": 0.5,
    "model.aux_heads": False,  # experiments/auxiliary_heads: no gain, early or late
    "model.dropout_rate": 0.0,  # experiments/training_factors: it costs accuracy in short runs
    "batch_size": 64,
    "optimizer.learning_rate": 0.05,
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "augmentation.area": (0.8, 1.0),
    "augmentation.aspect": (0.8, 1.25),
    "schedule.warmup_epochs": 0.5,
    "loss.label_smoothing": 0.0,
    "evaluation.batch_size": 250,
    "logging.every_steps": 100,
    "logging.pictures": False,
    "logging.tensorboard": False,
}
"""Fields over configs/fashion_mnist.py for all training images; image size and epochs are the study's."""

LRN = {"model.name": "inception_v1", "model.options.bn_momentum": None, "data.normalization": "caffe"}
"""GoogLeNet with LRN, whose constants are for inputs of that scale."""

BATCH_NORM = {"model.name": "inception_v1_bn", "model.options.bn_momentum": 0.9}
"""The same network with batch norm; its statistics follow within 20 steps."""


def run_study(
    folder: Path, results: Path, runs: Path, seeds: Sequence[int], overrides: dict[str, Any], only: Sequence[str] = ()
) -> None:
    """Trains what is not in the results yet, all variants of a seed before the next seed.

    Args:
      folder: of the study.
      results: JSON Lines, to which each finished run is added.
      runs: folder of the workdirs.
      seeds: of the runs.
      overrides: fields over those of the study.
      only: names of the variants that are trained; (): all.
    """
    study = runpy.run_path(str(folder / "study.py"))
    done = {(row["variant"], row["seed"]) for row in read_rows(results)}
    trained = 0
    for seed in seeds:
        for name, fields in study["VARIANTS"].items():
            if (name, seed) not in done and (not only or name in only):
                config = study["FIELDS"] | fields | {"seed": seed} | overrides
                row = {"variant": name, "seed": seed, **_train(study["RECIPE"], config, workdir(runs, name, seed))}
                _append(results, row)
                trained += 1
    if not trained:
        print(f"nothing to train: {results} has all of these runs")


def _train(recipe: str, fields: dict[str, Any], workdir: Path) -> Row:
    """Trains a run; a loss that is not finite ends it, and is a result like another one.

    "cpu_seconds" of the row are of its last start, "compile_seconds" wall time of all starts: see `is_timed`.
    """
    import jax

    import inception_jax
    from inception_jax.errors import NonFiniteLoss

    start, ended, result = time.process_time(), "all steps", {}
    try:
        result = inception_jax.from_config(recipe, fields).train(workdir)
    except NonFiniteLoss as error:
        ended = str(error)
    return {
        "ended": ended,
        "evaluations": read_evaluations(workdir),
        "train": [
            {name: round(row[name], 5) for name in ("step", "loss_main", "top1_main")}
            for row in read_rows(workdir / "metrics.jsonl")
            if row["kind"] == "train"
        ],
        "starts": len(json.loads((workdir / "manifest.json").read_text())["starts"]),
        "cpu_seconds": round(time.process_time() - start, 2),
        "compile_seconds": round(result.get("compile_seconds", 0.0), 2),
        "fingerprint": result.get("fingerprint"),
        "jax": jax.__version__,
    }


def read_evaluations(workdir: Path) -> list[Row]:
    """The evaluations of a run: step, weights, top1 and loss."""
    rows = read_rows(workdir / "metrics.jsonl")
    names = ("step", "weights", "top1", "loss")
    return [{name: row[name] for name in names} for row in rows if row["kind"] == "evaluation"]


def workdir(runs: Path, name: str, seed: int) -> Path:
    """The workdir of a run: runs/VARIANT/SEED, with `_` for what is no letter or digit."""
    return runs / "".join(letter if letter.isalnum() else "_" for letter in name) / str(seed)


def read_rows(path: Path) -> list[Row]:
    """The lines of a JSON Lines file; [] if there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _append(path: Path, row: Row) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


# The results.


def final(row: Row, weights: str = "raw", metric: str = "top1") -> float:
    """The metric of the last evaluation; NaN where the loss was not finite."""
    found = [evaluation[metric] for evaluation in row["evaluations"] if evaluation["weights"] == weights]
    return float(found[-1]) if found and row["ended"] == "all steps" else float("nan")


def final_loss(row: Row) -> float:
    """The loss of the last evaluation, in nats."""
    return final(row, metric="loss")


MOST_COMPILING = 0.25
"""Of the processor seconds of a run whose time counts: `is_timed`."""


def is_timed(row: Row) -> bool:
    """Returns whether a row's processor seconds without compilation are known.

    It took all steps in one start, and spent at most a quarter of its processor seconds on getting its programs. The
    seconds of compilation are wall time, which on busy cores is not processor time, and of all starts. A run that finds
    its programs compiled loads them in a few seconds; there the difference matters little.
    """
    once = row["ended"] == "all steps" and row["starts"] == 1
    return once and row["compile_seconds"] <= MOST_COMPILING * row["cpu_seconds"]


def format_cpu_seconds(rows: Iterable[Row], variant: str) -> str:
    """Median of a variant's processor seconds without compilation, with evaluations: "36"; "": no run `is_timed`."""
    timed = [row["cpu_seconds"] - row["compile_seconds"] for row in rows if row["variant"] == variant and is_timed(row)]
    return f"{np.median(timed):.0f}" if timed else ""


def first_half(row: Row, kind: str) -> list[Row]:
    """The "evaluations" or "train" points of a run up to half of its last step, rounded up; []: its loss became NaN."""
    points = row[kind] if row["ended"] == "all steps" else []
    return [point for point in points if point["step"] <= (points[-1]["step"] + 1) // 2]


def early_loss(row: Row) -> float:
    """The mean training loss of the classifier in the first half of the run, in nats; NaN where it became NaN."""
    found = [step["loss_main"] for step in first_half(row, "train")]
    return fmean(found) if found else float("nan")


def steps_to(row: Row, accuracy: float, weights: str = "raw") -> float:
    """Steps to an accuracy on the held-out images, interpolated between two evaluations; infinite if not reached."""
    before = (0, 0.0)
    for evaluation in row["evaluations"]:
        if evaluation["weights"] == weights:
            step, value = evaluation["step"], evaluation["top1"]
            if value >= accuracy:
                return before[0] + (step - before[0]) * (accuracy - before[1]) / (value - before[1])
            before = (step, value)
    return float("inf")


def values(rows: Iterable[Row], variant: str, value: Callable[[Row], float]) -> dict[int, float]:
    """{seed: value} of the runs of a variant."""
    return {row["seed"]: value(row) for row in rows if row["variant"] == variant}


def interval(sample: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; NaN where there are too few numbers."""
    from scipy import stats

    numbers = np.asarray(sample, float)
    if len(numbers) < 2:
        return (float(numbers[0]) if len(numbers) else float("nan")), float("nan")
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    return float(numbers.mean()), float(stats.t.ppf(0.975, len(numbers) - 1) * error)


def format_mean(sample: Sequence[float], form: str, scale: float = 100.0) -> str:
    """Formats mean and 95 % interval of accuracies, or of their differences: "71.2 ± 1.3"; "–": no run has them.

    One number has no interval: "71.2".
    """
    if not len(sample):
        return "–"
    mean, half = interval(sample)
    if len(sample) == 1:
        return form.format(scale * mean)
    return f"{form.format(scale * mean)} ± {form.replace('+', '').format(scale * half)}"


def format_range(numbers: Iterable[float]) -> str:
    """Formats the smallest and the largest of steps: "88 to 98"; infinity is "never"; "–": no run has them."""
    found = sorted(numbers)
    return f"{found[0]:.0f} to {found[-1]:.0f}".replace("inf", "never") if found else "–"


def paired(rows: Sequence[Row], variant: str, base: str, value: Callable[[Row], float]) -> list[float]:
    """The difference of two variants in each of their common seeds."""
    first, second = values(rows, variant, value), values(rows, base, value)
    return [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]


def curve(rows: Iterable[Row], variant: str, weights: str = "raw") -> tuple[np.ndarray, np.ndarray]:
    """Steps [n] and accuracies [seeds, n] of the evaluations of a variant's runs that took all steps."""
    runs = [
        [(found["step"], found["top1"]) for found in row["evaluations"] if found["weights"] == weights]
        for row in rows
        if row["variant"] == variant and row["ended"] == "all steps"
    ]
    if not runs:
        return np.empty(0), np.empty((0, 0))
    points = np.asarray(runs, float)
    return points[0, :, 0], points[:, :, 1]


def draw_curves(axes: Axes, rows: Sequence[Row], variants: dict[str, tuple[str, str]], weights: str = "raw") -> None:
    """Draws the mean accuracy of each variant by step, and the range of its seeds as a band.

    Args:
      axes: to draw in.
      rows: of results.jsonl.
      variants: {variant: (label, colour)}.
      weights: "raw" or "ema".
    """
    for name, (label, colour) in variants.items():
        steps, accuracy = curve(rows, name, weights)
        if len(steps):
            axes.plot(steps, 100 * accuracy.mean(axis=0), color=colour, label=label)
            band = 100 * accuracy.min(axis=0), 100 * accuracy.max(axis=0)
            axes.fill_between(steps, *band, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlabel("step")
    axes.set_ylabel("accuracy on held-out images (%)")
    axes.grid(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right")


def draw_differences(axes: Axes, labels: Sequence[str], samples: Sequence[Sequence[float]], title: str) -> None:
    """Draws differences of accuracies in points: a dot per seed, the mean and its 95 % interval, a line per label."""
    for place, sample in enumerate(samples):
        points = [100 * value for value in sample]
        mean, half = interval(points)
        axes.plot(points, [place + 0.18] * len(sample), "o", color="#767676", markersize=2.5)
        axes.errorbar([mean], [place], xerr=[half], fmt="o", color="#0072B2", markersize=4, capsize=2.5)
    axes.axvline(0, color="#000000", linewidth=0.7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(True, axis="x")
    axes.set_title(title)


def describe_missing(rows: Sequence[Row], variants: Iterable[str], seeds: Sequence[int]) -> str:
    """Names the runs that are not in the results: "not in the results: BN x1 (seeds 1, 2); BN x5 (seed 2)"; "": none.

    Args:
      rows: of results.jsonl.
      variants: of the study.
      seeds: that each variant should have.
    """
    done = {(row["variant"], row["seed"]) for row in rows}
    lacking = {name: [seed for seed in seeds if (name, seed) not in done] for name in variants}
    named = [
        f"{name} (seed{'s' * (len(some) > 1)} {', '.join(map(str, some))})" for name, some in lacking.items() if some
    ]
    return f"not in the results: {'; '.join(named)}" if named else ""


def _number(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def main() -> None:
    """Trains a study, or reports its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the study")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="default: 0 to 4; with --report, those of which a run is in the results"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="VARIANT", help="train these variants alone")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields over those of the study")
    parser.add_argument("--results", type=Path, help="default: results.jsonl in the folder")
    parser.add_argument("--runs", type=Path, help="folder of the workdirs; default: runs/NAME_OF_THE_FOLDER")
    parser.add_argument("--report", action="store_true", help="draw and print the results; nothing is trained")
    flags = parser.parse_args()
    if not (flags.folder / "study.py").is_file():
        studies = sorted(path.parent.as_posix() for path in Path(__file__).parent.glob("*/study.py"))
        parser.error(f"{flags.folder}: there is no study.py in it; studies: {', '.join(studies)}")
    study = runpy.run_path(str(flags.folder / "study.py"))
    if unknown := set(flags.only) - set(study["VARIANTS"]):
        parser.error(f"--only={min(unknown)}: no variant of this study; variants: {', '.join(study['VARIANTS'])}")
    if flags.set and not (flags.results and flags.runs):
        parser.error("--set makes other runs than those of results.jsonl: name their own --results and --runs")
    results = flags.results or flags.folder / "results.jsonl"
    runs = flags.runs or Path("runs") / flags.folder.resolve().name
    if flags.report:
        rows = read_rows(results)
        study["plot"](rows, results.with_name("plot.png"))
        print(study["tables"](rows))
        seeds = flags.seeds or sorted({row["seed"] for row in rows}) or SEEDS
        if missing := describe_missing(rows, study["VARIANTS"], seeds):
            print(missing, file=sys.stderr)
        return
    overrides = {name: _number(value) for name, _, value in (text.partition("=") for text in flags.set)}
    run_study(flags.folder, results, runs, flags.seeds or SEEDS, overrides, flags.only)


if __name__ == "__main__":
    main()
