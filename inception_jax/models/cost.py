"""What a network is made of, block by block: output shapes, parameters, multiply-adds. No array is ever made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.models.base import BaseNetwork
from inception_jax.models.convolution import explicit_padding
from inception_jax.models.layers import ConvUnit, Linear, SeparableConvUnit


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """One block of a network, for one picture.

    Attributes:
      name: of the endpoint; `classifier` is the last layer of the trunk, `aux…` an auxiliary head.
      output: (height, width, channels); vectors have height and width 1.
      parameters: trained numbers, batch norm's included and its running statistics not.
      macs: multiply-adds of convolutions and fully connected layers; nothing else is counted.
    """

    name: str
    output: tuple[int, int, int]
    parameters: int
    macs: int

    @property
    def auxiliary(self) -> bool:
        """Whether this is an auxiliary head, which evaluation does not run."""
        return self.name.startswith("aux")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One convolution or fully connected layer, for one picture.

    Attributes:
      block: the name of the block that it is part of.
      name: its path in the parameter tree, such as `inception_3a/conv_3x3`.
      kernel: (height, width, in, out); a fully connected layer's is (1, 1, in, out), a depthwise convolution's
        (height, width, 1, out). A separable convolution is two layers, `…/depthwise` and `…/pointwise`.
      input: (height, width, channels); vectors have height and width 1.
      output: likewise.
      macs: multiply-adds, those on the pixels of the padding included, as papers count them.
      inside_macs: multiply-adds on pixels of the picture alone, as XLA's cost analysis counts them.
      reads_pictures: whether its input is the picture itself, of which nobody wants a gradient.
    """

    block: str
    name: str
    kernel: tuple[int, int, int, int]
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    macs: int
    inside_macs: int
    reads_pictures: bool

    @property
    def auxiliary(self) -> bool:
        """Whether it is part of an auxiliary head, which evaluation does not run."""
        return self.block.startswith("aux")


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """A network's blocks in the order in which they run, an auxiliary head right after the block that it reads.

    `parameters` and `macs` are sums over the blocks of the trunk, `parameters_with_aux` and `macs_with_aux` over all.
    `layers` are the convolutions and fully connected layers in the order in which they run.
    """

    image_size: int
    num_classes: int
    blocks: tuple[BlockCost, ...]
    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Trained numbers of the trunk and its classifier."""
        return sum(block.parameters for block in self.blocks if not block.auxiliary)

    @property
    def parameters_with_aux(self) -> int:
        """Trained numbers, the auxiliary heads' included."""
        return sum(block.parameters for block in self.blocks)

    @property
    def macs(self) -> int:
        """Multiply-adds of evaluating one picture."""
        return sum(block.macs for block in self.blocks if not block.auxiliary)

    @property
    def macs_with_aux(self) -> int:
        """Multiply-adds of one picture's forward pass in training."""
        return sum(block.macs for block in self.blocks)


