"""Ranges of numbers, as data: of the fields of a config, and of the flags of the commands."""

from __future__ import annotations

import dataclasses
from typing import Any

FLOAT32_MAX = 3.4028234e38
"""The largest float32: a larger number is infinite on the device."""
FLOAT32_TINY = 1.1754944e-38
"""The smallest normal float32: a smaller number may be zero on the device."""
INT32_MAX = 2**31 - 1
"""The largest int32: steps are counted in int32 on the device."""

MAX_BATCH = 2**24
"""The largest batch: 256 times the largest published one."""
MAX_SIDE = 2**14
"""The largest side of the network's input, in pixels: an image of it takes 805 MB."""

MAX_IMAGE_PIXELS = 2**30
"""The most pixels that OpenCV decodes."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`.

    Attributes:
      low: the smallest number.
      high: the largest number.
      open_low: `low` itself is not in the range.
      open_high: `high` itself is not in the range.
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: Any) -> bool:
        """Returns whether a value is a number (neither True nor False nor NaN) in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        """The range in words: "greater than 0 and at most 1,000"."""
        low = f"{'greater than' if self.open_low else 'at least'} {format_number(self.low)}"
        return f"{low} and {'less than' if self.open_high else 'at most'} {format_number(self.high)}"


def format_number(value: float) -> str:
    """Formats a number for a message: whole numbers below 1e15 with thousands' separators."""
    if abs(value) < 1e15 and value == int(value):
        return f"{int(value):,}"
    return f"{value:g}"
