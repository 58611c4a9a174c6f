"""Writes the plots of a run and its report: results, times, config, and the commands that continue or use the run."""

from __future__ import annotations

import math
import os
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax import metric_definitions
from inception_jax.data import images
from inception_jax.errors import UserError
from inception_jax.metrics import wilson_interval
from inception_jax.runs import (
    activation_plot,
    class_tables,
    html_page,
    manifest,
    metric_files,
    plot_style,
    plots,
    remote_workdir,
    result,
    tables,
)
from inception_jax.runs.file_forms import keep_valid_fields
from inception_jax.runs.formatting import format_duration, format_metric, format_number, per_head
from inception_jax.runs.tables import code, escape

if TYPE_CHECKING:
    from inception_jax.data.pipeline import EvalPipeline
    from inception_jax.metrics import Accumulator

FILE = "report.md"
PAGE = "report.html"
"""The same as `FILE`, as one file that holds the plots."""

PLOTS = {
    "learning_curves": "Learning curves",
    "confusion_matrix": "Confusion matrix",
    "predictions": "Right and wrong predictions",
    "activations": "Activations of one image",
    "first_layer": "Filters of the first layer",
}
"""{name: caption}; each plot is `name`.png in the workdir."""

_DESCRIPTIONS = {
    "learning_curves": "Loss and accuracy of every head by epoch, in training and in evaluations",
    "confusion_matrix": "Number of examples by true class (rows) and predicted class (columns)",
    "predictions": "Images with true class, predicted class and probability",
    "activations": "An image, and the activations of the network's blocks on it",
    "first_layer": "The filters of the first convolution as images",
}

_HIGHLIGHTS = (
    "seed", "batch_size", "num_epochs", "num_steps", "model.name", "model.width_multiplier", "model.aux_heads",
    "model.dtype", "data.name", "data.image_size", "augmentation.rule", "optimizer.name", "optimizer.learning_rate",
    "optimizer.momentum", "optimizer.weight_decay", "optimizer.clip_norm", "schedule.name", "schedule.warmup_epochs",
    "loss.label_smoothing", "loss.class_weights", "loss.aux_weights", "data.sampling", "ema.decay", "parallel.mode",
    "parallel.batch_norm", "checkpoint.best_metric", "stop.patience",
)  # fmt: skip
_WEIGHTS = {"ema": "EMA weights", "raw": "raw weights"}
_SECONDS = {
    "wall_seconds": "wall clock, all starts together",
    "compile_seconds": "compiling",
    "data_wait_seconds": "waiting for data",
    "evaluation_seconds": "evaluating",
    "checkpoint_seconds": "saving checkpoints",
    "plots_seconds": "drawing plots",
}
_REST = "training steps and everything else"


def draw_plots(
    workdir: str | os.PathLike,
    evaluation: Accumulator,
    data: EvalPipeline,
    class_names: Sequence[str],
    *,
    first_layer: Any = None,
    blocks: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None,
) -> dict[str, Path]:
    """Draws the plots of a run or of an evaluation.

    Args:
      workdir: where they are written; learning curves are drawn where it has a metrics.jsonl.
      evaluation: with its predictions.
      data: the evaluated split; its images are shown decoded and cropped, as the network sees them.
      class_names: one per class.
      first_layer: kernel [kh, kw, 3, n] of the first convolution; None: it is not drawn.
      blocks: takes an image, uint8 [h, w, 3] as the network sees it, and returns {block: its output [h, w, channels]};
        None: activations are not drawn.

    Returns:
      {name of `PLOTS`: path}, of those that were drawn.

    Raises:
      UserError: an image cannot be read, or a file cannot be written.
    """
    workdir = Path(workdir)
    paths = {name: workdir / f"{name}.png" for name in PLOTS}
    split = f"{data.dataset.name}, {data.dataset.split}"
    drawn = []
    if (metrics := workdir / metric_files.METRICS).exists() and (rows := metric_files.read_rows(metrics)):
        model = _field(_read_or_note(manifest.read_config, workdir, []) or {}, "model.name")
        title = f"{model} on {data.dataset.name}" if model else data.dataset.name
        plots.learning_curves(rows, paths["learning_curves"], title=title)
        drawn.append("learning_curves")
    if evaluation.confusion is not None:
        plots.confusion_matrix(evaluation.confusion, class_names, paths["confusion_matrix"], title=split)
        drawn.append("confusion_matrix")
    found = evaluation.predictions()
    shown = _PreprocessedImages(data, found.index)
    plots.prediction_sheet(
        shown,
        found.labels,
        found.classes[:, 0],
        found.probabilities[:, 0],
        class_names,
        paths["predictions"],
    )
    drawn.append("predictions")
    if blocks is not None:
        right = np.flatnonzero(found.labels == found.classes[:, 0])
        row = int(right[0]) if len(right) else 0
        image, name = shown[row], plot_style.shorten(str(class_names[found.labels[row]]), 30)
        if maps := blocks(image):  # a network that a recipe registered may have no endpoints
            activation_plot.activations(image, maps, paths["activations"], title=f"{split}: {name}")
            drawn.append("activations")
    if first_layer is not None:
        plots.first_layer_filters(np.asarray(first_layer), paths["first_layer"])
        drawn.append("first_layer")
    return {name: paths[name] for name in drawn}


