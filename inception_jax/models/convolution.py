"""Two-dimensional convolution, rewritten on CPUs where XLA is slow; other platforms use XLA's own lowering.

`conv2d` computes what `jax.lax.conv_general_dilated` computes. On a CPU four of XLA's lowerings are slow, and each is
avoided by computing the same in another way. Ratios are CPU time relative to XLA's own lowering, medians of interleaved
runs on two x86-64 cores, float32:

* The weight gradient, a sum over every position of every image: see `weight_gradient.py`.
* A 1x1 convolution is a matrix product. Forward and both gradients: 0.3 to 0.6.
* The library that runs XLA's convolutions (YNNPACK, jax 0.10.2) is slow where nothing is padded. One row of zeros below
  the map gives the same bits. Forward, 2 maps: 3x3 32->32 of 149x149 0.24, 3x3 64->96 of 73x73 0.70, 3x3/2 64->96 of
  147x147 0.93, 3x3/2 384->384 of 35x35 0.85.
* For a kernel larger than the map (5x5 on 4x4, 3x3 on 2x2: GoogLeNet on 64x64 images) XLA uses a scalar loop, unless
  the map is padded beforehand. Forward and both gradients: 5x5 32->128 on 64 maps of 4x4 0.10, 3x3 192->384 on 64 of
  2x2 0.12.

Inside `lax.scan` (gradient accumulation) XLA does not rewrite a convolution's transposed forms and ran them 4 times
(input gradient) and 50 times (weight gradient) slower than outside; here they are written as plain NHWC convolutions,
which are as fast inside as outside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import onednn, packed_kernels, space_to_depth
from inception_jax.models.checks import check_choice
from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.platforms import is_traced_for_shapes, platform_dependent
from inception_jax.models.tracing import trace_once
from inception_jax.models.varying_axes import match_varying_axes
from inception_jax.models.weight_gradient import Pads, Strides, exact_weight_gradient, fast_weight_gradient

Lowering = Callable[..., jax.Array]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MANY_ROWS = 32  # of an output: one more costs little


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Sequence[int] = 1,
    padding: str | int | Sequence[tuple[int, int]] = "SAME",
    dilation: int = 1,
    algorithm: str = "fast",
) -> jax.Array:
    """Convolves images with a kernel (cross-correlation, as in every deep-learning library).

    Differentiable in reverse mode, also twice; forward mode (`jax.jvp`) raises, as for every `jax.custom_vjp`.

    Args:
      x: images [B, H, W, C_in], floating-point.
      kernel: [kh, kw, C_in, C_out], the dtype of `x`, or a wider one: rounded to that of `x`. Its gradient has its own
        dtype: rounded to that of `x` before, but with oneDNN, which computes it in float32.
      strides: one stride, or (rows, columns).
      padding: "SAME" (TensorFlow's: an odd pixel of padding goes below and to the right), "VALID", a number of pixels
        on every side, or ((top, bottom), (left, right)).
      dilation: distance in pixels between neighbouring taps of the kernel; above 1 the convolution is "atrous".
      algorithm: on a CPU, where the last bits depend on it, one of `ALGORITHMS`: of the weight gradient "fast" or
        "exact" (`weight_gradient.py`), or "onednn": convolutions and their gradients are oneDNN's (`onednn.py`, the
        extra `onednn`) but for float64 and for dilated ones, which are as "fast"; or "onednn_winograd": as "onednn", in
        float32 by Winograd's filtering (`winograd.h`) where that is faster. Other platforms have one algorithm.

    Returns:
      [B, H', W', C_out] in the dtype of `x`; sums are accumulated in at least float32.

    Raises:
      ValueError: shapes, dtypes or padding are not as above, or a map is smaller than the kernel.
      ModelError: an unknown algorithm, or oneDNN cannot be had.
    """
    check_choice("algorithm", algorithm, ALGORITHMS)
    strides, pads = explicit_window(x, kernel, strides, padding, dilation)
    plain = dilation != 1 or is_traced_for_shapes()
    if plain or not (algorithm.startswith("onednn") and onednn.computes(x, kernel)):
        kernel = kernel.astype(x.dtype)
    if plain:
        return lax.conv_general_dilated(
            x, kernel, strides, pads, rhs_dilation=(dilation, dilation), dimension_numbers=_DIMENSIONS
        )
    cuda = _SPACE_TO_DEPTH if space_to_depth.applies(x, kernel, strides) else None
    return convolve_by(x, kernel, strides, pads, CPU_FORMS[algorithm], _XLA, cuda)


def explicit_window(
    x: jax.Array,
    kernel: jax.Array,
    strides: int | Sequence[int],
    padding: str | int | Sequence[tuple[int, int]],
    dilation: int,
) -> tuple[Strides, Pads]:
    """Converts strides and padding as `conv2d` takes them, with checks of its operands, to numbers per axis.

    Returns:
      (rows, columns) of the strides; the padding as of `explicit_padding`.

    Raises:
      ValueError: as `conv2d`.
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"conv2d: images {x.shape} and kernel {kernel.shape}: expected [B,H,W,C] and [kh,kw,C,N]")
    if not jnp.issubdtype(x.dtype, jnp.floating) or widened(kernel, x.dtype).dtype != kernel.dtype:
        raise ValueError(f"conv2d: images are {x.dtype}, the kernel is {kernel.dtype}: cast one of them")
    rows, columns = (strides, strides) if isinstance(strides, int) else strides
    reach = [(taps - 1) * dilation + 1 for taps in kernel.shape[:2]]
    return (rows, columns), explicit_padding(x.shape[1:3], reach, (rows, columns), padding)


