"""Winograd's minimal filtering F(4x4, 3x3) (arXiv:1509.09308): 3x3 convolutions of stride 1 with fewer products.

A tile of 4x4 outputs takes 36 products per pair of channels where the direct sum takes 144. Tiles are transformed
before (and their results after) by sums with small whole factors, which are exact in exact arithmetic. Each product
over channels and tiles is one matrix product.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.models.varying_axes import vary_as

Pads = tuple[tuple[int, int], tuple[int, int]]  # ((top, bottom), (left, right)) in pixels

# A tile of 4x4 outputs depends on 6x6 inputs. The transforms are those of the paper; the second is transposed.
_TILE = 4
_BLOCK_TILES = 512  # of one block of images: the products' inner size
_INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OUTPUTS = np.array([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 2, 4, 8], [1, -2, 4, -8], [0, 0, 0, 1]])
_KERNEL = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24


def count_tiles(shape: Sequence[int]) -> int:
    """The number of tiles of outputs [B, H, W, N]."""
    return shape[0] * -(-shape[1] // _TILE) * -(-shape[2] // _TILE)


def weight_gradient(pads: Pads, x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of a 3x3 kernel of stride 1.

    Args:
      pads: ((top, bottom), (left, right)) in pixels.
      x: the layer's input [B, H, W, C].
      gradient: of the layer's output, [B, H', W', N].

    Returns:
      [3, 3, C, N].
    """
    batch, inputs, outputs = len(x), x.shape[3], gradient.shape[3]
    tiles = tuple(-(-size // _TILE) for size in gradient.shape[1:3])
    size = (tiles[0] * _TILE, tiles[1] * _TILE)
    limit = max(1, _BLOCK_TILES // (tiles[0] * tiles[1]))
    images = max(number for number in range(1, min(batch, limit) + 1) if batch % number == 0)
    x = pad_to(x, pads, (size[0] + 2, size[1] + 2)).reshape(-1, images, size[0] + 2, size[1] + 2, inputs)
    gradient = pad_to(gradient, ((0, 0), (0, 0)), size).reshape(-1, images, *size, outputs)

    def add_block(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        pairs = zip(_transform(_INPUTS, block[0], tiles), _transform(_OUTPUTS, block[1], tiles), strict=True)
        return total + jnp.stack([transposed_product(*pair) for pair in pairs]), None

    zeros = vary_as(jnp.zeros((len(_INPUTS) ** 2, inputs, outputs), x.dtype), gradient)  # as the scan's carry must
    total = lax.scan(add_block, zeros, (x, gradient))[0].reshape(len(_INPUTS), len(_INPUTS), inputs, outputs)
    rows = jnp.stack(_combine(_KERNEL.T, [total[:, column] for column in range(len(_INPUTS))]), 1)
    return jnp.stack(_combine(_KERNEL.T, list(rows)))


def _transform(matrix: np.ndarray, x: jax.Array, tiles: tuple[int, ...]) -> list[jax.Array]:
    """Transforms every tile T of maps [B, H, W, C] to M T M^T: one array [tiles, C] per element of the result."""

    def along(axis: int, x: jax.Array) -> list[jax.Array]:
        return _combine(matrix, [every(x, axis, start, tiles[axis - 1], _TILE) for start in range(matrix.shape[1])])

    # Behind barriers each of the arrays is written once; fused into the products they would be computed repeatedly.
    rows = lax.optimization_barrier(along(1, x))
    return lax.optimization_barrier([x.reshape(-1, x.shape[-1]) for row in rows for x in along(2, row)])


def _combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The product of a matrix of numbers with a column of arrays."""
    # Numbers, not an array: JAX would hoist that out of the branch for CPUs, into the program of other platforms.
    terms = ([float(factor) * part for factor, part in zip(row, parts, strict=True) if factor] for row in matrix)
    return [functools.reduce(jnp.add, row) for row in terms]


def transposed_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[P, C] and [P, N] to [C, N]: the sum over positions."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def every(x: jax.Array, axis: int, start: int, count: int, stride: int) -> jax.Array:
    """Takes `count` elements along an axis, every `stride`-th from `start` on."""
    return lax.slice_in_dim(x, start, start + (count - 1) * stride + 1, stride, axis)


def pad_to(x: jax.Array, pads: Pads, size: tuple[int, int]) -> jax.Array:
    """Pads a map [B, H, W, C] above and to the left by `pads`, and below and to the right up to `size` pixels."""
    low = [pair[0] for pair in pads]
    high = [wanted - has - before for wanted, has, before in zip(size, x.shape[1:3], low, strict=True)]
    edges = [(0, 0, 0), (low[0], high[0], 0), (low[1], high[1], 0), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)
