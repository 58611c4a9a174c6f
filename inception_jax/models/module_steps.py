"""The steps inside a network's blocks: convolutions, pools, dropout and softmax, with the branch that each is in."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import AvgPool, Branch, MaxPool, Mixed, ParallelConvs
from inception_jax.models.cost import BlockCost, Layer, LayerCost, NetworkCost, Shape
from inception_jax.models.heads import record_dropout
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.layers import Linear, SeparableConvUnit


@dataclasses.dataclass(frozen=True)
class StepCost:
    """One step inside a block, for one image.

    Attributes:
      block: name of the block.
      branch: number of its branch, from 1; 0: it is in none.
      name: of its parameters, inside the block; "": it has none.
      operation: what it does, with kernel and stride, such as "convolution 3x3/2", "max pool 3x3/1", "dropout 40 %".
      output: (height, width, channels); vectors have height and width 1.
      weights: elements of the kernel: the parameters without biases and batch norm.
      parameters: trainable parameters.
      macs: multiply-adds.
    """

    block: str
    branch: int
    name: str
    operation: str
    output: tuple[int, int, int]
    weights: int = 0
    parameters: int = 0
    macs: int = 0


@dataclasses.dataclass(frozen=True)
class _Trace:
    """What one trace of a network gives.

    Attributes:
      events: names of the layers, and the rates of dropout before them, in the order in which they ran.
      strides: {layer: stride}.
      branches: {block: its branches, and the shape of its input without the batch}.
      parameters: {layer: its trainable parameters}.
    """

    events: list[Any]
    strides: dict[str, int]
    branches: dict[str, tuple[tuple[Branch, ...], Shape]]
    parameters: dict[str, int]

    def dropout_before(self, layer: str) -> float:
        """The rate of the dropout whose output a layer reads; 0: it reads none."""
        before = dict(itertools.pairwise(reversed(self.events))).get(layer, 0)
        return 0 if isinstance(before, str) else before


def list_steps(model: BaseNetwork, cost: NetworkCost) -> dict[str, tuple[StepCost, ...]]:
    """Lists the steps of every block that has more than one, in the order of the network's definition.

    A module's branches are listed with their pools. Of other blocks only layers with parameters are known: their pools
    have no step. An auxiliary head begins with its average pool; a classifier ends with the softmax.

    Args:
      model: the network.
      cost: from `cost.count_cost(model, …)`.

    Returns:
      {block: its steps}; a block that is one layer, or a pool, is not in it.
    """
    trace = _trace(model, cost.image_size)
    found = {}
    before: BlockCost | None = None  # the last block of the trunk, which a head reads
    for block in cost.blocks:
        layers = {layer.name: layer for layer in cost.layers if layer.block == block.name}
        steps = tuple(_steps(block, before, layers, trace))
        if len(steps) > 1:
            found[block.name] = steps
        before = before if block.auxiliary else block
    return found


def _trace(model: BaseNetwork, image_size: int) -> _Trace:
    trace = _Trace([], {}, {}, {})

    def record(run: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, output = context.module, run(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(module, Layer):
            name, stride = "/".join(module.path), _stride(module)
            parts = {f"{name}/depthwise": stride, f"{name}/pointwise": 1}
            trace.strides.update(parts if isinstance(module, SeparableConvUnit) else {name: stride})
            trace.events.append(f"{name}/depthwise" if isinstance(module, SeparableConvUnit) else name)
        elif context.method_name == "__call__" and isinstance(module, Mixed):
            trace.branches[module.path[0]] = module.branches, args[0].shape[1:]
        return output

    with record_dropout(trace.events), nn.intercept_methods(record):
        shapes = flatten_dict(variable_shapes(model, image_size)["params"], sep="/")
    for name in trace.strides:
        unit, _, part = name.rpartition("/")
        separable = f"{unit}/depthwise" in trace.strides
        leaves = {
            path: math.prod(leaf.shape)
            for path, leaf in shapes.items()
            if path.startswith(f"{unit if separable else name}/")
        }
        depthwise = leaves.pop(f"{unit}/depthwise_kernel", 0)
        trace.parameters[name] = depthwise if separable and part == "depthwise" else sum(leaves.values())
    return trace


def _steps(
    block: BlockCost,
    before: BlockCost | None,
    layers: dict[str, LayerCost],
    trace: _Trace,
) -> Iterator[StepCost]:
    branches, shape = trace.branches.get(block.name, ((), ()))
    in_branches = set()
    for number, branch in enumerate(branches, 1):
        for step in _branch_steps(block.name, number, branch, shape, layers, trace):
            in_branches.add(f"{block.name}/{step.name}")
            yield step
    for name, layer in layers.items():
        if name in in_branches:
            continue
        if block.auxiliary and name == next(iter(layers)) and before is not None and layer.input != before.output:
            yield StepCost(block.name, 0, "", "average pool", layer.input)
        yield from _layer_steps(layer, 0, trace)
        if name.rpartition("/")[2] == "classifier":
            yield StepCost(block.name, 0, "", "softmax", (1, 1, layer.output[-1]))


def _branch_steps(
    block: str, number: int, branch: Branch, shape: Shape, layers: dict[str, LayerCost], trace: _Trace
) -> Iterator[StepCost]:
    for step in branch:
        if isinstance(step, MaxPool | AvgPool):
            pooled = jax.eval_shape(step, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
            height, width, channels = shape = pooled.shape[1:]
            kind = "max" if isinstance(step, MaxPool) else "average"
            operation = f"{kind} pool {step.window}x{step.window}/{step.stride}"
            yield StepCost(block, number, "", operation, (height, width, channels))
            continue
        convs = step.convs if isinstance(step, ParallelConvs) else (step,)
        for conv in convs:
            layer = layers[f"{block}/{conv.name}"]
            yield from _layer_steps(layer, number, trace)
        shape = (*layer.output[:2], sum(layers[f"{block}/{conv.name}"].output[2] for conv in convs))


def _layer_steps(layer: LayerCost, branch: int, trace: _Trace) -> Iterator[StepCost]:
    """The dropout whose output the layer reads, where there is one, and the layer."""
    if rate := trace.dropout_before(layer.name):
        yield StepCost(layer.block, branch, "", f"dropout {100 * rate:g} %", layer.input)
    height, width = layer.kernel[:2]
    stride = trace.strides[layer.name]
    operation = f"convolution {height}x{width}/{stride}" if stride else "fully connected"
    name = layer.name.removeprefix(f"{layer.block}/")
    weights, parameters = math.prod(layer.kernel), trace.parameters[layer.name]
    yield StepCost(layer.block, branch, name, operation, layer.output, weights, parameters, layer.macs)


def _stride(module: Layer) -> int:
    """The stride of a convolution along the height; 0: it is a fully connected layer."""
    if isinstance(module, Linear | nn.Dense):
        return 0
    strides = module.strides or 1
    return strides if isinstance(strides, int) else strides[0]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """A 1x1 convolution that reduces the channels before a larger convolution, and what that saves.

    Attributes:
      block: name of the module.
      name: of the larger convolution.
      kernel: its (height, width).
      channels: of the module's input, of the 1x1 convolution, of the larger one.
      direct: weights of the larger convolution on the module's input.
      reduce: weights of the 1x1 convolution.
      convolve: weights of the larger convolution on its output.
    """

    block: str
    name: str
    kernel: tuple[int, int]
    channels: tuple[int, int, int]
    direct: int
    reduce: int
    convolve: int

    @property
    def reduced(self) -> int:
        """Weights of both."""
        return self.reduce + self.convolve


def list_reductions(cost: NetworkCost, steps: Mapping[str, Sequence[StepCost]]) -> list[Reduction]:
    """Lists the branches that begin with a 1x1 convolution and go on with a larger convolution.

    Args:
      cost: of the network.
      steps: from `module_steps.list_steps`.
    """
    layers = {layer.name: layer for layer in cost.layers}
    found = []
    for block, inside in steps.items():
        for branch, members in itertools.groupby(inside, lambda step: step.branch):
            first, second = [*members, None, None][:2]
            if not (branch and first and first.name and second and second.name):
                continue
            small, large = layers[f"{block}/{first.name}"].kernel, layers[f"{block}/{second.name}"].kernel
            height, width, between, out = large
            if small[:2] != (1, 1) or (height, width) == (1, 1):
                continue
            area, channels = height * width, small[2]
            sizes = (channels, between, out)
            direct, reduce, convolve = area * channels * out, channels * between, area * between * out
            found.append(Reduction(block, second.name, (height, width), sizes, direct, reduce, convolve))
    return found