def widened(kernel: jax.Array, dtype: Any) -> jax.Array:
    """A kernel as `conv2d` takes it beside maps of `dtype`: of its own dtype if that has more bits, else of theirs."""
    return kernel if jnp.finfo(kernel.dtype).bits > jnp.finfo(dtype).bits else kernel.astype(dtype)


def explicit_padding(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], padding: str | int | Sequence[tuple[int, int]]
) -> Pads:
    """Converts a padding as `conv2d` takes it to pixels.

    Args:
      size: (rows, columns) of the map.
      window: (rows, columns) that the kernel covers, dilation included.
      strides: (rows, columns).
      padding: as for `conv2d`.

    Returns:
      ((top, bottom), (left, right)) in pixels.

    Raises:
      ValueError: any other padding, or a map smaller than the window.
    """
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"conv2d: padding {padding!r}: expected 'SAME', 'VALID', pixels, or pairs of pixels")
        padding = lax.padtype_to_pads(size, window, strides, padding)
    elif isinstance(padding, int):
        padding = ((padding, padding), (padding, padding))
    pads = tuple((int(low), int(high)) for low, high in padding)
    if len(pads) != 2 or min(min(pair) for pair in pads) < 0:
        raise ValueError(f"conv2d: padding {padding!r}: expected two pairs of pixels, none negative")
    for axis in (0, 1):
        if size[axis] + sum(pads[axis]) < window[axis]:
            raise ValueError(f"conv2d: a map of {size[0]}x{size[1]} is smaller than kernel {window[0]}x{window[1]}")
    return pads


class Forms(NamedTuple):
    """A convolution and its gradients; each takes two static arguments (window and padding), then the operands."""

    forward: Lowering
    input_gradient: Lowering
    kernel_gradient: Lowering


def convolve_by(
    x: jax.Array,
    kernel: jax.Array,
    window: tuple[int, int],
    pads: Pads,
    cpu: Forms,
    default: Forms,
    cuda: Forms | None = None,
) -> jax.Array:
    """A convolution whose forms, and those of its gradients, are chosen by platform.

    Args:
      x: images.
      kernel: of the convolution.
      window: the forms' first static argument, such as the strides.
      pads: ((top, bottom), (left, right)) in pixels.
      cpu: the forms on CPUs.
      default: those on other platforms.
      cuda: those on NVIDIA's GPUs, where they are others.
    """
    x, kernel = match_varying_axes(x, kernel)
    convolve = partial(_convolve_once, window=window, pads=pads, cpu=cpu, default=default, cuda=cuda)
    return sharded_like(x, convolve, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5, 6))
def _convolve(
    x: jax.Array, kernel: jax.Array, window: tuple[int, int], pads: Pads, cpu: Forms, default: Forms, cuda: Forms | None
) -> jax.Array:
    return select_by_platform(cpu.forward, default.forward, window, pads, x, kernel, cuda=cuda and cuda.forward)


