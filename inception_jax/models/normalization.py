"""Batch normalization (arXiv:1502.03167) with the switches in which published networks differ."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import onednn
from inception_jax.models.batch_norm_calls import normalize_by_batch
from inception_jax.models.checks import ModelError
from inception_jax.models.explicit_axes import sharded_like
from inception_jax.models.initialization import Constant
from inception_jax.models.parameters import parameter, statistic
from inception_jax.models.platforms import is_traced_for_shapes
from inception_jax.models.tracing import trace_once
from inception_jax.models.varying_axes import vary_as


@dataclasses.dataclass(frozen=True)
class BatchNormOptions:
    """Options of batch normalization.

    Attributes:
      use_scale: whether there is a scale (gamma) beside the shift (beta); slim's networks have none, since the next
        convolution after the ReLU can absorb it (tf_slim/nets/inception_utils.py: scale=False).
      epsilon: added to the variance; 0.001 in slim and in the PyTorch ports, 1e-5 in some Caffe ports.
      momentum: weight of the old value when running statistics are updated (slim's "decay" 0.9997; PyTorch's 0.1 is
        0.9 here).
      unbiased_variance: whether the running variance is the unbiased one, N/(N-1) times the batch's, as in slim's
        fused kernel and in PyTorch; the batch itself is always normalized by its biased variance.
      axis_name: the mapped axis (pmap, shard_map or vmap) over which batch statistics are averaged; None: each device
        normalizes by the statistics of its per-device batch, as in the papers.
      axis_index_groups: groups of devices that share their statistics, as `jax.lax.pmean` takes them.
      group_size: number of neighbouring examples of the batch that are normalized together ("ghost batch norm",
        arXiv:1705.08741); running statistics are updated with the mean over the groups. None: the whole batch.
      frozen: paths of layers ("conv1/bn") that use their running statistics in training as well and do not update
        them. `create_model` refuses a path that the network does not have.
    """

    use_scale: bool = True
    epsilon: float = 1e-3
    momentum: float = 0.9997
    unbiased_variance: bool = False
    axis_name: str | None = None
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    group_size: int | None = None
    frozen: tuple[str, ...] = ()


class BatchNorm(nn.Module):
    """Normalizes each channel by batch statistics in training and by running statistics otherwise.

    Parameters: `scale` (with `options.use_scale`) and `bias`; `mean` and `var` in the collection `batch_stats`.
    Statistics and normalization are computed in at least float32, and in float64 for float64 inputs.

    Attributes:
      options: see `BatchNormOptions`.
      param_dtype: dtype of the parameters; running statistics are in at least float32.
    """

    options: BatchNormOptions
    param_dtype: Any = jnp.float32

    def __call__(self, x: jax.Array, *, train: bool, relu: bool = False, algorithm: str = "fast") -> jax.Array:
        """Normalizes `x` [B, ..., C] over all axes but the last; returns the same shape and dtype.

        Args:
          x: the maps.
          train: whether by the statistics of this batch.
          relu: whether a ReLU follows.
          algorithm: as of `conv2d`. With oneDNN's, maps of bfloat16 are normalized in training by the calls beside it
            (`batch_norm_calls.py`) where the processor has products of bfloat16, without `options.group_size`.

        Raises:
          ModelError: the batch size is not a multiple of `options.group_size`.
        """
        options, wide = self.options, at_least_float32(x.dtype)
        running_mean, running_var, scale, bias = self._declare(x.shape[-1])
        of_batch = train and "/".join(self.path) not in options.frozen
        if is_traced_for_shapes():
            return x
        if of_batch and not self.is_initializing():
            # In float32 the calls took as long as XLA's program (two cores, GoogLeNet at 224 pixels).
            chosen = algorithm.startswith("onednn") and x.dtype == jnp.bfloat16 and options.group_size is None
            calls = chosen and onednn.computes(x)
            normalize = partial(_normalize_by_calls if calls else _normalize_by_batch, options=options, relu=relu)
            x, mean, var = sharded_like((x, bias, bias), normalize, x, scale, bias)
            running_mean.value = _updated(running_mean.value, mean, options.momentum)
            running_var.value = _updated(running_var.value, var, options.momentum)
            return x
        if of_batch:
            mean, var, _ = _batch_statistics(x.astype(wide), None)
        else:
            mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
        return _normalize(x, mean, var, scale, bias, options.epsilon, relu)

    def coefficients(self, channels: int) -> tuple[jax.Array, jax.Array]:
        """The factor and the shift of each channel in evaluation, [C] in float32: the output is x * factor + shift."""
        running_mean, running_var, scale, bias = self._declare(channels)
        mean, var = (running.value.astype(jnp.float32) for running in (running_mean, running_var))
        return _factor_and_shift(mean, var, scale, bias, self.options.epsilon)

    @nn.compact
    def _declare(self, channels: int) -> tuple[nn.Variable, nn.Variable, jax.Array | None, jax.Array]:
        """Running mean and variance, scale and bias."""
        kept = at_least_float32(self.param_dtype)
        ones, zeros = Constant(1.0), Constant(0.0)
        scaled = self.options.use_scale
        return (
            statistic(self, "mean", zeros, (channels,), kept),
            statistic(self, "var", ones, (channels,), kept),
            parameter(self, "scale", ones, (channels,), self.param_dtype) if scaled else None,
            parameter(self, "bias", zeros, (channels,), self.param_dtype),
        )


def at_least_float32(dtype: Any) -> Any:
    """Returns `dtype`, or float32 for 16-bit types: the dtype of statistics, sums and logits."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _normalize_by_batch(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array, options: BatchNormOptions, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the normalized maps, and the mean and the variance to keep."""
    mean, var, kept = _batch_statistics(x.astype(at_least_float32(x.dtype)), options)
    return _normalize(x, mean, var, scale, bias, options.epsilon, relu), mean, kept