class _PreprocessedImages:
    """The images of a split, decoded and cropped as the network sees them, each on demand."""

    def __init__(self, data: EvalPipeline, index: np.ndarray):
        """Stores the split.

        Args:
          data: of the split.
          index: int [n], the example that each row shows.
        """
        self._data, self._index = data, index

    def __getitem__(self, row: int, /) -> np.ndarray:
        index, dataset = int(self._index[row]), self._data.dataset
        image, _ = dataset.record(index)
        if isinstance(image, bytes):
            image = images.decode(image, dataset.record_name(index), self._data.max_pixels)
        return images.center_crop(image, self._data.image_size, self._data.crop)


def write(workdir: str | os.PathLike) -> Path:
    """Writes the report from the files of the workdir: config, manifest, metrics, timing, result and plots.

    Each of these may be missing or damaged (the run may have been stopped anywhere); the report then says so, and shows
    the rest. report.html is rendered from report.md, and holds the plots.

    Args:
      workdir: of a run.

    Returns:
      Path of report.md.

    Raises:
      UserError: report.md cannot be written; for report.html, see `html_page.write_report`.
    """
    workdir = Path(workdir)
    notes: list[str] = []
    config = _read_valid(manifest.read_config, workdir / manifest.CONFIG, notes)
    starts = _read_valid(manifest.read, workdir / manifest.MANIFEST, notes)
    outcome = _read_valid(result.read_result, workdir / result.FILE, notes)
    rows, timing = (_rows(workdir / name, notes) for name in (metric_files.METRICS, metric_files.TIMING))
    classes = _section("Classes", _classes(workdir, outcome, notes))
    plots = {
        name: f"## {caption}\n\n![{_DESCRIPTIONS[name]}]({name}.png)"
        for name, caption in PLOTS.items()
        if (workdir / f"{name}.png").exists()
    }
    sections = [
        _heading(config, outcome, rows),
        "\n".join(_facts(outcome, rows, timing, config, starts)),
        _format_notes(notes),
        _section("Result", _evaluations(outcome, rows, config, starts)),
        plots.pop("learning_curves", ""),
        _section("Training", _heads(rows)),
        classes,
        *plots.values(),
        _section("Time", _times(outcome, timing)),
        _section("Next commands", _commands(workdir, starts, outcome)),
        _section("Config", _config(config)),
        _section("Versions", _versions(starts)),
    ]
    path = workdir / FILE
    html_page.write_report(path, "\n\n".join(filter(None, sections)) + "\n")
    return path


def format_results(workdir: str | os.PathLike) -> str:
    """Formats the parts of report.md that belong to the network rather than to this machine: results and config.

    Args:
      workdir: of a run; its files may be missing or damaged, as for `write`.

    Returns:
      Markdown: the heading, notes, and the sections Result, Training and Config.
    """
    workdir = Path(workdir)
    notes: list[str] = []
    config = _read_valid(manifest.read_config, workdir / manifest.CONFIG, notes)
    starts = _read_valid(manifest.read, workdir / manifest.MANIFEST, notes)
    outcome = _read_valid(result.read_result, workdir / result.FILE, notes)
    rows = _rows(workdir / metric_files.METRICS, notes)
    sections = [
        _heading(config, outcome, rows),
        _format_notes(notes),
        _section("Result", _evaluations(outcome, rows, config, starts)),
        _section("Training", _heads(rows)),
        _section("Config", _config(config)),
    ]
    return "\n\n".join(filter(None, sections))


def _read_or_note(read: Callable[[Any], Any], path: Path, notes: list[str]) -> Any:
    try:
        return read(path)
    except UserError as error:
        notes.append(str(error))
        return None


