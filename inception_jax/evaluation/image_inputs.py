"""Images as a user has them: arrays, or paths of image files, one or several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from inception_jax.data import channels as image_channels
from inception_jax.data import images
from inception_jax.errors import UserError

Images = str | os.PathLike | np.ndarray | Sequence[str | os.PathLike | np.ndarray]


def as_list(inputs: Images) -> list[Any]:
    """Returns images, or paths of image files, as a list.

    Args:
      inputs: one or several.

    Raises:
      UserError: there is none.
    """
    if isinstance(inputs, str | os.PathLike) or (isinstance(inputs, np.ndarray) and inputs.ndim == 3):
        return [inputs]
    found = list(inputs)
    if not found:
        raise UserError("images: at least one is needed")
    return found


def decode(
    inputs: Sequence[Any], max_pixels: int = images.MAX_PIXELS, channels: int = image_channels.COLOURS
) -> Iterator[np.ndarray]:
    """Yields images uint8 [height, width, channels], each when it is needed.

    Args:
      inputs: arrays, or paths of image files.
      max_pixels: the largest file that is decoded, height times width.
      channels: of the network's input; see `channels.fit`.

    Raises:
      UserError: a file cannot be decoded, an array is no image, or an image has other channels.
    """
    return (decode_one(position, given, max_pixels, channels) for position, given in enumerate(inputs))


def decode_one(
    position: int, given: Any, max_pixels: int = images.MAX_PIXELS, channels: int = image_channels.COLOURS
) -> np.ndarray:
    """Returns an image uint8 [height, width, channels].

    Args:
      position: of the image among others, for the message.
      given: an array, or the path of an image file.
      max_pixels: as in `decode`.
      channels: as in `decode`.

    Raises:
      UserError: as `decode`.
    """
    if isinstance(given, str | os.PathLike):
        return images.decode_image_file(given, max_pixels, channels)
    image = np.asarray(given)
    if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        raise UserError(
            f"image {position}: {image.dtype} {image.shape}; an image is uint8 [height, width, {channels}]"
            f"{', RGB' * (channels == image_channels.COLOURS)}, not yet normalized, or the path of a file"
        )
    return image_channels.fit(image, channels, f"image {position}")
