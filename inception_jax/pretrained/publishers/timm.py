"""Name maps of timm (pytorch-image-models: inception_v3.py, inception_v4.py, … in timm/models).

Its Inception-v3 has the layer names of torchvision's, the other three those of Cadene's.
"""

from __future__ import annotations

from inception_jax.pretrained.publishers.cadene import INCEPTION_V4, RESNET_V2_TRUNK, XCEPTION_TRUNK
from inception_jax.pretrained.publishers.torch_units import BATCH_NORM, NAMING, TorchNameMap, linear
from inception_jax.pretrained.publishers.torchvision import INCEPTION_V3
from inception_jax.pretrained.variants import Variant

VARIANTS = {
    "inception_v3": Variant(
        source="timm",
        model="inception_v3",
        # Its average pools count the padding for every tag, also for weights trained in TensorFlow without that.
        options={"count_include_pad": True, "dropout_rate": 0.0, **BATCH_NORM},
        source_array=TorchNameMap("timm", "inception_v3", INCEPTION_V3),
        implementation="timm.models.inception_v3.InceptionV3",
        image_size=299,
        aux_heads=True,
        naming=NAMING,
    ),
    "inception_v4": Variant(
        source="timm",
        model="inception_v4",
        options={"dropout_rate": 0.0, **BATCH_NORM},
        source_array=TorchNameMap("timm", "inception_v4", INCEPTION_V4),
        implementation="timm.models.inception_v4.InceptionV4",
        image_size=299,
        naming=NAMING,
    ),
    "inception_resnet_v2": Variant(
        source="timm",
        model="inception_resnet_v2",
        options={"dropout_rate": 0.0, **BATCH_NORM},
        source_array=TorchNameMap("timm", "inception_resnet_v2", {**RESNET_V2_TRUNK, "classifier": linear("classif")}),
        implementation="timm.models.inception_resnet_v2.InceptionResnetV2",
        image_size=299,
        naming=NAMING,
    ),
    "xception": Variant(
        source="timm",
        model="xception",
        # legacy_xception; not the network that Keras trained: PyTorch's own epsilon, and pools that pad on every side.
        options={"bn_epsilon": 1e-5, "pool_padding": "torch", "dropout_rate": 0.0, **BATCH_NORM},
        source_array=TorchNameMap("timm", "xception", {**XCEPTION_TRUNK, "classifier": linear("fc")}),
        implementation="timm.models.xception.Xception",
        image_size=299,
        naming=NAMING,
    ),
}
