"""Checks the `image_size` argument of the exports."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

from inception_jax.errors import UserError


def height_and_width(image_size: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, int]:
    """Returns (height, width) of an `image_size`.

    Args:
      image_size: pixels: one integer or (height, width), of Python or NumPy.

    Raises:
      UserError: it is neither, or a size is below 1.
    """
    try:
        height, width = _sides(image_size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1 or isinstance(image_size, bool):
        raise UserError(f"image_size: {image_size!r} is not a number of pixels from 1 on, or (height, width)")
    return height, width


def _sides(image_size: Any) -> Iterator[int]:
    """Yields the sizes as Python integers."""
    try:
        side = operator.index(image_size)
        return iter((side, side))
    except TypeError:
        return map(operator.index, image_size)
