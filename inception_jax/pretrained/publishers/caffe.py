"""Caffe's name map (BVLC/caffe, models/bvlc_googlenet/train_val.prototxt).

Arrays are `<layer>/0`, the weight, and `<layer>/1`, the bias. Caffe's images have their channels in the order blue,
green, red, and so has the weight of the first convolution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from inception_jax.pretrained.variants import (
    CONV_OIHW,
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

MODULE = {
    "conv_1x1": "1x1",
    "conv_3x3_reduce": "3x3_reduce",
    "conv_3x3": "3x3",
    "conv_5x5_reduce": "5x5_reduce",
    "conv_5x5": "5x5",
    "pool_proj": "pool_proj",
}
GOOGLENET = {
    "conv1": "conv1/7x7_s2",
    "conv2_reduce": "conv2/3x3_reduce",
    "conv2": "conv2/3x3",
    **{
        f"inception_{module}/{ours}": f"inception_{module}/{theirs}"
        for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for ours, theirs in MODULE.items()
    },
    "classifier": "loss3/classifier",
}
HEADS = {
    "aux1/conv": "loss1/conv",
    "aux1/fc": "loss1/fc",
    "aux1/classifier": "loss1/classifier",
    "aux2/conv": "loss2/conv",
    "aux2/fc": "loss2/fc",
    "aux2/classifier": "loss2/classifier",
}
HEAD_MAP = 4  # height and width of the feature map that a head's fc reads


@dataclasses.dataclass(frozen=True)
class BlobMap:
    """Name map of a network with Caffe's layer names, from a table.

    Attributes:
      source: of the variant.
      layers: {path of our layer: name of the publisher's}.
      weight: suffix of the layer's name for its weight.
      bias: suffix of the layer's name for its bias.
      conv: layout of convolutions.
      linear: layout of fully connected layers; those of a head that read Caffe's feature map have it flattened.
    """

    source: str
    layers: Mapping[str, str]
    weight: str
    bias: str
    conv: Layout = CONV_OIHW
    linear: Layout = LINEAR_OI

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns the publisher's array for a leaf, as `NameMap`."""
        collection, layer, leaf = split_leaf(path)
        if collection != "params" or layer not in self.layers or leaf not in ("kernel", "bias"):
            raise unknown_leaf_error(path, self.source, "inception_v1")
        if leaf == "bias":
            return SourceArray(f"{self.layers[layer]}{self.bias}", VECTOR)
        layout = self.conv if len(shape) == 4 else self.linear
        if layer.endswith("/fc") and self.linear is LINEAR_OI:
            layout = linear_chw(shape[0] // HEAD_MAP**2, HEAD_MAP, HEAD_MAP)
        return SourceArray(f"{self.layers[layer]}{self.weight}", layout)


def modernize_blobs(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Reshapes the arrays of files written before 2015 to today's shapes.

    Then every blob had four dimensions: a bias [1, 1, 1, n], the weight of a fully connected layer [1, 1, out, in].

    Args:
      arrays: {name: array}, of an old file or of a new one.
    """
    found = {}
    for name, array in arrays.items():
        shape = np.shape(array)
        if len(shape) == 4 and shape[:2] == (1, 1):
            bias = name.endswith("/1") and shape[2] == 1
            array = np.reshape(array, shape[3:] if bias else shape[2:])
        found[name] = array
    return found


VARIANTS = {
    "inception_v1": Variant(
        source="caffe",
        model="inception_v1",
        options={"dropout_rate": 0.4, "aux_dropout_rate": 0.7},
        source_array=BlobMap("caffe", {**GOOGLENET, **HEADS}, "/0", "/1"),
        implementation="Caffe, models/bvlc_googlenet",
        image_size=224,
        other_size=227,  # its last pool needs 7x7 pixels
        aux_heads=True,
        naming=NamingRules(prepare=modernize_blobs),
    ),
}
