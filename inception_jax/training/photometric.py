"""Photometric distortions of training images, on the device: Howard's, TF-Slim's, and AlexNet's PCA lighting.

Each is written for a batch in which every image has its own order and strengths. An order of steps is selected by
arithmetic and not by branches: under `jax.vmap` all branches would be computed for every image.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

METHODS = ("howard", "slim", "slim_fast")
"""The values of `augmentation.photometric` beside "none"."""

NUMBERS = 8
"""Random numbers per image that `distort` takes."""

# The weights of grey in Pillow's mode "L" (ITU-R 601-2), in which Howard's distortions are defined.
_LUMA = (0.299, 0.587, 0.114)
_HOWARD_ORDERS = np.array(list(itertools.permutations(range(3))), np.int32)
_BRIGHTNESS, _CONTRAST, _COLOR = range(3)

# slim's inception_preprocessing.distort_color: the largest change of brightness (of 255), the factors of saturation
# and contrast, the largest change of hue (of a full turn).
_MAX_BRIGHTNESS, _FACTORS, _MAX_HUE = 32.0, (0.5, 1.5), 0.2
# Its four orders as one: contrast and brightness, saturation or hue, contrast and brightness, hue or saturation,
# contrast and brightness. [step, order]: whether the order has it there.
_CONTRAST_IN = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]], bool)
_BRIGHTNESS_IN = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], bool)
_SATURATION_FIRST = np.array([1, 1, 0, 0], bool)

# AlexNet's "principal components of the set of RGB pixel values" of ImageNet, for pixels from 0 to 1, as they are
# published in fb.resnet.torch (datasets/imagenet.lua); the rows are R, G, B, the columns the components.
EIGENVALUES = (0.2175, 0.0188, 0.0045)
EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def distort(pixels: jax.Array, numbers: jax.Array, method: str) -> jax.Array:
    """Distorts the colours of images.

    Args:
      pixels: floating [B, H, W, 3], RGB from 0 to 255.
      numbers: [B, `NUMBERS`] of the dtype of `pixels`, uniform in [0, 1).
      method: one of `METHODS`.

    Returns:
      As `pixels`, from 0 to 255.
    """
    if method == "howard":
        return _howard(pixels, numbers)
    return _slim(pixels, numbers, fast=method == "slim_fast")


def add_lighting(pixels: jax.Array, normals: jax.Array, deviation: float) -> jax.Array:
    """Adds AlexNet's lighting noise: multiples of the principal components of colour, the same for all pixels.

    Section 4.1 of "ImageNet Classification with Deep Convolutional Neural Networks" (2012): the components, times their
    eigenvalues, times a normal random variable with mean 0 and standard deviation 0.1, drawn once per image.

    Args:
      pixels: floating [B, H, W, 3], RGB from 0 to 255.
      normals: [B, 3] of the dtype of `pixels`, of the standard normal distribution.
      deviation: the standard deviation; AlexNet's is 0.1.

    Returns:
      As `pixels`; not clipped.
    """
    components = 255.0 * np.asarray(EIGENVECTORS) * np.asarray(EIGENVALUES)
    # Three products and not a matrix product: a GPU would round its inputs to TF32.
    scaled = deviation * normals[:, None, :] * jnp.asarray(components, pixels.dtype)
    return pixels + jnp.sum(scaled, axis=-1)[:, None, None, :]


def _howard(pixels: jax.Array, numbers: jax.Array) -> jax.Array:
    """Brightness, contrast and colour, in random order and strength (arXiv:1312.5402, section 2).

    Each is Pillow's ImageEnhance with a factor from 0.5 to 1.5: a blend of the image with black, with the mean of its
    grey, and with its grey. Pillow rounds to bytes after each; here they are only clipped.
    """
    orders = jnp.asarray(_HOWARD_ORDERS)[_choose(numbers[:, 3], len(_HOWARD_ORDERS))]
    for place in range(3):
        which = orders[:, place]
        factor = 0.5 + jnp.sum(jnp.where(which[:, None] == jnp.arange(3, dtype=jnp.int32), numbers[:, :3], 0.0), axis=1)
        which, factor = which[:, None, None, None], factor[:, None, None, None]
        grey = _grey(pixels)
        other = jnp.where(which == _CONTRAST, jnp.mean(grey, axis=(1, 2), keepdims=True), grey)
        other = jnp.where(which == _BRIGHTNESS, 0.0, other)
        pixels = jnp.clip(factor * pixels + (1.0 - factor) * other, 0.0, 255.0)
    return pixels


def _slim(pixels: jax.Array, numbers: jax.Array, fast: bool) -> jax.Array:
    """`distort_color` of TF-Slim's inception_preprocessing.py.

    Slow mode has four orders, each equally likely: brightness, saturation, hue, contrast; saturation, brightness,
    contrast, hue; contrast, hue, brightness, saturation; hue, saturation, contrast, brightness. Fast mode has one,
    brightness and then saturation (`num_distort_cases = 1`; the first revisions had three more cases, saturation and
    then brightness). Pixels are clipped once, at the end.
    """
    brightness = _MAX_BRIGHTNESS * (2.0 * numbers[:, 0] - 1.0)
    saturation = _FACTORS[0] + (_FACTORS[1] - _FACTORS[0]) * numbers[:, 1]
    turn = _MAX_HUE * (2.0 * numbers[:, 2] - 1.0)
    contrast = _FACTORS[0] + (_FACTORS[1] - _FACTORS[0]) * numbers[:, 3]
    planes = [pixels[..., channel] for channel in range(3)]  # a last axis of three values is slow on a CPU
    if fast:
        planes = [x + brightness[:, None, None] for x in planes]
        planes = _saturate_or_turn(planes, jnp.ones(len(pixels), bool), saturation, turn)
        return jnp.clip(jnp.stack(planes, axis=-1), 0.0, 255.0)
    order = _choose(numbers[:, 4], 4)
    saturation_first = jnp.asarray(_SATURATION_FIRST)[order]
    for step in range(3):
        factor = jnp.where(jnp.asarray(_CONTRAST_IN[step])[order], contrast, 1.0)[:, None, None]
        change = jnp.where(jnp.asarray(_BRIGHTNESS_IN[step])[order], brightness, 0.0)[:, None, None]
        # Brightness, which shifts the mean as well, may come before contrast or after it.
        means = [jnp.mean(x, axis=(1, 2), keepdims=True) for x in planes]
        planes = [(x - mean) * factor + (mean + change) for x, mean in zip(planes, means, strict=True)]
        if step < 2:
            planes = _saturate_or_turn(planes, saturation_first == (step == 0), saturation, turn)
    return jnp.clip(jnp.stack(planes, axis=-1), 0.0, 255.0)


def _saturate_or_turn(
    planes: list[jax.Array], saturate: jax.Array, factor: jax.Array, turn: jax.Array
) -> list[jax.Array]:
    """Multiplies the saturation of some images, and turns the hue of the others; value in HSV stays.

    Also of pixels outside 0 to 255, as TensorFlow's kernels (adjust_saturation_op.cc, adjust_hue_op.cc): saturation is
    clipped to 1 where it is multiplied, and is 0 where the value is not positive.

    Args:
      planes: red, green and blue, floating [B, H, W].
      saturate: bool [B], which images are of the first kind.
      factor: [B], of the saturation.
      turn: [B], of the hue, in full turns.

    Returns:
      As `planes`.
    """
    saturate, factor, turn = (x[:, None, None] for x in (saturate, factor, turn))
    red, green, blue = planes
    value, low = jnp.maximum(jnp.maximum(red, green), blue), jnp.minimum(jnp.minimum(red, green), blue)
    spread = value - low
    per_spread = 1.0 / jnp.where(spread > 0, spread, 1.0)
    sixths = jnp.where(value == green, 2.0 + (blue - red) * per_spread, 4.0 + (red - green) * per_spread)
    sixths = jnp.where(value == red, (green - blue) * per_spread, sixths)
    sixths = sixths + jnp.where(saturate, 0.0, 6.0 * turn)
    # Saturation is spread / value: multiplied and clipped to 1, the new spread is at most the value.
    scaled = jnp.clip(spread * factor, 0.0, jnp.maximum(value, 0.0))
    spread = jnp.where(saturate, scaled, spread)
    found = []
    for offset in (5.0, 3.0, 1.0):  # of red, green and blue
        place = sixths + offset
        place = place - 6.0 * jnp.floor(place * (1 / 6))
        found.append(value - spread * jnp.clip(jnp.minimum(place, 4.0 - place), 0.0, 1.0))
    return found


def _grey(pixels: jax.Array) -> jax.Array:
    """[B, H, W, 1], the weighted sum of the channels."""
    red, green, blue = (weight * pixels[..., channel : channel + 1] for channel, weight in enumerate(_LUMA))
    return red + green + blue


def _choose(numbers: jax.Array, choices: int) -> jax.Array:
    """int32 from 0 to `choices - 1`, from uniform numbers in [0, 1)."""
    return jnp.minimum((numbers * choices).astype(jnp.int32), choices - 1)
