"""Name map of facenet (davidsandberg/facenet, src/models/inception_resnet_v1.py, and src/train_softmax.py)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.slim import REDUCTION_A, RESNET_REDUCTION_B, V3_STEM, repeated
from inception_jax.pretrained.publishers.slim_units import NAMING, ScopeMap, Table, table
from inception_jax.pretrained.variants import NamingRules, Variant

TRUNK: Table = {
    **V3_STEM,
    "conv2d_4b_3x3": "Conv2d_4b_3x3",
    **table(("mixed_6a", "Mixed_6a", REDUCTION_A), ("mixed_7a", "Mixed_7a", RESNET_REDUCTION_B), *repeated(5, 10, 5)),
    "bottleneck": "Bottleneck",
}
# The training script puts the classifier outside the network's scope.
RESNET_V1: Table = {
    **{layer: f"InceptionResnetV1/{scope}" for layer, scope in TRUNK.items()},
    "classifier": "Logits",
}

VARIANTS = {
    "inception_resnet_v1": Variant(
        source="facenet",
        model="inception_resnet_v1",
        # The network's result is the endpoint `embedding` divided by its length. Files of 2017 have bottleneck=128.
        options={
            "extra_block8": True,
            "bottleneck": 512,
            "dropout_rate": 0.6,
            "bn_scale": False,
            "bn_epsilon": 1e-3,
            "bn_momentum": 0.995,
            "bn_unbiased_variance": True,
        },
        source_array=ScopeMap("facenet", "inception_resnet_v1", "", RESNET_V1, ("bottleneck", "classifier")),
        implementation="facenet, src/models/inception_resnet_v1.py",
        image_size=160,
        num_classes=8631,  # of VGGFace2; CASIA-WebFace has 10575
        naming=NamingRules((*NAMING.ignored, r"^centers$")),  # the centers of the center loss
    ),
}
