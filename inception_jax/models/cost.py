"""Output shapes, parameters and multiply-adds (MACs) of a network, by block and layer. No array is allocated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from inception_jax.models.base import BaseNetwork
from inception_jax.models.convolution import explicit_padding
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.layers import ConvUnit, Linear, SeparableConvUnit

Shape = tuple[int, ...]
Kernel = tuple[int, int, int, int]  # (height, width, in, out)
Layer = ConvUnit | SeparableConvUnit | Linear | nn.Conv | nn.Dense


@dataclasses.dataclass(frozen=True)
class BlockCost:
    """Cost of one block of a network, for one image.

    Attributes:
      name: name of the endpoint; `classifier` is the last layer of the trunk, `aux…` an auxiliary head.
      output: (height, width, channels); vectors have height and width 1.
      parameters: trainable parameters, batch norm's scale and bias included, its running statistics excluded.
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
    """Cost of one convolution or fully connected layer, for one image.

    Attributes:
      block: name of the block that the layer is part of.
      name: its path in the parameter tree, such as `inception_3a/conv_3x3`.
      kernel: (height, width, in, out); a fully connected layer's is (1, 1, in, out), a depthwise convolution's
        (height, width, 1, out). A separable convolution is two layers, `…/depthwise` and `…/pointwise`.
      input: (height, width, channels); vectors have height and width 1.
      output: as `input`.
      macs: multiply-adds, those on padding included, as papers count them.
      inside_macs: multiply-adds without those on padding, as XLA's cost analysis counts them.
      reads_image: whether the input is the image itself, whose gradient is not needed.
    """

    block: str
    name: str
    kernel: tuple[int, int, int, int]
    input: tuple[int, int, int]
    output: tuple[int, int, int]
    macs: int
    inside_macs: int
    reads_image: bool

    @property
    def auxiliary(self) -> bool:
        """Whether the layer is part of an auxiliary head, which evaluation does not run."""
        return self.block.startswith("aux")


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Cost of a network for one image.

    Attributes:
      image_size: height and width in pixels.
      num_classes: outputs of the classifier.
      blocks: in the order in which they run, an auxiliary head right after the block that it reads.
      layers: convolutions and fully connected layers in the order in which they run.
      uncounted: paths of parameters, of two or more axes, of other layers: their multiply-adds are not counted. No
        network of this package has one.
    """

    image_size: int
    num_classes: int
    blocks: tuple[BlockCost, ...]
    layers: tuple[LayerCost, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Trainable parameters of the trunk and its classifier, without auxiliary heads."""
        return sum(block.parameters for block in self.blocks if not block.auxiliary)

    @property
    def parameters_with_aux(self) -> int:
        """Trainable parameters, those of the auxiliary heads included."""
        return sum(block.parameters for block in self.blocks)

    @property
    def macs(self) -> int:
        """Multiply-adds of the forward pass in evaluation, which runs no auxiliary head."""
        return sum(block.macs for block in self.blocks if not block.auxiliary)

    @property
    def macs_with_aux(self) -> int:
        """Multiply-adds of the forward pass in training."""
        return sum(block.macs for block in self.blocks)


