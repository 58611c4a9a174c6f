"""Name maps of TF-slim (google-research/tf-slim, tf_slim/nets; tensorflow/models, research/slim/nets for v4 and IR-v2).

slim's scopes are not as regular as they look: each name below that breaks the pattern is slim's own.
"""

from __future__ import annotations

from typing import Any

from inception_jax.pretrained.publishers.slim_units import NAMING, ScopeMap, Table, branch, capitalized, table
from inception_jax.pretrained.variants import DOUBLE_3X3, STEM, Variant, by_model

# inception_utils.py: no scale, decay 0.9997; the fused kernel's running variance is the unbiased one.
BATCH_NORM = {"bn_scale": False, "bn_epsilon": 1e-3, "bn_momentum": 0.9997, "bn_unbiased_variance": True}

# --- inception_v1.py and inception_v2.py: scopes begin one letter after the paper's -----------------------------------

POOL_PROJ: Table = {"pool_proj": "Branch_3/Conv2d_0b_1x1"}
DOUBLE: Table = branch(2, *DOUBLE_3X3)
V1_MODULE: Table = {
    **branch(0, "conv_1x1"),
    **branch(1, "conv_3x3_reduce", "conv_3x3"),
    "conv_5x5_reduce": "Branch_2/Conv2d_0a_1x1",
    "conv_5x5": "Branch_2/Conv2d_0b_3x3",  # 3x3 where the paper has 5x5
    **POOL_PROJ,
}
V1_STEM: Table = {"conv1": "Conv2d_1a_7x7", "conv2_reduce": "Conv2d_2b_1x1", "conv2": "Conv2d_2c_3x3"}
INCEPTION_V1: Table = {
    **V1_STEM,
    **table(
        ("inception_3a", "Mixed_3b", V1_MODULE),
        ("inception_3b", "Mixed_3c", V1_MODULE),
        ("inception_4a", "Mixed_4b", V1_MODULE),
        ("inception_4b", "Mixed_4c", V1_MODULE),
        ("inception_4c", "Mixed_4d", V1_MODULE),
        ("inception_4d", "Mixed_4e", V1_MODULE),
        ("inception_4e", "Mixed_4f", V1_MODULE),
        ("inception_5a", "Mixed_5b", {**V1_MODULE, "conv_5x5": "Branch_2/Conv2d_0a_3x3"}),
        ("inception_5b", "Mixed_5c", V1_MODULE),
    ),
    "classifier": "Logits/Conv2d_0c_1x1",
}

# Also Inception-v4's Inception-A.
V2_MODULE: Table = {**branch(0, "conv_1x1"), **branch(1, "conv_3x3_reduce", "conv_3x3"), **DOUBLE, **POOL_PROJ}
V2_REDUCTION: Table = {
    **branch(0, "conv_3x3_reduce", "conv_3x3", ends_with_1a=True),
    **branch(1, *DOUBLE_3X3, ends_with_1a=True),
}
INCEPTION_V2: Table = {
    **V1_STEM,
    **table(
        ("inception_3a", "Mixed_3b", V2_MODULE),
        ("inception_3b", "Mixed_3c", V2_MODULE),
        ("inception_3c", "Mixed_4a", V2_REDUCTION),
        ("inception_4a", "Mixed_4b", V2_MODULE),
        ("inception_4b", "Mixed_4c", V2_MODULE),
        ("inception_4c", "Mixed_4d", V2_MODULE),
        ("inception_4d", "Mixed_4e", V2_MODULE),
        ("inception_4e", "Mixed_5a", V2_REDUCTION),
        ("inception_5a", "Mixed_5b", V2_MODULE),
        ("inception_5b", "Mixed_5c", V2_MODULE),
    ),
    "classifier": "Logits/Conv2d_1c_1x1",
}

# --- inception_v3.py --------------------------------------------------------------------------------------------------

