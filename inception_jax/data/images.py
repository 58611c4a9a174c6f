"""Random cropping of images on the host (data augmentation), in uint8; decoding is that of `decoding`.

Colour distortions and normalization run on the device.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import cv2
import numpy as np

from inception_jax.data import jpeg_rows, resampling
from inception_jax.data.channels import COLOURS
from inception_jax.data.crops import CENTER_CROP as CENTER_CROP
from inception_jax.data.crops import MAX_PIXELS as MAX_PIXELS
from inception_jax.data.crops import EvalCrop as EvalCrop
from inception_jax.data.crops import ImageTooLarge as ImageTooLarge
from inception_jax.data.crops import center_crop as center_crop
from inception_jax.data.crops import check_choice, is_number, short_side_to
from inception_jax.data.decoding import FLAGS as FLAGS
from inception_jax.data.decoding import REDUCTIONS, read_size
from inception_jax.data.decoding import UndecodableImage as UndecodableImage
from inception_jax.data.decoding import decode as decode
from inception_jax.data.decoding import decode_image_file as decode_image_file
from inception_jax.data.sampling import UNIFORMS_PER_EXAMPLE
from inception_jax.errors import UserError, nearest

# Interpolations of the training crops: OpenCV's, which are the fastest.
INTERPOLATIONS = resampling.OPENCV
_METHODS = list(INTERPOLATIONS)
AUGMENTATION_RULES = ("area_aspect", "random_crop")
_JPEG = b"\xff\xd8"
_GREY_FLAGS = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
BUILT_IN = (*AUGMENTATION_RULES, "none")
"""The values of `config.augmentation.rule` that are this package's."""

# The use of each of a position's uniform random numbers. Fixed: a new use takes new numbers, at the end.
_FLIP, _INTERPOLATION, _WINDOW = 0, 1, 2
_MAX_ATTEMPTS = (UNIFORMS_PER_EXAMPLE - _WINDOW) // 4


_Fields = TypeVar("_Fields")


