"""Draws the images of a batch with their labels, by Pillow: a start of a run does not load matplotlib."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from inception_jax.data.channels import to_rgb
from inception_jax.data.names import one_line
from inception_jax.errors import UserError
from inception_jax.runs.manifest import replace_bytes

FILE = "training_batch.png"
"""In the workdir: images of the run's first batch."""

_WIDTH = 1400  # pixels of a row, about
_LEAST = 96  # pixels of a side; smaller images are enlarged by a whole number
_GAP, _CAPTION, _HEAD = 8, 18, 26
_SIZE = 12  # of the letters
_OURS = b"inception_jax: images of a batch"


def draw(
    images: np.ndarray, captions: Sequence[str], path: str | os.PathLike, *, title: str, least: int = _LEAST
) -> None:
    """Draws images in rows, each with its caption below.

    Args:
      images: uint8 [n, h, w, C], drawn as `channels.to_rgb` says.
      captions: n lines; too long ones are cut.
      path: of the PNG file.
      title: above the images.
      least: pixels of the smaller side, at least, by a whole factor.

    Raises:
      UserError: the file cannot be written.
    """
    zoom = -(-least // min(images.shape[1:3]))
    height, width = zoom * images.shape[1], zoom * images.shape[2]
    columns = min(len(images), max(2, _WIDTH // (width + _GAP)))
    rows = -(-len(images) // columns)
    size = columns * (width + _GAP) + _GAP, _HEAD + rows * (height + _CAPTION + _GAP)
    sheet = Image.new("RGB", size, "white")
    letters, font = ImageDraw.Draw(sheet), _font()
    letters.text((_GAP, 6), _fit(title, size[0] - 2 * _GAP, font), "black", font)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = _GAP + column * (width + _GAP), _HEAD + row * (height + _CAPTION + _GAP)
        sheet.paste(Image.fromarray(to_rgb(image).repeat(zoom, 0).repeat(zoom, 1)), (left, top))
        letters.text((left, top + height + 2), _fit(caption, width, font), "black", font)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Software", _OURS.decode())
    content = io.BytesIO()
    sheet.save(content, "png", pnginfo=notes, compress_level=1)
    replace_bytes(path, content.getvalue(), sync=False)


def refuse_other_file(path: str | os.PathLike, flag: str) -> None:
    """Refuses a path that is no PNG file of this module, before an image is made.

    Args:
      path: where a sheet is to be written.
      flag: that gives it, for the message.

    Raises:
      UserError: another suffix, no such folder, or a file that is no sheet.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UserError(f"{flag}={path}: name a PNG file, {flag}=FILE.png")
    if not path.parent.is_dir():
        raise UserError(f"{flag}={path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UserError(f"{flag}={path}: is a folder; name a PNG file")
    if path.exists() and _OURS not in path.read_bytes()[:1000]:
        raise UserError(f"{flag}={path}: exists and is no sheet of a batch; name another file")


def format_label(names: Sequence[str], label: int, partner: int | None = None, weight: float = 1.0) -> str:
    """Formats a label: "cat", or "cat 0.70 / dog 0.30" of a mixed image, its own label first.

    Args:
      names: of the classes.
      label: the image's own.
      partner: of the image that is mixed into it; None: there is none.
      weight: of the image's own label.
    """
    own, other = f"{weight:.2f}", f"{1 - weight:.2f}"
    if partner in (None, label) or own == "1.00":
        return names[label]
    return names[partner] if own == "0.00" else f"{names[label]} {own} / {names[partner]} {other}"


def format_labels(names: Sequence[str], labels: np.ndarray) -> str:
    """Formats several labels: "cat, dog", or "cat 0.70, dog" of a mixed image; "(no label)" where there is none.

    Args:
      names: of the classes.
      labels: [num_classes], 0 to 1.
    """
    shown = [(names[label], f"{labels[label]:.2f}") for label in np.flatnonzero(labels >= 0.005).tolist()]
    return ", ".join(name if weight == "1.00" else f"{name} {weight}" for name, weight in shown) or "(no label)"


def _fit(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A line of at most `width` pixels; the middle is cut out of a longer one, as both ends tell mixed labels apart."""
    text = one_line(text)
    shown, kept = text, len(text)
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: -(-kept // 2)]}…{text[len(text) - kept // 2 :]}"
    return shown


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of the other plots, which is in matplotlib's folder; without that Pillow's own."""
    found = importlib.util.find_spec("matplotlib")
    file = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    try:
        return ImageFont.truetype(str(file), _SIZE)
    except OSError:
        return ImageFont.load_default()
