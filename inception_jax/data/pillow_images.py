"""Reads the pixels of Pillow's images, by the rule of image files (`decoding`)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from inception_jax.errors import UserError

_GREY = ("1", "L")
_COLOURS = ("RGB", "RGBX", "P", "CMYK", "YCbCr", "HSV", "LAB")
_ALPHA = ("RGBA", "RGBa", "LA", "La", "PA")


def read(image: Image.Image, name: str, *, alpha: bool = False) -> np.ndarray:
    """Reads the pixels of an image, as a file of it is decoded.

    Alpha is dropped, 16 bits are cut to 8, and the EXIF orientation is not applied.

    Args:
      image: of any mode but those of 32 bits, which have no fixed range.
      name: of it, for errors.
      alpha: whether alpha is kept, where there is one.

    Returns:
      uint8 [height, width, C]; C is 1 of a grey image, 3 of another one, 4 with alpha.

    Raises:
      UserError: another mode, or a file that Pillow opens only now and that is broken.
    """
    mode = image.mode
    try:
        if mode.startswith("I;16"):
            return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
        if mode in _ALPHA or ("transparency" in image.info and mode not in _GREY):
            kept = image.convert({"RGBa": "RGBA", "La": "LA"}.get(mode, mode)).convert("RGBA")
            return np.asarray(kept if alpha else kept.convert("RGB"))
        if mode in _GREY:
            return np.asarray(image.convert("L"))[..., None]
        if mode in _COLOURS:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # as Pillow raises them of broken files
        raise UserError(f"{name}: not a readable image: {error}") from None
    raise UserError(f"{name}: an image of Pillow's mode {mode}, of no fixed range; scale it to 8 bits (mode L or RGB)")
