"""Saliency maps: the gradient of a feature channel with respect to the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.errors import UserError
from inception_jax.models.outputs import InceptionOutput


def saliency(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array, endpoint: str, channel: int
) -> jax.Array:
    """The gradient of one channel of an endpoint, summed over its map, with respect to each image.

    For "logits" it is the saliency map of arXiv:1312.6034, section 3 (which displays the largest absolute value over
    the colours). Where elements of a max-pool window are equal, the first one receives the whole gradient.

    Args:
      model: the network.
      variables: its weights.
      images: float [B, H, W, C], normalized.
      endpoint: its name, or TF-slim's, or "logits".
      channel: from 0; negative: from the end.

    Returns:
      float [B, H, W, C], the dtype of `images`; an example's gradient depends on that example alone.

    Raises:
      UserError: the endpoint has no such channel.
      ModelError: there is no such endpoint.
    """

    def value(images: jax.Array) -> jax.Array:
        output = cast(InceptionOutput, model.apply(variables, images, train=False))
        maps = output.logits if endpoint == "logits" else output.endpoint(endpoint)
        if not -maps.shape[-1] <= channel < maps.shape[-1]:
            raise UserError(f"channel: {channel}; {endpoint} has channels 0 to {maps.shape[-1] - 1}")
        wide = maps[..., channel]
        return wide.astype(np.promote_types(wide.dtype, np.float32)).sum()

    return jax.grad(value)(images)


def class_saliency(model: nn.Module, variables: Mapping[str, Any], images: jax.Array, classes: jax.Array) -> jax.Array:
    """The saliency map of a class for each image, as in arXiv:1312.6034, section 3.

    Args:
      model: the network.
      variables: its weights.
      images: float [B, H, W, C], normalized.
      classes: int [B], the class of each image whose logit is differentiated.

    Returns:
      float [B, H, W]: the largest absolute value, over the colours, of the gradient of the logit.
    """

    def value(images: jax.Array) -> jax.Array:
        logits = cast(InceptionOutput, model.apply(variables, images, train=False)).logits
        chosen = jnp.take_along_axis(logits, classes[:, None], axis=-1)
        return chosen.astype(np.promote_types(chosen.dtype, np.float32)).sum()

    return jnp.abs(jax.grad(value)(images)).max(axis=-1)
