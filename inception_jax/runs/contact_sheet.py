"""Draws a contact sheet of predictions: small images, each with its class, the probability and the name of its file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from inception_jax.data.channels import to_rgb
from inception_jax.runs import plot_style
from inception_jax.runs.plot_style import BLACK, GREY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_IMAGES = 48
"""More are not drawn."""

_WIDTH = 10.4  # inches, of a full row
_COLUMNS = {False: 8, True: 4}  # without and with saliency maps
_IMAGE, _GAP, _HEAD, _CAPTION = 1.22, 0.08, 0.36, 0.38  # inches
_NOTE = 0.14  # inches, of the line below the title that says what the maps are
_SHARPEST = 320  # pixels of a side; more are not drawn


class Thumbnail(NamedTuple):
    """One image of the sheet.

    Attributes:
      image: uint8 [h, w, C], drawn as `channels.to_rgb` says.
      name: of its file.
      prediction: the most probable class.
      probability: of that class.
      saliency: float [h, w] from 0 to 1, or None.
    """

    image: np.ndarray
    name: str
    prediction: str
    probability: float
    saliency: np.ndarray | None = None


def shrink(image: np.ndarray) -> np.ndarray:
    """Returns an image in the resolution of the sheet: every second, third … pixel where it is much larger."""
    step = math.ceil(max(image.shape[:2]) / _SHARPEST)
    return image if step == 1 else image[::step, ::step].copy()


def contact_sheet(thumbnails: Sequence[Thumbnail], path: str | os.PathLike, *, title: str = "") -> Figure:
    """Draws images in rows; beside each its saliency map, where the first one has a map, and a line that says so.

    Args:
      thumbnails: the images, at least one; those after `MAX_IMAGES` are left out.
      path: of the PNG file.
      title: above the images.

    Returns:
      The figure, with an axes per image and per map, in the order of the images.

    Raises:
      UserError: the file cannot be written.
    """
    thumbnails = thumbnails[:MAX_IMAGES]
    with_maps = thumbnails[0].saliency is not None
    columns = min(_COLUMNS[with_maps], max(len(thumbnails), 2))
    cell = (_WIDTH - _GAP) / _COLUMNS[with_maps]
    width = _GAP + columns * cell
    row_height = _IMAGE + _CAPTION
    head = _HEAD + _NOTE * with_maps
    height = head + math.ceil(len(thumbnails) / columns) * row_height + _GAP
    letters = int(cell * 13.5)  # that fit below an image, in the size of the captions
    with plot_style.saved_figure(path, width, height, layout="none") as figure:
        heading = plot_style.shorten(title, int(width * 14))
        figure.text(_GAP / width, 1 - _HEAD / 2 / height, heading, fontsize=8, fontweight="bold", va="center")
        if with_maps:
            note = "beside each image: the saliency map of the class that is named below it"
            figure.text(_GAP / width, 1 - (head - 0.12) / height, note, fontsize=5.5, color=GREY, va="center")
        for place, one in enumerate(thumbnails):
            row, column = divmod(place, columns)
            left, bottom = _GAP + column * cell, height - head - row * row_height - _IMAGE
            image = to_rgb(one.image)
            pictures = [image] if one.saliency is None else [image, one.saliency]
            for number, picture in enumerate(pictures):
                x = left + number * (_IMAGE + 0.03)
                axes = figure.add_axes((x / width, bottom / height, _IMAGE / width, _IMAGE / height))
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1)  # which an image in colour does not read
                plot_style.hide_axes(axes)
            probability = f" {100 * one.probability:.1f} %"
            caption = plot_style.shorten(one.prediction, letters - len(probability)) + probability
            figure.text(left / width, (bottom - 0.12) / height, caption, fontsize=7, color=BLACK, va="center")
            name = _shorten_left(one.name, letters + 4)
            figure.text(left / width, (bottom - 0.26) / height, name, fontsize=5.5, color=GREY, va="center")
    return figure


def _shorten_left(text: str, length: int) -> str:
    """Shortens a path to a length: its end tells files apart."""
    return text if len(text) <= length else "…" + text[1 - length :]