def count_cost(model: BaseNetwork, image_size: int) -> NetworkCost:
    """Counts shapes, parameters and multiply-adds of a network; no array is computed.

    Counted are the layers of this package, and Flax's `nn.Conv` and `nn.Dense`, which a network may use that a recipe
    registers. Where a network has no endpoint of a layer's block, the block is the child of the network that the layer
    is in.

    Args:
      model: the network.
      image_size: height and width in pixels.

    Raises:
      ModelError: the image is smaller than the network's minimum.
    """
    layers: list[LayerCost] = []
    endpoints: dict[str, Shape] = {}
    children: dict[str, Shape] = {}  # output shapes of the network's own children
    counted: set[str] = set()  # paths of the layers

    def count(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, output = context.module, run(*args, **kwargs)
        if isinstance(module, Layer) and context.method_name == "__call__":
            layers.extend(_layers(module, args[0].shape[1:], output.shape[1:], first=not layers))
            counted.add("/".join(module.path))
        elif isinstance(module, BaseNetwork) and context.method_name == "__call__":
            endpoints.update({name: x.shape[1:] for name, x in output.endpoints.items()})
        if len(module.path) == 1 and isinstance(output, jax.Array):
            children[module.path[0]] = output.shape[1:]
        return output

    with nn.intercept_methods(count):
        shapes = variable_shapes(model, image_size)
    ordered = _shapes_in_order(endpoints, layers)
    ordered = {name: children.get(name, ()) for name in shapes["params"] if name not in ordered} | ordered
    blocks = []
    for name, shape in ordered.items():
        macs = sum(layer.macs for layer in layers if layer.block == name)
        leaves = jax.tree.leaves(shapes["params"].get(name, {}))
        blocks.append(BlockCost(name, _grid(shape), sum(math.prod(leaf.shape) for leaf in leaves), macs))
    parameters = flatten_dict(shapes["params"], sep="/")
    uncounted = tuple(
        path for path, leaf in parameters.items() if leaf.ndim > 1 and path.rpartition("/")[0] not in counted
    )
    return NetworkCost(image_size, model.num_classes, tuple(blocks), tuple(layers), uncounted)


def _layers(module: Layer, input_shape: Shape, output_shape: Shape, first: bool) -> list[LayerCost]:
    """Costs of a unit with input shape `input_shape` and output shape `output_shape`, without the batch."""
    name = "/".join(module.path)
    kernel: Kernel
    if isinstance(module, Linear | nn.Dense):
        kernel = (1, 1, input_shape[-1], module.features)
        positions = math.prod(output_shape[:-1])  # of a dense layer over a map
        return [_layer(module, name, kernel, input_shape, output_shape, first, positions)]
    if isinstance(module, nn.Conv):
        sides = tuple(module.kernel_size) if isinstance(module.kernel_size, Sequence) else (module.kernel_size,)
        height, width = (1,) * (2 - len(sides)) + sides
        kernel = (height, width, input_shape[-1] // module.feature_group_count, output_shape[-1])
        # All taps: where Flax pads is not looked at. What lies on the padding is counted as inside.
        inside = height * width * math.prod(output_shape[:-1])
        return [_layer(module, name, kernel, input_shape, output_shape, first, inside)]
    if isinstance(module, ConvUnit):
        kernel = (*module.kernel_size, input_shape[-1], output_shape[-1])
        inside = _taps_inside_map(module, kernel, input_shape, output_shape)
        return [_layer(module, name, kernel, input_shape, output_shape, first, inside)]
    kernel = (*module.kernel_size, 1, input_shape[-1] * module.multiplier)
    between = (*output_shape[:2], kernel[3])
    inside = _taps_inside_map(module, kernel, input_shape, output_shape)
    depthwise = _layer(module, f"{name}/depthwise", kernel, input_shape, between, first, inside)
    kernel = (1, 1, kernel[3], output_shape[-1])
    inside = math.prod(output_shape[:2])
    return [depthwise, _layer(module, f"{name}/pointwise", kernel, between, output_shape, False, inside)]


def _layer(
    module: Layer,
    name: str,
    kernel: Kernel,
    input_shape: Shape,
    output_shape: Shape,
    first: bool,
    inside: int,
) -> LayerCost:
    """Cost of one layer; `inside`: how many taps of the kernel lie inside the map, summed over all output positions."""
    # A fully connected layer applies its kernel once, a convolution at every position of its output.
    return LayerCost(
        block=module.path[0],
        name=name,
        kernel=kernel,
        input=_grid(input_shape),
        output=_grid(output_shape),
        macs=math.prod(kernel) * math.prod(output_shape[:-1]),
        inside_macs=inside * math.prod(kernel[-2:]),
        reads_image=first,
    )


def _taps_inside_map(
    module: ConvUnit | SeparableConvUnit, kernel: Kernel, input_shape: Shape, output_shape: Shape
) -> int:
    """The number of taps of the kernel that lie inside the map, summed over all output positions."""
    reach = [(taps - 1) * module.dilation + 1 for taps in kernel[:2]]
    pads = explicit_padding(input_shape[:2], reach, (module.strides, module.strides), module.padding)
    return math.prod(
        _taps_inside(size, taps, module.dilation, module.strides, low, count)
        for size, taps, (low, _), count in zip(input_shape[:2], kernel[:2], pads, output_shape[:2], strict=True)
    )


def _taps_inside(size: int, taps: int, dilation: int, stride: int, low: int, count: int) -> int:
    """The number of taps along one axis that lie inside the map, summed over `count` window positions."""
    return sum(0 <= index * stride - low + tap * dilation < size for index in range(count) for tap in range(taps))


def _grid(shape: Shape) -> tuple[int, int, int]:
    """The (height, width, channels) of a map or a vector."""
    height, width, channels = (*(1,) * (3 - len(shape)), *shape)
    return height, width, channels


def _shapes_in_order(endpoints: dict[str, Shape], layers: list[LayerCost]) -> dict[str, Shape]:
    """Output shapes by block: the endpoints, each other block right after the endpoint that it reads.

    Of this package's networks the other blocks are the auxiliary heads and the classifier, which is the last.
    """
    heads: dict[str, tuple[str, Shape]] = {}  # head -> that endpoint, and the head's own output
    latest = ""
    for layer in layers:
        if layer.block in endpoints:
            latest = layer.block
        else:
            heads[layer.block] = (latest, layer.output)
    classifier = heads.pop("classifier", None)
    ordered = {head: output for head, (before, output) in heads.items() if not before}
    for name, shape in endpoints.items():
        ordered[name] = shape
        ordered.update({head: output for head, (before, output) in heads.items() if before == name})
    return ordered | ({"classifier": classifier[1]} if classifier else {})
