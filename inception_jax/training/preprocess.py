"""Normalizes uint8 images to the network's input, on the device.

The host sends uint8 (a quarter of the traffic of float32); normalization runs inside the compiled step and fuses into
one elementwise kernel. `device_augmentation` may come between the conversion to floating point and the normalization.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError, must_be_one_of

Channels = tuple[float, ...]
"""One number per channel."""


@dataclasses.dataclass(frozen=True)
class Normalization:
    """`output = (x - mean) * scale`, x in 0..255, per channel.

    Subtraction before multiplication, because no compiler contracts that order into a fused multiply-add: the result
    has the same bits on every backend.

    Attributes:
      mean: subtracted, per channel, in the order of `channel_order`.
      scale: multiplied, per channel, in the same order.
      channel_order: "RGB", or "BGR" if the network takes reversed channels. Images are always RGB before this.
    """

    mean: Channels
    scale: Channels
    channel_order: str = "RGB"

    def __post_init__(self) -> None:
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order = {self.channel_order!r}; allowed: 'RGB', 'BGR'")

    @property
    def rgb_mean(self) -> Channels:
        """The pixel, in the order of the image's channels, that becomes 0."""
        return self.mean if self.channel_order == "RGB" else self.mean[::-1]

    @property
    def is_uniform(self) -> bool:
        """Whether all channels are normalized alike."""
        return len({*self.mean}) == len({*self.scale}) == 1


def _from_unit_range(mean: Channels, std: Channels) -> Normalization:
    """(x / 255 - mean) / std, as PyTorch writes it."""
    return Normalization(
        mean=tuple(255.0 * value for value in mean), scale=tuple(1.0 / (255.0 * value) for value in std)
    )


NORMALIZATIONS: dict[str, Normalization] = {
    # x / 127.5 - 1, to [-1, 1]: TF-Slim's inception_preprocessing.py; Keras and timm for every Inception from v3 on.
    "inception": Normalization(mean=(127.5, 127.5, 127.5), scale=(1 / 127.5, 1 / 127.5, 1 / 127.5)),
    # Caffe's bvlc_googlenet train_val.prototxt: mean_value 104, 117, 123 in its BGR order, no scaling; here for RGB.
    "caffe": Normalization(mean=(123.0, 117.0, 104.0), scale=(1.0, 1.0, 1.0)),
    # The same with the channels reversed, for weights that were trained on BGR and are loaded unchanged.
    "caffe_bgr": Normalization(mean=(104.0, 117.0, 123.0), scale=(1.0, 1.0, 1.0), channel_order="BGR"),
    # torchvision's classification transforms: ImageNet's mean and standard deviation.
    "imagenet": _from_unit_range(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    # Cadene's bninception.py: BGR in 0..255 minus 104, 117, 128 (Caffe's mean of the red channel is 123).
    "cadene_bgr": Normalization(mean=(104.0, 117.0, 128.0), scale=(1.0, 1.0, 1.0), channel_order="BGR"),
    # The graph of inception5h.zip: x - 117, in every channel (TensorFlow's example for it, LabelImage.java: mean 117).
    "inception5h": Normalization(mean=(117.0, 117.0, 117.0), scale=(1.0, 1.0, 1.0)),
    # facenet.py's fixed_image_standardization: (x - 127.5) / 128.
    "facenet": Normalization(mean=(127.5, 127.5, 127.5), scale=(1 / 128, 1 / 128, 1 / 128)),
    # x / 255, to [0, 1].
    "zero_one": Normalization(mean=(0.0, 0.0, 0.0), scale=(1 / 255, 1 / 255, 1 / 255)),
}


PER_CHANNEL = "per_channel"
"""The value of `config.data.normalization` with which `data.mean` and `data.std` are read."""


def get_normalization(
    name: str, channels: int = 3, mean: Channels | None = None, std: Channels | None = None
) -> Normalization:
    """Looks up a normalization by name.

    Args:
      name: of `NORMALIZATIONS`, or "per_channel".
      channels: of the network's input.
      mean: for "per_channel": of each channel, from 0 to 1.
      std: for "per_channel": standard deviation of each channel, likewise.

    Raises:
      UserError: the name is unknown, or the normalization is not for so many channels.
    """
    field = f"config.data.normalization = {name!r}"
    if name == PER_CHANNEL:
        for part, values in (("mean", mean), ("std", std)):
            if values is None or len(values) != channels:
                given = "is unset" if values is None else f"= {values!r}"
                raise UserError(
                    f"config.data.{part} {given}: with data.normalization = {PER_CHANNEL!r} and model.in_channels = "
                    f"{channels} it takes {channels} {'number' if channels == 1 else 'numbers'}"
                )
        assert mean is not None and std is not None
        return _from_unit_range(mean, std)
    if name not in NORMALIZATIONS:
        raise UserError(f"{field}: {must_be_one_of(name, [*NORMALIZATIONS, PER_CHANNEL])}")
    found = NORMALIZATIONS[name]
    if channels == len(found.mean):
        return found
    if not found.is_uniform:
        uniform = [other for other, one in NORMALIZATIONS.items() if one.is_uniform]
        raise UserError(
            f"{field}: it differs by colour, and model.in_channels = {channels}; choose {', '.join(uniform)}, or "
            f"{PER_CHANNEL} with data.mean and data.std"
        )
    return Normalization(found.mean[:1] * channels, found.scale[:1] * channels)


def preprocess(images: jax.Array, *, normalization: Normalization, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Normalizes images and casts them to the network's compute dtype.

    Args:
      images: [B, H, W, C] uint8, RGB where C is 3.
      normalization: see `Normalization`, `get_normalization`.
      dtype: of the result; the arithmetic is in at least float32 and rounded once at the end.

    Returns:
      [B, H, W, C] `dtype`, in the channel order of `normalization`.
    """
    channels = len(normalization.mean)
    if images.dtype != jnp.uint8 or images.shape[-1] != channels:
        raise ValueError(f"images are {images.dtype}{list(images.shape)}; allowed: uint8 [..., {channels}]")
    return normalize(images, normalization=normalization, dtype=dtype)


def normalize(pixels: jax.Array, *, normalization: Normalization, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Does what `preprocess` does, also to pixels that were augmented: floating, of the scale of uint8.

    Args:
      pixels: [B, H, W, C], RGB where C is 3, 0 to 255.
      normalization: as in `preprocess`.
      dtype: as in `preprocess`.

    Returns:
      As `preprocess`.
    """
    if normalization.channel_order == "BGR":
        pixels = pixels[..., ::-1]
    precision = np.promote_types(dtype, jnp.float32)
    pixels = pixels.astype(precision)
    mean, scale = (jnp.asarray(numbers, precision) for numbers in (normalization.mean, normalization.scale))
    mean, scale = (jax.lax.broadcast_to_rank(numbers, pixels.ndim) for numbers in (mean, scale))
    pixels = (pixels - mean) * scale
    return pixels.astype(dtype)
