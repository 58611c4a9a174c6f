"""Augmentations of a training batch on the device, between uint8 pixels and normalization.

In this order: photometric distortion, lighting noise, random erasing, then mixup or CutMix. The random numbers of an
image come from its key alone, which is a function of (seed, step, row of the global batch): they do not depend on the
number of devices, processes or micro-batches.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inception_jax.training import mixing, photometric
from inception_jax.training.mixing import Mixing

# Folded into an example's key, apart from the sites of dropout, which are small numbers. Fixed: each use has its own.
_PHOTOMETRIC, _LIGHTING, _ERASING, _FILL, _MIXING = range(1 << 20, (1 << 20) + 5)
_ATTEMPTS = 10  # at a rectangle that fits


@dataclasses.dataclass(frozen=True)
class Erasing:
    """Random erasing (arXiv:1708.04896): a rectangle of an image is replaced.

    The area is uniform over `area` and the aspect ratio over `aspect`, the position over those that fit. A rectangle
    larger than the image is drawn again, up to ten times; then nothing is erased. Algorithm 1 of the paper draws the
    position over the whole image, and everything again until it fits.

    Attributes:
      probability: that an image is erased.
      area: least and largest fraction of the image's area.
      aspect: least and largest height over width.
      fill: "random": a random byte for each pixel and channel, which the paper found best; "zero": zero in the
        network's input, after normalization.
    """

    probability: float
    area: tuple[float, float] = (0.02, 0.4)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    fill: str = "random"


@dataclasses.dataclass(frozen=True)
class DeviceAugmentation:
    """The augmentations of a run that are made on the device.

    Attributes:
      photometric: one of `photometric.METHODS`; None: no distortion of colours.
      lighting: standard deviation of AlexNet's lighting noise; 0: none.
      erasing: random erasing; None: none.
      mixing: mixup and CutMix; None: neither.
    """

    photometric: str | None = None
    lighting: float = 0.0
    erasing: Erasing | None = None
    mixing: Mixing | None = None

    def __bool__(self) -> bool:
        return bool(self.photometric or self.lighting or self.erasing or self.mixing)


NO_AUGMENTATION = DeviceAugmentation()


class Labels(NamedTuple):
    """The labels of mixed images.

    Attributes:
      first: int [B], an image's own.
      second: int [B], its partner's.
      weight: floating [B], of the first; that of the second is 1 minus it.
    """

    first: jax.Array
    second: jax.Array
    weight: jax.Array


def augment(
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    keys: jax.Array,
    augmentation: DeviceAugmentation,
    *,
    mean: tuple[float, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> tuple[jax.Array, jax.Array | Labels]:
    """Augments a micro-batch.

    Args:
      images: uint8 [B, H, W, C], RGB where C is 3; B is even where images are mixed.
      labels: int [B], or [B, num_classes] of 0 and 1.
      mask: bool [B]; a row whose mask is False is not mixed into another.
      keys: typed keys [B], of the examples.
      augmentation: what is done.
      mean: per channel: the pixel that normalization maps to 0.
      dtype: of the result, at least float32.

    Returns:
      Pixels [B, H, W, C], 0 to 255, or beyond by the lighting noise; and the labels, `Labels` where images are
      mixed; of [B, num_classes] their weighted mean, in `dtype`.
    """
    pixels = images.astype(dtype)
    if augmentation.photometric:
        numbers = _uniform(_keys(keys, _PHOTOMETRIC), photometric.NUMBERS, dtype)
        pixels = photometric.distort(pixels, numbers, augmentation.photometric)
    if augmentation.lighting:
        normals = jax.vmap(lambda key: jax.random.normal(key, (3,), dtype))(_keys(keys, _LIGHTING))
        pixels = photometric.add_lighting(pixels, normals, augmentation.lighting)
    if augmentation.erasing:
        pixels = _erase(pixels, keys, augmentation.erasing, mean)
    if not augmentation.mixing:
        return pixels, labels
    pixels, weight = mixing.mix(pixels, mask, _keys(keys, _MIXING), augmentation.mixing)
    if labels.ndim == 2:
        own, others = (rows.astype(weight.dtype) for rows in (labels, mixing.partners(labels)))
        return pixels, weight[:, None] * own + (1.0 - weight[:, None]) * others
    return pixels, Labels(labels, mixing.partners(labels), weight)


def _erase(pixels: jax.Array, keys: jax.Array, erasing: Erasing, mean: tuple[float, ...]) -> jax.Array:
    height, width, channels = pixels.shape[1:]
    numbers = _uniform(_keys(keys, _ERASING), 3 + 2 * _ATTEMPTS, pixels.dtype)
    top, bottom, left, right = _rectangle(numbers[:, 1:], height, width, erasing)
    rows, columns = jnp.arange(height, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)
    inside = ((rows >= top[:, None]) & (rows < bottom[:, None]))[:, :, None]
    inside &= ((columns >= left[:, None]) & (columns < right[:, None]))[:, None, :]
    inside &= (numbers[:, 0] < erasing.probability)[:, None, None]
    if erasing.fill == "random":
        random = jax.vmap(lambda key: _random_bytes(key, channels * height * width))(_keys(keys, _FILL))
        return jnp.where(inside[..., None], random.reshape(pixels.shape).astype(pixels.dtype), pixels)
    return jnp.where(inside[..., None], jnp.asarray(mean, pixels.dtype), pixels)


def _rectangle(
    numbers: jax.Array, height: int, width: int, erasing: Erasing
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(top, bottom, left, right) of the erased rectangles, int32 [B] each, in pixels; empty where none fits."""
    low, high = erasing.area
    area = height * width * (low + (high - low) * numbers[:, 2::2])
    low, high = erasing.aspect
    aspect = low + (high - low) * numbers[:, 3::2]
    tall, wide = (jnp.rint(jnp.sqrt(x)).astype(jnp.int32) for x in (area * aspect, area / aspect))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits, axis=1, keepdims=True)
    some = jnp.any(fits, axis=1)
    tall, wide = (jnp.where(some, jnp.take_along_axis(x, first, axis=1)[:, 0], 0) for x in (tall, wide))
    top, left = (
        jnp.minimum((number * (room + 1).astype(number.dtype)).astype(jnp.int32), room)
        for number, room in ((numbers[:, 0], height - tall), (numbers[:, 1], width - wide))
    )
    return top, top + tall, left, left + wide


def _random_bytes(key: jax.Array, count: int) -> jax.Array:
    """uint8 [count]. `jax.random.bits` would compute a word of 32 bits for each byte."""
    words = jax.random.bits(key, (-(-count // 4),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).ravel()[:count]


def _keys(keys: jax.Array, use: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, use)


def _uniform(keys: jax.Array, count: int, dtype: jax.typing.DTypeLike) -> jax.Array:
    return jax.vmap(lambda key: jax.random.uniform(key, (count,), dtype))(keys)