def _forward(
    x: jax.Array, kernel: jax.Array, window: tuple[int, int], pads: Pads, *forms: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(x, kernel, window, pads, *forms), (x, kernel)


def _backward(
    window: tuple[int, int],
    pads: Pads,
    cpu: Forms,
    default: Forms,
    cuda: Forms | None,
    residuals: tuple[jax.Array, jax.Array],
    gradient: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    # Two calls, so that the compiler can drop either: the first layer needs no gradient of its input.
    by_input, by_kernel = (
        select_by_platform(form, other, window, pads, *residuals, gradient, cuda=on_cuda)
        for form, other, on_cuda in zip(cpu[1:], default[1:], cuda[1:] if cuda else (None, None), strict=True)
    )
    return by_input, by_kernel


_convolve.defvjp(_forward, _backward)
_convolve_once = trace_once("window", "pads", "cpu", "default", "cuda")(_convolve)


@trace_once("cpu", "default", "strides", "pads", "cuda")
def select_by_platform(
    cpu: Lowering,
    default: Lowering,
    strides: tuple[int, int],
    pads: Pads,
    *operands: jax.Array,
    cuda: Lowering | None = None,
) -> jax.Array:
    """Calls `cpu` on CPUs, `cuda` (if given) on NVIDIA's GPUs and `default` elsewhere.

    The choice is made when the program is lowered, not when it is traced. All take the two static arguments, then the
    operands.
    """
    forms = {"cpu": partial(cpu, strides, pads)}
    if cuda is not None:
        forms["cuda"] = partial(cuda, strides, pads)
    return platform_dependent(*operands, default=partial(default, strides, pads), **forms)


def in_float32(form: Lowering) -> Lowering:
    """Computes 16-bit operands in float32 and rounds once: a CPU without half-precision units loses nothing."""

    @wraps(form)
    def widen(strides: tuple[int, int], pads: Pads, *operands: jax.Array) -> jax.Array:
        dtype = operands[0].dtype
        if jnp.finfo(dtype).bits >= 32:
            return form(strides, pads, *operands)
        return form(strides, pads, *(operand.astype(jnp.float32) for operand in operands)).astype(dtype)

    return widen


# --- XLA's own lowering, for accelerators ----------------------------------------------------------------------------


def _xla_forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = kernel.astype(x.dtype)  # wider in a program for every platform, whose form for CPUs is oneDNN's
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMENSIONS)


def xla_forms(forward: Lowering) -> Forms:
    """A form and its gradients as JAX makes them."""

    def input_gradient(
        window: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
    ) -> jax.Array:
        return jax.vjp(lambda x: forward(window, pads, x, kernel), x)[1](gradient)[0]

    def kernel_gradient(
        window: tuple[int, int], pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
    ) -> jax.Array:
        return jax.vjp(lambda kernel: forward(window, pads, x, kernel), kernel)[1](gradient)[0]

    return Forms(forward, input_gradient, kernel_gradient)


_XLA = xla_forms(_xla_forward)
_SPACE_TO_DEPTH = Forms(space_to_depth.forward, _XLA.input_gradient, space_to_depth.kernel_gradient)


# --- The lowering for CPUs -------------------------------------------------------------------------------------------


def _is_matrix_product(kernel: jax.Array, pads: Pads) -> bool:
    return kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0))


def _cpu_forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    if _is_matrix_product(kernel, pads):
        x = x[:, :: strides[0], :: strides[1]]
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    rows = (x.shape[1] + sum(pads[0]) - kernel.shape[0]) // strides[0] + 1
    with_row = (x.shape[1] + 1 - kernel.shape[0]) // strides[0] + 1
    if pads == ((0, 0), (0, 0)) and (with_row == rows or rows >= _MANY_ROWS):
        # A row of zeros below, and the rows that it adds to the output cut off.
        return lax.slice_in_dim(_plain_conv(x, kernel, strides, ((0, 1), (0, 0))), 0, rows, axis=1)
    return _plain_conv(x, kernel, strides, pads)