def count_cost(model: BaseNetwork, image_size: int) -> NetworkCost:
    """Counts a network at `image_size` pixels per side.

    Raises:
      ModelError: the image is smaller than the network's minimum.
    """
    layers: list[LayerCost] = []
    endpoints: dict[str, tuple[int, ...]] = {}

    def count(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, output = context.module, run(*args, **kwargs)
        if isinstance(module, ConvUnit | SeparableConvUnit | Linear) and context.method_name == "__call__":
            layers.extend(_layers(module, args[0].shape[1:], output.shape[1:], first=not layers))
        return output

    def initialise(key: jax.Array, images: jax.Array) -> Any:
        with nn.intercept_methods(count):
            output, variables = model.init_with_output(key, images)
        # Taken here, in order: the dict that leaves the trace is sorted by name.
        endpoints.update({name: x.shape[1:] for name, x in output.endpoints.items()})
        return variables

    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(initialise, jax.eval_shape(lambda: jax.random.key(0)), images)
    blocks = []
    for name, shape in _in_order(endpoints, layers).items():
        leaves = jax.tree.leaves(variables["params"].get(name, {}))
        macs = sum(layer.macs for layer in layers if layer.block == name)
        blocks.append(BlockCost(name, _grid(shape), sum(math.prod(leaf.shape) for leaf in leaves), macs))
    return NetworkCost(image_size, model.num_classes, tuple(blocks), tuple(layers))


def _layers(
    module: ConvUnit | SeparableConvUnit | Linear, taken: tuple[int, ...], given: tuple[int, ...], first: bool
) -> list[LayerCost]:
    """The records of a unit that maps `taken` to `given`, shapes without the batch."""
    name = "/".join(module.path)
    if isinstance(module, Linear):
        kernel = (1, 1, *module.get_variable("params", "kernel").shape)
        return [_layer(module, name, kernel, taken, given, first, 1)]
    if isinstance(module, ConvUnit):
        kernel = module.get_variable("params", "kernel").shape
        return [_layer(module, name, kernel, taken, given, first, _kernel_places(module, kernel, taken, given))]
    kernel = module.get_variable("params", "depthwise_kernel").shape
    kernel = (*kernel[:2], 1, kernel[2] * kernel[3])
    between = (*given[:2], kernel[3])
    inside = _kernel_places(module, kernel, taken, given)
    depthwise = _layer(module, f"{name}/depthwise", kernel, taken, between, first, inside)
    kernel = module.get_variable("params", "pointwise_kernel").shape
    return [depthwise, _layer(module, f"{name}/pointwise", kernel, between, given, False, math.prod(given[:2]))]


def _layer(
    module: ConvUnit | SeparableConvUnit | Linear,
    name: str,
    kernel: tuple[int, ...],
    taken: tuple[int, ...],
    given: tuple[int, ...],
    first: bool,
    inside: int,
) -> LayerCost:
    """One record; `inside`: on how many pixels of the picture the kernel's taps fall, over all places of the output."""
    # A fully connected layer applies its kernel once, a convolution at every place of its output.
    return LayerCost(
        block=module.path[0],
        name=name,
        kernel=kernel,
        input=_grid(taken),
        output=_grid(given),
        macs=math.prod(kernel) * math.prod(given[:-1]),
        inside_macs=inside * math.prod(kernel[-2:]),
        reads_pictures=first,
    )


def _kernel_places(
    module: ConvUnit | SeparableConvUnit, kernel: tuple[int, ...], taken: tuple[int, ...], given: tuple[int, ...]
) -> int:
    reach = [(taps - 1) * module.dilation + 1 for taps in kernel[:2]]
    pads = explicit_padding(taken[:2], reach, (module.strides, module.strides), module.padding)
    return math.prod(
        _taps_inside(size, taps, module.dilation, module.strides, low, count)
        for size, taps, (low, _), count in zip(taken[:2], kernel[:2], pads, given[:2], strict=True)
    )


def _taps_inside(size: int, taps: int, dilation: int, stride: int, low: int, count: int) -> int:
    """Along one axis: how often, over `count` places of a window, one of its taps lies on the map."""
    return sum(0 <= place * stride - low + tap * dilation < size for place in range(count) for tap in range(taps))


def _grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(height, width, channels) of a map or of a vector."""
    return (*(1,) * (3 - len(shape)), *shape)


def _in_order(endpoints: dict[str, tuple[int, ...]], layers: list[LayerCost]) -> dict[str, tuple[int, ...]]:
    """Output shapes by block: the endpoints, each head after the endpoint whose layers ran last before its own."""
    heads: dict[str, tuple[str, tuple[int, ...]]] = {}  # head -> that endpoint, and the head's own output
    latest = ""
    for layer in layers:
        if layer.block in endpoints:
            latest = layer.block
        else:
            heads[layer.block] = (latest, layer.output)
    _, logits = heads.pop("classifier")
    ordered = {}
    for name, shape in endpoints.items():
        ordered[name] = shape
        ordered.update({head: output for head, (before, output) in heads.items() if before == name})
    return {**ordered, "classifier": logits}
