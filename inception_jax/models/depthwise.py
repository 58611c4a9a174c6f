"""Depthwise convolution, rewritten on CPUs where XLA is slow; other platforms use XLA's own lowering.

XLA's CPU compiler runs a convolution with as many groups as channels as scalar loops. Here it is the sum over the
kernel's taps of shifted maps, each times one weight per channel: elementwise work along the channels, which fuses into
one pass. The weight gradient is summed over the rows of the output, one after another, so that the sum stays in the L1
cache. Nothing is approximated.

CPU time relative to XLA's own lowering, medians of interleaved runs on two x86-64 cores, float32, four maps; forward,
input gradient, weight gradient:

* 3x3, the entry and middle flow of Xception: 74x74x128 0.06, 0.06, 0.08; 37x37x256 0.07, 0.06, 0.08; 19x19x728 0.08,
  0.08, 0.05;
* 3x3/2 on 38x38x256: 0.15, 0.02, 0.19; 3x3 with dilation 2 on 37x37x256: 0.07, 0.06, 0.10;
* 7x7/2 with eight channels of each on 224x224x3, the stem of BN-Inception: 0.69, 1.1, 0.12. Training takes no gradient
  of the image.

The algorithms "onednn" and "onednn_winograd" of `conv2d` take oneDNN's depthwise convolutions instead. Their CPU time
relative to the forms here, measured likewise on two cores of a Zen 5 (printed alone):

* float32, 3x3: 74x74x256 0.35, 0.29, 0.17; 37x37x728 0.52, 0.72, 0.21; 10x10x1536 0.39, 0.56, 0.13;
* the stem of BN-Inception (eight images): 0.28, 0.07, 0.10;
* bfloat16, 3x3: 74x74x256 0.34, 0.77, 0.17; 37x37x728 0.41, 0.68, 0.08. With a stride the gradient of the input
  takes 7 to 15 times as long, so it is computed here; so are several output channels of each of many (forward 2 to 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import onednn
from inception_jax.models.checks import check_choice
from inception_jax.models.convolution import (
    ALGORITHMS,
    Forms,
    Lowering,
    Pads,
    convolve_by,
    explicit_padding,
    in_float32,
    xla_forms,
)
from inception_jax.models.platforms import is_traced_for_shapes
from inception_jax.models.varying_axes import vary_as
from inception_jax.models.winograd import every


def depthwise_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int = 1,
    padding: str | int | Sequence[tuple[int, int]] = "SAME",
    dilation: int = 1,
    algorithm: str = "fast",
) -> jax.Array:
    """Convolves each channel separately.

    Differentiable in reverse mode, also twice; forward mode (`jax.jvp`) raises, as for every `jax.custom_vjp`.

    Args:
      x: images [B, H, W, C], floating-point.
      kernel: [kh, kw, C, multiplier], the dtype of `x`.
      stride: stride along rows and columns.
      padding: as for `conv2d`.
      dilation: as for `conv2d`.
      algorithm: as for `conv2d`; on CPUs "onednn" and "onednn_winograd" take oneDNN's depthwise convolutions in the
        dtypes that `conv2d` does, without dilation and where these are faster (above); all others are computed here.

    Returns:
      [B, H', W', C * multiplier] in the dtype of `x`; sums are accumulated in at least float32. Input channel c gives
      the output channels c * multiplier ... (c + 1) * multiplier - 1, as in TensorFlow.

    Raises:
      ValueError: shapes, dtypes or padding are not as above, or a map is smaller than the kernel.
      ModelError: as `conv2d`.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"depthwise_conv2d: images {x.shape} and kernel {kernel.shape}: expected [B,H,W,C] and [kh,kw,C,M]"
        )
    if x.dtype != kernel.dtype:
        raise ValueError(f"depthwise_conv2d: images are {x.dtype}, the kernel is {kernel.dtype}: cast one of them")
    reach = [(taps - 1) * dilation + 1 for taps in kernel.shape[:2]]
    pads = explicit_padding(x.shape[1:3], reach, (stride, stride), padding)
    by_onednn = algorithm.startswith("onednn") and dilation == 1 and not is_traced_for_shapes()
    return convolve_by(x, kernel, (stride, dilation), pads, _ONEDNN if by_onednn else _CPU, _XLA)


_FEW_CHANNELS = 4  # of the image: with more, oneDNN is slow where each has several output channels

# (stride, dilation), the same along rows and columns.
StrideDilation = tuple[int, int]


# --- XLA's own lowering, for accelerators ----------------------------------------------------------------------------


