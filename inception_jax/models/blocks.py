"""The entries of a network's table (convolutions, pools, branches) and the Flax modules that run them."""

from __future__ import annotations

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.models.concatenation import concatenate_channels
from inception_jax.models.convolution import conv2d, widened
from inception_jax.models.layers import ConvUnit, LayerOptions, apply_remat, relu
from inception_jax.models.parameters import Initializer
from inception_jax.models.platforms import platform_dependent
from inception_jax.models.pooling import avg_pool, max_pool


@dataclasses.dataclass(frozen=True)
class Conv:
    """A convolution in a network's table.

    Attributes:
      name: name of its parameters.
      features: filters in the paper's network, before the width multiplier.
      kernel: (height, width) in pixels.
      stride, padding, dilation: as of `ConvUnit`.
      init: initializer of the kernel where the source sets one for this layer; None: the network's.
    """

    name: str
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str | int = "SAME"
    dilation: int = 1
    init: Initializer | None = None


@dataclasses.dataclass(frozen=True)
class ParallelConvs:
    """Convolutions on the same input, their outputs concatenated (the ends of Inception-v4's Inception-C)."""

    convs: tuple[Conv, ...]


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Max pooling with a square window; the arguments are those of `pooling.max_pool`."""

    window: int
    stride: int
    padding: str | int
    dilation: int = 1

    def __call__(self, x: jax.Array, algorithm: str = "fast") -> jax.Array:
        """[B, H, W, C] to [B, H', W', C]; `algorithm` is the network's `convolution`."""
        return max_pool(x, self.window, self.stride, self.padding, self.dilation, algorithm)


@dataclasses.dataclass(frozen=True)
class AvgPool:
    """Average pooling with a square window; the arguments are those of `pooling.avg_pool`."""

    window: int
    stride: int
    padding: str | int
    count_include_pad: bool = False
    dilation: int = 1

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to [B, H', W', C]."""
        return avg_pool(x, self.window, self.stride, self.padding, self.count_include_pad, self.dilation)


Operation = Conv | ParallelConvs | MaxPool | AvgPool
Branch = tuple[Operation, ...]
Block = Conv | MaxPool | AvgPool | tuple[Branch, ...]  # one entry of a network's table


class Mixed(nn.Module):
    """Runs branches on one input and concatenates their outputs in order: any Inception or reduction module.

    The parameters of a convolution lie under its name, directly below the module's.
    """

    branches: tuple[Branch, ...]
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H', W', C'], with C' the sum of the branches' channels."""
        return apply_remat(self.options, lambda module, x: module.concatenate_branches(x, train), self, x)

    def concatenate_branches(self, x: jax.Array, train: bool) -> jax.Array:
        """The outputs of the branches, concatenated along the channels."""
        convolved = self._convolve_siblings(x)
        maps = [self._branch(steps, x, train, convolved) for steps in self.branches]
        return concatenate_channels(maps, self.options.convolution)

    def _convolve_siblings(self, x: jax.Array) -> dict[str, jax.Array]:
        """{name: output} of the 1x1 convolutions on the module's input, computed as one, if the options ask for it."""
        if not self.options.fuse_siblings or self.is_initializing():
            return {}
        first_convs = [steps[1] if _defers(*steps[:2]) else steps[0] for steps in self.branches]
        names = [step.name for step in first_convs if isinstance(step, Conv) and _is_pointwise(step)]
        kernels = [nn.meta.unbox(self.get_variable("params", name))["kernel"] for name in names]
        if len(kernels) < 2:
            return {}
        kernel = widened(jnp.concatenate(kernels, axis=-1), self.options.dtype)
        outputs = jnp.split(
            conv2d(x.astype(self.options.dtype), kernel, algorithm=self.options.convolution),
            list(itertools.accumulate(kernel.shape[-1] for kernel in kernels[:-1])),
            axis=-1,
        )
        return dict(zip(names, outputs, strict=True))

    def _branch(self, steps: Branch, x: jax.Array, train: bool, convolved: dict[str, jax.Array]) -> jax.Array:
        deferred = None  # an average pool that the next 1x1 convolution applies to its output: see `ConvUnit`
        for step, after in zip(steps, (*steps[1:], None), strict=True):
            if isinstance(step, Conv):
                unit, precomputed = _conv_unit(step, self.options), convolved.get(step.name)
                x, deferred = unit(x, train=train, average=deferred, convolved=precomputed), None
            elif isinstance(step, ParallelConvs):
                maps = [_conv_unit(conv, self.options)(x, train=train) for conv in step.convs]
                x = concatenate_channels(maps, self.options.convolution)
            elif _defers(step, after):
                deferred = step
            elif isinstance(step, MaxPool):
                x = step(x, self.options.convolution)
            else:
                x = step(x)
        return x


def _is_pointwise(step: Operation | None) -> bool:
    return isinstance(step, Conv) and step.kernel == (1, 1) and step.stride == 1


def _defers(step: Operation, after: Operation | None = None) -> bool:
    """Whether `step` is an average pool that is applied after the 1x1 convolution `after`: see `ConvUnit`."""
    return isinstance(step, AvgPool) and _is_pointwise(after)


class Residual(Mixed):
    """A residual block: branches, a 1x1 convolution `up` to the input's width, scaling, addition to the input, ReLU.

    `up` is linear: it has a bias, no batch norm and no ReLU (arXiv:1602.07261, section 3.2: batch norm "only on top of
    the traditional layers, but not on top of the summations").

    Attributes:
      scale: factor on the residual before the addition (section 3.3 of the paper).
      relu: whether a ReLU follows the sum.
    """

    scale: float = 1.0
    relu: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to the same shape."""
        return apply_remat(self.options, lambda module, x: module.add_residual(x, train), self, x)

    def add_residual(self, x: jax.Array, train: bool) -> jax.Array:
        """The input plus the scaled residual."""
        # The input's channels are scaled already: the width multiplier must not apply again.
        unscaled = dataclasses.replace(self.options, width_multiplier=1.0)
        up = ConvUnit(x.shape[-1], (1, 1), unscaled, normalize=False, relu=False, name="up")
        x = x + float(self.scale) * up(self.concatenate_branches(x, train), train=train)
        return platform_dependent(x, default=relu, cpu=_rectified_sum) if self.relu else x


def _rectified_sum(x: jax.Array) -> jax.Array:
    """ReLU of a map that several operations read, for CPUs: the same values and, but for that of NaN, gradients.

    XLA counts the maximum as an operation of one map, which it computes anew in every operation that reads it, and so
    do those: block 20 of a chain would read the results of all 20. A selection it writes once.
    """
    return jnp.where(x <= 0, jnp.zeros((), x.dtype), x)


def run_block(name: str, block: Block, options: LayerOptions, x: jax.Array, train: bool) -> jax.Array:
    """Applies one entry of a network's table to the map `x`; called inside a module, where it is the layer `name`."""
    if isinstance(block, MaxPool):
        return block(x, options.convolution)
    if isinstance(block, AvgPool):
        return block(x)
    unit = _conv_unit(block, options) if isinstance(block, Conv) else Mixed(block, options, name=name)
    return unit(x, train=train)


def _conv_unit(conv: Conv, options: LayerOptions) -> ConvUnit:
    return ConvUnit(
        conv.features,
        conv.kernel,
        options,
        conv.stride,
        conv.padding,
        conv.dilation,
        kernel_init=conv.init,
        name=conv.name,
    )
