"""Name maps of Cadene's pretrained-models.pytorch (pretrainedmodels/models/*.py), the origin of timm's networks."""

from __future__ import annotations

import dataclasses

from inception_jax.pretrained.publishers.torch_units import (
    BN_INCEPTION_OPTIONS,
    NAMING,
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
from inception_jax.pretrained.variants import DOUBLE_3X3, STEM, by_model

# --- bninception.py: one flat namespace, in which batch norm is a module beside its convolution ----------------------


def _beside(name: str) -> ModuleNames:
    """A convolution `name` whose batch norm is the module `name`_bn."""
    return ModuleNames(name, f"{name}_bn")


_REDUCTION = {"conv_3x3_reduce": "3x3_reduce", "conv_3x3": "3x3", **{name: name for name in DOUBLE_3X3}}
_INCEPTION = {"conv_1x1": "1x1", **_REDUCTION, "pool_proj": "pool_proj"}
_BN_UNITS = {
    "3a": _INCEPTION, "3b": _INCEPTION, "3c": _REDUCTION,
    "4a": _INCEPTION, "4b": _INCEPTION, "4c": _INCEPTION, "4d": _INCEPTION, "4e": _REDUCTION,
    "5a": _INCEPTION, "5b": _INCEPTION,
}  # fmt: skip

BN_INCEPTION: Table = {
    "conv1": _beside("conv1_7x7_s2"),
    "conv2_reduce": _beside("conv2_3x3_reduce"),
    "conv2": _beside("conv2_3x3"),
    **{
        f"inception_{module}/{ours}": _beside(f"inception_{module}_{theirs}")
        for module, units in _BN_UNITS.items()
        for ours, theirs in units.items()
    },
    "classifier": linear("last_linear"),
}

# --- inceptionv4.py: one Sequential `features`, numbered in the order of the network ---------------------------------

MIXED_4A: Table = {
    **convs("branch0.{}", "conv_3x3_reduce", "conv_3x3"),
    **convs("branch1.{}", "conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3"),
}
INCEPTION_A: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_3x3_reduce", "conv_3x3"),
    **convs("branch2.{}", *DOUBLE_3X3),
    "pool_proj": conv("branch3.1"),
}
REDUCTION_A: Table = {"conv_3x3": conv("branch0"), **convs("branch1.{}", *DOUBLE_3X3)}
INCEPTION_B: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    **convs("branch2.{}", "double_7x7_reduce", "double_7x1_1", "double_1x7_1", "double_7x1_2", "double_1x7_2"),
    "pool_proj": conv("branch3.1"),
}
REDUCTION_B: Table = MIXED_4A  # the same branches; here the two 3x3 have stride 2
INCEPTION_C: Table = {
    "conv_1x1": conv("branch0"),
    "conv_3x3_reduce": conv("branch1_0"),
    "conv_1x3": conv("branch1_1a"),
    "conv_3x1": conv("branch1_1b"),
    **convs("branch2_{}", "double_3x3_reduce", "double_3x1_1", "double_1x3_1"),
    "double_1x3_2": conv("branch2_3a"),
    "double_3x1_2": conv("branch2_3b"),
    "pool_proj": conv("branch3.1"),
}

INCEPTION_V4: Table = {
    **convs("features.{}", *STEM[:3]),
    **table(
        ("mixed_3a", "features.3", {"conv_3x3": conv("conv")}),
        ("mixed_4a", "features.4", MIXED_4A),
        ("mixed_5a", "features.5", {"conv_3x3": conv("conv")}),
        *((f"mixed_5{letter}", f"features.{number}", INCEPTION_A) for number, letter in enumerate("bcde", 6)),
        ("mixed_6a", "features.10", REDUCTION_A),
        *((f"mixed_6{letter}", f"features.{number}", INCEPTION_B) for number, letter in enumerate("bcdefgh", 11)),
        ("mixed_7a", "features.18", REDUCTION_B),
        *((f"mixed_7{letter}", f"features.{number}", INCEPTION_C) for number, letter in enumerate("bcd", 19)),
    ),
    "classifier": linear("last_linear"),
}

# --- inceptionresnetv2.py --------------------------------------------------------------------------------------------

MIXED_5B: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_5x5_reduce", "conv_5x5"),
    **convs("branch2.{}", *DOUBLE_3X3),
    "pool_proj": conv("branch3.1"),
}
BLOCK35: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_3x3_reduce", "conv_3x3"),
    **convs("branch2.{}", *DOUBLE_3X3),
    "up": conv_without_norm("conv2d"),
}
BLOCK17: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_7x7_reduce", "conv_1x7", "conv_7x1"),
    "up": conv_without_norm("conv2d"),
}
MIXED_7A: Table = {
    **convs("branch0.{}", "conv_3x3_1_reduce", "conv_3x3_1"),
    **convs("branch1.{}", "conv_3x3_2_reduce", "conv_3x3_2"),
    **convs("branch2.{}", *DOUBLE_3X3),
}
BLOCK8: Table = {
    "conv_1x1": conv("branch0"),
    **convs("branch1.{}", "conv_3x3_reduce", "conv_1x3", "conv_3x1"),
    "up": conv_without_norm("conv2d"),
}


