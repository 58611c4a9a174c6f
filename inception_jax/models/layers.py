"""The layers of every network: convolution units and a fully connected layer, and the options that they share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.models.convolution import conv2d, widened
from inception_jax.models.depthwise import depthwise_conv2d
from inception_jax.models.initialization import Constant
from inception_jax.models.normalization import BatchNorm, BatchNormOptions
from inception_jax.models.parameters import Initializer, parameter
from inception_jax.models.platforms import is_traced_for_shapes
from inception_jax.models.scaled_convolution import scaled_conv2d, scales
from inception_jax.models.tracing import trace_once

relu = trace_once()(nn.relu)


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """Options that all layers of one network share.

    Attributes:
      kernel_init: initializer of convolution kernels.
      linear_init: initializer of the kernels of fully connected layers.
      bias: initial value of biases, except the classifiers' (0).
      batch_norm: options of the batch norm between convolution and ReLU; None: convolutions have a bias instead.
      dtype: computation dtype.
      param_dtype: dtype of the parameters.
      width_multiplier, min_width: see `scaled_width`.
      conv_bias: whether convolutions have a bias even with batch norm (it adds parameters and changes nothing else;
        some Caffe and PyTorch ports of BN-Inception have it).
      remat: whether modules recompute their activations in the backward pass (`jax.checkpoint`).
      fuse_siblings: whether a module's 1x1 convolutions of its input run as one convolution.
      convolution: the algorithm of the convolutions on CPUs, see `conv2d`.
    """

    kernel_init: Initializer
    linear_init: Initializer
    bias: float = 0.0
    batch_norm: BatchNormOptions | None = None
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    width_multiplier: float = 1.0
    min_width: int = 16
    conv_bias: bool = False
    remat: bool = False
    fuse_siblings: bool = False
    convolution: str = "fast"

    def width(self, features: int) -> int:
        """The number of filters of a layer that has `features` in the paper's network."""
        return scaled_width(features, self.width_multiplier, self.min_width)


def scaled_width(features: int, multiplier: float, minimum: int) -> int:
    """slim's width rule, max(int(features · multiplier), minimum); with multiplier 1, `features`."""
    return features if multiplier == 1 else max(int(features * multiplier), minimum)


class ConvUnit(nn.Module):
    """Convolution, then bias or batch norm, then ReLU: the dense convolution of every network.

    Parameters: `kernel` [height, width, in, out], and `bias` [out] or `bn/{scale,bias}` (both with `conv_bias`).

    Attributes:
      features: output channels in the paper's network, before `options.width_multiplier`.
      kernel_size: (height, width) in pixels.
      options: the network's layer options.
      strides: stride along rows and columns.
      padding: "SAME", "VALID", or a number of pixels on every side.
      dilation: distance in pixels between neighbouring taps of the kernel.
      normalize: whether batch norm follows, if `options` has it; otherwise a bias follows.
      relu: whether a ReLU follows.
      kernel_init: initializer of the kernel; None: that of `options`.
    """

    features: int
    kernel_size: tuple[int, int]
    options: LayerOptions
    strides: int = 1
    padding: str | int = "SAME"
    dilation: int = 1
    normalize: bool = True
    relu: bool = True
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        average: Callable[..., jax.Array] | None = None,
        convolved: jax.Array | None = None,
    ) -> jax.Array:
        """[B, H, W, C] to [B, H', W', features] in `options.dtype`.

        Args:
          x: the input.
          train: whether batch norm uses the statistics of this batch.
          average: an average pool that the network's definition has before this 1x1 convolution. Both are linear, and
            one acts on pixels, the other on channels, so they commute; after the convolution there are fewer channels
            to pool.
          convolved: the convolution's output, where the caller has computed it.
        """
        options = self.options
        shape = (*self.kernel_size, x.shape[-1], options.width(self.features))
        kernel = parameter(self, "kernel", self.kernel_init or options.kernel_init, shape, options.param_dtype)
        if convolved is None and average is None:
            return _convolve(self, x, kernel, self.strides, self.padding, self.dilation, train)
        if convolved is None:
            x, kernel = x.astype(options.dtype), widened(kernel, options.dtype)
            convolved = conv2d(x, kernel, self.strides, self.padding, self.dilation, options.convolution)
        return _finish(self, convolved if average is None else average(convolved), train)


