"""The least time that each block of a network can take on a chip, and what sets it: arithmetic or memory.

The bound of a layer is the larger of FLOPs / peak and bytes / bandwidth, S. Williams, A. Waterman, D. Patterson,
"Roofline" (2009), doi:10.1145/1498765.1498785. Bytes are the least that must move when every layer reads its input and
its kernel once and writes its output once, each in the compute dtype; biases, batch norm, ReLU and dropout are taken to
be fused into their convolution, and pools into nothing: they are left out. A pass of the input's gradient reads the
output's gradient and the kernel and writes the input's gradient; a pass of the kernel's gradient reads both maps and
writes the kernel's gradient. So no program of this network, layer by layer, is faster than the sum of the bounds; one
that keeps maps on the chip between layers could be.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from inception_jax.errors import UserError
from inception_jax.models.cost import LayerCost, NetworkCost


@dataclasses.dataclass(frozen=True)
class BlockBound:
    """The bound of one block, for one device's share of a batch.

    Attributes:
      block: its name.
      flops: of its layers, those on the padding included.
      bytes: that its layers must move at the least.
      seconds: the sum of its layers' bounds.
      compute_seconds: FLOPs over peak. `memory_seconds`: bytes over bandwidth.
    """

    block: str
    flops: float
    bytes: float
    seconds: float
    compute_seconds: float
    memory_seconds: float

    @property
    def limited_by(self) -> str:
        """What sets the bound: "compute" or "memory"."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def block_bounds(
    layers: Sequence[LayerCost], kind: str, examples: int, item_bytes: int, peak: float, bandwidth: float
) -> list[BlockBound]:
    """The bound of every block, in the order in which they run; blocks without a convolution have none.

    Args:
      layers: that the step runs.
      kind: "train" or "inference".
      examples: of one device.
      item_bytes: bytes of a number in the compute dtype.
      peak: FLOP/s of one device.
      bandwidth: bytes/s of one device's memory.
    """
    found: dict[str, BlockBound] = {}
    for layer in layers:
        flops, moved = layer_work(layer, kind, examples, item_bytes)
        compute, memory = flops / peak, moved / bandwidth
        before = found.get(layer.block, BlockBound(layer.block, 0, 0, 0, 0, 0))
        found[layer.block] = BlockBound(
            layer.block,
            before.flops + flops,
            before.bytes + moved,
            before.seconds + max(compute, memory),
            before.compute_seconds + compute,
            before.memory_seconds + memory,
        )
    return list(found.values())


def layer_work(layer: LayerCost, kind: str, examples: int, item_bytes: int) -> tuple[float, float]:
    """(FLOPs, bytes) of a layer for so many examples; see the head of this file."""
    taken, given = math.prod(layer.input) * examples, math.prod(layer.output) * examples
    # Every pass, forward or of either gradient, touches both maps and the kernel once.
    touched = taken + given + math.prod(layer.kernel)
    count = passes(layer, kind)
    return 2.0 * layer.macs * examples * count, float(item_bytes * touched * count)


TOLERANCE = 0.10  # activations, batch norm and pools are in the compiler's count and not in ours


class FlopsDisagree(UserError):
    """Our count of a step's work and the compiler's are too far apart for a utilisation to mean anything."""


def passes(layer: LayerCost, kind: str) -> int:
    """How many times a layer's multiply-adds are done: forward, and in training for either gradient.

    The gradient of the pictures is wanted by nobody, so that the layer that reads them has one pass fewer.

    Args:
      layer: of `NetworkCost.layers`.
      kind: "train" or "inference".
    """
    if kind == "inference":
        return 1
    return 2 if layer.reads_image else 3


def layers_of(account: NetworkCost, kind: str, aux_heads: bool = True) -> list[LayerCost]:
    """The layers that a step runs: auxiliary heads belong to training alone."""
    return [layer for layer in account.layers if not layer.auxiliary or (kind == "train" and aux_heads)]


def model_flops(layers: Iterable[LayerCost], kind: str) -> int:
    """FLOPs of one picture by the papers' count: two per multiply-add, those on the padding included.

    This is what "model FLOP/s utilisation" divides by the step's time (arXiv:2204.02311, appendix B, for another kind
    of network): no recomputation, no activation, no optimizer.
    """
    return sum(2 * layer.macs * passes(layer, kind) for layer in layers)


def inside_flops(layers: Iterable[LayerCost], kind: str) -> int:
    """FLOPs of one picture without multiply-adds on the padding, as XLA's cost analysis counts convolutions."""
    return sum(2 * layer.inside_macs * passes(layer, kind) for layer in layers)


def check_flops(ours: float, compilers: float, what: str) -> float:
    """The compiler's count over ours.

    Args:
      ours: `inside_flops` of a picture.
      compilers: of a picture, the first number of `Bench.count_flops`.
      what: the step, for the message.

    Raises:
      FlopsDisagree: they differ by more than 10 %.
    """
    ratio = compilers / ours
    if not abs(ratio - 1) <= TOLERANCE:
        raise FlopsDisagree(
            f"{what}: the compiler counts {compilers / 1e9:,.3f} GFLOP per picture, the accounting {ours / 1e9:,.3f}, "
            f"{100 * (ratio - 1):+.1f} % (at most {100 * TOLERANCE:.0f} % is allowed): the program does not do the "
            "work that it is timed for"
        )
    return ratio
