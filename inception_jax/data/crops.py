"""Evaluation crops, as each publisher of weights defines them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from inception_jax.data import resampling
from inception_jax.errors import UserError, nearest
from inception_jax.ranges import MAX_SIDE

MAX_PIXELS = 178_956_970
"""The default of `data.max_pixels`: above it Pillow refuses an image, too (twice its `MAX_IMAGE_PIXELS`); 537 MB."""

CROP_RULES = ("center", "torchvision", "squash", "central_fraction")


def is_number(value: Any) -> bool:
    """Returns whether a value is a number other than True and False."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_choice(field: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises `UserError`, with the nearest allowed value, unless `value` is allowed."""
    if value not in allowed:
        raise UserError(f"{field}: {value!r}{nearest(value, allowed)}; allowed: {', '.join(allowed)}")


class ImageTooLarge(UserError):
    """A very long image would become too large when it is resized."""


@dataclasses.dataclass(frozen=True)
class EvalCrop:
    """The center crop of an evaluation image.

    "center": the short side is resized to `resize`, ratio kept, and the center taken (256 for 224, as in GoogLeNet's
    paper). "torchvision": the same with the offsets of torchvision's and timm's CenterCrop, which rounds halves to the
    even pixel where "center" rounds down. "squash": both sides are resized to `resize`, ratio not kept, and the center
    taken (Caffe's tools/convert_imageset.cpp, then data_transformer.cpp: 256 for 224; pytorch-fid: the whole image).
    "central_fraction": the central `fraction` of each side is cut out and both sides are resized to the network's size,
    ratio not kept (TF-slim's `central_crop`, inception_preprocessing.py: 0.875).

    Attributes:
      rule: one of `CROP_RULES`.
      fraction: 0 < fraction <= 1.
      interpolation: one of `resampling.RESIZES`.
      resize: side before the crop, in pixels, at least the network's size; None: `round(image_size / fraction)`.
        timm rounds that down, so its sizes are given in pixels. Not for "central_fraction".
    """

    rule: str = "center"
    fraction: float = 0.875
    interpolation: str = "bilinear"
    resize: int | None = None

    def __post_init__(self) -> None:
        check_choice("crop.rule", self.rule, CROP_RULES)
        check_choice("crop.interpolation", self.interpolation, tuple(resampling.RESIZES))
        if not is_number(self.fraction) or not 0.0 < self.fraction <= 1.0:
            raise UserError(f"crop.fraction: {self.fraction!r}; a number above 0 and up to 1 is needed")
        if self.resize is None:
            return
        if isinstance(self.resize, bool) or not isinstance(self.resize, int) or self.resize < 1:
            raise UserError(f"crop.resize: {self.resize!r}; a whole number of pixels, or None, is needed")
        if self.rule == "central_fraction":
            raise UserError("crop.resize: has no meaning with rule 'central_fraction'")
        if self.fraction != EvalCrop.fraction:
            raise UserError(f"crop.fraction: {self.fraction!r} has no meaning where crop.resize is set ({self.resize})")

    def side(self, image_size: int) -> int:
        """The side to resize to, in pixels, before a crop of `image_size` pixels is cut out.

        Raises:
          UserError: it is smaller than that crop, or above `MAX_SIDE`.
        """
        if self.resize is None and image_size / self.fraction > MAX_SIDE:
            least = math.ceil(1e4 * image_size / MAX_SIDE) / 1e4
            raise UserError(
                f"crop.fraction: {self.fraction!r}; the image would be resized to more than {MAX_SIDE:,} pixels before "
                f"a crop of {image_size:,} is cut out; at least {least} is needed"
            )
        side = self.resize or round(image_size / self.fraction)
        if side < image_size:
            raise UserError(f"crop.resize: {self.resize}; at least the image size, {image_size}, is needed")
        return side

    def steps(self, image_size: int) -> list[dict[str, Any]]:
        """The crop as plain values, for a program that computes it without this package; exports/README.md has one.

        Args:
          image_size: height and width of the crop, in pixels.

        Returns:
          The steps in their order: {"step": "resize", "side": "shorter" or "both", "pixels"}, where the other side of
          "shorter" keeps the ratio and is rounded as "longer_side" says, "floor"; {"step": "center_crop", "pixels",
          "offset": "floor" or "half_to_even"}, the rounding of half the rest; {"step": "center_fraction", "fraction"},
          which cuts int((side - side * fraction) / 2) off each end of a side.

        Raises:
          UserError: as `side`.
        """
        if self.rule == "central_fraction":
            cut = {"step": "center_fraction", "fraction": self.fraction}
            return [cut, {"step": "resize", "side": "both", "pixels": image_size}]
        resize: dict[str, Any] = {"step": "resize", "side": "both", "pixels": self.side(image_size)}
        if self.rule != "squash":
            resize |= {"side": "shorter", "longer_side": "floor"}
        offset = "half_to_even" if self.rule == "torchvision" else "floor"
        return [resize, {"step": "center_crop", "pixels": image_size, "offset": offset}]

    def summary(self, image_size: int) -> str:
        """The steps in words, such as "both sides resized to 256 pixels (OpenCV's INTER_LINEAR), center crop of 224".

        Args:
          image_size: as in `steps`.
        """
        return ", ".join(self._format_step(step) for step in self.steps(image_size))

    def _format_step(self, step: dict[str, Any]) -> str:
        if step["step"] == "center_fraction":
            return f"the central {100 * step['fraction']:g} % of each side"
        if step["step"] == "center_crop":
            halves = "to the even pixel" if step["offset"] == "half_to_even" else "down"
            return f"center crop of {step['pixels']} (half pixels rounded {halves})"
        sides = "both sides" if step["side"] == "both" else "shorter side"
        rest = ", the longer one rounded down" if step["side"] == "shorter" else ""
        library, name = resampling.LIBRARIES[self.interpolation]
        return f"{sides} resized to {step['pixels']} pixels ({library}'s {name}{rest})"


