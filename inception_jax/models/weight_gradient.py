"""The weight gradient of a convolution on CPUs: its algorithms, and which of them a layer takes.

A weight gradient contracts over every position of every image. XLA computes it as one convolution whose window is the
whole output; if the output's gradient is larger than the L2 cache, it is read from memory repeatedly. Three algorithms
are faster:

* Blocks: the same convolution, summed over blocks of images (or rows) whose output gradient fits into the cache. CPU
  time relative to XLA's, medians of interleaved runs on two x86-64 cores, float32: 7x7/2 stem on 64 images of 64x64
  0.19, on 8 of 224x224 0.29; 3x3 64->192 on 64 maps of 16x16 0.30, on 8 of 56x56 0.31; 3x3 96->128 on 8 of 28x28 0.35;
  1.0 where everything fits anyway.
* Taps: one matrix product per tap of the kernel, of the shifted map and the output gradient. Relative to blocks, on 2
  maps: 7x1 of 17x17 0.34 to 0.47, of 73x73 0.36; 1x7 of 17x17 0.63 to 0.82; 3x3/2 64->96 of 147x147 0.64. With few
  channels it is slower: 5x5 24->64 on 8 maps of 14x14 1.5, the 7x7/2 stem 4.2.
* Winograd's filtering, for 3x3 kernels of stride 1: see `winograd.py`. Relative to blocks, 8 maps: 64->192 of 56x56
  0.42, 128->192 of 28x28 0.26, 160->320 of 14x14 0.44. In float32 it differs from blocks by 1e-5 of the gradient's
  largest value. Training enlarges such differences: of Inception-v4 the losses were 9.646 with both at the second
  step, 6.677 and 6.722 at the third, 0.60 and 1.57 at the sixth (`experiments/step_time/levers/inception_v4.json`).

`fast_weight_gradient` takes the fastest for the layer's shape, `exact_weight_gradient` always blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import winograd
from inception_jax.models.varying_axes import vary_as
from inception_jax.models.winograd import Pads, every, pad_to, transposed_product

Strides = tuple[int, int]  # (rows, columns)

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# Elements of the output gradient that one block reads: 1 MiB in float32, half of a common L2 cache. 2**17 took the same
# time, 2**19 took 1.5 times as long for the stem.
_BLOCK_ELEMENTS = 2**18


def fast_weight_gradient(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient of a convolution's kernel by the fastest algorithm for the layer's shape.

    Args:
      strides: (rows, columns).
      pads: ((top, bottom), (left, right)) in pixels.
      x: the layer's input [B, H, W, C], of at least 32 bits.
      kernel: [kh, kw, C, N].
      gradient: of the layer's output, [B, H', W', N].

    Returns:
      [kh, kw, C, N].
    """
    algorithm = fastest(strides, kernel.shape, gradient.shape)
    if algorithm == "Winograd":
        return winograd.weight_gradient(pads, x, gradient)
    return (tap_gradient if algorithm == "taps" else exact_weight_gradient)(strides, pads, x, kernel, gradient)


def fastest(strides: Strides, kernel: Sequence[int], output: Sequence[int]) -> str:
    """Chooses the algorithm for a layer's shape: "blocks", "taps" or "Winograd".

    Matrix products need channels, and Winograd's need tiles, to be fast; XLA is slowest for kernels of one column.

    Args:
      strides: (rows, columns).
      kernel: the kernel's shape, [kh, kw, C, N].
      output: the output's shape, [B, H', W', N].
    """
    height, width, *channels = kernel
    if (height, width) == (3, 3) and strides == (1, 1) and min(channels) >= 64 and winograd.count_tiles(output) >= 128:
        return "Winograd"
    return "taps" if min(channels) >= (32 if width == 1 else 64) else "blocks"


