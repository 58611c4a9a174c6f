"""How a publisher lays an array out, and how the same array lies in our tree: each way the inverse of the other."""

from __future__ import annotations

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """A rearrangement of an array's values; no arithmetic, so that there and back gives the same bits.

    Attributes:
      name: what to call it in a message.
      axes: `theirs.transpose(axes)` is ours.
      flattened: where theirs is a fully connected layer behind a flattened map in the order channels, rows, columns:
        that map's (channels, height, width). Ours is flattened rows, columns, channels.
      window: where theirs is a convolution over a whole map and ours a fully connected layer: (1, 1) for the 1x1
        convolutions that are slim's classifiers.
    """

    name: str
    axes: tuple[int, ...]
    flattened: tuple[int, int, int] | None = None
    window: tuple[int, int] | None = None

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """The array as our tree has it."""
        if self.flattened is not None:  # [out, C*H*W] -> [H*W*C, out]
            return theirs.reshape(-1, *self.flattened).transpose(2, 3, 1, 0).reshape(theirs.shape[1], -1)
        ours = theirs.transpose(self.axes)
        return ours.reshape(-1, ours.shape[-1]) if self.window is not None else ours

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The array as the publisher has it."""
        if self.flattened is not None:
            channels, height, width = self.flattened
            return ours.reshape(height, width, channels, -1).transpose(3, 2, 0, 1).reshape(ours.shape[1], -1)
        if self.window is not None:
            ours = ours.reshape(*self.window, -1, ours.shape[-1])
        return ours.transpose(np.argsort(self.axes))

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """The publisher's shape of an array whose shape here is `ours`."""
        if self.flattened is not None:
            return (ours[1], ours[0])
        if self.window is not None:
            ours = (*self.window, ours[0] // math.prod(self.window), ours[1])
        return tuple(ours[axis] for axis in np.argsort(self.axes))


VECTOR = Layout("vector", (0,))
CONV_HWIO = Layout("convolution [height, width, in, out]", (0, 1, 2, 3))
CONV_OIHW = Layout("convolution [out, in, height, width]", (2, 3, 1, 0))
DEPTHWISE_HWIM = Layout("depthwise convolution [height, width, in, multiplier]", (0, 1, 2, 3))
DEPTHWISE_O1HW = Layout("depthwise convolution [in, 1, height, width]", (2, 3, 0, 1))  # multiplier 1
LINEAR_IO = Layout("fully connected [in, out]", (0, 1))
LINEAR_OI = Layout("fully connected [out, in]", (1, 0))
LINEAR_HWIO = Layout("fully connected as a convolution [1, 1, in, out]", (0, 1, 2, 3), window=(1, 1))


def linear_chw(channels: int, height: int, width: int) -> Layout:
    """[out, C*H*W], behind a map flattened channels first."""
    return Layout("fully connected [out, C*H*W]", (1, 0), flattened=(channels, height, width))
