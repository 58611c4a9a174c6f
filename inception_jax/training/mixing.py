"""mixup and CutMix: each training image is mixed with its neighbour in the batch, and so are their labels.

Rows 2 i and 2 i + 1 of the global batch are partners. Batches are shuffled, so a neighbour is a random example (with
balanced sampling mostly one of another class). Both are on one device and in one micro-batch where these have even
sizes, so that nothing is exchanged between devices, and the mixture does not depend on their number.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Mixing:
    """What is mixed, and how strongly.

    Attributes:
      mixup_alpha: both parameters of the beta distribution of mixup's weight (arXiv:1710.09412, section 2); 0: no
        mixup.
      cutmix_alpha: the same of CutMix (arXiv:1905.04899, section 3.1); 0: no CutMix. With both, each image takes one of
        them, with equal probability.
      probability: that an image is mixed at all.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    probability: float = 1.0


def partners(rows: jax.Array) -> jax.Array:
    """Swaps rows 2 i and 2 i + 1 of an array whose first axis is even."""
    pairs = rows.reshape(-1, 2, *rows.shape[1:])
    return pairs[:, ::-1].reshape(rows.shape)


def mix(pixels: jax.Array, mask: jax.Array, keys: jax.Array, mixing: Mixing) -> tuple[jax.Array, jax.Array]:
    """Mixes each image with its partner.

    Each image has its own weight and box. mixup: `weight * image + (1 - weight) * partner`. CutMix: a box of the
    partner, whose sides are `sqrt(1 - weight)` of the image's and whose centre is uniform over it, replaces that of
    the image; the weight is then the fraction of pixels outside the part of the box that lies in the image.

    Args:
      pixels: floating [B, H, W, C], B even.
      mask: bool [B]; a row whose mask is False is not mixed into its partner.
      keys: typed keys [B], for this alone.
      mixing: what is mixed.

    Returns:
      The images, and [B] the weight of an image's own label; that of its partner's is 1 minus it.
    """
    height, width = pixels.shape[1:3]
    dtype = pixels.dtype
    number_keys, mixup_keys, cutmix_keys = (jax.vmap(jax.random.fold_in, (0, None))(keys, n) for n in range(3))
    numbers = jax.vmap(lambda key: jax.random.uniform(key, (4,), dtype))(number_keys)
    mixed = (numbers[:, 0] < mixing.probability) & mask & partners(mask)
    cut = jnp.full(mixed.shape, not mixing.mixup_alpha)
    if mixing.mixup_alpha and mixing.cutmix_alpha:
        cut = numbers[:, 1] < 0.5
    weights = jnp.ones((len(pixels), 1, 1, 1), dtype)
    if mixing.mixup_alpha:
        weights = _beta(mixup_keys, mixing.mixup_alpha, dtype)[:, None, None, None]
    if mixing.cutmix_alpha:
        side = jnp.sqrt(1.0 - _beta(cutmix_keys, mixing.cutmix_alpha, dtype))
        inside = _in_box(numbers[:, 2], side, height)[:, :, None] & _in_box(numbers[:, 3], side, width)[:, None, :]
        weights = jnp.where(cut[:, None, None, None], 1.0 - inside[..., None].astype(dtype), weights)
    weights = jnp.where(mixed[:, None, None, None], weights, 1.0)
    return weights * pixels + (1.0 - weights) * partners(pixels), jnp.mean(weights, axis=(1, 2, 3))


def _beta(keys: jax.Array, alpha: float, dtype: jax.typing.DTypeLike) -> jax.Array:
    """One draw of Beta(alpha, alpha) per key."""
    if alpha == 1.0:  # uniform, without the loops that gamma variates take
        return jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(keys)
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha, dtype=dtype))(keys)


def _in_box(center: jax.Array, side: jax.Array, length: int) -> jax.Array:
    """Which pixels along one axis are in the box: whole pixels, as the authors' code rounds them.

    Args:
      center: [B] in [0, 1), uniform; of the box, over the pixels.
      side: [B], of the box, as a fraction of `length`.
      length: pixels of the axis.

    Returns:
      bool [B, length].
    """
    middle = jnp.minimum((center * length).astype(jnp.int32), length - 1)[:, None]
    half = ((side * length).astype(jnp.int32) // 2)[:, None]
    place = jnp.arange(length, dtype=jnp.int32)
    return (place >= middle - half) & (place < middle + half)
