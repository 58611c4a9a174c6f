"""Convolutions by oneDNN on CPUs, for the algorithms "onednn" and "onednn_winograd" of `conv2d`.

oneDNN is the library of PyTorch's convolutions on CPUs. It comes with the extra `onednn`; the calls of it (`onednn.cc`)
are compiled when they are first needed (`onednn_library.py`). In a program they are custom calls that know nothing but
shapes (of packed kernels also the number of threads, and their size on this machine by oneDNN): a stored program runs
in every process that called `load`.

Float32, and bfloat16 on processors that have instructions for its products (AVX512_BF16 or AMX; `Calls.bfloat16`):
they are summed in float32 and rounded once. A kernel of float32 beside maps of bfloat16 is rounded as it is read, and
its gradient is not rounded. In evaluation what follows a convolution is computed with it (`scaled_forward`). Other
16-bit operands are computed in float32. Sums are taken in another order than XLA's. A batch is divided into parts for
the threads: of images, or of rows of an image where images are fewer than threads or do not divide over them. A
kernel's gradient is a sum over as many parts as XLA has threads, 16 at most: with another number of threads its last
bits differ, and with Winograd's filtering those of all results. oneDNN may choose another algorithm for parts of
another size, so those of other results may differ, too.

"onednn_winograd" takes Winograd's minimal filtering (`winograd.h`), in float32, for 3x3, 3x1, 1x3, 7x1 and 1x7 kernels
of stride 1 with enough channels and pixels; oneDNN computes the products of its matrices. It takes 0.25 of the
multiplications of a 3x3 kernel and 0.36 of those of 7x1. Its results differ from those in float64 by 3e-6 to 5e-6 of
the largest value (3x3, 64 to 160 channels) or 6e-6 to 9e-6 (7x1, 192 channels), where direct sums differ by 1e-6 to
2e-6. An infinite pixel makes all outputs of its tiles NaN. A kernel's gradient needs memory for its matrices, 4 times a
3x3 kernel, per part.

The gradient of a 1x1 kernel, or of one on small maps, in bfloat16 is one product of matrices: oneDNN's own takes 2 to
25 times as long (a 3x3 kernel, 192 to 384 channels, 64 maps of 2x2: 6.5 ms on one core with AMX for 0.25).

Max pools of both algorithms are such calls, too (`max_pool.h`): one pass over the map. So is batch norm in training in
bfloat16 (`batch_norm_calls.py`).
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.models import onednn_library
from inception_jax.models.checks import ModelError
from inception_jax.models.platforms import TRACED_FOR

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]  # (rows, columns)

TARGET = "inception_jax_convolution"
SCALED_TARGET = "inception_jax_scaled_convolution"
PACK_TARGET = "inception_jax_pack"
PACKED_TARGET = "inception_jax_packed_convolution"
POOL_TARGET = "inception_jax_max_pool"
POOL_GRADIENT_TARGET = "inception_jax_max_pool_gradient"
MOMENTS_TARGET = "inception_jax_batch_norm_moments"
NORMALIZE_TARGET = "inception_jax_batch_norm"
GRADIENT_SUMS_TARGET = "inception_jax_batch_norm_gradient_sums"
NORMALIZE_GRADIENT_TARGET = "inception_jax_batch_norm_gradient"
TARGETS = (
    TARGET,
    SCALED_TARGET,
    PACK_TARGET,
    PACKED_TARGET,
    POOL_TARGET,
    POOL_GRADIENT_TARGET,
    MOMENTS_TARGET,
    NORMALIZE_TARGET,
    GRADIENT_SUMS_TARGET,
    NORMALIZE_GRADIENT_TARGET,
)
"""The names of the custom calls, and of their handlers in `onednn.cc`."""

_LANES = 16  # channels that the transforms of `winograd.h` compute at a time
_FILTERED = ((3, 3), (3, 1), (1, 3), (7, 1), (1, 7))  # taps of the kernels that `winograd.h` has transforms for
_LEAST_TILES = 64


class Kind(IntEnum):
    """Which convolution: the numbers are those of `onednn.cc`."""

    FORWARD = 0
    INPUT_GRADIENT = 1
    KERNEL_GRADIENT = 2


class Calls(NamedTuple):
    """What `load` made known.

    Attributes:
      digest: what decided their numbers: of the source, the compiler's command, the versions of oneDNN and jaxlib, and
        `bfloat16`.
      bfloat16: whether the processor has instructions for products of bfloat16 (AVX512_BF16 or AMX).
      count_packed_bytes: `inception_jax_packed_bytes` of `onednn.cc`.
    """

    digest: str
    bfloat16: bool
    count_packed_bytes: Callable[..., int]


@functools.cache
def load() -> Calls:
    """Makes the calls known to JAX; builds them before, where this user has not yet.

    Raises:
      ModelError: oneDNN, or a C++ compiler where one is needed, is missing; names the remedy.
    """
    built = onednn_library.build()
    try:
        library = ctypes.CDLL(str(built))
    except OSError as error:
        raise ModelError(
            f"convolutions by oneDNN: {built} cannot be loaded ({error}): remove it, or set XDG_CACHE_HOME to a "
            f"folder of this machine whose programs may run, {onednn_library.REMEDY}"
        ) from None
    for target in TARGETS:
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    bfloat16 = ctypes.CFUNCTYPE(ctypes.c_bool)(("inception_jax_has_bfloat16", library))()
    numbers, switches = ctypes.POINTER(ctypes.c_int64), [ctypes.c_bool] * 5
    count = ctypes.CFUNCTYPE(ctypes.c_int64, numbers, *switches)(("inception_jax_packed_bytes", library))
    return Calls(f"{built.stem}-bfloat16" if bfloat16 else built.stem, bfloat16, count)


def computes(*operands: jax.Array) -> bool:
    """Whether the calls compute these operands; makes the calls known to JAX.

    They do where there is something to compute on a CPU, in float32, or in bfloat16 on a processor with instructions
    for its products.

    Raises:
      ModelError: as `load`.
    """
    # A trace for every platform holds the CPUs' form on a GPU's machine, too, which need not have the library.
    on_cpu = (TRACED_FOR.value or jax.default_backend()) == "cpu"
    dtypes = {operand.dtype for operand in operands}
    if not on_cpu or dtypes - {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)} or any(o.size == 0 for o in operands):
        return False
    return load().bfloat16 or dtypes == {jnp.dtype(jnp.float32)}


def forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, *, winograd: bool = False) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [kh, kw, C, N]: [B, H', W', N]; maps in float32 or bfloat16.

    The kernel has their dtype, or float32 beside bfloat16, here and in the gradients: oneDNN then rounds it where it
    copies it to its own layout. Its gradient has its dtype.

    With `winograd`, in float32, by Winograd's filtering, here and in the gradients, where it is faster for the shapes.
    """
    return _convolve(Kind.FORWARD, output_shape(strides, pads, x, kernel), x.dtype, strides, pads, winograd, x, kernel)


