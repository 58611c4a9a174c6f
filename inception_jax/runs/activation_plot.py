"""Plots the activations of one image, block by block."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from inception_jax.runs import plot_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CHANNELS, _MAX_BLOCKS = 8, 24
_CELL, _LABEL, _HEAD = 0.62, 1.35, 0.62  # inches: a map with its margin, the names, the line above with the image


def activations(
    image: np.ndarray, maps: Mapping[str, np.ndarray], path: str | os.PathLike, *, title: str = ""
) -> Figure:
    """Draws, for each block, the channels that respond most strongly to an image.

    A row per block, from the input to the output; of more than 24 blocks, 24 that are evenly spread. In a row the 8
    channels with the largest maxima, each map coloured by itself from its smallest value (dark) to its largest.

    Args:
      image: uint8 [h, w, C], as the network sees it.
      maps: {name of the block: float [h, w, channels]}, in the order of the network.
      path: of the PNG file.
      title: e.g. the data set and the class of the image.

    Returns:
      The figure, with one axes; its first image is the image, and each other one a map.

    Raises:
      ValueError: there is no map.
      UserError: the file cannot be written.
    """
    if not maps:
        raise ValueError("no activations to draw")
    names, shown = list(maps), "each block"
    if len(maps) > _MAX_BLOCKS:
        names = [names[index] for index in np.linspace(0, len(names) - 1, _MAX_BLOCKS).round().astype(int)]
        shown = f"{_MAX_BLOCKS} of {len(maps)} blocks"
    width, height = _LABEL + _CHANNELS * _CELL + 0.1, _HEAD + len(names) * _CELL + 0.1
    inner = _CELL - 0.06

    with plot_style.saved_figure(path, width, height, layout="none") as figure:
        axes, frame = plot_style.inch_axes(figure), plot_style.GREY
        plot_style.draw_image(axes, image, 0.08, 0.05, _HEAD - 0.1, color=frame, linewidth=0)
        text = (
            f"activations of {shown}: the {_CHANNELS} channels with the largest maxima, each from its minimum (dark) "
            "to its maximum"
        )
        figure.text((_HEAD + 0.08) / width, 1 - 0.2 / height, title, fontsize=9, fontweight="bold", va="center")
        figure.text((_HEAD + 0.08) / width, 1 - 0.42 / height, text, fontsize=6.5, va="center")
        for row, name in enumerate(names):
            values = np.asarray(maps[name], np.float32)
            top = _HEAD + row * _CELL
            shape = "×".join(map(str, values.shape))
            label = f"{plot_style.shorten(name, 22)}\n{shape}"
            figure.text(0.08 / width, 1 - (top + _CELL / 2) / height, label, fontsize=6.5, va="center")
            strongest = np.argsort(-values.max(axis=(0, 1)), kind="stable")[:_CHANNELS]
            for column, channel in enumerate(strongest):
                low, high = float(values[..., channel].min()), float(values[..., channel].max())
                if low == high:  # one value everywhere: between it and 0
                    low, high = min(0.0, low), max(0.0, high) if high else 1.0
                plot_style.draw_image(
                    axes,
                    values[..., channel],
                    _LABEL + column * _CELL,
                    top,
                    inner,
                    color=frame,
                    linewidth=0.4,
                    cmap="viridis",
                    limits=(low, high),
                    interpolation="nearest",
                )
    return figure