def _read_valid(read: Callable[[Path], Any], path: Path, notes: list[str]) -> dict[str, Any]:
    """The fields of a JSON file that have the form which this package writes; `read` takes the workdir."""
    return keep_valid_fields(path, _read_or_note(read, path.parent, notes) or {}, notes)


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    return _read_or_note(metric_files.read_rows, path, notes) or [] if path.exists() else []


def _format_notes(notes: Sequence[str]) -> str:
    return "\n>\n".join(f"> {escape(note)}" for note in notes)


def _section(title: str, lines: Iterator[str]) -> str:
    content = "\n".join(lines)
    return f"## {title}\n\n{content}" if content else ""


def _heading(config: Mapping[str, Any], outcome: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    name = outcome.get("model") or _field(config, "model.name") or "A run"
    dataset = outcome.get("dataset") or _field(config, "data.name")
    last = max((row["step"] for row in rows), default=None)
    step = outcome.get("steps", last)
    where = "" if step is None else f" at step {step:,}"
    if "epochs" in outcome:
        where += f" ({outcome['epochs']:.4g} epochs)"
    summaries = {
        "finished": f"Finished{where}.{_early_end(outcome)}",
        "interrupted": f"Stopped by {outcome.get('signal', 'a signal')}{where}; the same command continues.",
        "diverged": f"Ended{where}: {outcome.get('message', 'the loss was not finite')}",
        "failed": f"Ended{where}: {outcome.get('message', 'an error')}",
        None: f"Not finished; the newest row of its metrics is of step {last:,}." if rows else "Not finished.",
    }
    status = outcome.get("status")
    title = f"{name} on {dataset}" if dataset else name
    return f"# {escape(title)}\n\n{escape(summaries.get(status, f'{status}{where}.'))}"


def _early_end(outcome: Mapping[str, Any]) -> str:
    ended = str(outcome.get("ended") or "")
    return f" It ended by {ended}." if ended.startswith("early stopping") else ""


def _facts(
    outcome: Mapping[str, Any],
    rows: list[dict[str, Any]],
    timing: list[dict[str, Any]],
    config: Mapping[str, Any],
    starts: Mapping[str, Any],
) -> Iterator[str]:
    """Yields what is read first, a line each: the accuracy, the step of the best evaluation, the time."""
    final = _final_evaluations(outcome, rows)
    for split in dict.fromkeys(split for split, _ in final):
        weights = "ema" if (split, "ema") in final else "raw"
        if values := final.get((split, weights)):
            right, low, high = _interval(values)
            yield (
                f"- **{100 * values['top1']:.2f} %** top-1 on {escape(split)}, {_WEIGHTS[weights]}: {right:,} of "
                f"{values['count']:,}, 95 % interval {100 * low:.2f}–{100 * high:.2f} %"
            )
    best = outcome.get("best") or {}
    if best.keys() >= {"metric", "value", "step"}:
        metric = metric_definitions.describe(best["metric"], best)
        weights = "ema" if any(kind == "ema" for _, kind in final) else "raw"
        yield (
            f"- **step {best['step']:,}** has the best {escape(metric.title)}: "
            f"{format_metric(metric, best['value'])}, {_WEIGHTS[weights]}"
        )
    if wall := _wall_seconds(outcome, timing):
        whole = round(wall)
        unit = "" if whole < 60 or whole >= 86_400 else " min" if whole < 3_600 else " h"
        shares = {name: share for name, _, share in _parts_of_time(outcome, wall)}
        parts = [
            f"{shares[name]} % {_SECONDS[name]}"
            for name in ("compile_seconds", "evaluation_seconds", "data_wait_seconds")
            if name in shares
        ]
        yield f"- **{format_duration(whole)}{unit}** wall clock" + (f": {', '.join(parts)}" if parts else "")


def _final_evaluations(
    outcome: Mapping[str, Any], rows: list[dict[str, Any]]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """{(split, weights): final evaluation}: of result.json, otherwise the last rows of metrics.jsonl."""
    final: dict[tuple[str, str], Mapping[str, Any]] = {
        (row["split"], row["weights"]): row
        for row in rows
        if row.get("kind") == "evaluation" and row.keys() >= {"split", "weights"}
    }
    for split, by_weights in outcome.get("metrics", {}).items():  # beside them is "train": {metric: value}
        final |= {(split, kind): values for kind, values in by_weights.items() if isinstance(values, Mapping)}
    needed = {"count", "top1", "top5", "loss"}
    return {key: values for key, values in final.items() if values.keys() >= needed and key[1] in _WEIGHTS}


def _interval(values: Mapping[str, Any]) -> tuple[int, float, float]:
    """(number of right answers, lower and upper end of the 95 % interval of the accuracy) of an evaluation."""
    right = round(values["top1"] * values["count"])
    return right, *wilson_interval(right, values["count"])


def _best_evaluation(
    rows: list[dict[str, Any]], config: Mapping[str, Any], starts: Mapping[str, Any]
) -> tuple[metric_definitions.Metric, list[dict[str, Any]]]:
    """(the metric that chooses the best checkpoint, the rows of the best evaluations by it: several where equal).

    They are of the EMA weights where there are any, as the best checkpoint is.
    """
    name = _field(config, "checkpoint.best_metric") or "top1"
    metric = metric_definitions.describe(name, (starts.get("metrics") or {}).get(name))
    known = [row for row in rows if row.get("kind") == "evaluation" and not math.isnan(row.get(name, math.nan))]
    kind = "ema" if any(row.get("weights") == "ema" for row in known) else "raw"
    known = [row for row in known if row.get("weights") == kind]
    value = (max if metric.better == "higher" else min)((row[name] for row in known), default=None)
    return metric, [row for row in known if row[name] == value]


def _evaluations(
    outcome: Mapping[str, Any], rows: list[dict[str, Any]], config: Mapping[str, Any], starts: Mapping[str, Any]
) -> Iterator[str]:
    """Yields the final evaluation per split and weights, the best one, and the fingerprint of the state."""
    recorded = starts.get("metrics") or {}
    final = _final_evaluations(outcome, rows)
    others = [
        metric_definitions.describe(name, recorded.get(name))
        for name in (*metric_definitions.METRICS, *recorded)
        if name not in metric_definitions.SUMMED and any(name in values for values in final.values())
    ]
    others = list({metric.name: metric for metric in others}.values())
    table = []
    for (split, weights), values in final.items():
        _, low, high = _interval(values)
        table.append(
            (
                split,
                weights,
                f"{100 * values['top1']:.2f} %",
                f"{100 * low:.2f}–{100 * high:.2f} %",
                f"{100 * values['top5']:.2f} %",
                format_number(values["loss"]),
                *(format_metric(metric, values.get(metric.name)) for metric in others),
                f"{values['count']:,}",
            )
        )
    names = [metric.column for metric in others]
    head = ("split", "weights", "top-1", "95 % interval", "top-5", "loss", *names, "examples")
    yield from tables.format_markdown(head, table, "llrrrrr" + "r" * len(names))
    if final and (images := _field(config, "evaluation.batch_norm_images")):
        yield ""
        yield f"Evaluated with batch-norm statistics of {images:,} training images, not with the running statistics."
    metric, equal = _best_evaluation(rows, config, starts)
    if equal:
        best, later = equal[0], len(equal) - 1
        also = f"; {later:,} later evaluation{'s are' if later > 1 else ' is'} equal" if later else ""
        yield ""
        yield (
            f"Best {escape(metric.column)} of all evaluations: {format_metric(metric, best[metric.name])} "
            f"({escape(best['split'])}, {best['weights']}) at step {best['step']:,}, epoch {best['epoch']:.4g}{also}."
        )
    if "fingerprint" in outcome:
        yield ""
        yield f"Fingerprint of the final state: `{outcome['fingerprint']}`"


def _classes(workdir: Path, outcome: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    """Yields the table of the classes, with the weights of their losses where result.json has them."""
    weights = outcome.get("class_weights")
    known = {name: value for name, value in weights.items() if isinstance(value, float)} if weights else None
    yield from _read_or_note(lambda path: class_tables.report_lines(path, known), workdir, notes) or []


def _heads(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yields each head's loss and accuracy in the first and the last row."""
    train = [row for row in rows if row.get("kind") == "train"]
    if not train:
        return
    first, last = train[0], train[-1]
    tops = [dict(per_head(row, "top1")) for row in (first, last)]
    before = dict(per_head(first, "loss"))
    table: list[tuple[str, ...]] = (
        [("all, weighted", format_number(first["loss"]), format_number(last["loss"]), "", "")]
        if "loss" in first
        else []
    )
    for head, loss in per_head(last, "loss"):
        accuracies = [f"{100 * top[head]:.1f} %" if head in top else "" for top in tops]
        table.append((head, format_number(before[head]) if head in before else "", format_number(loss), *accuracies))
    names = [f"{what}, step {row['step']:,}" for what in ("loss", "top-1") for row in (first, last)]
    yield from tables.format_markdown(("head", *names), table, "lrrrr")


def _times(outcome: Mapping[str, Any], timing: list[dict[str, Any]]) -> Iterator[str]:
    if wall := _wall_seconds(outcome, timing):
        table = [(_SECONDS["wall_seconds"], _clock_time(round(10 * wall)), "100 %")]
        parts = _parts_of_time(outcome, wall)
        table += [(_SECONDS.get(name, _REST), _clock_time(tenths), f"{share} %") for name, tenths, share in parts]
        yield from tables.format_markdown(("", "h:min:s", "fraction"), table, "lrr")
    speeds = [row["images_per_second"] for row in timing if "images_per_second" in row]
    if speeds:
        waits = [row.get("data_wait_fraction", 0.0) for row in timing]
        yield ""
        yield (
            f"Median of {len(speeds):,} rows: {statistics.median(speeds):,.1f} images/s, "
            f"{100 * statistics.median(waits):.0f} % of the time between steps spent waiting for data."
        )


def _wall_seconds(outcome: Mapping[str, Any], timing: list[dict[str, Any]]) -> float | None:
    return outcome.get("wall_seconds") or (timing[-1].get("wall_seconds") if timing else None)


def _parts_of_time(outcome: Mapping[str, Any], wall: float) -> list[tuple[str, int, int]]:
    """The phases of a run and what remains: (name, tenths of a second, per cent of `wall`); [] where none is known.

    The tenths add up to those of `wall` and the percentages to 100: the largest fractions are rounded up.
    """
    tenths = {name: round(10 * outcome[name]) for name in _SECONDS if outcome.get(name) is not None}
    tenths.pop("wall_seconds", None)
    if not tenths:
        return []
    total = round(10 * wall)
    tenths["rest"] = max(0, total - sum(tenths.values()))
    exact = {name: 100 * part / max(1, total) for name, part in tenths.items()}
    shares = {name: math.floor(share) for name, share in exact.items()}
    missing = 100 - sum(shares.values())
    for name in sorted(exact, key=lambda name: shares[name] - exact[name])[: max(0, missing)]:
        shares[name] += 1
    return [(name, part, shares[name]) for name, part in tenths.items()]


def _clock_time(tenths: int) -> str:
    return f"{tenths // 36_000}:{tenths // 600 % 60:02d}:{tenths % 600 / 10:04.1f}"


def _commands(workdir: Path, starts: Mapping[str, Any], outcome: Mapping[str, Any]) -> Iterator[str]:
    yield "```"
    if command := starts.get("command"):
        finished = outcome.get("status") == "finished"
        yield "# " + ("shows the result again: the run has finished" if finished else "continues the run")
        yield shlex.join(["python", *command[1:]])
    here = shlex.quote(remote_workdir.display_name(workdir))
    yield f"python -m inception_jax.evaluate --workdir={here}"
    yield f"python -m inception_jax.predict --workdir={here} image.jpg"
    if (workdir / metric_files.EVENTS).is_dir():
        yield "# with TensorBoard, the extra: pip install '.[tensorboard]'"
        yield f"tensorboard --logdir={here}"
    yield "```"


def _config(config: Mapping[str, Any]) -> Iterator[str]:
    unused = "num_epochs" if config.get("num_steps") else "num_steps"
    values = [(path, _field(config, path)) for path in _HIGHLIGHTS if path != unused]
    rows = [(code(path), value) for path, value in values if value is not None]
    yield from tables.format_markdown(("field", "value"), rows)
    if config:
        yield ""
        yield f"All fields: [{manifest.CONFIG}]({manifest.CONFIG})."


def _versions(starts: Mapping[str, Any]) -> Iterator[str]:
    git = starts.get("git") or {}
    revision = git.get("revision", "unknown") + (" with uncommitted changes" if git.get("dirty") else "")
    table = [("revision", revision)] if starts else []
    table += [(name, version) for name, version in (starts.get("versions") or {}).items() if version]
    table += [(name, starts[name]) for name in ("hostname", "platform") if starts.get(name)]
    table += [("devices", ", ".join(map(str, starts["devices"])))] if starts.get("devices") else []
    times = [start.get("time", "?") for start in starts.get("starts", [])]
    table += [("started", ", ".join(times))] if times else []
    yield from tables.format_markdown(("", ""), table)


def _field(config: Mapping[str, Any], path: str) -> Any:
    """Returns the value at a dotted path, or None."""
    value: Any = config
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