V3_STEM: Table = {name: name.capitalize() for name in STEM}
V3_A: Table = {**branch(0, "conv_1x1"), **branch(1, "conv_5x5_reduce", "conv_5x5"), **DOUBLE, **POOL_PROJ}
B: Table = {
    **branch(0, "conv_1x1"),
    **branch(1, "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    **branch(2, "double_7x7_reduce", "double_7x1_1", "double_1x7_1", "double_7x1_2", "double_1x7_2"),
    **POOL_PROJ,
}
REDUCTION_A: Table = {
    **branch(0, "conv_3x3", ends_with_1a=True),
    **branch(1, *DOUBLE_3X3, ends_with_1a=True),
}
# Also Inception-v4's Mixed_4a.
REDUCTION_B: Table = {
    **branch(0, "conv_3x3_reduce", "conv_3x3", ends_with_1a=True),
    **branch(1, "conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3", ends_with_1a=True),
}
V3_C: Table = {
    **branch(0, "conv_1x1"),
    **branch(1, "conv_3x3_reduce", "conv_1x3", "conv_3x1"),
    **branch(2, "double_3x3_reduce", "double_3x3", "double_1x3", "double_3x1"),
    **POOL_PROJ,
}
INCEPTION_V3: Table = {
    **V3_STEM,
    **table(
        ("mixed_5b", "Mixed_5b", V3_A),
        (
            "mixed_5c",
            "Mixed_5c",
            {**V3_A, "conv_5x5_reduce": "Branch_1/Conv2d_0b_1x1", "conv_5x5": "Branch_1/Conv_1_0c_5x5"},
        ),
        ("mixed_5d", "Mixed_5d", V3_A),
        # 3x3 kernels, two of them called 1x1.
        (
            "mixed_6a",
            "Mixed_6a",
            {**REDUCTION_A, "conv_3x3": "Branch_0/Conv2d_1a_1x1", "double_3x3_2": "Branch_1/Conv2d_1a_1x1"},
        ),
        *capitalized("mixed_6b", "mixed_6c", "mixed_6d", "mixed_6e", units=B),
        ("mixed_7a", "Mixed_7a", REDUCTION_B),
        ("mixed_7b", "Mixed_7b", {**V3_C, "conv_3x1": "Branch_1/Conv2d_0b_3x1"}),
        ("mixed_7c", "Mixed_7c", V3_C),
    ),
    "aux/conv_1x1": "AuxLogits/Conv2d_1b_1x1",
    "aux/conv_5x5": "AuxLogits/Conv2d_2a_5x5",
    "aux/classifier": "AuxLogits/Conv2d_2b_1x1",
    "classifier": "Logits/Conv2d_1c_1x1",
}

# --- inception_v4.py --------------------------------------------------------------------------------------------------

V4_C: Table = {
    **branch(0, "conv_1x1"),
    **branch(1, "conv_3x3_reduce", "conv_1x3", "conv_3x1"),
    **branch(2, "double_3x3_reduce", "double_3x1_1", "double_1x3_1", "double_1x3_2", "double_3x1_2"),
    **POOL_PROJ,
}
INCEPTION_V4: Table = {
    **{name: name.capitalize() for name in STEM[:3]},
    **table(
        ("mixed_3a", "Mixed_3a", {"conv_3x3": "Branch_1/Conv2d_0a_3x3"}),
        ("mixed_4a", "Mixed_4a", REDUCTION_B),
        ("mixed_5a", "Mixed_5a", {"conv_3x3": "Branch_0/Conv2d_1a_3x3"}),
        *capitalized(*(f"mixed_5{letter}" for letter in "bcde"), units=V2_MODULE),
        ("mixed_6a", "Mixed_6a", REDUCTION_A),
        *capitalized(*(f"mixed_6{letter}" for letter in "bcdefgh"), units=B),
        ("mixed_7a", "Mixed_7a", REDUCTION_B),
        *capitalized(*(f"mixed_7{letter}" for letter in "bcd"), units=V4_C),
    ),
    "aux/conv_1x1": "AuxLogits/Conv2d_1b_1x1",
    "aux/conv_5x5": "AuxLogits/Conv2d_2a",
    "aux/classifier": "AuxLogits/Aux_logits",
    "classifier": "Logits/Logits",
}

# --- inception_resnet_v2.py -------------------------------------------------------------------------------------------

BLOCK35: Table = {
    "conv_1x1": "Branch_0/Conv2d_1x1",
    **branch(1, "conv_3x3_reduce", "conv_3x3"),
    **DOUBLE,
    "up": "Conv2d_1x1",
}
BLOCK17: Table = {
    "conv_1x1": "Branch_0/Conv2d_1x1",
    **branch(1, "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    "up": "Conv2d_1x1",
}
BLOCK8: Table = {
    "conv_1x1": "Branch_0/Conv2d_1x1",
    **branch(1, "conv_3x3_reduce", "conv_1x3", "conv_3x1"),
    "up": "Conv2d_1x1",
}
RESNET_REDUCTION_B: Table = {
    **branch(0, "conv_3x3_1_reduce", "conv_3x3_1", ends_with_1a=True),
    **branch(1, "conv_3x3_2_reduce", "conv_3x3_2", ends_with_1a=True),
    **branch(2, *DOUBLE_3X3, ends_with_1a=True),
}


def repeated(block35s: int, block17s: int, block8s: int) -> list[tuple[str, str, Table]]:
    """Rows of `table` for the residual blocks, whose scopes slim.repeat numbers; the last block8 has its own scope."""
    return [
        *((f"block35_{i}", f"Repeat/block35_{i}", BLOCK35) for i in range(1, block35s + 1)),
        *((f"block17_{i}", f"Repeat_1/block17_{i}", BLOCK17) for i in range(1, block17s + 1)),
        *((f"block8_{i}", f"Repeat_2/block8_{i}", BLOCK8) for i in range(1, block8s + 1)),
        (f"block8_{block8s + 1}", "Block8", BLOCK8),
    ]


INCEPTION_RESNET_V2: Table = {
    **V3_STEM,
    **table(
        ("mixed_5b", "Mixed_5b", {**V3_A, "conv_1x1": "Branch_0/Conv2d_1x1"}),
        ("mixed_6a", "Mixed_6a", REDUCTION_A),
        ("mixed_7a", "Mixed_7a", RESNET_REDUCTION_B),
        *repeated(10, 20, 9),
    ),
    "conv2d_7b_1x1": "Conv2d_7b_1x1",
    "aux/conv_1x1": "AuxLogits/Conv2d_1b_1x1",
    "aux/conv_5x5": "AuxLogits/Conv2d_2a_5x5",
    "aux/classifier": "AuxLogits/Logits",
    "classifier": "Logits/Logits",
}


def _make_variant(model: str, root: str, scopes: Table, *, dense: tuple[str, ...] = (), **options: Any) -> Variant:
    heads = any(layer.startswith("aux") for layer in scopes)
    return Variant(
        source="slim",
        model=model,
        options={"dropout_rate": 0.2, **BATCH_NORM, **options},  # dropout_keep_prob=0.8
        source_array=ScopeMap("slim", model, root, scopes, dense),
        implementation=f"tf_slim.nets.{model.removesuffix('_bn')}",
        image_size=224 if model in ("inception_v1_bn", "inception_v2") else 299,
        num_classes=1001,
        background=True,
        aux_heads=heads,
        naming=NAMING,
    )


VARIANTS = by_model(
    _make_variant(
        "inception_v1_bn",
        "InceptionV1",
        INCEPTION_V1,
        five_by_five=3,
        pool4_window=2,
        conv1_padding="same",
        pool_rounding="same",
    ),
    # Its separable stem is outside the argument scope that adds batch norm: it has a bias instead.
    _make_variant("inception_v2", "InceptionV2", INCEPTION_V2, stem_batch_norm=False),
    _make_variant("inception_v3", "InceptionV3", INCEPTION_V3),
    _make_variant("inception_v4", "InceptionV4", INCEPTION_V4, dense=("classifier", "aux/classifier")),
    _make_variant(
        "inception_resnet_v2", "InceptionResnetV2", INCEPTION_RESNET_V2, dense=("classifier", "aux/classifier")
    ),
)
