"""Name maps by TensorFlow scopes, for TF-slim and for facenet, which is built with slim.

A table gives for every layer of ours the publisher's scope; modules of one kind share a table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from inception_jax.pretrained.variants import (
    CONV_HWIO,
    DEPTHWISE_HWIM,
    LINEAR_HWIO,
    LINEAR_IO,
    VECTOR,
    NamingRules,
    SourceArray,
    split_leaf,
    unknown_leaf_error,
)

# No weights: step counters and optimizer slots. The EMA of the weights that the trainers save beside them
# (…/ExponentialMovingAverage) is ignored too: the variable is the trained weight.
NAMING = NamingRules(
    (
        r"^global_step$",
        r"/RMSProp(_\d+)?$",
        r"/Momentum$",
        r"/Adam(_\d+)?$",
        r"^beta[12]_power$",
        r"/ExponentialMovingAverage$",
        r"(^|/)local_step$",
    )
)

Table = Mapping[str, str]

_LEAVES = {
    ("params", "kernel"): ("weights", CONV_HWIO),
    ("params", "depthwise_kernel"): ("depthwise_weights", DEPTHWISE_HWIM),
    ("params", "pointwise_kernel"): ("pointwise_weights", CONV_HWIO),
    ("params", "bias"): ("biases", VECTOR),
    ("params", "bn/bias"): ("BatchNorm/beta", VECTOR),
    ("params", "bn/scale"): ("BatchNorm/gamma", VECTOR),
    ("batch_stats", "bn/mean"): ("BatchNorm/moving_mean", VECTOR),
    ("batch_stats", "bn/var"): ("BatchNorm/moving_variance", VECTOR),
}


def table(*blocks: tuple[str, str, Table]) -> dict[str, str]:
    """Makes {"block/unit": scope} from rows (our block, scope of the block, table of the units inside it)."""
    return {f"{ours}/{unit}": f"{theirs}/{scope}" for ours, theirs, units in blocks for unit, scope in units.items()}


def branch(number: int, *ours: str, ends_with_1a: bool = False) -> dict[str, str]:
    """Makes {our convolution: scope} of a branch, in order: Branch_1/Conv2d_0a_1x1, Branch_1/Conv2d_0b_3x3, …

    Args:
      number: of the branch.
      *ours: our names, which say the kernel; those that end with "reduce" are 1x1.
      ends_with_1a: whether the last scope is Conv2d_1a, as where it halves the map.
    """
    places = [f"0{letter}" for letter, _ in zip("abcde", ours, strict=False)]
    if ends_with_1a:
        places[-1] = "1a"
    kernels = ["1x1" if name.endswith("reduce") else re.findall(r"\dx\d", name)[-1] for name in ours]
    scopes = (f"Branch_{number}/Conv2d_{place}_{kernel}" for place, kernel in zip(places, kernels, strict=True))
    return dict(zip(ours, scopes, strict=True))


def capitalized(*names: str, units: Table) -> list[tuple[str, str, Table]]:
    """Makes rows of `table` for blocks whose scope is our name with a capital letter: Mixed_6b for mixed_6b."""
    return [(name, name.capitalize(), units) for name in names]


@dataclasses.dataclass(frozen=True)
class ScopeMap:
    """Name map of a variant, from a table.

    Attributes:
      source: of the variant.
      model: of the variant.
      root: the scope of the whole network.
      layers: {path of our layer: scope under the root}.
      dense: those of our layers that are fully connected in slim too; its other classifiers are 1x1 convolutions.
    """

    source: str
    model: str
    root: str
    layers: Table
    dense: tuple[str, ...] = ()

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns the publisher's variable for a leaf, as `NameMap`."""
        collection, layer, leaf = split_leaf(path)
        if layer not in self.layers or (collection, leaf) not in _LEAVES:
            raise unknown_leaf_error(path, self.source, self.model)
        name, layout = _LEAVES[collection, leaf]
        if leaf == "kernel" and len(shape) == 2:
            layout = LINEAR_IO if layer in self.dense else LINEAR_HWIO
        scope = "/".join(filter(None, (self.root, self.layers[layer])))
        return SourceArray(f"{scope}/{name}", layout)
