"""Stores images smaller than they are: `python -m inception_jax.data.prepare … --resize=N`."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from inception_jax.data import images, resampling
from inception_jax.data.crops import short_side_to

# (quality, bytes per pixel): means of three photographs (scikit-learn's china and flower, Matplotlib's Grace Hopper),
# as `StoredSize.store` writes them with sides of 128, 256 and 320; single ones have 0.6 to 1.4 times as much.
_BYTES_PER_PIXEL = (
    (1, 0.04), (10, 0.06), (30, 0.10), (50, 0.13), (75, 0.19), (85, 0.25), (90, 0.31), (95, 0.45), (98, 0.63),
    (100, 0.88),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredSize:
    """The size and the coding of stored images.

    Attributes:
      side: of the shorter side, in pixels; an image that is no larger stays as it is, byte for byte.
      quality: of the JPEG (4:2:0), 1 to 100; None: BMP, no compression.
      max_pixels: the largest image that is decoded, height times width.
    """

    side: int
    quality: int | None
    max_pixels: int = images.MAX_PIXELS

    @property
    def config_name(self) -> str:
        """The name of the data set's config: resized images are another data set, beside the original one."""
        coding = "raw" if self.quality is None else f"jpeg{self.quality}"
        return f"resize_{self.side}_{coding}"

    def estimate_bytes(self, size: int) -> int:
        """Estimates the bytes of a stored image from those of its file, which is not opened.

        A resized photograph of 4:3 is assumed. It is no bound: a wider image needs more, one that is stored as
        it is may need less, and a JPEG that was compressed more than `quality` may grow.
        """
        pixels = self.side * self.side * 4 // 3
        if self.quality is None:
            return 3 * pixels
        qualities, rates = np.transpose(_BYTES_PER_PIXEL)
        return min(size, round(pixels * float(np.interp(self.quality, qualities, rates))))

    def store(self, encoded: bytes, name: str) -> bytes:
        """Resizes an image to the shorter side, aspect ratio kept, each pixel the mean of those that it covers.

        Args:
          encoded: an image file. Its alpha channel is dropped and 16 bits are cut to 8, as training decodes it.
          name: of the file, for errors.

        Returns:
          An image file, grey where all colours of the image are; `encoded` itself where its shorter side is no longer.

        Raises:
          UserError: not a complete image, or one that is too large.
        """
        image = images.decode(encoded, name, self.max_pixels)
        if min(image.shape[:2]) <= self.side:
            return encoded
        if (image[..., :1] == image[..., 1:]).all():
            image = image[..., :1].copy()
        small = resampling.opencv_resize(image, *short_side_to(self.side, *image.shape[:2]), cv2.INTER_AREA)
        options = [] if self.quality is None else [cv2.IMWRITE_JPEG_QUALITY, self.quality]
        return cv2.imencode(".bmp" if self.quality is None else ".jpg", small[..., ::-1], options)[1].tobytes()