def depthwise_forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of each channel of x [B, H, W, C] with its M filters, kernel [kh, kw, C, M]: [B, H', W', C * M].

    Its gradients are `input_gradient` and `kernel_gradient`. The calls know by the channels that it is depthwise.
    """
    shape = (*output_shape(strides, pads, x, kernel)[:3], kernel.shape[2] * kernel.shape[3])
    return _convolve(Kind.FORWARD, shape, x.dtype, strides, pads, False, x, kernel)


def scaled_forward(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, coefficients: jax.Array, *, relu: bool
) -> jax.Array:
    """`forward` times a factor and plus a shift per channel, [2, N] in float32, then a ReLU, where asked for.

    All is computed in float32 and rounded once. With `relu` a NaN stays one, and minus infinity becomes one.
    """
    result = jax.typeof(x).update(shape=output_shape(strides, pads, x, kernel))
    call = jax.ffi.ffi_call(SCALED_TARGET, result, vmap_method="sequential")
    return call(x, kernel, coefficients, window=_window(strides, pads), relu=np.bool_(relu))


def output_shape(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> tuple[int, ...]:
    """The shape of a convolution, [B, H', W', N]."""
    sizes = (
        (size + sum(pad) - window) // stride + 1
        for size, pad, window, stride in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    )
    return (x.shape[0], *sizes, kernel.shape[3])


def _window(strides: Strides, pads: Pads) -> np.ndarray:
    return np.array([*strides, *pads[0], *pads[1]], np.int64)


def input_gradient(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, winograd: bool = False
) -> jax.Array:
    """The gradient of x [B, H, W, C], given that of the output [B, H', W', N]."""
    return _convolve(Kind.INPUT_GRADIENT, x.shape, x.dtype, strides, pads, winograd, gradient, kernel)


def kernel_gradient(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array, *, winograd: bool = False
) -> jax.Array:
    """The gradient of kernel [kh, kw, C, N], given that of the output [B, H', W', N]."""
    shape, around = [*kernel.shape], [(0, 0, 0)] * 4
    if x.dtype == jnp.bfloat16:
        # oneDNN's is wrong (numbers that were in its memory) for taps over padding alone, on maps of one column.
        for axis, stride in enumerate(strides):
            first, last = _find_taps(shape[axis], stride, pads[axis][0], x.shape[axis + 1], gradient.shape[axis + 1])
            if stride > 1 and last - first < shape[axis]:
                around[axis] = first, shape[axis] - last, 0
                shape[axis], before = last - first, pads[axis][0] - first
                after = (gradient.shape[axis + 1] - 1) * stride + shape[axis] - x.shape[axis + 1] - before
                pair = before, max(0, after)
                pads = (pair, pads[1]) if axis == 0 else (pads[0], pair)
    found = _convolve(Kind.KERNEL_GRADIENT, tuple(shape), kernel.dtype, strides, pads, winograd, x, gradient)
    return found if found.shape == kernel.shape else lax.pad(found, jnp.zeros((), found.dtype), around)


def _find_taps(taps: int, stride: int, before: int, size: int, outputs: int) -> tuple[int, int]:
    """The first tap of an axis that is over a pixel for some output, and the one behind the last; else all."""
    used = [tap for tap in range(taps) if any(0 <= place * stride - before + tap < size for place in range(outputs))]
    return (used[0], used[-1] + 1) if used else (0, taps)


def takes_winograd(strides: Strides, kernel: Sequence[int], output: Sequence[int]) -> bool:
    """Whether Winograd's filtering is faster: enough tiles for the kernel's transform, enough channels for theirs.

    Args:
      strides: (rows, columns).
      kernel: its shape, [kh, kw, C, N].
      output: the shape of what is divided into tiles, [B, H', W', N]: the result of `FORWARD` and `INPUT_GRADIENT`,
        the gradient of the output in `KERNEL_GRADIENT`.
    """
    if tuple(kernel[:2]) not in _FILTERED or tuple(strides) != (1, 1) or any(count % _LANES for count in kernel[2:]):
        return False
    least_channels = 64 if 1 in kernel[:2] else 32
    return min(kernel[2:]) >= least_channels and _count_tiles(kernel, output) >= _LEAST_TILES


def _count_tiles(kernel: Sequence[int], output: Sequence[int]) -> int:
    """The number of tiles: four outputs along an axis with several taps, one along the others."""
    tiles = (-(-size // 4) if taps > 1 else size for taps, size in zip(kernel[:2], output[1:3], strict=True))
    return output[0] * math.prod(tiles)


def max_pool(x: jax.Array, size: tuple[int, int], window: Sequence[int]) -> jax.Array:
    """The largest values of the windows on maps [B, H, W, C], float32 or bfloat16: [B, *size, C].

    Args:
      x: the maps.
      size: (rows, columns) of windows, each with at least one pixel of the map.
      window: (height and width, stride, pixels above the map, pixels to its left), in pixels.
    """
    result = jax.typeof(x).update(shape=(x.shape[0], *size, x.shape[3]))
    return jax.ffi.ffi_call(POOL_TARGET, result, vmap_method="sequential")(x, window=np.array(window, np.int64))


def max_pool_gradient(x: jax.Array, gradient: jax.Array, window: Sequence[int]) -> jax.Array:
    """The gradient of the maps of `max_pool`, given that of its result: the first largest value of a window gets it."""
    call = jax.ffi.ffi_call(POOL_GRADIENT_TARGET, jax.typeof(x), vmap_method="sequential")
    return call(x, gradient, window=np.array(window, np.int64))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3, 4, 5))
def _convolve(
    kind: Kind,
    shape: tuple[int, ...],
    dtype: np.dtype,
    strides: Strides,
    pads: Pads,
    winograd: bool,
    first: jax.Array,
    second: jax.Array,
) -> jax.Array:
    result = jax.typeof(first).update(shape=shape, dtype=dtype)  # within a `shard_map` it varies over the same axes
    of_kernel = kind == Kind.KERNEL_GRADIENT
    kernel, tiled = (shape, second.shape) if of_kernel else (second.shape, shape)
    filters = winograd and first.dtype == jnp.float32 and takes_winograd(strides, kernel, tiled)
    call = jax.ffi.ffi_call(TARGET, result, vmap_method="sequential")
    return call(first, second, kind=np.int64(kind), window=_window(strides, pads), filters=np.bool_(filters))


def _convolve_forward(kind, shape, dtype, strides, pads, winograd, first, second):
    return _convolve(kind, shape, dtype, strides, pads, winograd, first, second), (first, second)


def _convolve_backward(kind, shape, dtype, strides, pads, winograd, operands, cotangent):
    """Each kind is linear in both operands, and its transposes are the other two kinds."""
    first, second = operands
    of_first, of_second = {
        Kind.FORWARD: ((Kind.INPUT_GRADIENT, cotangent, second), (Kind.KERNEL_GRADIENT, first, cotangent)),
        Kind.INPUT_GRADIENT: ((Kind.FORWARD, cotangent, second), (Kind.KERNEL_GRADIENT, cotangent, first)),
        Kind.KERNEL_GRADIENT: ((Kind.INPUT_GRADIENT, second, cotangent), (Kind.FORWARD, first, cotangent)),
    }[kind]
    return (
        _convolve(of_first[0], first.shape, first.dtype, strides, pads, winograd, *of_first[1:]),
        _convolve(of_second[0], second.shape, second.dtype, strides, pads, winograd, *of_second[1:]),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)
