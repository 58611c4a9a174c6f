"""Name maps of Keras (keras.applications: inception_v3.py, inception_resnet_v2.py, xception.py).

Most layers have no name of their own: Keras numbers them in the order in which the network is built, from the count
that its process had reached. Only their order identifies them: `renumber` counts from the first.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from inception_jax.pretrained.variants import (
    CONV_HWIO,
    DEPTHWISE_HWIM,
    DOUBLE_3X3,
    LINEAR_IO,
    STEM,
    VECTOR,
    NamingRules,
    SourceArray,
    Variant,
    by_model,
    split_leaf,
    unknown_leaf_error,
)

# Layers that Keras numbers itself, by the names of Keras 2 and 3, and of Keras 1.
_NUMBERED = re.compile(r"^(conv2d|batch_normalization|convolution2d|batchnormalization)(?:_(\d+))?$")
_CURRENT_NAMES = {"convolution2d": "conv2d", "batchnormalization": "batch_normalization"}

# Keras's names for a layer of ours: (its convolution, its batch norm or "").
LayerNames = tuple[str, str]
Table = Mapping[str, LayerNames]


def renumber(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the numbered layers of each kind to count from the first: conv2d, conv2d_1, conv2d_2, ...

    Args:
      arrays: {"<layer>/<variable>": array}; the numbers may start anywhere and leave gaps.
    """
    numbers: dict[str, set[int]] = {}
    for name in arrays:
        if found := _NUMBERED.match(name.rpartition("/")[0]):
            numbers.setdefault(found[1], set()).add(int(found[2] or 0))
    places = {kind: {number: i for i, number in enumerate(sorted(seen))} for kind, seen in numbers.items()}
    renamed = {}
    for name, array in arrays.items():
        layer, _, variable = name.rpartition("/")
        if found := _NUMBERED.match(layer):
            name = (
                f"{_numbered(_CURRENT_NAMES.get(found[1], found[1]), places[found[1]][int(found[2] or 0)])}/{variable}"
            )
        renamed[name] = array
    # Two layers with one number (conv2d and conv2d_0, or Keras 1's and today's names): keep both, so that import fails.
    return renamed if len(renamed) == len(arrays) else dict(arrays)


def _numbered(kind: str, place: int) -> str:
    return f"{kind}_{place}" if place else kind


def numbered_layers(units: Iterable[str]) -> dict[str, LayerNames]:
    """Makes the table of unnamed convolutions, each with its batch norm, from units in the order of Keras's builder."""
    return {
        unit: (_numbered("conv2d", place), _numbered("batch_normalization", place)) for place, unit in enumerate(units)
    }


def _units(*blocks: tuple[str, tuple[str, ...]]) -> list[str]:
    """Paths of our layers, in order, of (block, units of the block)."""
    return [f"{block}/{unit}" for block, units in blocks for unit in units]


def _named(name: str) -> LayerNames:
    """A layer with a name of its own, and its batch norm."""
    return name, f"{name}_bn"


_LEAVES = {
    ("params", "kernel"): (0, "kernel", CONV_HWIO),
    ("params", "bias"): (0, "bias", VECTOR),
    ("params", "depthwise_kernel"): (0, "depthwise_kernel", DEPTHWISE_HWIM),
    ("params", "pointwise_kernel"): (0, "pointwise_kernel", CONV_HWIO),
    ("params", "bn/scale"): (1, "gamma", VECTOR),
    ("params", "bn/bias"): (1, "beta", VECTOR),
    ("batch_stats", "bn/mean"): (1, "moving_mean", VECTOR),
    ("batch_stats", "bn/var"): (1, "moving_variance", VECTOR),
}


@dataclasses.dataclass(frozen=True)
class LayerMap:
    """Name map of a variant, from a table.

    Attributes:
      model: of the variant.
      layers: {path of our layer: names of Keras's layers}.
    """

    model: str
    layers: Table

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns Keras's variable for a leaf, as `NameMap`."""
        collection, name, leaf = split_leaf(path)
        layer, found = self.layers.get(name), _LEAVES.get((collection, leaf))
        if not layer or not found or not layer[found[0]]:
            raise unknown_leaf_error(path, "keras", self.model)
        which, variable, layout = found
        linear = leaf == "kernel" and len(shape) == 2
        return SourceArray(f"{layer[which]}/{variable}", LINEAR_IO if linear else layout)


# --- inception_v3.py: mixed0 to mixed10 ------------------------------------------------------------------------------

