"""Writes the plots of a run and its report: results, times, config, and the commands that continue or use the run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.data import images
from inception_jax.errors import UserError
from inception_jax.runs import (
    activation_plot,
    class_tables,
    curves,
    html_page,
    manifest,
    metric_files,
    plot_style,
    plots,
    report_sections,
    result,
)
from inception_jax.runs.run_state import read_valid
from inception_jax.runs.tables import escape, section

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
    "training_batch": "Training images",
}
"""{name: caption}; each plot is `name`.png in the workdir. A run draws the training images at its first step."""

_DESCRIPTIONS = {
    "learning_curves": "Loss and accuracy of every head by epoch, in training and in evaluations",
    "confusion_matrix": "Number of examples by true class (rows) and predicted class (columns)",
    "predictions": "Images with true class, predicted class and probability",
    "activations": "An image, and the activations of the network's blocks on it",
    "first_layer": "The filters of the first convolution as images",
    "training_batch": "Images of the first batch as the network sees them, with their labels",
}


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
      blocks: takes an image, uint8 [h, w, C] as the network sees it, and returns {block: its output [h, w, channels]};
        None: activations are not drawn.

    Returns:
      {name of `PLOTS`: path}, of those that were drawn: of several labels per example no confusion matrix and no right
      and wrong predictions.

    Raises:
      UserError: an image cannot be read, or a file cannot be written.
    """
    workdir = Path(workdir)
    paths = {name: workdir / f"{name}.png" for name in PLOTS}
    split = f"{data.dataset.name}, {data.dataset.split}"
    drawn = []
    if (metrics := workdir / metric_files.METRICS).exists() and (rows := metric_files.read_rows(metrics)):
        config = read_valid(manifest.read_config, workdir / manifest.CONFIG, [])
        model = report_sections.config_value(config, "model.name")
        title = f"{model} on {data.dataset.name}" if model else data.dataset.name
        curves.learning_curves(rows, paths["learning_curves"], title=title)
        drawn.append("learning_curves")
    if evaluation.confusion is not None:
        plots.confusion_matrix(evaluation.confusion, class_names, paths["confusion_matrix"], title=split)
        drawn.append("confusion_matrix")
    found = evaluation.predictions()

    def read_image(row: int) -> np.ndarray:
        """The image of a row, decoded and cropped as the network sees it."""
        return images.center_crop(data.decode_record(int(found.index[row])), data.image_size, data.crop)

    if evaluation.labels == "multi":  # no image is right or wrong as a whole
        right = np.flatnonzero((found.labels & found.predicted).any(axis=1))
    else:
        plots.prediction_sheet(
            read_image,
            found.labels,
            found.classes[:, 0],
            found.probabilities[:, 0],
            class_names,
            paths["predictions"],
        )
        drawn.append("predictions")
        right = np.flatnonzero(found.labels == found.classes[:, 0])
    if blocks is not None:
        row = int(right[0]) if len(right) else 0
        label = found.labels[row]
        names = [class_names[one] for one in (np.flatnonzero(label).tolist() if label.ndim else [int(label)])]
        image, name = read_image(row), plot_style.shorten(", ".join(map(str, names)) or "no label", 30)
        if maps := blocks(image):  # a network that a recipe registered may have no endpoints
            activation_plot.activations(image, maps, paths["activations"], title=f"{split}: {name}")
            drawn.append("activations")
    if first_layer is not None:
        plots.first_layer_filters(np.asarray(first_layer), paths["first_layer"])
        drawn.append("first_layer")
    return {name: paths[name] for name in drawn}


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
    config, starts, outcome, rows = _read(workdir, notes)
    timing = _rows(workdir / metric_files.TIMING, notes)
    classes = section("Classes", _classes(workdir, outcome, notes))
    plots = {
        name: f"## {caption}\n\n![{_DESCRIPTIONS[name]}]({name}.png)"
        for name, caption in PLOTS.items()
        if (workdir / f"{name}.png").exists()
    }
    sections = [
        report_sections.heading(config, outcome, rows),
        "\n".join(report_sections.facts(outcome, rows, timing, config, starts)),
        _format_notes(notes),
        section("Result", report_sections.evaluations(outcome, rows, config, starts)),
        plots.pop("learning_curves", ""),
        section("Training", report_sections.heads(rows)),
        classes,
        *plots.values(),
        section("Time", report_sections.times(outcome, timing)),
        section("Next commands", report_sections.next_commands(workdir, starts, outcome)),
        section("Config", report_sections.config_fields(config)),
        section("Versions", report_sections.versions(starts)),
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
    config, starts, outcome, rows = _read(workdir, notes)
    sections = [
        report_sections.heading(config, outcome, rows),
        _format_notes(notes),
        section("Result", report_sections.evaluations(outcome, rows, config, starts)),
        section("Training", report_sections.heads(rows)),
        section("Config", report_sections.config_fields(config)),
    ]
    return "\n\n".join(filter(None, sections))


def _read(
    workdir: Path, notes: list[str]
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any], list[dict[str, Any]]]:
    """(config, manifest, result, rows of metrics.jsonl) of a run, as far as they can be read."""
    return (
        read_valid(manifest.read_config, workdir / manifest.CONFIG, notes),
        read_valid(manifest.read, workdir / manifest.MANIFEST, notes),
        read_valid(result.read_result, workdir / result.FILE, notes),
        _rows(workdir / metric_files.METRICS, notes),
    )


def _rows(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    try:
        return metric_files.read_rows(path) if path.exists() else []
    except UserError as error:
        notes.append(str(error))
        return []


def _format_notes(notes: Sequence[str]) -> str:
    return "\n>\n".join(f"> {escape(note)}" for note in notes)


def _classes(workdir: Path, outcome: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    """Yields the table of the classes, with the weights of their losses where result.json has them."""
    weights = outcome.get("class_weights")
    known = {name: value for name, value in weights.items() if isinstance(value, float)} if weights else None
    try:
        yield from class_tables.report_lines(workdir, known)
    except UserError as error:
        notes.append(str(error))
