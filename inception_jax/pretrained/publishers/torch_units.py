"""Name maps by PyTorch modules, for the publishers whose files are state dicts.

A table gives for every layer of ours the publisher's modules: `conv("branch1.0")` is a convolution with batch norm, as
`torch.nn.Module.state_dict` names its arrays. Modules of one kind share a table; `table` prefixes the blocks' names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from inception_jax.pretrained.variants import (
    CONV_OIHW,
    DEPTHWISE_O1HW,
    LINEAR_OI,
    VECTOR,
    Layout,
    NamingRules,
    SourceArray,
    Variant,
    linear_chw,
    split_leaf,
    unknown_leaf_error,
)

# Ignored: the counter of batches that PyTorch saves with every batch norm.
NAMING = NamingRules((r"\.num_batches_tracked$",))

# PyTorch's momentum of 0.1 is the weight of the new value, and its running variance is the unbiased one
# (torch.nn.BatchNorm2d); no publisher sets another.
BATCH_NORM = {"bn_momentum": 0.9, "bn_unbiased_variance": True}
# BN-Inception of Cadene and pytorchcv: Caffe's network with Caffe's padding; batch norm has PyTorch's own epsilon.
BN_INCEPTION_OPTIONS = {
    "table": "paper",
    "stem": "dense",
    "conv_bias": True,
    "bn_epsilon": 1e-5,
    "count_include_pad": True,
    "conv1_padding": "caffe",
    "reduction_padding": "caffe",
    "pool_rounding": "caffe",
    "dropout_rate": 0.0,
}
# Xception's ports: not the network that Keras trained, but PyTorch's own epsilon, and pools that pad on every side.
XCEPTION_OPTIONS = {"bn_epsilon": 1e-5, "pool_padding": "torch", "dropout_rate": 0.0}


@dataclasses.dataclass(frozen=True)
class ModuleNames:
    """Names of the PyTorch modules that hold the arrays of one layer of ours.

    Attributes:
      weight: module with the weight, and the bias if there is one; of a separable convolution the depthwise part.
      norm: module of the batch norm after it; "": there is none.
      pointwise: module of the 1x1 part of a separable convolution; "": it is none.
      linear: whether the weight is that of a fully connected layer.
      flattened: height (and width) of the feature map that a fully connected layer reads, channels first; 0: it reads
        a vector.
    """

    weight: str
    norm: str = ""
    pointwise: str = ""
    linear: bool = False
    flattened: int = 0

    def under(self, block: str) -> ModuleNames:
        """Returns the names with the name of a block before them."""
        weight, norm, pointwise = (name and f"{block}.{name}" for name in (self.weight, self.norm, self.pointwise))
        return dataclasses.replace(self, weight=weight, norm=norm, pointwise=pointwise)

    def array(self, collection: str, leaf: str, shape: tuple[int, ...]) -> tuple[str, Layout] | None:
        """Returns name and layout of the array for a leaf ("kernel", "bn/scale") of this layer; None: there is none."""
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
    """Names for a module `name` that has a convolution `conv` and a batch norm `bn`."""
    return ModuleNames(f"{name}.conv", f"{name}.bn")


def convs(names: str, *ours: str, first: int = 0) -> dict[str, ModuleNames]:
    """Makes {our convolution: names} of numbered modules: `convs("branch1.{}", "conv_3x3_reduce", "conv_3x3")`."""
    return {name: conv(names.format(number)) for number, name in enumerate(ours, first)}


def conv_without_norm(name: str) -> ModuleNames:
    """Names for a convolution without batch norm."""
    return ModuleNames(name)


def linear(name: str, norm: str = "", flattened: int = 0) -> ModuleNames:
    """Names for a fully connected layer; `norm` and `flattened` as in `ModuleNames`."""
    return ModuleNames(name, norm, linear=True, flattened=flattened)


Table = Mapping[str, ModuleNames]


def table(*blocks: tuple[str, str, Table]) -> dict[str, ModuleNames]:
    """Makes {"block/unit": names} from rows (our block, the publisher's block, table of the units inside it)."""
    return {f"{ours}/{unit}": layer.under(theirs) for ours, theirs, units in blocks for unit, layer in units.items()}


@dataclasses.dataclass(frozen=True)
class TorchNameMap:
    """Name map of a variant, from a table.

    Attributes:
      source: of the variant.
      model: of the variant.
      layers: {path of our layer: names of the publisher's modules}.
    """

    source: str
    model: str
    layers: Table

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns the publisher's array for a leaf, as `NameMap`."""
        collection, name, leaf = split_leaf(path)
        layer = self.layers.get(name)
        array = layer and layer.array(collection, leaf, shape)
        if not array:
            raise unknown_leaf_error(path, self.source, self.model)
        return SourceArray(*array)


def make_variant(
    source: str, model: str, layers: Table, implementation: str, options: Mapping[str, Any], **fields: Any
) -> Variant:
    """Makes the variant of a publisher whose files are state dicts.

    Args:
      source: the publisher.
      model: the network.
      layers: {path of our layer: names of the publisher's modules}.
      implementation: the publisher's class.
      options: of `create_model`, besides `BATCH_NORM`.
      **fields: further ones of `Variant`; the image size is 299 where it is not given.
    """
    names = TorchNameMap(source, model, layers)
    fields = {"image_size": 299, "naming": NAMING, **fields}
    return Variant(source, model, {**options, **BATCH_NORM}, names, implementation, **fields)