class SeparableConvUnit(nn.Module):
    """A depthwise and a 1x1 convolution with nothing between them, then bias or batch norm and ReLU as in `ConvUnit`.

    Parameters: `depthwise_kernel` [height, width, in, multiplier], `pointwise_kernel` [1, 1, in * multiplier, out].

    Attributes:
      features, kernel_size, options, strides, padding, dilation, normalize, relu: as of `ConvUnit`; stride, padding and
        dilation are the depthwise convolution's.
      multiplier: output channels of the depthwise convolution per input channel.
      depthwise_init, pointwise_init: initializers of the kernels; None: that of `options`.
    """

    features: int
    kernel_size: tuple[int, int]
    options: LayerOptions
    strides: int = 1
    padding: str | int = "SAME"
    dilation: int = 1
    normalize: bool = True
    relu: bool = True
    multiplier: int = 1
    depthwise_init: Initializer | None = None
    pointwise_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H', W', features] in `options.dtype`."""
        options, channels = self.options, x.shape[-1]
        depthwise = parameter(
            self,
            "depthwise_kernel",
            self.depthwise_init or options.kernel_init,
            (*self.kernel_size, channels, self.multiplier),
            options.param_dtype,
        )
        pointwise = parameter(
            self,
            "pointwise_kernel",
            self.pointwise_init or options.kernel_init,
            (1, 1, channels * self.multiplier, options.width(self.features)),
            options.param_dtype,
        )
        x = x.astype(options.dtype)
        depthwise = depthwise.astype(options.dtype)
        x = depthwise_conv2d(x, depthwise, self.strides, self.padding, self.dilation, options.convolution)
        return _convolve(self, x, pointwise, 1, "SAME", 1, train)


def _convolve(
    unit: ConvUnit | SeparableConvUnit,
    x: jax.Array,
    kernel: jax.Array,
    strides: int,
    padding: str | int,
    dilation: int,
    train: bool,
) -> jax.Array:
    """A unit's convolution and what follows it; in evaluation both at once, where that is faster."""
    options = unit.options
    x, kernel = x.astype(options.dtype), widened(kernel, options.dtype)
    if train or unit.is_initializing() or not scales(x, kernel, dilation, options.convolution):
        return _finish(unit, conv2d(x, kernel, strides, padding, dilation, options.convolution), train)
    coefficients = _coefficients(unit, kernel.shape[-1])
    return scaled_conv2d(x, kernel, coefficients, strides, padding, options.convolution, relu=unit.relu)


def _coefficients(unit: ConvUnit | SeparableConvUnit, channels: int) -> jax.Array:
    """Of what follows a unit's convolution in evaluation: factors and shifts, [2, C], float32."""
    bias, normalize = _bias_and_batch_norm(unit, channels)
    factor, shift = jnp.ones(channels, jnp.float32), jnp.zeros(channels, jnp.float32)
    if normalize is not None:
        factor, shift = normalize.coefficients(channels)
    if bias is not None:
        shift = bias.astype(jnp.float32) * factor + shift
    return jnp.stack([factor, shift])


def _finish(unit: ConvUnit | SeparableConvUnit, x: jax.Array, train: bool) -> jax.Array:
    """Applies what follows a unit's convolution: bias, batch norm and ReLU, where it has them."""
    bias, normalize = _bias_and_batch_norm(unit, x.shape[-1])
    if bias is not None:
        x = add_bias(x, bias)
    if normalize is not None:
        return normalize(x, train=train, relu=unit.relu, algorithm=unit.options.convolution)
    return relu(x) if unit.relu and not is_traced_for_shapes() else x


def _bias_and_batch_norm(
    unit: ConvUnit | SeparableConvUnit, channels: int
) -> tuple[jax.Array | None, BatchNorm | None]:
    """What a unit adds to its convolution, and the layer that normalizes that; None: it has none."""
    options, bias = unit.options, None
    batch_norm = options.batch_norm if unit.normalize else None
    if batch_norm is None or options.conv_bias:
        bias = parameter(unit, "bias", Constant(options.bias), (channels,), options.param_dtype)
    return bias, None if batch_norm is None else BatchNorm(batch_norm, options.param_dtype, name="bn")


class Linear(nn.Module):
    """A fully connected layer, `x @ kernel + bias`; parameters `kernel` [in, features] and `bias` [features].

    Attributes:
      features: number of outputs; the width multiplier is not applied here.
      kernel_init: initializer of the kernel.
      bias: initial value of the bias; None: no bias.
      dtype: computation dtype.
      param_dtype: dtype of the parameters.
      batch_norm: options of the batch norm of the outputs, named `bn`; None: no batch norm.
    """

    features: int
    kernel_init: Initializer
    bias: float | None = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    batch_norm: BatchNormOptions | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[B, in] to [B, features] in `dtype`; `train` selects batch statistics in batch norm."""
        kernel = parameter(self, "kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        if self.bias is not None:
            bias = parameter(self, "bias", Constant(self.bias), (self.features,), self.param_dtype)
            x = add_bias(x, bias)
        return x if self.batch_norm is None else BatchNorm(self.batch_norm, self.param_dtype, name="bn")(x, train=train)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Adds a bias to every position of `x`, in the dtype of `x`; its gradient is summed in at least float32.

    JAX sums the gradient of a broadcast in the dtype of the broadcast. In bfloat16 the sum over the positions of a
    batch (25,000 for 8 maps of 56x56) is wrong by 10 to 60 %. So for 16-bit maps the bias is broadcast in float32 and
    rounded afterwards: the same values, in one fused pass.

    Args:
      x: [..., C], floating-point.
      bias: [C].

    Returns:
      The shape and dtype of `x`.
    """
    if is_traced_for_shapes():
        return x
    if jnp.finfo(x.dtype).bits >= 32:
        return x + jax.lax.broadcast_to_rank(bias.astype(x.dtype), x.ndim)
    return x + jnp.broadcast_to(bias.astype(jnp.float32), x.shape).astype(x.dtype)


def apply_remat(
    options: LayerOptions, run: Callable[[Any, jax.Array], jax.Array], module: nn.Module, x: jax.Array
) -> jax.Array:
    """Calls `run(module, x)`; with `options.remat` only `x` and the output are stored for the backward pass."""
    return nn.remat(run)(module, x) if options.remat else run(module, x)
