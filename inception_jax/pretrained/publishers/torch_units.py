"""How the tables of the PyTorch publishers are written, and how a leaf of ours finds its array through one.

A table gives for every layer of ours the module of theirs: `conv("branch1.0")` is a convolution with batch norm, as
`torch.nn.Module.state_dict` names its arrays. Modules of one kind share a table; `table` puts the blocks' names before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inception_jax.pretrained.variants import (
    CONV_OIHW,
    DEPTHWISE_O1HW,
    LINEAR_OI,
    VECTOR,
    Layout,
    NamingRules,
    SourceArray,
    linear_chw,
    split_leaf,
    unknown_leaf_error,
)

# Ignored: the counter of batches that PyTorch saves with every batch norm.
NAMING = NamingRules((r"\.num_batches_tracked$",))

# PyTorch's momentum of 0.1 is the part that is new, and its running variance is that of a sample
# (torch.nn.BatchNorm2d); none of the publishers sets another.
BATCH_NORM = {"bn_momentum": 0.9, "bn_unbiased_variance": True}


@dataclasses.dataclass(frozen=True)
class ModuleNames:
    """Where the arrays of one layer of ours are.

    Attributes:
      weight: the module with the weight, and the bias if there is one; of a separable convolution the depthwise part.
      norm: the module of the batch norm after it; "": there is none.
      pointwise: the 1x1 part of a separable convolution; "": it is none.
      linear: whether the weight is a fully connected layer's.
      flattened: the side of the map that a fully connected layer reads, channels first; 0: it reads no map.
    """

    weight: str
    norm: str = ""
    pointwise: str = ""
    linear: bool = False
    flattened: int = 0

    def under(self, block: str) -> ModuleNames:
        """The layer inside a block of theirs."""
        names = {field: getattr(self, field) for field in ("weight", "norm", "pointwise")}
        return dataclasses.replace(self, **{field: f"{block}.{name}" for field, name in names.items() if name})

    def array(self, collection: str, leaf: str, shape: tuple[int, ...]) -> tuple[str, Layout] | None:
        """The name and layout of a leaf ("kernel", "bn/scale") of this layer; None: PyTorch has none."""
        if leaf.startswith("bn/"):
            kind = _NORM_LEAVES.get((collection, leaf))
            return (f"{self.norm}.{kind}", VECTOR) if self.norm and kind else None
        if collection != "params":
            return None
        if self.pointwise:
            return {
                "depthwise_kernel": (f"{self.weight}.weight", DEPTHWISE_O1HW),
                "pointwise_kernel": (f"{self.pointwise}.weight", CONV_OIHW),
            }.get(leaf)
        return {
            "kernel": (f"{self.weight}.weight", self._layout(shape)),
            "bias": (f"{self.weight}.bias", VECTOR),
        }.get(leaf)

    def _layout(self, shape: tuple[int, ...]) -> Layout:
        if self.flattened:
            return linear_chw(shape[0] // self.flattened**2, self.flattened, self.flattened)
        return LINEAR_OI if self.linear else CONV_OIHW


_NORM_LEAVES = {
    ("params", "bn/scale"): "weight",
    ("params", "bn/bias"): "bias",
    ("batch_stats", "bn/mean"): "running_mean",
    ("batch_stats", "bn/var"): "running_var",
}


def conv(name: str) -> ModuleNames:
    """A module `name` that has a convolution `conv` and a batch norm `bn`."""
    return ModuleNames(f"{name}.conv", f"{name}.bn")


def conv_without_norm(name: str) -> ModuleNames:
    """A convolution without batch norm."""
    return ModuleNames(name)


def linear(name: str, norm: str = "", flattened: int = 0) -> ModuleNames:
    """A fully connected layer; `norm` and `flattened` as in `ModuleNames`."""
    return ModuleNames(name, norm, linear=True, flattened=flattened)


Table = Mapping[str, ModuleNames]


def table(*blocks: tuple[str, str, Table]) -> dict[str, ModuleNames]:
    """{"block/unit": layer} of rows (our block, their block, the units inside it)."""
    return {f"{ours}/{unit}": layer.under(theirs) for ours, theirs, units in blocks for unit, layer in units.items()}


@dataclasses.dataclass(frozen=True)
class NameMap:
    """A variant's source_array function, read off a table.

    Attributes:
      source, model: of the variant.
      layers: {path of our layer: theirs}.
    """

    source: str
    model: str
    layers: Table

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """The publisher's array of a leaf.

        Args:
          path: the leaf's, such as "params/mixed_5b/conv_1x1/bn/bias".
          shape: the leaf's.

        Raises:
          UserError: the publisher's network has no such array.
        """
        collection, units, leaf = split_leaf(path)
        if units[-1] == "bn":
            units, leaf = units[:-1], f"bn/{leaf}"
        layer = self.layers.get("/".join(units))
        array = layer and layer.array(collection, leaf, shape)
        if not array:
            raise unknown_leaf_error(path, self.source, self.model)
        return SourceArray(*array)
