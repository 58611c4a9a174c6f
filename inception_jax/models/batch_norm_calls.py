"""Batch norm and the ReLU behind it, of bfloat16 maps, in few passes by the calls beside oneDNN.

XLA's program for a CPU writes such a map as float32 and reads it again; the calls (`batch_norm.h`) read it twice and
write it once in the forward pass, and read it and the gradient twice and write one map in the backward pass. All is
computed in float32 and rounded once. Each call has a plain form, which is what other platforms compute, and what its
own gradient is taken of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.models import onednn
from inception_jax.models.platforms import platform_dependent

Coefficients = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


def normalize_by_batch(x: jax.Array, parameters: Any, coefficients: Coefficients, relu: bool) -> tuple[jax.Array, Any]:
    """Normalizes each channel by numbers that depend on its moments over the batch.

    Args:
      x: maps [..., C], bfloat16.
      parameters: arrays that the coefficients depend on, too.
      coefficients: of (moments [2, C]: the means and the means of squares, in float32; the parameters) makes
        (factor and shift of each channel, [2, C]; anything else that is wanted of them).
      relu: whether a ReLU follows.

    Returns:
      (x * factor + shift, or the larger of it and 0, in the shape and dtype of `x`; what else was wanted).
    """

    @jax.custom_vjp
    def run(x: jax.Array, parameters: Any) -> tuple[jax.Array, Any]:
        return forward(x, parameters)[0]

    def forward(x: jax.Array, parameters: Any) -> tuple[tuple[jax.Array, Any], Any]:
        (values, wanted), pull = jax.vjp(coefficients, _moments(x), parameters)
        return (_scale[relu](x, values), wanted), (x, values, pull)

    def backward(residuals: Any, cotangents: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
        x, values, pull = residuals
        gradient, of_wanted = cotangents
        of_moments, of_parameters = pull((_gradient_sums[relu](x, gradient, values), of_wanted))
        count = x.size // x.shape[-1]
        through_moments = of_moments * jnp.asarray([[1 / count], [2 / count]], of_moments.dtype)
        return _gradient[relu](x, gradient, jnp.concatenate([values, through_moments])), of_parameters

    run.defvjp(forward, backward)
    return run(x, parameters)


# --- The calls, and their plain forms --------------------------------------------------------------------------------


def _moments_form(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    return jnp.stack([jnp.mean(x, axes), jnp.mean(x * x, axes)])


def scale_form(relu: bool, x: jax.Array, coefficients: jax.Array) -> jax.Array:
    """x * factor + shift, and the larger of it and 0 with `relu`: computed in float32, in the dtype of `x`."""
    factor, shift = _rows(coefficients, x.ndim)
    values = x.astype(jnp.float32) * factor + shift
    return (jax.nn.relu(values) if relu else values).astype(x.dtype)


def _rows(coefficients: jax.Array, ndim: int) -> list[jax.Array]:
    """The rows of [n, C], each with `ndim` axes."""
    return [jax.lax.broadcast_to_rank(coefficients[row], ndim) for row in range(len(coefficients))]


def _passing(relu: bool, x: jax.Array, gradient: jax.Array, coefficients: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The map, and the part of the gradient that passes the ReLU, in float32."""
    x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
    if relu:
        factor, shift, *_ = _rows(coefficients, x.ndim)
        gradient = jnp.where(x * factor + shift > 0, gradient, 0)
    return x, gradient


def _gradient_sums_form(relu: bool, x: jax.Array, gradient: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Of the factor and of the shift, [2, C]."""
    x, passing = _passing(relu, x, gradient, coefficients)
    axes = tuple(range(x.ndim - 1))
    return jnp.stack([jnp.sum(passing * x, axes), jnp.sum(passing, axes)])


def _gradient_form(relu: bool, x: jax.Array, gradient: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Of `x`, in its dtype. coefficients: factor, shift, what is added, what is added per value of `x`; [4, C]."""
    wide, passing = _passing(relu, x, gradient, coefficients)
    factor, _, added, per_value = _rows(coefficients, x.ndim)
    return (passing * factor + (wide * per_value + added)).astype(x.dtype)


def _by_call(
    target: str, form: Callable[..., jax.Array], result: Callable[[Any], Any], **attributes: Any
) -> Callable[..., jax.Array]:
    """The call on CPUs, the form elsewhere. result: of the type of the map, that of the result."""

    def run(*operands: jax.Array) -> jax.Array:
        call = jax.ffi.ffi_call(target, result(jax.typeof(operands[0])), vmap_method="sequential")
        return platform_dependent(*operands, default=form, cpu=partial(call, **attributes))

    differentiable = jax.custom_vjp(run)
    differentiable.defvjp(
        lambda *operands: (run(*operands), operands), lambda operands, cotangent: jax.vjp(form, *operands)[1](cotangent)
    )
    return differentiable


def _same(x: Any) -> Any:
    return x


def _pairs(x: Any) -> Any:
    """[2, C], float32."""
    return x.update(shape=(2, x.shape[-1]), dtype=jnp.dtype(jnp.float32))


def _with_and_without_relu(
    target: str, form: Callable[..., jax.Array], result: Callable[[Any], Any]
) -> dict[bool, Any]:
    return {relu: _by_call(target, partial(form, relu), result, relu=np.bool_(relu)) for relu in (False, True)}


_moments = _by_call(onednn.MOMENTS_TARGET, _moments_form, _pairs)
_scale = _with_and_without_relu(onednn.NORMALIZE_TARGET, scale_form, _same)
_gradient_sums = _with_and_without_relu(onednn.GRADIENT_SUMS_TARGET, _gradient_sums_form, _pairs)
_gradient = _with_and_without_relu(onednn.NORMALIZE_GRADIENT_TARGET, _gradient_form, _same)
