"""Name map of inception5h, the GoogLeNet that Google released as a frozen graph (tensorflow_inception_graph.pb).

Arrays are the graph's Const nodes. Names and widths are from listings of its nodes by users; the constants of its
local response normalization are those of the nodes localresponsenorm0 and 1 as greentfrapp/lucent's pull request 51
prints them from Lucid's copy of the graph: TensorFlow's depth_radius 5, bias 2, alpha 1e-4, beta 0.5. Ports to PyTorch
with a window of 9 and a bias of 1 compute another function.
"""

from __future__ import annotations

from inception_jax.pretrained.publishers.caffe import BlobMap
from inception_jax.pretrained.variants import CONV_HWIO, LINEAR_IO, NamingRules, Variant

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
        source_array=BlobMap("inception5h", LAYERS, "_w", "_b", CONV_HWIO, LINEAR_IO),
        implementation="tensorflow_inception_graph.pb",
        image_size=224,
        num_classes=1008,
        aux_heads=True,
        # Ignored: constants of the graph's concatenations and reshapes.
        naming=NamingRules((r"/concat_dim$", r"/reshape/shape$")),
    ),
}
