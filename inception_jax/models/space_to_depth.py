"""The first convolution of a network on GPUs: stride 2 on an image of few channels, written as stride 1 on four times.

cuDNN's kernels for 16-bit images read eight channels at a time, and an image has three. Here each square of 2x2 pixels
becomes one pixel of 12 channels, and the kernel is rearranged likewise, with a row and a column of zeros where its size
is odd: the same sums. On an H200 (jax 0.11.2, cuDNN 9.19; bfloat16, batch 256) normalization, the 7x7/2 convolution of
224x224 images, ReLU and the kernel's gradient take 1.70 ms this way and 3.19 ms as they are; with the channels padded
to 4 or 8 they take 3.19 and 2.80 ms (`experiments/step_time/pieces.py`). The 3x3/2 convolutions of Inception-v3 and
later were not measured and stay as they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_MOST_CHANNELS = 4
_SMALLEST_WINDOW = 7


def applies(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> bool:
    """Whether this form is meant for a convolution: stride 2, a kernel of at least 7x7, at most 4 channels, 16 bits."""
    narrow = x.shape[3] <= _MOST_CHANNELS and jnp.finfo(x.dtype).bits == 16
    return strides == (2, 2) and narrow and min(kernel.shape[:2]) >= _SMALLEST_WINDOW


def forward(
    strides: tuple[int, int], pads: tuple[tuple[int, int], tuple[int, int]], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves with stride 2.

    Args:
      strides: (2, 2).
      pads: ((top, bottom), (left, right)) in pixels.
      x: images [B, H, W, C].
      kernel: [kh, kw, C, N].

    Returns:
      [B, H', W', N].
    """
    batch, channels = x.shape[0], x.shape[3]
    taps = [(size + 1) // 2 for size in kernel.shape[:2]]  # of the rearranged kernel
    sizes, edges = [], []
    for size, (low, high), window, half in zip(x.shape[1:3], pads, kernel.shape[:2], taps, strict=True):
        sizes.append((size + low + high - window) // 2 + half)  # of the rearranged image: the windows and their reach
        edges.append((low, 2 * sizes[-1] - size - low, 0))  # a negative edge cuts pixels that no window reaches
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
    x = x.reshape(batch, sizes[0], 2, sizes[1], 2, channels).transpose(0, 1, 3, 2, 4, 5)
    odd = [(0, 2 * half - window) for half, window in zip(taps, kernel.shape[:2], strict=True)]
    kernel = jnp.pad(kernel.astype(x.dtype), (*odd, (0, 0), (0, 0))).reshape(taps[0], 2, taps[1], 2, channels, -1)
    return lax.conv_general_dilated(
        x.reshape(batch, *sizes, 4 * channels),
        kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*taps, 4 * channels, -1),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def kernel_gradient(
    strides: tuple[int, int],
    pads: tuple[tuple[int, int], tuple[int, int]],
    x: jax.Array,
    kernel: jax.Array,
    gradient: jax.Array,
) -> jax.Array:
    """The gradient of the kernel [kh, kw, C, N], given that of the output; other arguments as for `forward`."""
    return jax.vjp(lambda kernel: forward(strides, pads, x, kernel), kernel)[1](gradient)[0]
