"""Channels of images: fits an image to the number that a network reads, and makes one that can be drawn.

Networks of three channels read colours; a grey image is repeated. Those of one channel read grey images. Any other
number is read as it is: four from files with alpha or infrared, more from arrays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inception_jax.errors import UserError

COLOURS = 3
"""Channels of a colour image, and the default of `config.model.in_channels`."""


class OtherChannels(UserError):
    """An image has channels that the network does not read. Not an undecodable image: no such image is left out."""


def fit(image: np.ndarray, channels: int, name: str | Callable[[], str]) -> np.ndarray:
    """Returns an image with the channels that a network reads; its values are never mixed.

    Args:
      image: uint8 [height, width, C].
      channels: of the network. 3: a grey image is repeated. 1: of three channels that are equal in every pixel, one.
      name: of the image, for errors; or a function that returns it.

    Returns:
      uint8 [height, width, channels]; `image` itself where it fits.

    Raises:
      OtherChannels: any other number of channels, or a colour image for one channel.
    """
    found = image.shape[2]
    if found == channels:
        return image
    if found == 1 and channels == COLOURS:
        return np.repeat(image, COLOURS, axis=2)
    if channels == 1 and found == COLOURS and (image[..., :1] == image[..., 1:]).all():
        return np.ascontiguousarray(image[..., :1])
    text = name if isinstance(name, str) else name()
    kind = f"an image of {found} {'channel' if found == 1 else 'channels'}"
    if (found, channels) == (COLOURS, 1):
        kind = "a colour image"
    takes = {1: "grey images, or colour ones whose three channels are equal", COLOURS: "grey and colour images"}
    raise OtherChannels(
        f"{text}: {kind}; config.model.in_channels = {channels} takes "
        f"{takes.get(channels, f'images of {channels} channels')}"
    )


def to_rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image that can be drawn.

    Args:
      image: uint8 [height, width, C].

    Returns:
      uint8 [height, width, 3]: one or two channels as grey, the first one; of more than three the first three.
    """
    if image.shape[2] == COLOURS:
        return image
    return np.repeat(image[..., :1], COLOURS, axis=2) if image.shape[2] < COLOURS else image[..., :COLOURS]