V3_A = ("conv_1x1", "conv_5x5_reduce", "conv_5x5", *DOUBLE_3X3, "pool_proj")
V3_REDUCTION_A = ("conv_3x3", *DOUBLE_3X3)
V3_B = (
    "conv_1x1", "conv_7x7_reduce", "conv_1x7", "conv_7x1",
    "double_7x7_reduce", "double_7x1_1", "double_1x7_1", "double_7x1_2", "double_1x7_2", "pool_proj",
)  # fmt: skip
V3_REDUCTION_B = ("conv_3x3_reduce", "conv_3x3", "conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3")
V3_C = (
    "conv_1x1", "conv_3x3_reduce", "conv_1x3", "conv_3x1",
    "double_3x3_reduce", "double_3x3", "double_1x3", "double_3x1", "pool_proj",
)  # fmt: skip
INCEPTION_V3: Table = {
    **numbered_layers([
        *STEM,
        *_units(
            ("mixed_5b", V3_A), ("mixed_5c", V3_A), ("mixed_5d", V3_A), ("mixed_6a", V3_REDUCTION_A),
            ("mixed_6b", V3_B), ("mixed_6c", V3_B), ("mixed_6d", V3_B), ("mixed_6e", V3_B),
            ("mixed_7a", V3_REDUCTION_B), ("mixed_7b", V3_C), ("mixed_7c", V3_C),
        ),
    ]),
    "classifier": ("predictions", ""),
}  # fmt: skip

# --- inception_resnet_v2.py: the linear convolution at the end of a block has the block's name ------------------------

BLOCK35 = ("conv_1x1", "conv_3x3_reduce", "conv_3x3", *DOUBLE_3X3)
BLOCK17 = ("conv_1x1", "conv_7x7_reduce", "conv_1x7", "conv_7x1")
RESNET_REDUCTION_B = ("conv_3x3_1_reduce", "conv_3x3_1", "conv_3x3_2_reduce", "conv_3x3_2", *DOUBLE_3X3)
BLOCK8 = ("conv_1x1", "conv_3x3_reduce", "conv_1x3", "conv_3x1")
_BLOCKS = {"block35": 10, "block17": 20, "block8": 10}
INCEPTION_RESNET_V2: Table = {
    **numbered_layers(
        [
            *STEM,
            *_units(
                ("mixed_5b", V3_A),
                *((f"block35_{i}", BLOCK35) for i in range(1, 11)),
                ("mixed_6a", V3_REDUCTION_A),
                *((f"block17_{i}", BLOCK17) for i in range(1, 21)),
                ("mixed_7a", RESNET_REDUCTION_B),
                *((f"block8_{i}", BLOCK8) for i in range(1, 11)),
            ),
        ]
    ),
    **{f"{kind}_{i}/up": (f"{kind}_{i}_conv", "") for kind, count in _BLOCKS.items() for i in range(1, count + 1)},
    "conv2d_7b_1x1": _named("conv_7b"),
    "classifier": ("predictions", ""),
}

# --- xception.py: all but the convolutions beside the blocks have names, which are ours -------------------------------

_SEPARABLES = {block: 3 if 5 <= block <= 12 else 2 for block in range(2, 15)}
XCEPTION: Table = {
    "block1_conv1": _named("block1_conv1"),
    "block1_conv2": _named("block1_conv2"),
    **{
        f"block{block}/sepconv{i}": _named(f"block{block}_sepconv{i}")
        for block, count in _SEPARABLES.items()
        for i in range(1, count + 1)
    },
    **numbered_layers(f"block{block}/shortcut" for block in (2, 3, 4, 13)),
    "classifier": ("predictions", ""),
}


def _make_variant(model: str, layers: Table, implementation: str, **options: Any) -> Variant:
    return Variant(
        source="keras",
        model=model,
        # Keras's default momentum; no dropout.
        options={"bn_momentum": 0.99, "bn_epsilon": 1e-3, "dropout_rate": 0.0, **options},
        source_array=LayerMap(model, layers),
        implementation=f"keras.applications.{implementation}",
        image_size=299,
        # Ignored: the optimizer state that `Model.save` writes beside the layers.
        naming=NamingRules((r"^optimizer(/|$)", r"^optimizer_weights/"), prepare=renumber),
    )


VARIANTS = by_model(
    _make_variant("inception_v3", INCEPTION_V3, "InceptionV3", bn_scale=False),
    _make_variant("inception_resnet_v2", INCEPTION_RESNET_V2, "InceptionResNetV2", bn_scale=False),
    _make_variant("xception", XCEPTION, "Xception"),
)
