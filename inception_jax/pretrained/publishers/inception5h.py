"""Name map of inception5h, the GoogLeNet that Google released as a frozen graph (tensorflow_inception_graph.pb).

Arrays are the graph's Const nodes. Names and widths are from listings of its nodes by users; the constants of its
local response normalization are those of the nodes localresponsenorm0 and 1 as greentfrapp/lucent's pull request 51
prints them from Lucid's copy of the graph: TensorFlow's depth_radius 5, bias 2, alpha 1e-4, beta 0.5. Ports to PyTorch
with a window of 9 and a bias of 1 compute another function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from inception_jax.pretrained.variants import (
    CONV_HWIO,
    LINEAR_IO,
    VECTOR,
    NamingRules,
    SourceArray,
    Variant,
    split_leaf,
    unknown_leaf_error,
)

MODULE = {
    "conv_1x1": "1x1",
    "conv_3x3_reduce": "3x3_bottleneck",
    "conv_3x3": "3x3",
    "conv_5x5_reduce": "5x5_bottleneck",
    "conv_5x5": "5x5",
    "pool_proj": "pool_reduce",
}
LAYERS = {
    "conv1": "conv2d0",
    "conv2_reduce": "conv2d1",
    "conv2": "conv2d2",
    **{
        f"inception_{module}/{ours}": f"mixed{module}_{theirs}"
        for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        for ours, theirs in MODULE.items()
    },
    "aux1/conv": "head0_bottleneck",
    "aux1/fc": "nn0",
    "aux1/classifier": "softmax0",
    "aux2/conv": "head1_bottleneck",
    "aux2/fc": "nn1",
    "aux2/classifier": "softmax1",
    "classifier": "softmax2",
}
# localresponsenorm0 and 1, in Caffe's parameters: a window of 2 · 5 + 1, by which alpha is divided.
RESPONSE_NORM = {"lrn_size": 11, "lrn_alpha": 11 * 1e-4, "lrn_beta": 0.5, "lrn_k": 2.0}


@dataclasses.dataclass(frozen=True)
class NodeMap:
    """Name map of the graph.

    Attributes:
      layers: {path of our layer: beginning of the names of its nodes}.
    """

    layers: Mapping[str, str]

    def __call__(self, path: str, shape: tuple[int, ...]) -> SourceArray:
        """Returns the Const node for a leaf.

        Args:
          path: of the leaf, such as "params/inception_3a/conv_1x1/kernel".
          shape: of the leaf.

        Raises:
          UserError: the graph has no such node.
        """
        collection, units, leaf = split_leaf(path)
        layer = self.layers.get("/".join(units))
        if collection != "params" or not layer or leaf not in ("kernel", "bias"):
            raise unknown_leaf_error(path, "inception5h", "inception_v1")
        if leaf == "bias":
            return SourceArray(f"{layer}_b", VECTOR)
        return SourceArray(f"{layer}_w", CONV_HWIO if len(shape) == 4 else LINEAR_IO)


VARIANTS = {
    "inception_v1": Variant(
        source="inception5h",
        model="inception_v1",
        options={
            "table": "inception5h",
            "conv1_padding": "same",
            "pool_rounding": "same",
            **RESPONSE_NORM,
            "dropout_rate": 0.4,
            "aux_dropout_rate": 0.7,
        },
        source_array=NodeMap(LAYERS),
        implementation="tensorflow_inception_graph.pb",
        image_size=224,
        num_classes=1008,
        aux_heads=True,
        # Ignored: constants of the graph's concatenations and reshapes.
        naming=NamingRules((r"/concat_dim$", r"/reshape/shape$")),
    ),
}
