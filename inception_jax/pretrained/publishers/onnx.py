"""Name map of the ONNX model zoo (onnx/models, inception_and_googlenet/googlenet: Caffe's network without heads)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.caffe import GOOGLENET, BlobMap
from inception_jax.pretrained.variants import NamingRules, Variant

VARIANTS = {
    "inception_v1": Variant(
        source="onnx",
        model="inception_v1",
        options={"dropout_rate": 0.4},
        source_array=BlobMap("onnx", GOOGLENET, "_w_0", "_b_0"),
        implementation="ONNX model zoo, googlenet",
        image_size=224,
        other_size=227,  # its last pool needs 7x7 pixels
        naming=NamingRules((r"^OC2_DUMMY_\d+$",)),  # ignored: the shapes of its Reshape
    ),
}
