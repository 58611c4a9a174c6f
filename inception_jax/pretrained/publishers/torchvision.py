"""Name maps of torchvision (torchvision/models/googlenet.py and inception.py)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.torch_units import (
    Table,
    conv,
    convs,
    linear,
    make_variant,
    table,
)
from inception_jax.pretrained.variants import DOUBLE_3X3, STEM, by_model

# googlenet.py, class Inception.
INCEPTION: Table = {
    "conv_1x1": conv("branch1"),
    **convs("branch2.{}", "conv_3x3_reduce", "conv_3x3"),
    **convs("branch3.{}", "conv_5x5_reduce", "conv_5x5"),
    "pool_proj": conv("branch4.1"),
}
# googlenet.py, class InceptionAux: fc1 reads the 4x4 feature map of the convolution.
AUX_V1: Table = {"conv": conv("conv"), "fc": linear("fc1", flattened=4), "classifier": linear("fc2")}

GOOGLENET: Table = {
    **convs("conv{}", "conv1", "conv2_reduce", "conv2", first=1),
    **table(
        *(
            (f"inception_{module}", f"inception{module}", INCEPTION)
            for module in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
        )
    ),
    **table(("aux1", "aux1", AUX_V1), ("aux2", "aux2", AUX_V1)),
    "classifier": linear("fc"),
}

# inception.py, classes InceptionA to InceptionE and InceptionAux.
INCEPTION_A: Table = {
    "conv_1x1": conv("branch1x1"),
    **convs("branch5x5_{}", "conv_5x5_reduce", "conv_5x5", first=1),
    **convs("branch3x3dbl_{}", *DOUBLE_3X3, first=1),
    "pool_proj": conv("branch_pool"),
}
INCEPTION_B: Table = {"conv_3x3": conv("branch3x3"), **convs("branch3x3dbl_{}", *DOUBLE_3X3, first=1)}
INCEPTION_C: Table = {
    "conv_1x1": conv("branch1x1"),
    **convs("branch7x7_{}", "conv_7x7_reduce", "conv_1x7", "conv_7x1", first=1),
    **convs(
        "branch7x7dbl_{}",
        "double_7x7_reduce",
        "double_7x1_1",
        "double_1x7_1",
        "double_7x1_2",
        "double_1x7_2",
        first=1,
    ),
    "pool_proj": conv("branch_pool"),
}
INCEPTION_D: Table = {
    **convs("branch3x3_{}", "conv_3x3_reduce", "conv_3x3", first=1),
    **convs("branch7x7x3_{}", "conv_7x7_reduce", "conv_1x7", "conv_7x1", "conv_7x7_3x3", first=1),
}
INCEPTION_E: Table = {
    "conv_1x1": conv("branch1x1"),
    "conv_3x3_reduce": conv("branch3x3_1"),
    "conv_1x3": conv("branch3x3_2a"),
    "conv_3x1": conv("branch3x3_2b"),
    **convs("branch3x3dbl_{}", "double_3x3_reduce", "double_3x3", first=1),
    "double_1x3": conv("branch3x3dbl_3a"),
    "double_3x1": conv("branch3x3dbl_3b"),
    "pool_proj": conv("branch_pool"),
}
AUX_V3: Table = {"conv_1x1": conv("conv0"), "conv_5x5": conv("conv1"), "classifier": linear("fc")}

INCEPTION_V3: Table = {
    **{name: conv(name.capitalize()) for name in STEM},
    **table(
        *((f"mixed_5{letter}", f"Mixed_5{letter}", INCEPTION_A) for letter in "bcd"),
        ("mixed_6a", "Mixed_6a", INCEPTION_B),
        *((f"mixed_6{letter}", f"Mixed_6{letter}", INCEPTION_C) for letter in "bcde"),
        ("aux", "AuxLogits", AUX_V3),
        ("mixed_7a", "Mixed_7a", INCEPTION_D),
        *((f"mixed_7{letter}", f"Mixed_7{letter}", INCEPTION_E) for letter in "bc"),
    ),
    "classifier": linear("fc"),
}

VARIANTS = by_model(
    make_variant(
        "torchvision",
        "inception_v1_bn",
        GOOGLENET,
        "torchvision.models.googlenet.GoogLeNet",
        # The 3x3 instead of the 5x5 is torchvision's own known bug (its issue 906), the 2x2 pool is slim's.
        {
            "five_by_five": 3,
            "pool4_window": 2,
            "conv1_padding": "caffe",
            "pool_rounding": "caffe",
            "aux_pool": "adaptive",
            "dropout_rate": 0.2,
            "aux_dropout_rate": 0.7,
        },
        image_size=224,
        aux_heads=True,
    ),
    make_variant(
        "torchvision",
        "inception_v3",
        INCEPTION_V3,
        "torchvision.models.inception.Inception3",
        {"count_include_pad": True, "dropout_rate": 0.5},
        aux_heads=True,
    ),
)