def repeated(ours: str, theirs: str, count: int, units: Table) -> tuple[tuple[str, str, Table], ...]:
    """Rows of `table` for a Sequential of residual blocks: ours are numbered from 1, theirs from 0."""
    return tuple((f"{ours}_{number + 1}", f"{theirs}.{number}", units) for number in range(count))


RESNET_STEM: Table = {name: conv(name.rpartition("_")[0]) for name in STEM}
RESNET_V2_TRUNK: Table = {
    **RESNET_STEM,
    **table(
        ("mixed_5b", "mixed_5b", MIXED_5B),
        *repeated("block35", "repeat", 10, BLOCK35),
        ("mixed_6a", "mixed_6a", REDUCTION_A),
        *repeated("block17", "repeat_1", 20, BLOCK17),
        ("mixed_7a", "mixed_7a", MIXED_7A),
        *repeated("block8", "repeat_2", 9, BLOCK8),
        ("block8_10", "block8", BLOCK8),  # scale 1, no ReLU
    ),
    "conv2d_7b_1x1": conv("conv2d_7b"),
}

# --- xception.py: a Sequential `rep` per block, ReLUs and pools counted; their block1 is Keras's block2 --------------


def _separable(sequential: str, position: int) -> ModuleNames:
    """A separable convolution at a position of a Sequential; its batch norm is the next module."""
    at = f"{sequential}.{position}"
    return ModuleNames(f"{at}.conv1", f"{sequential}.{position + 1}", pointwise=f"{at}.pointwise")


_NO_FIRST_RELU: Table = {"sepconv1": _separable("rep", 0), "sepconv2": _separable("rep", 3)}
_TWO: Table = {"sepconv1": _separable("rep", 1), "sepconv2": _separable("rep", 4)}
_THREE: Table = {**_TWO, "sepconv3": _separable("rep", 7)}
_SHORTCUT: Table = {"shortcut": ModuleNames("skip", "skipbn")}

XCEPTION_TRUNK: Table = {
    "block1_conv1": ModuleNames("conv1", "bn1"),
    "block1_conv2": ModuleNames("conv2", "bn2"),
    **table(
        ("block2", "block1", {**_NO_FIRST_RELU, **_SHORTCUT}),
        ("block3", "block2", {**_TWO, **_SHORTCUT}),
        ("block4", "block3", {**_TWO, **_SHORTCUT}),
        *((f"block{number + 1}", f"block{number}", _THREE) for number in range(4, 12)),
        ("block13", "block12", {**_TWO, **_SHORTCUT}),
    ),
    "block14/sepconv1": ModuleNames("conv3.conv1", "bn3", pointwise="conv3.pointwise"),
    "block14/sepconv2": ModuleNames("conv4.conv1", "bn4", pointwise="conv4.pointwise"),
}

# ---------------------------------------------------------------------------------------------------------------------

VARIANTS = by_model(
    make_variant(
        "cadene",
        "inception_v2",
        BN_INCEPTION,
        "pretrainedmodels.models.bninception.BNInception",
        BN_INCEPTION_OPTIONS,
        image_size=224,
        other_size=227,  # its last pool needs 7x7 pixels, and its concatenations maps of even size before 3c and 4e
    ),
    make_variant(
        "cadene",
        "inception_v4",
        INCEPTION_V4,
        "pretrainedmodels.models.inceptionv4.InceptionV4",
        {"dropout_rate": 0.0},
        other_size=300,  # its last pool needs 8x8 pixels
        num_classes=1001,
        background=True,
    ),
    make_variant(
        "cadene",
        "inception_resnet_v2",
        {**RESNET_V2_TRUNK, "classifier": linear("last_linear")},
        "pretrainedmodels.models.inceptionresnetv2.InceptionResNetV2",
        {"dropout_rate": 0.5},
        other_size=300,  # its last pool needs 8x8 pixels
        num_classes=1001,
        background=True,
    ),
    make_variant(
        "cadene",
        "xception",
        {**XCEPTION_TRUNK, "classifier": linear("last_linear")},
        "pretrainedmodels.models.xception.Xception",
        XCEPTION_OPTIONS,
        # The published file was written before the network's classifier was renamed.
        naming=dataclasses.replace(
            NAMING, aliases=(("fc.weight", "last_linear.weight"), ("fc.bias", "last_linear.bias"))
        ),
    ),
)
