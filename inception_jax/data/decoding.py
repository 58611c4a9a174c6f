"""Decodes image files on the host, to uint8."""

from __future__ import annotations

import os
from collections.abc import Callable

import cv2
import numpy as np

from inception_jax.data import channels as image_channels
from inception_jax.data import image_headers
from inception_jax.data.crops import MAX_PIXELS
from inception_jax.errors import UserError

# The pipeline has its own threads; OpenCV's pool on top of them only makes them wait for each other.
cv2.setNumThreads(0)
# Errors say in words of the caller what cannot be decoded; OpenCV's own lines would stand among a command's results.
if "OPENCV_LOG_LEVEL" not in os.environ:
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

# Colour whatever the file holds (grey, CMYK, alpha, palette, 16 bits), and pixels as stored: the papers' pipelines
# never rotated images by their EXIF orientation.
FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
# {reduction: OpenCV's flag, without its colour mode}.
REDUCTIONS = {
    1: 0,
    **{
        by: flag & ~cv2.IMREAD_COLOR
        for by, flag in (
            (2, cv2.IMREAD_REDUCED_COLOR_2),
            (4, cv2.IMREAD_REDUCED_COLOR_4),
            (8, cv2.IMREAD_REDUCED_COLOR_8),
        )
    },
}


class UndecodableImage(UserError):
    """The bytes are not a complete image, or hold one that is too large."""


def decode(
    encoded: bytes,
    name: str | Callable[[], str] = "image",
    max_pixels: int = MAX_PIXELS,
    reduction: int = 1,
    channels: int = image_channels.COLOURS,
) -> np.ndarray:
    """Decodes the bytes of an image file.

    Args:
      encoded: JPEG (also grey, CMYK, progressive), PNG (also with alpha, palette, 16 bits), WebP, GIF (first frame),
        BMP, TIFF (first page), AVIF, JPEG 2000, PPM and its relatives, Sun raster.
      name: of the file, or of the record in the data set, for errors; or a function that returns it.
      max_pixels: the largest height times width; a larger image is refused before anything is allocated for it.
      reduction: for a JPEG, one of `REDUCTIONS`: height and width are divided by it, by a smaller inverse DCT; with
        three channels only.
      channels: of the result. 3: colours, whatever the file holds. 1: of a grey file, or of a colour file whose
        channels are equal everywhere. 4: of a file with four, such as a PNG with alpha.

    Returns:
      uint8 [height, width, channels], RGB. Alpha is dropped unless there are four channels, 16 bits are cut to 8, the
      EXIF orientation is not applied.

    Raises:
      UndecodableImage: the bytes are not a complete image, the image is too large, or a Netpbm file whose largest value
        is neither 255 nor 65535 (nor, in the formats of text, below 255).
      OtherChannels: the file has other channels.
    """
    read_size(encoded, name, max_pixels)
    if problem := image_headers.find_other_range(encoded):
        raise UndecodableImage(f"{_text(name)}: {problem}")
    flags = FLAGS | REDUCTIONS[reduction] if channels == image_channels.COLOURS else cv2.IMREAD_UNCHANGED
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags) if encoded else None
    except cv2.error as error:
        raise UndecodableImage(f"{_text(name)}: not a readable image ({len(encoded)} bytes): {error.err}") from None
    if image is None:
        raise UndecodableImage(
            f"{_text(name)}: not a readable image ({len(encoded)} bytes): truncated, or of an unknown format"
        )
    if channels == image_channels.COLOURS:
        return image
    return image_channels.fit(_as_rgb(image, channels, name), channels, name)


def _as_rgb(image: np.ndarray, channels: int, name: str | Callable[[], str]) -> np.ndarray:
    """An image as OpenCV decodes it unchanged, in 8 bits, RGB or RGBA; for one channel without alpha."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise image_channels.OtherChannels(
            f"{_text(name)}: pixels of {image.dtype}; config.model.in_channels = {channels} takes 8 or 16 bits"
        )
    if image.ndim == 2:
        return image[..., None]
    if image.shape[2] == 4 and channels != 4:
        image = image[..., :3]
    order = cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return cv2.cvtColor(image, order) if image.shape[2] in (3, 4) else image


def read_size(encoded: bytes, name: str | Callable[[], str], max_pixels: int) -> tuple[int, int] | None:
    """Returns the width and height that a file declares, as `image_headers.read_size`.

    Raises:
      UndecodableImage: more than `max_pixels` pixels.
    """
    size = image_headers.read_size(encoded)
    if size is not None and size[0] * size[1] > max_pixels:
        raise UndecodableImage(
            f"{_text(name)}: an image of {size[0]:,} x {size[1]:,} pixels in {len(encoded):,} bytes, above the limit "
            f"of {max_pixels:,} pixels (config.data.max_pixels, or --max_pixels)"
        )
    return size


def _text(name: str | Callable[[], str]) -> str:
    return name if isinstance(name, str) else name()


def decode_image_file(
    source: str | os.PathLike | bytes, max_pixels: int = MAX_PIXELS, channels: int = image_channels.COLOURS
) -> np.ndarray:
    """Reads and decodes an image file.

    Args:
      source: its path, or its bytes.
      max_pixels: as in `decode`.
      channels: as in `decode`.

    Returns:
      uint8 [height, width, channels], as `decode`.

    Raises:
      UserError: the file cannot be read, is not a complete image, holds one that is too large or of other channels.
    """
    if isinstance(source, bytes):
        return decode(source, max_pixels=max_pixels, channels=channels)
    try:
        with open(source, "rb") as file:
            return decode(file.read(), os.fspath(source), max_pixels, channels=channels)
    except OSError as error:
        raise UserError(f"{os.fspath(source)}: {error.strerror or error}") from None
