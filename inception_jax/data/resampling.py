"""Image resizing as each publisher of weights does it, to the bit where the publisher resizes bytes too."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

OPENCV = {
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "nearest": cv2.INTER_NEAREST,
    "cubic": cv2.INTER_CUBIC,
}
# Pillow widens its filters when it shrinks an image (antialiasing), which OpenCV's bilinear and cubic do not: the image
# is smoother, and the accuracy of networks trained with Pillow was measured on such images.
PILLOW = {"pil_bilinear": Image.Resampling.BILINEAR, "pil_bicubic": Image.Resampling.BICUBIC}

Resize = Callable[[np.ndarray, int, int], np.ndarray]


def _opencv(interpolation: int) -> Resize:
    def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
        if image.shape[:2] == (height, width):
            return image
        return cv2.resize(image, (width, height), interpolation=interpolation)

    return resize


def _pillow(filter: Image.Resampling) -> Resize:
    def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
        return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize((width, height), filter))

    return resize


def tf_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """TensorFlow 1's bilinear resize: no half-pixel centers, no corners aligned, no smoothing.

    The source is `tf.compat.v1.image.resize_bilinear`'s kernel (tensorflow/core/kernels/image/resize_bilinear_op.cc),
    arithmetic in float32 in its order. It gives floating-point pixels, which TF-slim passes to the network as they are;
    here they are rounded to the nearest byte, so that a pixel may be off by half a step of 1/255.

    Args:
      image: uint8 [h, w, 3].
      height: of the result, in pixels.
      width: of the result, in pixels.

    Returns:
      uint8 [height, width, 3].
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
"""Each takes uint8 [h, w, 3], a height and a width, and returns uint8 [height, width, 3], which may be its input."""
