"""Folds an affine change of the input (another normalization of images) into the first convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.errors import UserError, nearest

# First convolutions without padding: Inception-v3, v4 and the Inception-ResNets; Xception.
_UNPADDED = ("conv2d_1a_3x3", "block1_conv1")
_CHANNELS = 3


def fold_input(
    variables: Mapping[str, Any],
    scale: float | Sequence[float],
    shift: float | Sequence[float],
    conv: str = "conv2d_1a_3x3",
) -> dict[str, Any]:
    """Makes variables of a network that computes from x what the given one computes from `x * scale + shift`.

    For torchvision's own input, normalized by ImageNet's mean and standard deviation, take `scale = std / 0.5` and
    `shift = (mean - 0.5) / 0.5`: its `transform_input`.

    The factor goes into the kernel. The shift adds a constant to each channel of the convolution's result, which goes
    into the running mean of its batch norm (or into its bias). This is exact only where the convolution has no
    padding: otherwise the zeros around the image would have to be `-shift / scale`.

    Args:
      variables: {"params": …, "batch_stats": …}; not changed.
      scale: for each of the three channels, or one for all.
      shift: as `scale`.
      conv: name of the first convolution.

    Returns:
      The same tree with two new leaves; the others are those of `variables`.

    Raises:
      UserError: there is no such convolution, it has padding, or it does not read three channels.
    """
    flat = flatten_dict(dict(variables), sep="/")
    name = f"params/{conv}/kernel"
    if conv not in _UNPADDED:
        units = [path.removeprefix("params/").removesuffix("/kernel") for path in flat if path.endswith("/kernel")]
        why = "" if conv in units else f"; there is no such convolution{nearest(conv, units)}"
        raise UserError(
            f"conv = {conv!r}: a shift is exact only for a convolution without padding "
            f"({', '.join(_UNPADDED)}); GoogLeNet's and BN-Inception's conv1 pads with zeros{why}"
        )
    if name not in flat:
        raise UserError(f"conv = {conv!r}: the variables have no {name}")
    kernel = np.asarray(flat[name])
    if kernel.shape[2] != _CHANNELS:
        raise UserError(f"{name}: reads {kernel.shape[2]} channels, an image has {_CHANNELS}")
    factor, offset = (_per_channel(*pair) for pair in (("scale", scale), ("shift", shift)))
    wide = kernel.astype(np.float64)
    constant = np.einsum("hwio,i->o", wide, offset)
    flat[name] = (wide * factor[:, None]).astype(kernel.dtype)
    mean, bias = f"batch_stats/{conv}/bn/mean", f"params/{conv}/bias"
    place, sign = (mean, -1) if mean in flat else (bias, 1)
    if place not in flat:
        raise UserError(f"the variables have neither {mean} nor {bias}: there is no leaf to hold the shift")
    held = np.asarray(flat[place])
    flat[place] = (held.astype(np.float64) + sign * constant).astype(held.dtype)
    return unflatten_dict(flat, sep="/")


def _per_channel(name: str, value: float | Sequence[float]) -> np.ndarray:
    array = np.asarray(value, np.float64)
    if array.shape not in ((), (_CHANNELS,)) or not np.isfinite(array).all():
        raise UserError(f"{name} = {value!r}: one finite number, or one for each of {_CHANNELS} channels")
    return np.broadcast_to(array, (_CHANNELS,))
