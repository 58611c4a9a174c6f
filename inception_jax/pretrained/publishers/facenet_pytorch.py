"""Name map of facenet-pytorch (facenet_pytorch/models/inception_resnet_v1.py)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.cadene import (
    BLOCK8,
    BLOCK17,
    BLOCK35,
    MIXED_7A,
    REDUCTION_A,
    RESNET_STEM,
    repeated,
)
from inception_jax.pretrained.publishers.torch_units import Table, conv, linear, make_variant, table
from inception_jax.pretrained.variants import by_model

RESNET_V1: Table = {
    **RESNET_STEM,
    "conv2d_4b_3x3": conv("conv2d_4b"),
    **table(
        *repeated("block35", "repeat_1", 5, BLOCK35),
        ("mixed_6a", "mixed_6a", REDUCTION_A),
        *repeated("block17", "repeat_2", 10, BLOCK17),
        ("mixed_7a", "mixed_7a", MIXED_7A),
        *repeated("block8", "repeat_3", 5, BLOCK8),
        ("block8_6", "block8", BLOCK8),  # scale 1, no ReLU
    ),
    "bottleneck": linear("last_linear", norm="last_bn"),
    "classifier": linear("logits"),
}

VARIANTS = by_model(
    make_variant(
        "facenet-pytorch",
        "inception_resnet_v1",
        RESNET_V1,
        "facenet_pytorch.models.inception_resnet_v1.InceptionResnetV1",
        # With classify=True; without it the network's result is the endpoint `embedding` divided by its length.
        {"extra_block8": True, "bottleneck": 512, "dropout_rate": 0.6},
        image_size=160,
        num_classes=8631,  # of VGGFace2; CASIA-WebFace has 10575
    )
)
