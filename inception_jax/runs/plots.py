"""Plots of a finished run beside its learning curves: confusion matrix, predictions, first-layer filters."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.runs import plot_style
from inception_jax.runs.plot_style import BLACK, BLUE, GREY, VERMILLION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_NUMBERED = 20  # with at most so many classes every cell has room for a number …
_NAMED = 60  # … and with at most so many, every class for its name
_MAX_CELLS = 250  # per side; of more classes, adjacent ones share a cell
_LISTED = 28  # most frequent confusions that are listed where cells have no numbers

_SMALL, _LARGE = (5.8, 5.4), (10.4, 6.4)  # inches

_COLUMNS, _ROWS = 8, 3  # of the right and of the wrong predictions
_CELL, _IMAGE, _HEAD = 1.0, 0.92, 0.34  # inches: a column, the image in it, the line above each half
_FILTER_COLUMNS, _GAP = 16, 5  # of the filters; pixels between them
_CAPTIONS = {"right": 0.24, "wrong": 0.36}  # inches: below the image


def confusion_matrix(
    matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike, *, title: str = ""
) -> Figure:
    """Draws a confusion matrix.

    Up to 20 classes: counts in the cells, and each class's accuracy. More: colours, and a list of the most frequent
    confusions; of more than 250 classes adjacent ones share a cell, which shows the largest fraction among them.

    Args:
      matrix: int [C, C], examples of the true class (row) that were predicted as a class (column).
      class_names: C names.
      path: of the PNG file.
      title: e.g. the split and the weights.

    Returns:
      The figure; its first axes hold the matrix as fractions of each row.

    Raises:
      ValueError: the matrix is not [C, C].
      UserError: the file cannot be written.
    """
    matrix = np.asarray(matrix)
    classes = len(class_names)
    if matrix.shape != (classes, classes):
        raise ValueError(f"the matrix is {matrix.shape}, but there are {classes} class names")
    totals = matrix.sum(axis=1, keepdims=True)
    fractions = np.divide(matrix, totals, out=np.full(matrix.shape, np.nan), where=totals > 0)
    right, count = int(np.trace(matrix)), int(matrix.sum())
    head = f"{right:,} of {count:,} right" + (f" ({100 * right / count:.2f} %)" if count else "")
    with plot_style.saved_figure(path, *(_SMALL if classes <= _NUMBERED else _LARGE)) as figure:
        figure.suptitle(f"{title}: {head}" if title else head, x=0.01, ha="left", fontsize=9.5, fontweight="bold")
        if classes <= _NUMBERED:
            axes = figure.subplots()
            _draw_fractions(axes, fractions, classes)
            _number_cells(axes, matrix, fractions)
        else:
            from matplotlib.layout_engine import ConstrainedLayoutEngine

            engine = figure.get_layout_engine()
            assert isinstance(engine, ConstrainedLayoutEngine)
            engine.set(h_pad=0.1)  # without it the square axes push their label over the edge
            axes, side = figure.subplots(1, 2, width_ratios=(1.0, 0.55))
            image = _draw_fractions(axes, _largest_of_blocks(fractions, math.ceil(classes / _MAX_CELLS)), classes)
            _list_confusions(side, matrix, class_names)
            bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, ticks=[0, 0.01, 0.1, 0.5, 1])
            bar.set_ticklabels(["0", "1 %", "10 %", "50 %", "100 %"])
            bar.set_label("fraction of the true class")
            bar.outline.set_visible(False)
        if classes <= _NAMED:
            _name_classes(axes, class_names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
    return figure


def _draw_fractions(axes: Axes, fractions: np.ndarray, classes: int) -> AxesImage:
    """Draws the fractions as colours, with more contrast near 0, where a good classifier has all its confusions.

    Args:
      axes: drawn on.
      fractions: float [n, n]; NaN where a class has no examples.
      classes: number of classes in the n rows.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    colors = colormaps["Blues"].with_extremes(
        bad="#EEEEEE"
    )  # one hue by lightness: readable with any colour vision, and in grey
    side = len(fractions) * math.ceil(classes / len(fractions)) - 0.5
    image = axes.imshow(
        fractions, cmap=colors, norm=PowerNorm(0.4, 0.0, 1.0), interpolation="nearest", extent=(-0.5, side, side, -0.5)
    )
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.spines[:].set(visible=True, color="#BBBBBB")
    if classes <= _NAMED:
        edges = np.arange(classes + 1) - 0.5
        axes.hlines(edges, -0.5, classes - 0.5, color="#DDDDDD", linewidth=0.4)
        axes.vlines(edges, -0.5, classes - 0.5, color="#DDDDDD", linewidth=0.4)
    return image


