"""Images as a user has them: arrays, images of Pillow, paths of image files or their bytes, one or several."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from inception_jax.data import channels as image_channels
from inception_jax.data import images, pillow_images
from inception_jax.errors import UserError

_BYTES = (bytes, bytearray, memoryview)
One = str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | Image.Image
Images = One | Sequence[One]


def as_list(inputs: Images) -> list[Any]:
    """Returns images as a list.

    Args:
      inputs: one or several, as `decode_one` takes them.

    Raises:
      UserError: there is none.
    """
    is_one = isinstance(inputs, (str, os.PathLike, *_BYTES, Image.Image)) or getattr(inputs, "ndim", 0) == 3
    if is_one or hasattr(inputs, "read") or not isinstance(inputs, Iterable):
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
      inputs: as `decode_one` takes them.
      max_pixels: the largest file that is decoded, height times width.
      channels: of the network's input; see `channels.fit`.

    Raises:
      UserError: a file cannot be decoded, something is no image, or an image has other channels.
    """
    return (decode_one(position, given, max_pixels, channels) for position, given in enumerate(inputs))


def decode_one(
    position: int, given: Any, max_pixels: int = images.MAX_PIXELS, channels: int = image_channels.COLOURS
) -> np.ndarray:
    """Returns an image uint8 [height, width, channels].

    Args:
      position: of the image among others, for the message.
      given: an array uint8 [height, width, C], the path of an image file, its bytes, or an image of Pillow, which is
        read as a file of it is: alpha is dropped unless there are four channels, 16 bits are cut to 8, and the EXIF
        orientation is not applied.
      max_pixels: as in `decode`.
      channels: as in `decode`.

    Raises:
      UserError: as `decode`.
    """
    name = f"image {position}"
    if isinstance(given, str | os.PathLike):
        return images.decode_image_file(given, max_pixels, channels)
    if isinstance(given, _BYTES):
        return images.decode(bytes(given), name, max_pixels, channels=channels)
    if isinstance(given, Image.Image):
        if given.width * given.height > max_pixels:
            raise UserError(
                f"{name}: {given.width:,} x {given.height:,} pixels, above the limit of {max_pixels:,} pixels "
                "(config.data.max_pixels); make it smaller (Image.resize)"
            )
        return image_channels.fit(pillow_images.read(given, name, alpha=channels == 4), channels, name)
    image = np.asarray(given) if hasattr(given, "__array__") else None
    if image is None or image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
        what = type(given).__name__ if image is None else f"{image.dtype} {image.shape}"
        raise UserError(
            f"{name}: {what}; an image is uint8 [height, width, {channels}]"
            f"{', RGB' * (channels == image_channels.COLOURS)}, not yet normalized, an image of Pillow, or the path or "
            "the bytes (read()) of a file"
        )
    return image_channels.fit(image, channels, name)