def _xla_forward(stride_dilation: StrideDilation, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    (stride, dilation), (height, width, channels, multiplier) = stride_dilation, kernel.shape
    return lax.conv_general_dilated(
        x,
        kernel.reshape(height, width, 1, channels * multiplier),
        (stride, stride),
        pads,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


_XLA = xla_forms(_xla_forward)


# --- The lowering for CPUs -------------------------------------------------------------------------------------------


@in_float32
def _cpu_forward(stride_dilation: StrideDilation, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    (stride, dilation), (height, width, channels, multiplier) = stride_dilation, kernel.shape
    weights = kernel.reshape(height, width, channels * multiplier)
    padded = _padded(_repeated(x, multiplier), pads)
    size = tuple(
        (padded.shape[axis + 1] - (taps - 1) * dilation - 1) // stride + 1 for axis, taps in enumerate((height, width))
    )
    return _sum_of_taps(padded, weights, size, stride, dilation)


@in_float32
def _cpu_input_gradient(
    stride_dilation: StrideDilation, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    (stride, dilation), (height, width, channels, multiplier) = stride_dilation, kernel.shape
    # The transposed convolution as a plain one of stride 1: the gradient dilated by the stride, the kernel flipped.
    flipped = jnp.flip(kernel, (0, 1)).reshape(height, width, channels * multiplier)
    back = []
    for axis, taps in enumerate((height, width)):
        reach, length = (taps - 1) * dilation, (gradient.shape[axis + 1] - 1) * stride + 1
        low = reach - pads[axis][0]
        back.append((low, x.shape[axis + 1] + reach - length - low))
    dilated = _padded(gradient, (back[0], back[1]), stride - 1)
    result = _sum_of_taps(dilated, flipped, x.shape[1:3], 1, dilation)
    return result.reshape(*x.shape, multiplier).sum(-1) if multiplier > 1 else result


@in_float32
def _cpu_kernel_gradient(
    stride_dilation: StrideDilation, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    (stride, dilation), (height, width, _, multiplier) = stride_dilation, kernel.shape
    batch, rows, columns, features = gradient.shape
    x = _padded(_repeated(x, multiplier), pads)
    reach = (height - 1) * dilation + 1

    def add_row(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        image, row = index // rows, index % rows
        rows_of_x = lax.dynamic_slice_in_dim(lax.dynamic_index_in_dim(x, image, 0, False), row * stride, reach)
        its_gradient = lax.dynamic_index_in_dim(lax.dynamic_index_in_dim(gradient, image, 0, False), row, 0, False)
        taps = [
            (every(rows_of_x[i * dilation], 0, j * dilation, columns, stride) * its_gradient).sum(0)
            for i in range(height)
            for j in range(width)
        ]
        return total + jnp.stack(taps), None

    zeros = vary_as(jnp.zeros((height * width, features), x.dtype), gradient)  # as the scan's carry must
    total, _ = lax.scan(add_row, zeros, jnp.arange(batch * rows, dtype=jnp.int32))
    return total.reshape(kernel.shape)


def _sum_of_taps(padded: jax.Array, weights: jax.Array, size: tuple[int, ...], stride: int, dilation: int) -> jax.Array:
    """Convolves a padded map with weights [kh, kw, C] to [B, *size, C]."""
    total: jax.Array | None = None
    for i in range(weights.shape[0]):
        rows = every(padded, 1, i * dilation, size[0], stride)
        for j in range(weights.shape[1]):
            term = every(rows, 2, j * dilation, size[1], stride) * lax.broadcast_to_rank(weights[i, j], 4)
            total = term if total is None else total + term
    assert total is not None  # a kernel has at least one tap
    return total


def _padded(x: jax.Array, pads: Pads, gap: int = 0) -> jax.Array:
    """Pads a map with zeros, and puts `gap` zeros between its pixels."""
    padding = [(0, 0, 0), *((*pair, gap) for pair in pads), (0, 0, 0)]
    # The barrier writes the result to memory; without it XLA recomputes the map for every tap.
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), padding))


def _repeated(x: jax.Array, multiplier: int) -> jax.Array:
    """Repeats every channel `multiplier` times, the copies next to each other."""
    return jnp.repeat(x, multiplier, axis=-1) if multiplier > 1 else x


def _by_onednn(form: Callable[..., jax.Array], otherwise: Lowering) -> Lowering:
    """The form of oneDNN, with a stride along both axes, where it computes the operands and is faster."""

    def choose(stride_dilation: StrideDilation, pads: Pads, *operands: jax.Array) -> jax.Array:
        (stride, _), (_, _, channels, multiplier) = stride_dilation, operands[1].shape
        skips = form is onednn.input_gradient and stride > 1 and operands[0].dtype == jnp.bfloat16  # 7 to 15 times
        if skips or (multiplier > 1 and channels > _FEW_CHANNELS) or not onednn.computes(*operands):
            return otherwise(stride_dilation, pads, *operands)
        return form((stride, stride), pads, *operands)

    return choose


_CPU = Forms(_cpu_forward, _cpu_input_gradient, _cpu_kernel_gradient)
_ONEDNN = Forms(
    _by_onednn(onednn.depthwise_forward, _cpu_forward),
    _by_onednn(onednn.input_gradient, _cpu_input_gradient),
    _by_onednn(onednn.kernel_gradient, _cpu_kernel_gradient),
)