def _check_range(field: str, value: Any, upper: float) -> tuple[float, float]:
    ordered = isinstance(value, (tuple, list)) and len(value) == 2 and all(is_number(end) for end in value)
    if not ordered or not 0.0 < value[0] <= value[1] <= upper or math.isinf(value[1]):
        limit = "" if math.isinf(upper) else f" <= {upper:g}"
        raise UserError(f"{field}: {value!r}; two numbers are needed, 0 < least <= largest{limit}")
    return float(value[0]), float(value[1])


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The random crop and flip of a training image.

    `rule="area_aspect"`, GoogLeNet's (arXiv:1409.4842, section 6; "random resized crop" in other libraries): a window
    whose area is uniform over `area` (as fractions of the image) and whose aspect ratio (width over height) lies in
    `aspect`, resized to the network's size. The paper does not say how the ratio is drawn; here its logarithm is
    uniform, so that wide and tall are equally likely. A window that does not fit is drawn again, `attempts` times in
    all; then the largest central window of an allowed ratio is taken. An image whose short side is below the network's
    size is enlarged to it first, so that windows of small images do not jump by whole pixels of the original.

    `rule="random_crop"`, after Caffe's (bvlc_googlenet/train_val.prototxt: crop_size 224, mirror, of images stored at
    256 pixels): the short side is resized to `resize` pixels, aspect ratio kept, and a square of the network's size is
    cut out at a random position.

    Attributes:
      rule: one of `AUGMENTATION_RULES`.
      area: least and largest fraction of the image's area; the paper's 8 % to 100 %. For "area_aspect" only.
      aspect: least and largest width over height; the paper's 3/4 to 4/3. For "area_aspect" only.
      attempts: 1 to 15. For "area_aspect" only.
      resize: short side before the crop, in pixels, at least the network's size. For "random_crop" only.
      flip: horizontal flip with probability 1/2.
      interpolation: one of `INTERPOLATIONS`, or "random": each equally likely (GoogLeNet paper, section 6).
    """

    rule: str = "area_aspect"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    attempts: int = 10
    resize: int = 256
    flip: bool = True
    interpolation: str = "bilinear"

    def check_size(self, image_size: int) -> None:
        """Raises `UserError` if a crop of `image_size` pixels is impossible."""
        if self.rule == "random_crop" and self.resize < image_size:
            raise UserError(f"augmentation.resize: {self.resize}; at least the image size, {image_size}, is needed")

    def __post_init__(self) -> None:
        check_choice("augmentation.rule", self.rule, AUGMENTATION_RULES)
        check_choice("augmentation.interpolation", self.interpolation, (*INTERPOLATIONS, "random"))
        area = _check_range("augmentation.area", self.area, upper=1.0)
        object.__setattr__(self, "area", area)
        object.__setattr__(self, "aspect", _check_range("augmentation.aspect", self.aspect, upper=math.inf))
        if isinstance(self.attempts, bool) or self.attempts not in range(1, _MAX_ATTEMPTS + 1):
            raise UserError(f"augmentation.attempts: {self.attempts!r}; a whole number from 1 to {_MAX_ATTEMPTS}")
        if not isinstance(self.flip, bool):
            raise UserError(f"augmentation.flip: {self.flip!r}; True or False is needed")
        if isinstance(self.resize, bool) or not isinstance(self.resize, int) or self.resize < 1:
            raise UserError(f"augmentation.resize: {self.resize!r}; a whole number of pixels is needed")
        unused = ("resize",) if self.rule == "area_aspect" else ("area", "aspect", "attempts")
        for field in dataclasses.fields(self):
            if field.name in unused and getattr(self, field.name) != field.default:
                raise UserError(f"augmentation.{field.name}: has no meaning with rule {self.rule!r}")


@dataclasses.dataclass(frozen=True)
class CustomAugmentation:
    """An augmentation of a user.

    Attributes:
      name: `augmentation.rule`.
      function: takes (image uint8 [height, width, C], image_size, float64 [64] in [0, 1)) and returns uint8
        [image_size, image_size, C]; C is the network's `in_channels`, 3 by default.
    """

    name: str
    function: Callable[[np.ndarray, int, np.ndarray], np.ndarray]

    def __call__(self, image: np.ndarray, image_size: int, uniforms: np.ndarray, out: np.ndarray) -> None:
        """Augments an image; writes to `out`, uint8 [image_size, image_size, C].

        Raises:
          UserError: the function raises, or returns another shape or dtype.
        """
        try:
            result = np.asarray(self.function(image, image_size, uniforms))
        except UserError:
            raise
        except Exception as error:  # whatever a user's function raises
            raise UserError(f"augmentation {self.name!r}: {type(error).__name__}: {error}") from error
        if result.shape != out.shape or result.dtype != np.uint8:
            raise UserError(
                f"augmentation {self.name!r} returned {result.dtype}{list(result.shape)}; uint8{list(out.shape)} is "
                "needed"
            )
        out[...] = result


CUSTOM: dict[str, CustomAugmentation] = {}
"""{name: augmentation} of those that were added (`inception_jax.register_augmentation`)."""


def from_fields(kind: type[_Fields], fields: Any, name: str) -> _Fields:
    """Makes an `Augmentation` or an `EvalCrop` from a mapping of fields.

    Args:
      kind: the class to make.
      fields: an instance, which is returned, or a mapping.
      name: of the config field, for errors.

    Raises:
      UserError: no mapping, an unknown field, or a value out of range.
    """
    if isinstance(fields, kind):
        return fields
    if not isinstance(fields, Mapping):
        raise UserError(f"{name}: {fields!r}; a mapping of fields is needed")
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # both kinds are dataclasses
    for field in fields:
        if field not in known:
            raise UserError(f"unknown field {name}.{field}{nearest(field, known)}; fields: {', '.join(known)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


def augment(
    image: np.ndarray, image_size: int, uniforms: np.ndarray, augmentation: Augmentation, out: np.ndarray | None = None
) -> np.ndarray:
    """Crops and flips an image: a function of the image and of its position's random numbers.

    Args:
      image: uint8 [height, width, C].
      image_size: height and width of the result, in pixels.
      uniforms: float64 [64] in [0, 1), from `sampling.uniforms`.
      augmentation: the rule.
      out: uint8 [image_size, image_size, C] contiguous, to write to; allocated if None.

    Returns:
      `out`.
    """
    if out is None:
        out = np.empty((image_size, image_size, image.shape[2]), np.uint8)
    interpolation = _interpolation(augmentation, uniforms)
    if augmentation.rule == "random_crop":
        image = _resize_short_side(image, augmentation.resize, interpolation)
        top = int(uniforms[_WINDOW + 2] * (image.shape[0] - image_size + 1))
        left = int(uniforms[_WINDOW + 3] * (image.shape[1] - image_size + 1))
        window = top, left, image_size, image_size
    else:
        if min(image.shape[:2]) < image_size:
            image = _resize_short_side(image, image_size, interpolation)
        window = random_window(image.shape[0], image.shape[1], uniforms, augmentation)
    return _resize_and_flip(image, window, uniforms, augmentation, out)


def decode_and_augment(
    encoded: bytes,
    image_size: int,
    uniforms: np.ndarray,
    augmentation: Augmentation,
    out: np.ndarray,
    name: str | Callable[[], str] = "image",
    max_pixels: int = MAX_PIXELS,
    scaled: bool = False,
) -> np.ndarray:
    """Does what `decode` and `augment` do, to the same pixels; of a JPEG, the rows below the crop are not decoded.

    Args:
      encoded: as in `decode`.
      image_size: as in `augment`.
      uniforms: as in `augment`.
      augmentation: as in `augment`.
      out: as in `augment`; its channels are those that the file is decoded to.
      name: as in `decode`.
      max_pixels: as in `decode`.
      scaled: whether a JPEG whose window has twice (4, 8 times) the size that is needed is decoded at 1/2 (1/4, 1/8):
        in less time, to other pixels, because an inverse DCT of fewer coefficients averages where `interpolation` does
        not. With three channels only.

    Returns:
      `out`.

    Raises:
      UndecodableImage: as in `decode`.
      OtherChannels: as in `decode`.
    """
    channels = out.shape[2]
    if channels in (1, COLOURS) and augmentation.rule == "area_aspect" and encoded.startswith(_JPEG):
        size = read_size(encoded, name, max_pixels)
        if size is not None and min(size) >= image_size:  # a smaller image is enlarged first, all of it
            width, height = size
            window = random_window(height, width, uniforms, augmentation)
            reduction = _reduction(window, image_size) if scaled else 1
            flags, grey = FLAGS | REDUCTIONS[reduction], channels == 1
            upper = jpeg_rows.decode(
                encoded, window[0] + window[2], _GREY_FLAGS if grey else flags, reduction, grey=grey
            )
            if upper is None and reduction > 1:
                upper = decode(encoded, name, max_pixels, reduction)
            if upper is not None:
                return _resize_and_flip(upper, _reduced(window, reduction), uniforms, augmentation, out)
    image = decode(encoded, name, max_pixels, channels=channels)
    return augment(image, image_size, uniforms, augmentation, out)


def _reduction(window: tuple[int, int, int, int], image_size: int) -> int:
    """The largest reduction that leaves a window at least `image_size` pixels high and wide."""
    return max(by for by in REDUCTIONS if by == 1 or min(window[2:]) >= by * image_size)


def _reduced(window: tuple[int, int, int, int], reduction: int) -> tuple[int, int, int, int]:
    """The same window in an image whose sides are divided by `reduction`."""
    top, left, height, width = window
    top, bottom, left, right = (round(edge / reduction) for edge in (top, top + height, left, left + width))
    return top, left, bottom - top, right - left


def _interpolation(augmentation: Augmentation, uniforms: np.ndarray) -> int:
    method = augmentation.interpolation
    if method == "random":
        method = _METHODS[int(uniforms[_INTERPOLATION] * len(_METHODS))]
    return INTERPOLATIONS[method]


def _resize_and_flip(
    image: np.ndarray,
    window: tuple[int, int, int, int],
    uniforms: np.ndarray,
    augmentation: Augmentation,
    out: np.ndarray,
) -> np.ndarray:
    """Resizes a window, (top, left, height, width), to the size of `out`, and flips it where its numbers say so."""
    top, left, height, width = window
    view = image[top : top + height, left : left + width]
    interpolation, (rows, columns) = _interpolation(augmentation, uniforms), out.shape[:2]
    if augmentation.flip and uniforms[_FLIP] < 0.5:
        resized = resampling.opencv_resize(view, rows, columns, interpolation)
        if out.shape[2] <= COLOURS:
            cv2.flip(resized, 1, dst=out)
        else:  # OpenCV flips a limited number of channels
            out[...] = resized[:, ::-1]
    else:
        resampling.opencv_resize(view, rows, columns, interpolation, out)
    return out


def random_window(
    height: int, width: int, uniforms: np.ndarray, augmentation: Augmentation
) -> tuple[int, int, int, int]:
    """The window of rule "area_aspect".

    Args:
      height: of the image, in pixels.
      width: of the image, in pixels.
      uniforms: float64 [64] in [0, 1), from `sampling.uniforms`.
      augmentation: the rule.

    Returns:
      (top, left, height, width) of the window, in pixels.
    """
    low, high = augmentation.area
    log_low, log_high = (math.log(ratio) for ratio in augmentation.aspect)
    for attempt in range(augmentation.attempts):
        u_area, u_aspect, u_top, u_left = uniforms[_WINDOW + 4 * attempt : _WINDOW + 4 * attempt + 4].tolist()
        area = (low + (high - low) * u_area) * height * width
        aspect = math.exp(log_low + (log_high - log_low) * u_aspect)
        h, w = int(math.sqrt(area / aspect) + 0.5), int(math.sqrt(area * aspect) + 0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    aspect = min(max(width / height, augmentation.aspect[0]), augmentation.aspect[1])
    h = min(height, max(1, int(width / aspect + 0.5)))
    w = min(width, max(1, int(height * aspect + 0.5)))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize_short_side(image: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    """Resizes the short side to `side` pixels, aspect ratio kept."""
    if min(image.shape[:2]) == side:
        return image
    height, width = short_side_to(side, *image.shape[:2])
    return resampling.opencv_resize(image, height, width, interpolation)
