"""Name maps of pytorchcv (bninception.py, inceptionv3.py, inceptionv4.py, … in pytorchcv/models)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.torch_units import (
    BN_INCEPTION_OPTIONS,
    XCEPTION_OPTIONS,
    ModuleNames,
    Table,
    conv,
    conv_without_norm,
    convs,
    linear,
    make_variant,
    table,
)
from inception_jax.pretrained.variants import DOUBLE_3X3, STEM, Variant, by_model


def _sequence(branch: str, *ours: str, inner: str = "conv_list.") -> dict[str, ModuleNames]:
    """Convolutions one after another in a branch of a `Concurrent`: conv1, conv2, ... in the order of ours."""
    return convs(f"branches.{branch}.{inner}conv{{}}", *ours, first=1)


def _single(branch: str, ours: str) -> dict[str, ModuleNames]:
    """One convolution, alone or after a pool: classes Conv1x1Branch, Conv3x3Branch, AvgPoolBranch."""
    return {ours: conv(f"branches.{branch}.conv")}


def _split(branch: str, *sequence: str, wide: str, high: str) -> dict[str, ModuleNames]:
    """A sequence that ends in a 1x3 and a parallel 3x1: class ConvSeq3x3Branch."""
    ends = {wide: conv(f"branches.{branch}.conv1x3"), high: conv(f"branches.{branch}.conv3x1")}
    return {**_sequence(branch, *sequence), **ends}


def _units(block: str, letters: str, stage: str, first: int, units: Table) -> list[tuple[str, str, Table]]:
    """Rows of `table` for blocks of one kind: "mixed_5b", "mixed_5c" are stage1.unit1, stage1.unit2."""
    return [
        (f"{block}{letter}", f"features.{stage}.unit{number}", units) for number, letter in enumerate(letters, first)
    ]


# --- bninception.py --------------------------------------------------------------------------------------------------

_BN_INCEPTION: Table = {
    "conv_1x1": conv("branches.branch1"),
    **_sequence("branch2", "conv_3x3_reduce", "conv_3x3", inner=""),
    **_sequence("branch3", *DOUBLE_3X3, inner=""),
    **_single("branch4", "pool_proj"),
}
_BN_REDUCTION: Table = {
    **_sequence("branch1", "conv_3x3_reduce", "conv_3x3", inner=""),
    **_sequence("branch2", *DOUBLE_3X3, inner=""),
}
BN_INCEPTION: Table = {
    "conv1": conv("features.init_block.conv1"),
    "conv2_reduce": conv("features.init_block.conv2.conv1"),
    "conv2": conv("features.init_block.conv2.conv2"),
    **table(
        *_units("inception_3", "ab", "stage1", 1, _BN_INCEPTION),
        ("inception_3c", "features.stage2.unit1", _BN_REDUCTION),
        *_units("inception_4", "abcd", "stage2", 2, _BN_INCEPTION),
        ("inception_4e", "features.stage3.unit1", _BN_REDUCTION),
        *_units("inception_5", "ab", "stage3", 2, _BN_INCEPTION),
    ),
    "classifier": linear("output"),
}

# --- inceptionv3.py and inceptionv4.py -------------------------------------------------------------------------------

_STEM: Table = convs("features.init_block.conv{}", *STEM, first=1)
# Of v3 and of Inception-ResNet-v2's first module.
_FIVE_BY_FIVE: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_5x5_reduce", "conv_5x5"),
    **_sequence("branch3", *DOUBLE_3X3),
    **_single("branch4", "pool_proj"),
}
_REDUCTION_A: Table = {
    **_sequence("branch1", "conv_3x3"),
    **_sequence("branch2", *DOUBLE_3X3),
}
_INCEPTION_B: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    **_sequence("branch3", "double_7x7_reduce", "double_7x1_1", "double_1x7_1", "double_7x1_2", "double_1x7_2"),
    **_single("branch4", "pool_proj"),
}
# The reduction of v3 and of v4, and v4's Mixed_4a.
_REDUCTION_B: Table = {
    **_sequence("branch1", "conv_3x3_reduce", "conv_3x3"),
    **_sequence("branch2", "conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3"),
}
_V3_INCEPTION_C: Table = {
    **_single("branch1", "conv_1x1"),
    **_split("branch2", "conv_3x3_reduce", wide="conv_1x3", high="conv_3x1"),
    **_split("branch3", "double_3x3_reduce", "double_3x3", wide="double_1x3", high="double_3x1"),
    **_single("branch4", "pool_proj"),
}
INCEPTION_V3: Table = {
    **_STEM,
    **table(
        *_units("mixed_5", "bcd", "stage1", 1, _FIVE_BY_FIVE),
        ("mixed_6a", "features.stage2.unit1", _REDUCTION_A),
        *_units("mixed_6", "bcde", "stage2", 2, _INCEPTION_B),
        ("mixed_7a", "features.stage3.unit1", _REDUCTION_B),
        *_units("mixed_7", "bc", "stage3", 2, _V3_INCEPTION_C),
    ),
    "classifier": linear("output.fc"),
}

_V4_INCEPTION_A: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_3x3_reduce", "conv_3x3"),
    **_sequence("branch3", *DOUBLE_3X3),
    **_single("branch4", "pool_proj"),
}
_V4_INCEPTION_C: Table = {
    **_single("branch1", "conv_1x1"),
    **_split("branch2", "conv_3x3_reduce", wide="conv_1x3", high="conv_3x1"),
    **_split("branch3", "double_3x3_reduce", "double_3x1_1", "double_1x3_1", wide="double_1x3_2", high="double_3x1_2"),
    **_single("branch4", "pool_proj"),
}
INCEPTION_V4: Table = {
    **{name: _STEM[name] for name in STEM[:3]},
    **table(
        ("mixed_3a", "features.init_block.block1", _single("branch2", "conv_3x3")),
        ("mixed_4a", "features.init_block.block2", _REDUCTION_B),
        ("mixed_5a", "features.init_block.block3", _single("branch1", "conv_3x3")),
        *_units("mixed_5", "bcde", "stage1", 1, _V4_INCEPTION_A),
        ("mixed_6a", "features.stage2.unit1", _REDUCTION_A),
        *_units("mixed_6", "bcdefgh", "stage2", 2, _INCEPTION_B),
        ("mixed_7a", "features.stage3.unit1", _REDUCTION_B),
        *_units("mixed_7", "bcd", "stage3", 2, _V4_INCEPTION_C),
    ),
    "classifier": linear("output.fc"),
}

# --- inceptionresnetv1.py and inceptionresnetv2.py: the first unit of stages 2 and 3 is the reduction ----------------

_BLOCK35: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_3x3_reduce", "conv_3x3"),
    **_sequence("branch3", *DOUBLE_3X3),
    "up": conv_without_norm("conv"),
}
_BLOCK17: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    "up": conv_without_norm("conv"),
}
_MIXED_7A: Table = {
    **_sequence("branch1", "conv_3x3_1_reduce", "conv_3x3_1"),
    **_sequence("branch2", "conv_3x3_2_reduce", "conv_3x3_2"),
    **_sequence("branch3", *DOUBLE_3X3),
}
_BLOCK8: Table = {
    **_single("branch1", "conv_1x1"),
    **_sequence("branch2", "conv_3x3_reduce", "conv_1x3", "conv_3x1"),
    "up": conv_without_norm("conv"),
}


def _residual(block35s: int, block17s: int, block8s: int) -> dict[str, ModuleNames]:
    """Stages 1 to 3 of a residual network with the given numbers of blocks."""
    return table(
        *((f"block35_{number}", f"features.stage1.unit{number}", _BLOCK35) for number in range(1, block35s + 1)),
        ("mixed_6a", "features.stage2.unit1", _REDUCTION_A),
        *((f"block17_{number}", f"features.stage2.unit{number + 1}", _BLOCK17) for number in range(1, block17s + 1)),
        ("mixed_7a", "features.stage3.unit1", _MIXED_7A),
        *((f"block8_{number}", f"features.stage3.unit{number + 1}", _BLOCK8) for number in range(1, block8s + 1)),
    )


RESNET_V1: Table = {
    **_STEM,
    "conv2d_4b_3x3": conv("features.init_block.conv6"),
    **_residual(5, 10, 6),
    "bottleneck": linear("output.fc1", norm="output.bn"),
    "classifier": linear("output.fc2"),
}
RESNET_V2: Table = {
    **_STEM,
    **table(("mixed_5b", "features.init_block.block", _FIVE_BY_FIVE)),
    **_residual(10, 20, 10),
    "conv2d_7b_1x1": conv("features.final_conv"),
    "classifier": linear("output.fc"),
}

# --- xception.py -----------------------------------------------------------------------------------------------------


def _separable(name: str) -> ModuleNames:
    """A separable convolution with batch norm: class DwsConvBlock."""
    return ModuleNames(f"{name}.conv.dw_conv", f"{name}.bn", pointwise=f"{name}.conv.pw_conv")


_MIDDLE: Table = {f"sepconv{number}": _separable(f"body.block{number}") for number in (1, 2, 3)}
_HALVING: Table = {
    "sepconv1": _MIDDLE["sepconv1"],
    "sepconv2": _MIDDLE["sepconv2"],
    "shortcut": conv("identity_conv"),
}
XCEPTION: Table = {
    "block1_conv1": conv("features.init_block.conv1"),
    "block1_conv2": conv("features.init_block.conv2"),
    **table(
        ("block2", "features.stage1.unit1", _HALVING),
        ("block3", "features.stage2.unit1", _HALVING),
        ("block4", "features.stage3.unit1", _HALVING),
        *((f"block{number}", f"features.stage3.unit{number - 3}", _MIDDLE) for number in range(5, 13)),
        ("block13", "features.stage4.unit1", _HALVING),
    ),
    "block14/sepconv1": _separable("features.final_block.conv1"),
    "block14/sepconv2": _separable("features.final_block.conv2"),
    "classifier": linear("output"),
}

# ---------------------------------------------------------------------------------------------------------------------


# Its last pools need feature maps of 7x7, 8x8 or 10x10 pixels: image sizes that give these.
_SIZES = {"inception_v2": (224, 227), "xception": (299, 298)}


def _make_variant(model: str, layers: Table, implementation: str, **options: object) -> Variant:
    size, other = _SIZES.get(model, (299, 300))
    path = f"pytorchcv.models.{implementation}"
    return make_variant("pytorchcv", model, layers, path, options, image_size=size, other_size=other)


VARIANTS = by_model(
    _make_variant("inception_v2", BN_INCEPTION, "bninception.BNInception", **BN_INCEPTION_OPTIONS),
    # Its average pools count the padding in v3 only.
    _make_variant("inception_v3", INCEPTION_V3, "inceptionv3.InceptionV3", count_include_pad=True, dropout_rate=0.5),
    _make_variant("inception_v4", INCEPTION_V4, "inceptionv4.InceptionV4", dropout_rate=0.0),
    _make_variant(
        "inception_resnet_v1",
        RESNET_V1,
        "inceptionresnetv1.InceptionResNetV1",
        extra_block8=True,
        bottleneck=512,
        dropout_rate=0.6,
    ),
    _make_variant("inception_resnet_v2", RESNET_V2, "inceptionresnetv2.InceptionResNetV2", dropout_rate=0.0),
    _make_variant("xception", XCEPTION, "xception.Xception", **XCEPTION_OPTIONS),
)
