"""Counts FLOPs and bytes of a network's layers, checks the FLOPs against the compiler's, computes roofline bounds.

The roofline bound of a layer, its minimum time on a device, is the larger of FLOPs / peak FLOP/s and bytes / bandwidth:
S. Williams, A. Waterman, D. Patterson, "Roofline" (2009), doi:10.1145/1498765.1498785. Bytes are the minimum that must
move when every layer reads its input and its kernel once and writes its output once, each in the compute dtype. Biases,
batch norm, ReLU, dropout and pools are left out, as if all of them were fused into the convolutions. The pass for the
gradient of the input reads the gradient of the output and the kernel and writes the gradient of the input; the pass for
the gradient of the kernel reads both feature maps and writes the gradient of the kernel. So no program that runs the
network layer by layer is faster than the sum of the bounds; one that keeps feature maps on the chip between layers
could be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from inception_jax.errors import UserError
from inception_jax.models.cost import LayerCost, NetworkCost

TOLERANCE = 0.10  # activations, batch norm and pools are in the compiler's count and not in ours


class FlopsDisagree(UserError):
    """Our count of a step's FLOPs and the compiler's differ too much for a utilization to mean anything."""


def layers_of(cost: NetworkCost, kind: str, aux_heads: bool = True) -> list[LayerCost]:
    """The layers that a step runs: auxiliary heads run in training only.

    Args:
      cost: the network's, from `count_cost`.
      kind: "train" or "inference".
      aux_heads: whether training uses the auxiliary heads.
    """
    return [layer for layer in cost.layers if not layer.auxiliary or (kind == "train" and aux_heads)]


def passes(layer: LayerCost, kind: str) -> int:
    """Number of times that a step computes a layer's multiply-adds: forward; in training also for two gradients.

    The gradients are those of input and kernel. The gradient with respect to the images is not computed, so the layer
    that reads them has one pass fewer.

    Args:
      layer: of `NetworkCost.layers`.
      kind: "train" or "inference".
    """
    if kind == "inference":
        return 1
    return 2 if layer.reads_image else 3


def model_flops(layers: Iterable[LayerCost], kind: str) -> int:
    """FLOPs per image by the papers' count: two per multiply-add, those on the padding included.

    This is the numerator of "model FLOP/s utilization" (arXiv:2204.02311, appendix B, for another kind of network): no
    recomputation, no activation, no optimizer.
    """
    return sum(2 * layer.macs * passes(layer, kind) for layer in layers)


def inside_flops(layers: Iterable[LayerCost], kind: str) -> int:
    """FLOPs per image without multiply-adds on the padding, as XLA's cost analysis counts convolutions."""
    return sum(2 * layer.inside_macs * passes(layer, kind) for layer in layers)


def check_flops(ours: float, compilers: float, what: str) -> float:
    """The compiler's count of FLOPs divided by ours.

    Args:
      ours: `inside_flops` per image.
      compilers: per image, the first number of `Bench.count_flops`.
      what: name of the step, for the message.

    Raises:
      FlopsDisagree: they differ by more than 10 %.
    """
    ratio = compilers / ours
    if not abs(ratio - 1) <= TOLERANCE:
        raise FlopsDisagree(
            f"{what}: the compiler counts {compilers / 1e9:,.3f} GFLOP per image, our count of the layers is "
            f"{ours / 1e9:,.3f}, {100 * (ratio - 1):+.1f} % (at most {100 * TOLERANCE:.0f} % is allowed): the compiled "
            "program does not do the work that is to be timed"
        )
    return ratio


@dataclasses.dataclass(frozen=True)
class BlockBound:
    """The roofline bound of one block, for a per-device batch.

    Attributes:
      block: name of the block.
      flops: FLOPs of its layers, those on the padding included.
      bytes: minimum number of bytes that its layers move.
      seconds: sum of its layers' bounds.
      compute_seconds: FLOPs / peak FLOP/s.
      memory_seconds: bytes / bandwidth.
    """

    block: str
    flops: float
    bytes: float
    seconds: float
    compute_seconds: float
    memory_seconds: float

    @property
    def limited_by(self) -> str:
        """The larger of the two times: "compute" or "memory"."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def block_bounds(
    layers: Sequence[LayerCost], kind: str, examples: int, item_bytes: int, peak: float, bandwidth: float
) -> list[BlockBound]:
    """The roofline bound of every block, in the order in which they run; blocks without a convolution are left out.

    Args:
      layers: the layers that the step runs.
      kind: "train" or "inference".
      examples: the per-device batch.
      item_bytes: bytes per number in the compute dtype.
      peak: FLOP/s of one device.
      bandwidth: bytes/s of one device's memory.
    """
    bounds: dict[str, BlockBound] = {}
    for layer in layers:
        flops, moved = layer_work(layer, kind, examples, item_bytes)
        compute, memory = flops / peak, moved / bandwidth
        before = bounds.get(layer.block, BlockBound(layer.block, 0, 0, 0, 0, 0))
        bounds[layer.block] = BlockBound(
            layer.block,
            before.flops + flops,
            before.bytes + moved,
            before.seconds + max(compute, memory),
            before.compute_seconds + compute,
            before.memory_seconds + memory,
        )
    return list(bounds.values())


def layer_work(layer: LayerCost, kind: str, examples: int, item_bytes: int) -> tuple[float, float]:
    """(FLOPs, bytes) of a layer for a number of examples; the module's docstring says what is counted."""
    inputs, outputs = math.prod(layer.input) * examples, math.prod(layer.output) * examples
    # Every pass, forward or for either gradient, touches both feature maps and the kernel once.
    touched = inputs + outputs + math.prod(layer.kernel)
    count = passes(layer, kind)
    return 2.0 * layer.macs * examples * count, float(item_bytes * touched * count)
