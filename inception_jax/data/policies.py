"""RandAugment and TrivialAugment, on the host: random operations of Pillow on a cropped image.

Operations, their magnitudes and nearest-neighbour sampling with black beyond the edge are those of torchvision's
`RandAugment` and `TrivialAugmentWide` on Pillow images (transforms/autoaugment.py). Pillow runs them in compiled code;
on the device all operations would be computed for every image, and one kept.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from inception_jax.data.crops import check_choice
from inception_jax.errors import UserError

METHODS = ("randaugment", "trivialaugment_wide")
MAX_OPERATIONS = 16
"""RandAugment's per image: each takes three of an image's 64 random numbers."""
BINS = 31
"""Magnitudes are numbers of bins, 0 to 30."""

Operation = Callable[[Image.Image, float], Image.Image]


@dataclasses.dataclass(frozen=True)
class Policy:
    """Random operations on an image.

    "randaugment" (arXiv:1909.13719): `operations` of the 14 are drawn, each with equal probability and with
    replacement, and applied at one magnitude. "trivialaugment_wide" (arXiv:2103.10158): one is drawn, and its magnitude
    from all 31. The sign of shears, translations, rotations and the enhancements is random.

    Attributes:
      method: one of `METHODS`.
      operations: per image, 1 to `MAX_OPERATIONS`; 1 for "trivialaugment_wide".
      magnitude: 0 to 30; not for "trivialaugment_wide".
    """

    method: str
    operations: int = 2
    magnitude: int = 9

    def __post_init__(self) -> None:
        check_choice("augmentation.policy", self.method, METHODS)
        for field, value, low, high in (
            ("policy_operations", self.operations, 1, MAX_OPERATIONS),
            ("policy_magnitude", self.magnitude, 0, BINS - 1),
        ):
            if isinstance(value, bool) or value not in range(low, high + 1):
                raise UserError(f"augmentation.{field}: {value!r}; a whole number from {low} to {high} is needed")

    def draw(self, uniforms: np.ndarray, height: int, width: int) -> list[tuple[str, float]]:
        """Draws the operations of an image.

        Args:
          uniforms: float64 [64] in [0, 1), of its position.
          height: of the image, in pixels.
          width: of the image, in pixels.

        Returns:
          Names of `OPERATIONS` and their signed magnitudes, in order.
        """
        wide = self.method == "trivialaugment_wide"
        drawn = []
        for place in range(1 if wide else self.operations):
            which, sign, strength = uniforms[3 * place : 3 * place + 3].tolist()
            name = _NAMES[int(which * len(_NAMES))]
            values = magnitudes(self.method, height, width)[name]
            value = values[int(strength * BINS) if wide else self.magnitude] if values else 0.0
            drawn.append((name, -value if name in _SIGNED and sign < 0.5 else value))
        return drawn

    def __call__(self, image: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Augments an image.

        Args:
          image: uint8 [height, width, 3], RGB.
          uniforms: float64 [64] in [0, 1), of its position.

        Returns:
          As `image`, which is not changed.
        """
        pillow = Image.fromarray(image)
        for name, magnitude in self.draw(uniforms, *image.shape[:2]):
            pillow = OPERATIONS[name](pillow, magnitude)
        return np.asarray(pillow)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Moves pixels: (x, y) of the result is (a x + b y + c, d x + e y + f) of the image."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda image, magnitude: kind(image).enhance(1.0 + magnitude)


OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, _: image,
    "ShearX": lambda image, m: _affine(image, 1, m, 0, 0, 1, 0),
    "ShearY": lambda image, m: _affine(image, 1, 0, 0, m, 1, 0),
    "TranslateX": lambda image, m: _affine(image, 1, 0, -int(m), 0, 1, 0),
    "TranslateY": lambda image, m: _affine(image, 1, 0, 0, 0, 1, -int(m)),
    "Rotate": lambda image, m: image.rotate(m, Image.Resampling.NEAREST),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": lambda image, m: ImageOps.posterize(image, int(m)),
    "Solarize": lambda image, m: ImageOps.solarize(image, m),  # type: ignore[arg-type]  # compares with a float, too
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
}
"""{name: takes an image and a magnitude}."""

_NAMES = list(OPERATIONS)
_SIGNED = frozenset(_NAMES[1:10])


@functools.lru_cache(maxsize=8)
def magnitudes(method: str, height: int, width: int) -> dict[str, list[float]]:
    """torchvision's magnitudes of each operation.

    Args:
      method: one of `METHODS`.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Returns:
      {name of `OPERATIONS`: 31 magnitudes, weakest first; [] for an operation without magnitude}.
    """
    wide = method == "trivialaugment_wide"
    shear, turn, factor, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    right, down = (32.0, 32.0) if wide else (150.0 / 331.0 * width, 150.0 / 331.0 * height)
    largest = {
        **{"ShearX": shear, "ShearY": shear, "TranslateX": right, "TranslateY": down, "Rotate": turn},
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), factor),
    }
    return {
        **{name: [] for name in ("Identity", "AutoContrast", "Equalize")},
        # In float32, as torchvision's: Pillow's bytes depend on the last bits.
        **{name: np.linspace(0.0, value, BINS, dtype=np.float32).tolist() for name, value in largest.items()},
        "Posterize": (8.0 - np.rint(np.arange(BINS) / ((BINS - 1) / bits))).tolist(),
        "Solarize": np.linspace(255.0, 0.0, BINS).tolist(),
    }