@trace_once("options", "relu")
def _normalize_by_calls(
    x: jax.Array, scale: jax.Array | None, bias: jax.Array, options: BatchNormOptions, relu: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_normalize_by_batch`."""

    count = x.size // x.shape[-1]

    def coefficients(moments: jax.Array, parameters: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        mean, var, kept = _statistics(moments[0], moments[1], count, options)
        scale, bias = parameters
        pair = jnp.stack(_factor_and_shift(mean, var, scale, bias, options.epsilon))
        return vary_as(pair, moments), (mean, kept)

    parameters = (None if scale is None else vary_as(scale, x), vary_as(bias, x))
    x, (mean, kept) = normalize_by_batch(x, parameters, coefficients, relu)
    return x, mean, kept


def _factor_and_shift(
    mean: jax.Array, var: jax.Array, scale: jax.Array | None, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    factor = lax.rsqrt(var + epsilon)
    if scale is not None:
        factor = factor * lax.broadcast_to_rank(scale.astype(var.dtype), var.ndim)
    return factor, lax.broadcast_to_rank(bias.astype(var.dtype), var.ndim) - mean * factor


@trace_once("epsilon", "relu")
def _normalize(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array,
    epsilon: float,
    relu: bool,
) -> jax.Array:
    """Returns `x` normalized by `mean` and `var`, [C] or [groups, C], and scaled and shifted; in the dtype of `x`."""
    factor, shift = _factor_and_shift(mean, var, scale, bias, epsilon)
    factor, shift = (_spread(values, x.shape) for values in (factor, shift))
    # One factor and one shift per channel: the output is written once, without a centered copy before it.
    normalized = (x.astype(var.dtype) * factor + shift).astype(x.dtype)
    return nn.relu(normalized) if relu else normalized


@trace_once("momentum")
def _updated(running: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
    """Returns a running statistic [C] moved towards `new`, [C] or [groups, C]: the mean over the groups."""
    new = new.mean(0) if new.ndim > 1 else new
    return momentum * running + (1 - momentum) * new.astype(running.dtype)


@trace_once("options")
def _batch_statistics(x: jax.Array, options: BatchNormOptions | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes mean and biased variance, over devices too with `options.axis_name`, and the variance to keep.

    The last is the unbiased one with `options.unbiased_variance`, and the biased one otherwise. All are [C], or
    [groups, C] with `options.group_size`. `options` is None during initialization.
    """
    count = x.size // x.shape[-1]
    if options is not None and options.group_size is not None:
        groups, rest = divmod(x.shape[0], options.group_size)
        if rest:
            raise ModelError(
                f"bn_group_size: a batch of {x.shape[0]} is not a multiple of {options.group_size} examples"
            )
        x, count = x.reshape(groups, -1, x.shape[-1]), count // groups
        mean, mean_square = jnp.mean(x, 1), jnp.mean(x * x, 1)
    else:
        axes = tuple(range(x.ndim - 1))
        mean, mean_square = jnp.mean(x, axes), jnp.mean(x * x, axes)
    return _statistics(mean, mean_square, count, options)


def _statistics(
    mean: jax.Array, mean_square: jax.Array, count: int, options: BatchNormOptions | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `_batch_statistics`, from the moments of this device's `count` values per channel."""
    if options is not None and options.axis_name is not None:
        # One collective per layer for both moments.
        both = lax.pmean(jnp.stack([mean, mean_square]), options.axis_name, axis_index_groups=options.axis_index_groups)
        mean, mean_square = both[0], both[1]
        device_groups = options.axis_index_groups
        count *= lax.axis_size(options.axis_name) if device_groups is None else len(device_groups[0])
    # Not `jnp.maximum`: its gradient compares the difference with the maximum, and is zero where the compiler computes
    # the one with a fused multiply-add and the other without.
    var = nn.relu(mean_square - mean * mean)
    unbiased = options is not None and options.unbiased_variance
    return mean, var, var * (count / max(count - 1, 1)) if unbiased else var


def _spread(values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Expands [C], or [groups, C], a row per group of neighbouring examples, to [1 or B, 1, ..., C], for a `shape`."""
    if values.ndim == 1:
        return lax.broadcast_to_rank(values, len(shape))
    rows = jnp.repeat(values, shape[0] // values.shape[0], axis=0)
    return rows.reshape(shape[0], *(1 for _ in shape[1:-1]), shape[-1])
