"""Denser maps from the same parameters: strides given up for dilation, the `output_stride` of the networks.

A block whose stride would take the product of all strides beyond the output stride moves by one pixel, and all that
comes after it is dilated by its stride, convolutions and pools alike: the "algorithme à trous" of dense prediction
(arXiv:1606.00915, section 3.1). Nothing is approximated. With the same parameters a block computes the ordinary
network's features and those between them: every r-th pixel of its map, r its ordinary stride / the output stride, is
the ordinary network's map.

That holds in evaluation, and in training without batch norm or with frozen statistics; otherwise batch norm takes its
statistics of all pixels, which are other statistics. It holds at every image size where the strides that were given
up pad with "VALID" or with as many pixels on every side. A window of three with stride 2 and padding "SAME" begins one
pixel outside an odd map, as the dilated one does, but on the first pixel of an even one: there it holds on odd maps
alone. Images of 32n + 1 pixels have no others in a network that pads with "SAME" throughout.

slim's Inception-ResNet-v2, which has such a switch, leaves pools at rate 1, and with stride 8 ends at the second
reduction. Its numbers there are those of another network. Its `output_stride` is the stride up to PreAuxLogits: its 16
is the ordinary network, 32 here, its 8 is 8 here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax

from inception_jax.models.blocks import Block, Branch, Conv, Operation, ParallelConvs

OUTPUT_STRIDES = (32, 16, 8)  # of the networks; 32 is their ordinary one


def atrous(blocks: Mapping[str, Block], output_stride: int) -> dict[str, Block]:
    """A network's blocks for an output stride.

    Args:
      blocks: name -> block, in the order in which they run; all paths through a block have the same stride.
      output_stride: pixels of the image, at most, from one pixel of a map to the next.

    Returns:
      The blocks under the same names; their parameters have the same names and shapes.
    """
    paths = {name: block[0] if isinstance(block, tuple) else (block,) for name, block in blocks.items()}
    strides = {name: math.prod(_stride(step) for step in path) for name, path in paths.items()}
    given: dict[str, Block] = {}
    for name, (stride, rate) in dilation_schedule(strides, output_stride).items():
        block, cut = blocks[name], stride != strides[name]
        if isinstance(block, tuple):
            given[name] = tuple(_dilated(branch, rate, cut) for branch in block)
        else:
            given[name] = _dilated((block,), rate, cut)[0]
    return given


def dilation_schedule(strides: Mapping[str, int], output_stride: int) -> dict[str, tuple[int, int]]:
    """(the stride that is left, the rate at which to dilate) of each block.

    Args:
      strides: name -> the block's ordinary stride, in the order in which the blocks run.
      output_stride: as of `atrous`.
    """
    given, total, rate = {}, 1, 1
    for name, stride in strides.items():
        if total * stride > output_stride:
            given[name] = (1, rate)
            rate *= stride
        else:
            given[name] = (stride, rate)
            total *= stride
    return given


def stride_32_pixels(x: jax.Array, stride: int, output_stride: int) -> jax.Array:
    """Those pixels of a map [B, H, W, C] that the ordinary network has, whose stride there is `stride`.

    The auxiliary heads read these alone: what they compute, and what their parameters mean, stays the same.
    """
    step = max(1, stride // output_stride)
    return x[:, ::step, ::step]


def _stride(step: Operation) -> int:
    return 1 if isinstance(step, ParallelConvs) else step.stride


def _dilated(branch: Branch, rate: int, cut: bool) -> Branch:
    """A branch on a map that is `rate` times as dense as the ordinary one; `cut`: its strides are given up."""
    steps: list[Operation] = []
    for step in branch:
        if isinstance(step, ParallelConvs):
            steps.append(ParallelConvs(_dilated(step.convs, rate, cut)))
            continue
        pointwise = isinstance(step, Conv) and step.kernel == (1, 1)  # one tap: nothing to spread
        dilation = step.dilation if pointwise else step.dilation * rate
        padding = step.padding if isinstance(step.padding, str) else step.padding * rate
        steps.append(dataclasses.replace(step, dilation=dilation, padding=padding, stride=1 if cut else step.stride))
        rate *= step.stride if cut else 1
    return tuple(steps)