def exact_weight_gradient(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    """The gradient of a convolution's kernel by blocks; arguments and result as of `fast_weight_gradient`."""
    height, width = kernel.shape[:2]
    outputs = kernel.shape[3]
    batch, rows, columns, _ = gradient.shape
    images = _even_block(batch, _BLOCK_ELEMENTS // (rows * columns * outputs))
    block_rows = _even_block(rows, _BLOCK_ELEMENTS // (columns * outputs)) if images == 1 else rows
    if (images, block_rows) == (batch, rows):
        return _block_gradient(x, gradient, (height, width), strides, pads)
    image_blocks, row_blocks = -(-batch // images), -(-rows // block_rows)
    more_images, more_rows = image_blocks * images - batch, row_blocks * block_rows - rows
    input_rows = x.shape[1]
    if row_blocks > 1:  # blocks of rows overlap by the kernel's height: pad once, then slice
        input_rows = (block_rows - 1) * strides[0] + height
        needed = (row_blocks * block_rows - 1) * strides[0] + height
        x = lax.pad(x, jnp.zeros((), x.dtype), _edges(1, pads[0][0], needed - x.shape[1] - pads[0][0]))
        pads = ((0, 0), pads[1])
    if more_images or more_rows:  # all blocks have one size: the padding of the last one has a gradient of zero
        x = lax.pad(x, jnp.zeros((), x.dtype), _edges(0, 0, more_images))
        gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), _edges(0, 0, more_images))
        gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), _edges(1, 0, more_rows))

    def add_block(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        image, row = index // row_blocks * images, index % row_blocks * block_rows
        block = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(x, image, images), row * strides[0], input_rows, 1)
        its_gradient = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(gradient, image, images), row, block_rows, 1)
        return total + _block_gradient(block, its_gradient, (height, width), strides, pads), None

    zeros = vary_as(jnp.zeros(kernel.shape, kernel.dtype), gradient)  # as the scan's carry must
    return lax.scan(add_block, zeros, jnp.arange(image_blocks * row_blocks, dtype=jnp.int32))[0]


def _block_gradient(
    x: jax.Array, gradient: jax.Array, window: tuple[int, int], strides: Strides, pads: Pads
) -> jax.Array:
    """The weight gradient of a block as one NHWC convolution over [channels, H, W, images]."""
    padding = []
    for axis, stride in enumerate(strides):
        spread = (gradient.shape[axis + 1] - 1) * stride + 1
        low = pads[axis][0]
        padding.append((low, window[axis] - 1 + spread - x.shape[axis + 1] - low))  # negative: pixels no window reaches
    # The barriers keep the transpositions out of the convolution: XLA does not rewrite such a convolution inside loops.
    x, gradient = lax.optimization_barrier((x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)))
    result = lax.conv_general_dilated(x, gradient, (1, 1), padding, rhs_dilation=strides, dimension_numbers=_DIMENSIONS)
    return lax.optimization_barrier(result).transpose(1, 2, 0, 3)


def tap_gradient(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The weight gradient as one matrix product per tap."""
    height, width, inputs, outputs = kernel.shape
    _, rows, columns, _ = gradient.shape
    x = pad_to(x, pads, ((rows - 1) * strides[0] + height, (columns - 1) * strides[1] + width))
    flat = gradient.reshape(-1, outputs)
    taps = []
    for i in range(height):
        for j in range(width):
            shifted = every(every(x, 1, i, rows, strides[0]), 2, j, columns, strides[1])
            # Written to memory: XLA's matrix product does not take a slice.
            taps.append(transposed_product(lax.optimization_barrier(shifted.reshape(-1, inputs)), flat))
    return jnp.stack(taps).reshape(kernel.shape)


def _even_block(total: int, limit: int) -> int:
    """The block size that divides `total` most evenly into the fewest blocks of at most `limit`."""
    return -(-total // -(-total // max(1, limit)))


def _edges(axis: int, low: int, high: int) -> list[tuple[int, int, int]]:
    """The padding configuration of `lax.pad` that pads one of four axes."""
    return [(low, high, 0) if i == axis else (0, 0, 0) for i in range(4)]
