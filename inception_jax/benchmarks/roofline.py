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
from collections.abc import Sequence

from inception_jax.benchmarks.flops import passes
from inception_jax.models.accounting import Layer


@dataclasses.dataclass(frozen=True)
class Bound:
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
    def side(self) -> str:
        """What sets the bound: "compute" or "memory"."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"


def bounds(
    layers: Sequence[Layer], kind: str, examples: int, item_bytes: int, peak: float, bandwidth: float
) -> list[Bound]:
    """The bound of every block, in the order in which they run; blocks without a convolution have none.

    Args:
      layers: that the step runs.
      kind: "train" or "inference".
      examples: of one device.
      item_bytes: bytes of a number in the compute dtype.
      peak: FLOP/s of one device.
      bandwidth: bytes/s of one device's memory.
    """
    found: dict[str, Bound] = {}
    for layer in layers:
        flops, moved = layer_work(layer, kind, examples, item_bytes)
        compute, memory = flops / peak, moved / bandwidth
        before = found.get(layer.block, Bound(layer.block, 0, 0, 0, 0, 0))
        found[layer.block] = Bound(
            layer.block,
            before.flops + flops,
            before.bytes + moved,
            before.seconds + max(compute, memory),
            before.compute_seconds + compute,
            before.memory_seconds + memory,
        )
    return list(found.values())


def layer_work(layer: Layer, kind: str, examples: int, item_bytes: int) -> tuple[float, float]:
    """(FLOPs, bytes) of a layer for so many examples; see the head of this file."""
    taken, given = math.prod(layer.input) * examples, math.prod(layer.output) * examples
    # Every pass, forward or of either gradient, touches both maps and the kernel once.
    touched = taken + given + math.prod(layer.kernel)
    count = passes(layer, kind)
    return 2.0 * layer.macs * examples * count, float(item_bytes * touched * count)
