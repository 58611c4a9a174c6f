"""Images as a user has them: arrays, or paths of image files, one or several."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

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


def decode(inputs: Sequence[Any], max_pixels: int = images.MAX_PIXELS) -> Iterator[np.ndarray]:
    """Yields images uint8 [height, width, 3], each when it is needed.

    Args:
      inputs: arrays, or paths of image files.
      max_pixels: the largest file that is decoded, height times width.

    Raises:
      UserError: a file cannot be decoded, or an array is no image.
    """
    return (decode_one(position, given, max_pixels) for position, given in enumerate(inputs))


def decode_one(position: int, given: Any, max_pixels: int = images.MAX_PIXELS) -> np.ndarray:
    """Returns an image uint8 [height, width, 3].

    Args:
      position: of the image among others, for the message.
      given: an array, or the path of an image file.
      max_pixels: as in `decode`.

    Raises:
      UserError: as `decode`.
    """
    image = images.decode_image_file(given, max_pixels) if isinstance(given, str | os.PathLike) else np.asarray(given)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"image {position}: {image.dtype} {image.shape}; an image is uint8 [height, width, 3], RGB, not yet "
            "normalized, or the path of a file"
        )
    return image
