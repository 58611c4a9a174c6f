"""Image resizing as each publisher of weights does it, to the bit where the publisher resizes bytes too."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from inception_jax.data.channels import COLOURS

_OPENCV_NAMES = {
    "bilinear": "INTER_LINEAR",
    "area": "INTER_AREA",
    "nearest": "INTER_NEAREST",
    "cubic": "INTER_CUBIC",
}
OPENCV: dict[str, int] = {name: getattr(cv2, constant) for name, constant in _OPENCV_NAMES.items()}
# Pillow widens its filters when it shrinks an image (antialiasing), which OpenCV's bilinear and cubic do not: the image
# is smoother, and the accuracy of networks trained with Pillow was measured on such images.
PILLOW = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}

Resize = Callable[[np.ndarray, int, int], np.ndarray]

_OPENCV_CHANNELS = 4  # more of them `INTER_AREA` does not resize


def opencv_resize(
    image: np.ndarray, height: int, width: int, interpolation: int, out: np.ndarray | None = None
) -> np.ndarray:
    """Resizes an image of any number of channels by OpenCV, which takes up to four, and drops the axis of one.

    Args:
      image: uint8 [h, w, C].
      height: of the result, in pixels.
      width: of the result.
      interpolation: a value of `OPENCV`.
      out: uint8 [height, width, C] contiguous, to write to; allocated if None.

    Returns:
      uint8 [height, width, C], `out` where it is given.
    """
    channels = image.shape[2]
    if channels <= _OPENCV_CHANNELS:
        resized = cv2.resize(image, (width, height), dst=out, interpolation=interpolation)
        return resized.reshape(height, width, channels)
    if out is None:
        out = np.empty((height, width, channels), np.uint8)
    for first in range(0, channels, _OPENCV_CHANNELS):
        part = np.ascontiguousarray(image[..., first : first + _OPENCV_CHANNELS])
        out[..., first : first + _OPENCV_CHANNELS] = opencv_resize(part, height, width, interpolation)
    return out


def _opencv(interpolation: int) -> Resize:
    def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        return opencv_resize(image, height, width, interpolation)

    return resize


def _pillow(filter: Image.Resampling) -> Resize:
    def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[2] == COLOURS:
            return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filter))
        # Each channel alone: Pillow would multiply colours by a fourth channel, which it takes for alpha.
        channels = (Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(image, 2, 0))
        return np.stack([np.asarray(channel.resize((width, height), filter)) for channel in channels], axis=-1)

    return resize


def tf_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize: no half-pixel centers, no corners aligned, no smoothing.

    The source is `tf.compat.v1.image.resize_bilinear`'s kernel (tensorflow/core/kernels/image/resize_bilinear_op.cc),
    arithmetic in float32 in its order. It gives floating-point pixels, which TF-slim passes to the network as they are;
    here they are rounded to the nearest byte, so that a pixel may be off by half a step of 1/255.

    Args:
      image: uint8 [h, w, C].
      height: of the result, in pixels.
      width: of the result, in pixels.

    Returns:
      uint8 [height, width, C].
    """
    top, bottom, down = _source_pixels(image.shape[0], height)
    left, right, along = _source_pixels(image.shape[1], width)
    pixels = image.astype(np.float32)
    # Along the rows first, as the kernel: its sums are rounded in that order.
    columns = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * along[:, None]
    rows = columns[top] + (columns[bottom] - columns[top]) * down[:, None, None]
    return np.rint(rows).astype(np.uint8)


def _source_pixels(before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns, along one side, the pixel at or before each new one, the pixel after it, and the fraction between."""
    where = np.arange(after, dtype=np.float32) * (np.float32(before) / np.float32(after))
    first = np.minimum(where.astype(np.int64), before - 1)
    return first, np.minimum(first + 1, before - 1), where - first.astype(np.float32)


RESIZES: dict[str, Resize] = {
    **{name: _opencv(interpolation) for name, interpolation in OPENCV.items()},
    **{name: _pillow(filter) for name, filter in PILLOW.items()},
    "tf_bilinear": tf_bilinear,
}
"""Each takes uint8 [h, w, C], a height and a width, and returns uint8 [height, width, C], which may be its input."""

LIBRARIES = {
    **{name: ("OpenCV", constant) for name, constant in _OPENCV_NAMES.items()},
    **{name: ("Pillow", filter.name) for name, filter in PILLOW.items()},
    "tf_bilinear": ("TensorFlow 1", "resize_bilinear"),
}
"""{name in `RESIZES`: (library, the library's own name)}, for programs that resize without this package."""