def _largest_of_blocks(fractions: np.ndarray, group: int) -> np.ndarray:
    """Reduces [C, C] to [ceil(C / group)] * 2 by the maximum, so that a single confusion stays visible."""
    pad = -len(fractions) % group
    blocks = np.pad(fractions, ((0, pad), (0, pad)), constant_values=-np.inf)
    blocks = blocks.reshape(len(blocks) // group, group, -1, group)
    return np.fmax.reduce(np.fmax.reduce(blocks, axis=3), axis=1)


def _number_cells(axes: Axes, matrix: np.ndarray, fractions: np.ndarray) -> None:
    size = 8.0 if len(matrix) <= 12 else 5.5
    for (true, predicted), count in np.ndenumerate(matrix):
        if count:
            color = "white" if fractions[true, predicted] > 0.2 else BLACK
            axes.text(predicted, true, f"{count:,}", ha="center", va="center", color=color, fontsize=size)
    for true, accuracy in enumerate(np.diagonal(fractions)):
        text = "–" if np.isnan(accuracy) else f"{100 * accuracy:.1f} %"
        axes.text(len(matrix) - 0.35, true, text, ha="left", va="center", color=GREY, fontsize=max(size - 1, 5.5))


def _name_classes(axes: Axes, class_names: Sequence[str]) -> None:
    names = [plot_style.shorten(str(name), 18) for name in class_names]
    size = 7.5 if len(names) <= _NUMBERED else 5.5
    turned = max(map(len, names), default=0) > 3
    axes.set_xticks(range(len(names)), names, rotation=90 if turned else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)


def _list_confusions(axes: Axes, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Lists the largest counts off the diagonal as text."""
    plot_style.hide_axes(axes)
    wrong = matrix - np.diag(np.diagonal(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_LISTED]
    lines = []
    for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[true, predicted]:
            names = (plot_style.shorten(str(class_names[index]), 24) for index in (true, predicted))
            lines.append(f"{wrong[true, predicted]:>5,}  {' → '.join(names)}")
    axes.set_title("most frequent confusions: true → predicted", fontsize=8)
    axes.text(0.0, 0.99, "\n".join(lines) or "none", transform=axes.transAxes, va="top", fontsize=7, linespacing=1.7)


def prediction_sheet(
    read_image: Callable[[int], np.ndarray],
    labels: np.ndarray,
    predictions: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
) -> Figure:
    """Draws images with right and with wrong predictions.

    Of the right ones 24, evenly spread from the most to the least probable; of the wrong ones the 24 most probable.

    Args:
      read_image: returns the image of example i, uint8 [h, w, C] or [h, w]; called for those that are drawn.
      labels: int [n], true classes.
      predictions: int [n], most probable classes.
      probabilities: float [n], their probabilities.
      class_names: names of all classes.
      path: of the PNG file.

    Returns:
      The figure, with one axes that holds the images and their captions, the right predictions first.

    Raises:
      ValueError: the arrays differ in length, or are empty.
      UserError: the file cannot be written.
    """
    labels, predictions, probabilities = (np.asarray(array) for array in (labels, predictions, probabilities))
    if not len(labels) or not len(labels) == len(predictions) == len(probabilities):
        raise ValueError(f"{len(labels)} labels, {len(predictions)} predictions, {len(probabilities)} probabilities")
    order = np.lexsort((np.arange(len(labels)), -probabilities))  # most probable first; equal ones in their order
    right, wrong = (order[(labels == predictions)[order] == value] for value in (True, False))
    most = _COLUMNS * _ROWS
    spread = np.linspace(0, len(right) - 1, min(most, len(right))).round().astype(int)
    halves = {"right": (right, right[spread], BLUE), "wrong": (wrong, wrong[:most], VERMILLION)}
    heights = {
        name: _HEAD + math.ceil(len(shown) / _COLUMNS) * (_IMAGE + _CAPTIONS[name])
        for name, (_, shown, _) in halves.items()
    }
    width, height = _COLUMNS * _CELL + 0.1, sum(heights.values()) + 0.1
    with plot_style.saved_figure(path, width, height, layout="none") as figure:
        axes, top = plot_style.inch_axes(figure), height
        for name, (everything, shown, color) in halves.items():
            text = (
                f"{name}: {len(everything):,} of {len(labels):,}{_format_selection(name, len(shown), len(everything))}"
            )
            figure.text(0.09 / width, (top - 0.22) / height, text, fontsize=9, fontweight="bold", color=color)
            for place, index in enumerate(shown):
                row, column = divmod(place, _COLUMNS)
                bottom = top - _HEAD - row * (_IMAGE + _CAPTIONS[name]) - _IMAGE
                left = 0.05 + column * _CELL + (_CELL - _IMAGE) / 2
                classes = class_names[labels[index]], class_names[predictions[index]]
                image = np.asarray(read_image(int(index)))
                image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
                above = height - bottom - _IMAGE
                plot_style.draw_image(axes, image, left, above, _IMAGE, color=color, linewidth=1.2)
                caption = _format_prediction(*classes, float(probabilities[index]))
                style: dict[str, Any] = {"ha": "center", "va": "top", "linespacing": 1.15}
                axes.text(left + _IMAGE / 2, above + _IMAGE + 0.03, caption, fontsize=6.5, color=BLACK, **style)
            top -= heights[name]
    return figure


def _format_selection(half: str, shown: int, everything: int) -> str:
    if everything < 2:
        return ""
    if shown == everything:
        return ", the most probable first"
    return f"; {shown} of them, " + (
        "the most probable first" if half == "wrong" else "from the most to the least probable"
    )


def _format_prediction(label: str, prediction: str, probability: float) -> str:
    text = f"{plot_style.shorten(str(prediction), 12)} ({100 * probability:.1f} %)"
    return text if label == prediction else f"{text}\ntrue: {plot_style.shorten(str(label), 15)}"


def first_layer_filters(kernel: np.ndarray, path: str | os.PathLike) -> Figure:
    """Draws the filters of the first convolution, each scaled to its own range.

    The title has the correlation of neighbouring weights, which tells trained filters from noise: it is 0 on average
    where all weights are independent, as after random initialization, and near 1 for smooth filters.

    Args:
      kernel: float [kh, kw, channels, n] with 3 channels (red, green, blue) or 1.
      path: of the PNG file.

    Returns:
      The figure, with one axes.

    Raises:
      ValueError: the kernel has another shape.
      UserError: the file cannot be written.
    """
    kernel = np.asarray(kernel, np.float64)
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3):
        raise ValueError(f"the kernel has shape {kernel.shape}, not [kh, kw, 1 or 3, n]")
    height, width, channels, count = kernel.shape
    low, high = kernel.min(axis=(0, 1, 2)), kernel.max(axis=(0, 1, 2))
    scaled = (kernel - low) / np.where(high > low, high - low, 1.0)
    zoom = max(
        1, 42 // max(height, width)
    )  # pixels of the sheet per weight, so that 7x7 and 3x3 filters have the same size
    scaled = scaled.repeat(zoom, axis=0).repeat(zoom, axis=1)
    step_y, step_x = height * zoom + _GAP, width * zoom + _GAP
    rows, columns = math.ceil(count / _FILTER_COLUMNS), min(count, _FILTER_COLUMNS)
    sheet = np.ones((rows * step_y - _GAP, columns * step_x - _GAP, channels))
    for index in range(count):
        top, left = index // columns * step_y, index % columns * step_x
        sheet[top : top + height * zoom, left : left + width * zoom] = scaled[..., index]
    # Every pixel of the sheet becomes 2x2 pixels of the file: all weights are drawn with the same size.
    sheet_height, sheet_width = (2 * side / plot_style.DPI for side in sheet.shape[:2])
    total_width, total_height = max(sheet_width + 0.2, 4.6), sheet_height + 0.6
    with plot_style.saved_figure(path, total_width, total_height, layout="none") as figure:
        place = (0.1 / total_width, 0.1 / total_height, sheet_width / total_width, sheet_height / total_height)
        axes = figure.add_axes(place)
        axes.imshow(sheet[..., 0] if channels == 1 else sheet, cmap="gray", interpolation="nearest")
        plot_style.hide_axes(axes)
        text = f"first layer: {count} filters of {height}×{width}×{channels}, each min–max normalized"
        if height > 1 and width > 1:
            text += f"\nneighbouring weights correlate by {neighbour_correlation(kernel):.2f} (independent ones: 0)"
        axes.set_title(text, fontsize=9 if total_width > 6 else 7)
    return figure


def neighbour_correlation(kernel: np.ndarray) -> float:
    """The correlation of horizontally and vertically neighbouring weights of a kernel, over all filters and channels.

    Args:
      kernel: float [kh, kw, channels, n] with kh and kw of at least 2.
    """
    centered = np.asarray(kernel, np.float64) - np.mean(kernel)
    pairs = (centered[1:], centered[:-1]), (centered[:, 1:], centered[:, :-1])
    products = sum(float((a * b).sum()) for a, b in pairs)
    squares = sum(float((a * a).sum() + (b * b).sum()) / 2 for a, b in pairs)
    return products / squares if squares else 0.0
