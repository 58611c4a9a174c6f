"""The common style of all plots, and a context manager that saves a figure as a PNG file.

matplotlib is imported when a plot is drawn (the import takes two seconds), and without `pyplot`: no global figures, no
display, no effect on a caller's own plots. Sizes are fixed in inches: no "tight" cropping, which would make the size of
a file depend on its content.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inception_jax.data.channels import to_rgb
from inception_jax.errors import UserError
from inception_jax.runs.manifest import replace_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

DPI = 160

# Colours that people with any of the common colour deficiencies tell apart: M. Okabe, K. Ito, "Color universal design"
# (2008), https://jfly.uni-koeln.de/color/
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY = "#767676"

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.0,
    "axes.titlesize": 9.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "text.parse_math": False,  # a class name may hold a dollar sign
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


@contextlib.contextmanager
def saved_figure(
    path: str | os.PathLike, width: float, height: float, *, layout: str = "constrained"
) -> Iterator[Figure]:
    """Makes an empty figure in the common style, and saves it as a PNG when the block has ended.

    Args:
      path: of the PNG file; it is replaced atomically.
      width: inches; the file has `width * DPI` pixels.
      height: inches.
      layout: "constrained" makes room for labels; "none" where the caller places every axes.

    Yields:
      The figure.

    Raises:
      UserError: the file cannot be written, or the path exists and is not a regular file (a folder, a device).
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it exists and is not a regular file")
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a plot does not depend on the user's matplotlibrc
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # the keys are literals in the stubs
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)  # class names in any script
        figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)  # type: ignore[arg-type]  # no "none" in stubs
        FigureCanvasAgg(figure)
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=DPI)
        replace_bytes(path, content.getvalue(), sync=False)


def inch_axes(figure: Figure) -> Axes:
    """Adds invisible axes over a whole figure, in inches from its upper left corner, for `draw_image`.

    Many images in one axes take a third of the time of as many axes.
    """
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return axes


def draw_image(
    axes: Axes,
    image: np.ndarray,
    left: float,
    top: float,
    size: float,
    *,
    color: str,
    linewidth: float,
    cmap: str = "gray",
    limits: tuple[float, float] = (0, 255),
    interpolation: str | None = None,
) -> AxesImage:
    """Draws an image with a frame, centred in a square.

    Args:
      axes: from `inch_axes`.
      image: [h, w], or uint8 [h, w, C], drawn as `channels.to_rgb` says.
      left: of the square, in inches.
      top: of the square.
      size: of the square.
      color: of the frame.
      linewidth: of the frame, in points; 0: none.
      cmap: colours of [h, w].
      limits: values of [h, w] with the first and the last colour.
      interpolation: as in matplotlib.
    """
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

    height, width = (size * side / max(image.shape[:2]) for side in image.shape[:2])
    x, y = left + (size - width) / 2, top + (size - height) / 2
    drawn = AxesImage(
        axes, cmap=cmap, interpolation=interpolation, origin="upper", extent=(x, x + width, y + height, y)
    )
    drawn.set_data(image if image.ndim == 2 else to_rgb(image))
    drawn.set_clim(*limits)
    axes.add_image(drawn)
    if linewidth:
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linewidth=linewidth))
    return drawn


def hide_axes(axes: Axes) -> None:
    """Hides the ticks and the frame of axes that show an image or text."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def shorten(text: str, length: int) -> str:
    """Shortens a text to a length, with an ellipsis where something is cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
