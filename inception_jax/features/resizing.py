"""Resizes to floating-point pixels, as the tools that measure FID do them: on the host, and inside a compiled function.

A FID changes by whole points with the resize (arXiv:2104.11222, figure 4), so each has the name of its library, and
none rounds to bytes. `quantize` makes bytes of a generator's floating-point images, as the tools do.

| name | library | used by |
|---|---|---|
| `tf1_bilinear` | TensorFlow 1, the graph of 2015: no half-pixel centers, no antialias | TTUR, torch-fidelity, ADM |
| `torch_bilinear` | PyTorch's `interpolate`: half-pixel centers, no antialias | pytorch-fid |
| `torch_bilinear_antialias` | PyTorch's `interpolate(antialias=True)` | torchmetrics |
| `pillow_bicubic` | Pillow's bicubic with antialias, of channels in mode F, cut to 0 … 255 | clean-fid |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from inception_jax.errors import UserError, must_be_one_of

RESIZES = ("tf1_bilinear", "torch_bilinear", "torch_bilinear_antialias", "pillow_bicubic")

_FAR_SHARE = 0.1
"""Of the values: from here on the images have another range. Of normal noise of deviation 1, 5 % are beyond 2."""


def resize(image: np.ndarray, size: int, name: str) -> np.ndarray:
    """Resizes an image on the host.

    "pillow_bicubic" is computed by Pillow, "tf1_bilinear" in the order of TensorFlow's kernel: the same bits. The
    other two differ from PyTorch's by roundings of float32.

    Args:
      image: [height, width, 3], uint8, or floating point in 0 … 255.
      size: height and width of the result, in pixels.
      name: one of `RESIZES`.

    Returns:
      float32 [size, size, 3], in 0 … 255.
    """
    _check(name)
    pixels = image.astype(np.float32)
    if image.shape[:2] == (size, size):
        return pixels
    if name == "pillow_bicubic":
        channels = [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(pixels[:, :, c])).resize((size, size), Image.Resampling.BICUBIC)
            )
            for c in range(3)
        ]
        return np.stack(channels, axis=-1).clip(0, 255)
    if name == "torch_bilinear_antialias":
        across, down = (weights(name, side, size).astype(np.float32) for side in (image.shape[1], image.shape[0]))
        return np.einsum("ph,hqc->pqc", down, np.einsum("qw,hwc->hqc", across, pixels, optimize=True), optimize=True)
    left, right, along = _pairs(name, image.shape[1], size)
    top, bottom, fall = _pairs(name, image.shape[0], size)
    # Along the rows first, and in this form, as TensorFlow's kernel: its sums are rounded in that order.
    columns = pixels[:, left] + (pixels[:, right] - pixels[:, left]) * along[:, None]
    return columns[top] + (columns[bottom] - columns[top]) * fall[:, None, None]


def resize_on_device(images: jax.Array, size: int, name: str) -> jax.Array:
    """Resizes a batch inside a compiled function: two products with the matrices of `weights`.

    Args:
      images: [B, height, width, 3], uint8, or floating point in 0 … 255.
      size: height and width of the result, in pixels.
      name: one of `RESIZES`.

    Returns:
      [B, size, size, 3] in 0 … 255, float32 (float64 of float64).
    """
    _check(name)
    dtype = np.promote_types(images.dtype, np.float32)
    pixels = images.astype(dtype)
    height, width = images.shape[1:3]
    if (height, width) == (size, size):
        return pixels
    across, down = (jnp.asarray(weights(name, side, size), dtype) for side in (width, height))
    pixels = jnp.einsum("qw,bhwc->bhqc", across, pixels, precision="highest")
    pixels = jnp.einsum("ph,bhqc->bpqc", down, pixels, precision="highest")
    return jnp.clip(pixels, 0, 255) if name == "pillow_bicubic" else pixels


@functools.lru_cache(maxsize=64)
def weights(name: str, before: int, after: int) -> np.ndarray:
    """The matrix of a resize along one side: new pixels are its product with the old ones.

    Args:
      name: one of `RESIZES`.
      before: pixels of the image.
      after: pixels of the result.

    Returns:
      float64 [after, before]; each row sums to 1.
    """
    _check(name)
    if name == "pillow_bicubic":
        return _antialias_weights(_cubic, 2, before, after)
    if name == "torch_bilinear_antialias":
        return _antialias_weights(lambda x: np.maximum(1 - np.abs(x), 0), 1, before, after)
    first, second, fraction = _pairs(name, before, after)
    matrix = np.zeros((after, before))
    rows = np.arange(after)
    matrix[rows, first] += 1 - fraction.astype(np.float64)
    matrix[rows, second] += fraction
    return matrix


def quantize(images: np.ndarray, value_range: tuple[float, float], rounding: Literal["nearest", "down"]) -> np.ndarray:
    """Makes bytes of floating-point images, as the tools do; values outside of the range are cut.

    Args:
      images: floating point, of any shape.
      value_range: of black and white: (0, 1) or (-1, 1), most often.
      rounding: "nearest": as torchvision's `save_image` (x * 255 + 0.5, cut); "down": as torchmetrics
        (`normalize=True`: x * 255, cut) and ADM's samples ((x + 1) * 127.5, cut).

    Returns:
      uint8, of the same shape.

    Raises:
      UserError: images that are not of floating point, an unknown rounding, an empty range, values that are not finite,
        or a tenth of them further outside of the range than half of its width: the images have another range.
    """
    _check_range(images.dtype, value_range, rounding)
    values = np.asarray(images).astype(np.promote_types(images.dtype, np.float32))
    if not np.isfinite(values).all():
        raise UserError("quantize: values that are not finite")
    if (share := np.mean(_far_outside(values, value_range))) >= _FAR_SHARE:
        raise UserError(
            f"quantize: {share:.0%} of the values lie far outside of the range {value_range}: they are from "
            f"{values.min():.4g} to {values.max():.4g}; name the values of black and white of these images"
        )
    low, high = value_range
    # In the dtype of the images, as the tools compute: 0.1 * 255 is below 25.5 in one dtype and above it in another.
    scaled = (values - low) * np.asarray(255 / (high - low), values.dtype)
    return np.clip(scaled + (0.5 if rounding == "nearest" else 0), 0, 255).astype(np.uint8)


def quantize_on_device(
    images: jax.Array, value_range: tuple[float, float], rounding: Literal["nearest", "down"]
) -> jax.Array:
    """`quantize` inside a compiled function: the values of bytes, in floating point.

    Args:
      images: floating point, of any shape.
      value_range: as of `quantize`.
      rounding: as of `quantize`.

    Returns:
      Whole numbers in 0 … 255, of the same shape, float32 (float64 of float64). A value that is not a number stays one,
      and where `quantize` finds that the images have another range, all are NaN: no metric of them exists.

    Raises:
      UserError: images that are not of floating point, an unknown rounding, or an empty range.
    """
    _check_range(images.dtype, value_range, rounding)
    low, high = value_range
    values = images.astype(np.promote_types(images.dtype, np.float32))
    scaled = (values - low) * np.asarray(255 / (high - low), values.dtype)
    levels = jnp.clip(jnp.floor(scaled + (0.5 if rounding == "nearest" else 0)), 0, 255)
    return jnp.where(_far_outside(values, value_range).mean() < _FAR_SHARE, levels, jnp.nan)


def _check_range(dtype: np.dtype, value_range: tuple[float, float], rounding: str) -> None:
    if not jnp.issubdtype(dtype, jnp.floating):
        raise UserError(f"quantize: images are {dtype}; floating point is needed (uint8 ones are bytes)")
    low, high = value_range
    if rounding not in ("nearest", "down") or not low < high:
        raise UserError(f"quantize: range {value_range} and rounding {rounding!r}; low < high, and 'nearest' or 'down'")


def _far_outside(values: Any, value_range: tuple[float, float]) -> Any:
    """Whether values are further outside of a range than half of its width: bool, of the same shape."""
    low, high = value_range
    return abs(values - (low + high) / 2) > high - low


def _check(name: str) -> None:
    if name not in RESIZES:
        raise UserError(f"resize {name!r}: {must_be_one_of(name, RESIZES)}")


def _pairs(name: str, before: int, after: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new pixel: the old one at or before its place, the one after it, and the fraction between, float32."""
    scale = np.float32(before) / np.float32(after)
    places = np.arange(after, dtype=np.float32)
    if name == "tf1_bilinear":
        where = places * scale
    else:
        where = np.maximum((places + np.float32(0.5)) * scale - np.float32(0.5), 0)
    first = np.minimum(where.astype(np.int64), before - 1)
    return first, np.minimum(first + 1, before - 1), where - first.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Pillow's bicubic filter, a = -0.5 (Resample.c)."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _antialias_weights(
    kernel: Callable[[np.ndarray], np.ndarray], support: float, before: int, after: int
) -> np.ndarray:
    """Weights of a filter that is widened where it shrinks an image (Pillow's Resample.c: precompute_coeffs)."""
    scale = before / after
    wide = max(scale, 1.0)
    matrix = np.zeros((after, before))
    for row in range(after):
        center = (row + 0.5) * scale
        first = max(int(center - support * wide + 0.5), 0)
        last = min(int(center + support * wide + 0.5), before)
        values = kernel((np.arange(first, last) - center + 0.5) / wide)
        matrix[row, first:last] = values / values.sum()
    return matrix
