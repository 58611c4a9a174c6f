"""Evaluation protocols: which crops of an image are classified; the predictions of all crops of an image are averaged.

Section 7 of arXiv:1409.4842: "The softmax probabilities are averaged over multiple crops and over all the individual
classifiers to obtain the final prediction", which its authors found better than a maximum over the crops.

The papers list their crops for networks of 224 pixels: 224 of images whose shorter side is 256, 288, 320 or 352. For a
network of another size every side is scaled by size / 224 and rounded to the nearest pixel: 299 pixels are cut from
342, 384, 427 and 470.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from inception_jax.data import resampling
from inception_jax.data.crops import EvalCrop, center_crop, short_side_to
from inception_jax.errors import UserError, must_be_one_of

PAPER_SIZE = 224
"""Side of the crops for which the papers list the sides of the resized images, in pixels."""


@dataclasses.dataclass(frozen=True)
class CropWindow:
    """One crop of an image.

    Attributes:
      height, width: of the whole image after it was resized.
      top, left: the first row and column of a square of that image.
      side: height and width of the square; resized to the network's size where it is another one.
      mirror: whether the crop is mirrored, left to right.
    """

    height: int
    width: int
    top: int
    left: int
    side: int
    mirror: bool


@dataclasses.dataclass(frozen=True)
class Protocol:
    """The crops of an image that are classified.

    Attributes:
      name: the value of `evaluation.protocol` and `--protocol`.
      source: where the protocol is published, and what of it is not.
      short_sides: the shorter sides that an image is resized to, its aspect ratio kept, for crops of 224 pixels; none:
        the protocol is the run's own evaluation crop.
      mirrors: of the run's own evaluation crop: whether its mirror image is a second crop. Other crops always have one.
      squares: how many squares, as high and wide as the shorter side, are taken from a resized image: 1, the center;
        3, also both ends of the longer side (left and right, or top and bottom).
      whole: whether each square itself, resized to the network's size, is a crop beside its four corners and center.
    """

    name: str
    source: str
    short_sides: tuple[int, ...] = ()
    mirrors: bool = False
    squares: int = 1
    whole: bool = False

    @property
    def crops(self) -> int:
        """Crops of an image."""
        if not self.short_sides:
            return 2 if self.mirrors else 1
        return len(self.short_sides) * self.squares * (6 if self.whole else 5) * 2

    def list_windows(self, height: int, width: int, size: int) -> Iterator[CropWindow]:
        """Yields the crops of an image in their order: shorter sides, squares, crops of a square, each and its mirror.

        The corners are the upper left, upper right, lower left and lower right one. What does not divide by two is cut
        off, as everywhere here.

        Args:
          height: of the image, in pixels.
          width: of the image.
          size: height and width of the network's input.

        Raises:
          UserError: of a very long image, which would become too large.
        """
        for short_side in self.short_sides:
            side = scale(short_side, size)
            resized = short_side_to(side, height, width)
            for top, left in self._square_corners(*resized, side):
                rest = side - size
                inner = [(0, 0), (0, rest), (rest, 0), (rest, rest), (rest // 2, rest // 2)]
                windows = [(top + down, left + right, size) for down, right in inner]
                windows += [(top, left, side)] if self.whole else []
                for window, mirror in itertools.product(windows, (False, True)):
                    yield CropWindow(*resized, *window, mirror)

    def _square_corners(self, height: int, width: int, side: int) -> list[tuple[int, int]]:
        down, right = height - side, width - side  # one of them is 0
        center = down // 2, right // 2
        return [center] if self.squares == 1 else [(0, 0), center, (down, right)]

    def cut(self, image: np.ndarray, size: int, crop: EvalCrop, out: np.ndarray) -> None:
        """Cuts out all crops of an image.

        Args:
          image: uint8 [height, width, C].
          size: height and width of a crop, in pixels.
          crop: the run's own evaluation crop: all of it for "single" and "flip", else its interpolation.
          out: uint8 [crops, size, size, C], or [size, size, C] for "single": written to.

        Raises:
          UserError: as `list_windows`.
        """
        if not self.short_sides:
            center_crop(image, size, crop, out=out[0] if self.mirrors else out)
            if self.mirrors:
                out[1] = out[0, :, ::-1]
            return
        resize = resampling.RESIZES[crop.interpolation]
        resized, (height, width) = image, image.shape[:2]
        for number, window in enumerate(self.list_windows(height, width, size)):
            if window.mirror:
                out[number] = out[number - 1][:, ::-1]
                continue
            if resized is image or resized.shape[:2] != (window.height, window.width):
                resized = resize(image, window.height, window.width)
            square = resized[window.top : window.top + window.side, window.left : window.left + window.side]
            out[number] = square if window.side == size else resize(np.ascontiguousarray(square), size, size)


def scale(pixels: int, size: int) -> int:
    """Scales a side that a paper gives for crops of 224 pixels to crops of `size`, to the nearest pixel, halves up."""
    return (2 * pixels * size + PAPER_SIZE) // (2 * PAPER_SIZE)


SINGLE = Protocol("single", "the run's own evaluation crop; in the papers one center crop")
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        SINGLE,
        Protocol("flip", "arXiv:1409.1556, section 3.2: the image and its mirror image", mirrors=True),
        Protocol(
            "10-crop",
            "Krizhevsky et al., NIPS 2012, section 4.1: corners and center of the central 256x256 square, mirrored",
            (256,),
        ),
        Protocol(
            "12-crop",
            "1602.07261 reports 12 crops and lists none; here the six crops that arXiv:1409.4842 takes from a "
            "square, of the central one of its smallest scale (four corners, center, the square resized), mirrored",
            (256,),
            whole=True,
        ),
        Protocol(
            "144-crop",
            "arXiv:1409.4842, section 7: shorter sides 256, 288, 320, 352; left, center and right square (top, center, "
            "bottom); four corners, center, the square resized; mirrored. 1602.07261 reports 144 crops and lists none",
            (256, 288, 320, 352),
            squares=3,
            whole=True,
        ),
    )
}


def get_protocol(name: str) -> Protocol:
    """Returns the protocol called `name`.

    Raises:
      UserError: there is no such protocol; the message lists all.
    """
    if name not in PROTOCOLS:
        raise UserError(f"evaluation protocol {name!r}: {must_be_one_of(name, PROTOCOLS)}")
    return PROTOCOLS[name]