def _cpu_input_gradient(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    if _is_matrix_product(kernel, pads):
        values = lax.dot_general(gradient, kernel[0, 0], (((3,), (1,)), ((), ())))
        # The gradient belongs to every stride-th pixel; the pixels between and beyond have none.
        rows, columns = (
            (0, size - (count - 1) * stride - 1, stride - 1)
            for size, count, stride in zip(x.shape[1:3], gradient.shape[1:3], strides, strict=True)
        )
        return lax.pad(values, jnp.zeros((), values.dtype), [(0, 0, 0), rows, columns, (0, 0, 0)])
    # XLA computes convolutions with negative padding wrong (jax 0.10.2: NaN for 5x1 kernels and 5 rows of padding), as
    # they would be where outputs are of padding alone.
    for axis, stride in enumerate(strides):
        gradient, pads = _drop_padding(gradient, pads, axis, stride, x.shape[axis + 1], kernel.shape[axis])
    if gradient.size == 0:
        return jnp.zeros_like(x)
    # The transposed convolution, written as a plain one with the kernel flipped. The barrier keeps XLA from folding the
    # flip into the convolution, which would then be slow inside loops.
    flipped = lax.optimization_barrier(jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    back = []
    for axis, stride in enumerate(strides):
        spread = (gradient.shape[axis + 1] - 1) * stride + 1
        low = kernel.shape[axis] - 1 - pads[axis][0]
        back.append((low, x.shape[axis + 1] + kernel.shape[axis] - 1 - spread - low))
    return _plain_conv(gradient, flipped, (1, 1), (back[0], back[1]), lhs_dilation=strides)


def _drop_padding(
    gradient: jax.Array, pads: Pads, axis: int, stride: int, size: int, taps: int
) -> tuple[jax.Array, Pads]:
    """The gradient of an output without the rows, or columns, that are of padding alone, and the padding then."""
    before, count = pads[axis][0], gradient.shape[axis + 1]
    first = max(0, -(-(before - taps + 1) // stride))
    last = max(first, min(count, -(-(size + before) // stride)))
    if first == 0 and last == count:
        return gradient, pads
    before -= first * stride
    pair = before, max(0, (last - first - 1) * stride + taps - size - before)
    return lax.slice_in_dim(gradient, first, last, axis=axis + 1), (pair, pads[1]) if axis == 0 else (pads[0], pair)


def _plain_conv(
    x: jax.Array, kernel: jax.Array, strides: Strides, pads: Pads, lhs_dilation: Strides = (1, 1)
) -> jax.Array:
    """An NHWC convolution; the map is padded beforehand if the kernel is larger than it."""
    larger = any(window > size for window, size in zip(kernel.shape[:2], x.shape[1:3], strict=True))
    if larger:
        padding = [(0, 0, 0), *((*pair, gap - 1) for pair, gap in zip(pads, lhs_dilation, strict=True)), (0, 0, 0)]
        # Without the barrier XLA folds the padding back into the convolution.
        x = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), padding))
        pads, lhs_dilation = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(x, kernel, strides, pads, lhs_dilation, dimension_numbers=_DIMENSIONS)


def _cpu_kernel_gradient(
    general: Lowering, strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> jax.Array:
    if not _is_matrix_product(kernel, pads):
        return general(strides, pads, x, kernel, gradient)
    # Two-dimensional operands: with three contracted axes XLA would transpose both in memory first.
    values = x[:, :: strides[0], :: strides[1]].reshape(-1, kernel.shape[2])
    product = lax.dot_general(values, gradient.reshape(-1, kernel.shape[3]), (((0,), (0,)), ((), ())))
    return product.reshape(kernel.shape)


def _cpu_forms(general_kernel_gradient: Lowering) -> Forms:
    kernel_gradient = partial(_cpu_kernel_gradient, general_kernel_gradient)
    return Forms(in_float32(_cpu_forward), in_float32(_cpu_input_gradient), in_float32(kernel_gradient))


def _where_onednn_computes(form: Lowering, otherwise: Lowering) -> Lowering:
    """The form where oneDNN computes the operands, or 16 bits as float32; else the other one."""

    def choose(strides: Strides, pads: Pads, *operands: jax.Array) -> jax.Array:
        return (form if onednn.computes(*operands) else otherwise)(strides, pads, *operands)

    def choose_or_widen(strides: Strides, pads: Pads, *operands: jax.Array) -> jax.Array:
        return (form if onednn.computes(*operands) else in_float32(choose))(strides, pads, *operands)

    return choose_or_widen


_FAST = _cpu_forms(fast_weight_gradient)
_ONEDNN = Forms(packed_kernels.forward, onednn.input_gradient, onednn.kernel_gradient)
_ONEDNN_WINOGRAD = Forms(*(partial(form, winograd=True) for form in _ONEDNN))
CPU_FORMS = {
    "fast": _FAST,
    "exact": _cpu_forms(exact_weight_gradient),
    "onednn": Forms(*map(_where_onednn_computes, _ONEDNN, _FAST)),
    "onednn_winograd": Forms(*map(_where_onednn_computes, _ONEDNN_WINOGRAD, _FAST)),
}
"""The convolution on CPUs by each algorithm."""
ALGORITHMS = tuple(CPU_FORMS)
