"""Name maps of timm (pytorch-image-models: inception_v3.py, inception_v4.py, … in timm/models).

Its Inception-v3 has the layer names of torchvision's, the other three those of Cadene's.
"""

from __future__ import annotations

from inception_jax.pretrained.publishers.cadene import INCEPTION_V4, RESNET_V2_TRUNK, XCEPTION_TRUNK
from inception_jax.pretrained.publishers.torch_units import XCEPTION_OPTIONS, linear, make_variant
from inception_jax.pretrained.publishers.torchvision import INCEPTION_V3
from inception_jax.pretrained.variants import by_model

VARIANTS = by_model(
    make_variant(
        "timm",
        "inception_v3",
        INCEPTION_V3,
        "timm.models.inception_v3.InceptionV3",
        # Its average pools count the padding for every tag, also for weights trained in TensorFlow without that.
        {"count_include_pad": True, "dropout_rate": 0.0},
        aux_heads=True,
    ),
    make_variant("timm", "inception_v4", INCEPTION_V4, "timm.models.inception_v4.InceptionV4", {"dropout_rate": 0.0}),
    make_variant(
        "timm",
        "inception_resnet_v2",
        {**RESNET_V2_TRUNK, "classifier": linear("classif")},
        "timm.models.inception_resnet_v2.InceptionResnetV2",
        {"dropout_rate": 0.0},
    ),
    make_variant(  # legacy_xception
        "timm",
        "xception",
        {**XCEPTION_TRUNK, "classifier": linear("fc")},
        "timm.models.xception.Xception",
        XCEPTION_OPTIONS,
    ),
)
