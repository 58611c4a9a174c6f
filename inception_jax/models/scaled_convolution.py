"""A convolution with the batch norm of evaluation, or a bias, and a ReLU, in one pass by oneDNN, in bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from inception_jax.models import onednn, packed_kernels
from inception_jax.models.batch_norm_calls import scale_form
from inception_jax.models.convolution import conv2d, explicit_window
from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.platforms import is_traced_for_shapes, platform_dependent
from inception_jax.models.tracing import trace_once
from inception_jax.models.varying_axes import match_varying_axes, vary_as
from inception_jax.models.weight_gradient import Pads, Strides


def scales(x: jax.Array, kernel: jax.Array, dilation: int, algorithm: str) -> bool:
    """Whether `scaled_conv2d` is for these operands of `conv2d`: where it is faster. Raises ModelError as `conv2d`.

    In float32 it took as long as the two, or 1.03 times.
    """
    known = algorithm.startswith("onednn") and dilation == 1 and not is_traced_for_shapes()
    return known and x.dtype == jnp.bfloat16 and onednn.computes(x, kernel)


def scaled_conv2d(
    x: jax.Array,
    kernel: jax.Array,
    coefficients: jax.Array,
    strides: int | Sequence[int],
    padding: str | int | Sequence[tuple[int, int]],
    algorithm: str,
    *,
    relu: bool,
) -> jax.Array:
    """A convolution times a factor and plus a shift per channel, then a ReLU: batch norm in evaluation, or a bias.

    For operands of which `scales` says so: on a CPU oneDNN computes it in one pass over the output, in float32, and
    rounds once. Differentiable in reverse mode; the gradient computes the convolution once more.

    Args:
      x, kernel, strides, padding, algorithm: as of `conv2d`.
      coefficients: factors and shifts, [2, C_out], float32.
      relu: whether a ReLU follows. A NaN stays one; on a CPU minus infinity becomes one, and other negative values -0.

    Returns:
      [B, H', W', C_out] in the dtype of `x`.

    Raises:
      ValueError: shapes or dtypes are not as above.
    """
    strides, pads = explicit_window(x, kernel, strides, padding, 1)
    if coefficients.shape != (2, kernel.shape[3]) or coefficients.dtype != jnp.float32:
        raise ValueError(
            f"scaled_conv2d: coefficients {coefficients.shape} {coefficients.dtype}: expected float32 [2,N]"
        )
    x, kernel = match_varying_axes(x, kernel)
    layer = _Layer(strides, pads, algorithm, relu)
    return sharded_like(x, partial(_scaled_once, layer), x, kernel, vary_as(coefficients, x))


class _Layer(NamedTuple):
    strides: Strides
    pads: Pads
    algorithm: str
    relu: bool


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(layer: _Layer, x: jax.Array, kernel: jax.Array, coefficients: jax.Array) -> jax.Array:
    call = partial(packed_kernels.scaled_forward, layer.strides, layer.pads, relu=layer.relu)
    return platform_dependent(x, kernel, coefficients, default=partial(_form, layer), cpu=call)


def _form(layer: _Layer, x: jax.Array, kernel: jax.Array, coefficients: jax.Array) -> jax.Array:
    convolved = conv2d(x, kernel, layer.strides, layer.pads, algorithm=layer.algorithm)
    return scale_form(layer.relu, convolved, coefficients)


def _forward(layer: _Layer, *operands: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _scaled(layer, *operands), operands


def _backward(layer: _Layer, operands: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, ...]:
    return jax.vjp(partial(_form, layer), *operands)[1](gradient)


_scaled.defvjp(_forward, _backward)
_scaled_once = trace_once("layer")(_scaled)
