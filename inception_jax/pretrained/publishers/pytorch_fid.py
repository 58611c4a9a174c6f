"""Name map of pytorch-fid (pytorch_fid/inception.py: torchvision's network, three of its classes changed)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.torch_units import make_variant
from inception_jax.pretrained.publishers.torchvision import INCEPTION_V3
from inception_jax.pretrained.variants import by_model

VARIANTS = by_model(
    make_variant(
        "pytorch-fid",
        "inception_v3",
        {path: layer for path, layer in INCEPTION_V3.items() if path[:4] != "aux/"},
        "pytorch_fid.inception.fid_inception_v3",
        # TensorFlow's average pools, and a max pool in the last module (classes FIDInceptionA to FIDInceptionE_2).
        {"count_include_pad": False, "last_pool": "max", "dropout_rate": 0.5},
        num_classes=1008,
    )
)
