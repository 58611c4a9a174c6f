"""Atrous (dilated) convolution: denser feature maps from the same parameters, the `output_stride` of the networks.

A block whose stride would make the product of all strides larger than the output stride gets stride 1, and all later
convolutions and pools are dilated by the stride that was removed: the "algorithme à trous" of dense prediction
(arXiv:1606.00915, section 3.1). Nothing is approximated. With the same parameters a block computes the features of the
stride-32 network and those between them: every r-th pixel of its map is the stride-32 network's map, with r the
block's stride there / the output stride.

This holds in evaluation, and in training without batch norm or with frozen statistics; otherwise batch statistics are
over all pixels, and differ. It holds at every image size if the blocks whose strides were removed pad with "VALID" or
with the same number of pixels on every side. With padding "SAME" it holds on odd maps only: a window of three with
stride 2 begins one pixel outside an odd map, as the dilated one does, but on the first pixel of an even map. In a
network that pads with "SAME" throughout, images of 32n + 1 pixels have only odd maps.

slim's Inception-ResNet-v2 has such a switch, but leaves pools at rate 1, and with stride 8 ends at the second
reduction: it computes another function there. Its `output_stride` is the stride up to PreAuxLogits: slim's 16 is 32
here (no dilation), slim's 8 is 8 here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

import jax

from inception_jax.models.blocks import AvgPool, Block, Branch, Conv, MaxPool, Operation, ParallelConvs

Windowed = TypeVar("Windowed", bound=Conv | MaxPool | AvgPool)

OUTPUT_STRIDES = (32, 16, 8)  # 32: the published networks, without dilation


def atrous(blocks: Mapping[str, Block], output_stride: int) -> dict[str, Block]:
    """Removes strides beyond `output_stride` from a network's blocks and dilates what follows.

    Args:
      blocks: name -> block, in the order in which they run; all paths through a block have the same stride.
      output_stride: the largest allowed distance, in pixels of the image, between neighbouring pixels of a map.

    Returns:
      The blocks under the same names; their parameters have the same names and shapes.
    """
    paths = {name: block[0] if isinstance(block, tuple) else (block,) for name, block in blocks.items()}
    strides = {name: math.prod(_stride(step) for step in path) for name, path in paths.items()}
    result: dict[str, Block] = {}
    for name, (stride, rate) in dilation_schedule(strides, output_stride).items():
        block, cut = blocks[name], stride != strides[name]
        if isinstance(block, tuple):
            result[name] = tuple(_dilated(branch, rate, cut) for branch in block)
        else:
            result[name] = _dilated_operation(block, rate, cut)
    return result


def dilation_schedule(strides: Mapping[str, int], output_stride: int) -> dict[str, tuple[int, int]]:
    """Computes the (stride, dilation rate) of each block for an output stride.

    Args:
      strides: name -> the block's stride in the stride-32 network, in the order in which the blocks run.
      output_stride: as of `atrous`.
    """
    result, total, rate = {}, 1, 1
    for name, stride in strides.items():
        if total * stride > output_stride:
            result[name] = (1, rate)
            rate *= stride
        else:
            result[name] = (stride, rate)
            total *= stride
    return result


def stride_32_pixels(x: jax.Array, stride: int, output_stride: int) -> jax.Array:
    """Selects the pixels of a map [B, H, W, C] that the stride-32 network has there.

    The auxiliary heads read only these pixels, so that they compute the same as in the stride-32 network.

    Args:
      x: a map of a network with `output_stride`.
      stride: the stride of that map in the stride-32 network, in pixels of the image.
      output_stride: the network's.
    """
    step = max(1, stride // output_stride)
    return x[:, ::step, ::step]


def _stride(step: Operation) -> int:
    return 1 if isinstance(step, ParallelConvs) else step.stride


def _dilated(branch: Branch, rate: int, cut: bool) -> Branch:
    """A branch for a map that is `rate` times as dense as without dilation; `cut`: its strides are removed."""
    operations: list[Operation] = []
    for operation in branch:
        if isinstance(operation, ParallelConvs):
            operations.append(ParallelConvs(tuple(_dilated_operation(conv, rate, cut) for conv in operation.convs)))
            continue
        operations.append(_dilated_operation(operation, rate, cut))
        rate *= operation.stride if cut else 1
    return tuple(operations)


def _dilated_operation(operation: Windowed, rate: int, cut: bool) -> Windowed:
    """One convolution or pool of `_dilated`."""
    pointwise = isinstance(operation, Conv) and operation.kernel == (1, 1)  # one tap: nothing to dilate
    return dataclasses.replace(
        operation,
        dilation=operation.dilation if pointwise else operation.dilation * rate,
        padding=operation.padding if isinstance(operation.padding, str) else operation.padding * rate,
        stride=1 if cut else operation.stride,
    )