CENTER_CROP = EvalCrop()


def center_crop(
    image: np.ndarray, image_size: int, crop: EvalCrop = CENTER_CROP, out: np.ndarray | None = None
) -> np.ndarray:
    """Crops an image for evaluation.

    Args:
      image: uint8 [height, width, C].
      image_size: height and width of the crop, in pixels.
      crop: the rule.
      out: uint8 [image_size, image_size, C] contiguous, to write to; allocated if None.

    Returns:
      `out`.
    """
    if out is None:
        out = np.empty((image_size, image_size, image.shape[2]), np.uint8)
    height, width = image.shape[:2]
    resize = resampling.RESIZES[crop.interpolation]
    if crop.rule == "central_fraction":  # offsets as tf.image.central_crop's: int((side - side * fraction) / 2)
        top, left = int((height - height * crop.fraction) / 2), int((width - width * crop.fraction) / 2)
        np.copyto(out, resize(image[top : height - top, left : width - left], image_size, image_size))
        return out
    side = crop.side(image_size)
    if crop.rule == "squash":
        height = width = side
    else:
        height, width = short_side_to(side, height, width)
    image = resize(image, height, width)
    halve = _half_to_even if crop.rule == "torchvision" else _half_down
    top, left = halve(height - image_size), halve(width - image_size)
    np.copyto(out, image[top : top + image_size, left : left + image_size])
    return out


def _half_down(pixels: int) -> int:
    return pixels // 2


def _half_to_even(pixels: int) -> int:
    return round(pixels / 2)


def short_side_to(side: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) with the shorter one set to `side`, aspect ratio kept and the longer one rounded down.

    Raises:
      ImageTooLarge: a very long image, which would have more than `MAX_PIXELS` pixels (and more than 4 side²).
    """
    short = min(height, width)
    new = max(side, height * side // short), max(side, width * side // short)
    if new[0] * new[1] > max(MAX_PIXELS, 4 * side * side):
        raise ImageTooLarge(
            f"an image of {width:,} x {height:,} pixels would have {new[1]:,} x {new[0]:,} when its shorter side is "
            f"resized to {side:,}: too many"
        )
    return new
