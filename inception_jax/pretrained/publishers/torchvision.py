"""Name maps of torchvision (torchvision/models/googlenet.py and inception.py)."""

from __future__ import annotations

from inception_jax.pretrained.publishers.torch_units import (
    BATCH_NORM,
    NAMING,
    Table,
    TorchNameMap,
    conv,
    linear,
    table,
)
from inception_jax.pretrained.variants import Variant

# googlenet.py, class Inception.
INCEPTION: Table = {
    "conv_1x1": conv("branch1"),
    "conv_3x3_reduce": conv("branch2.0"),
    "conv_3x3": conv("branch2.1"),
    "conv_5x5_reduce": conv("branch3.0"),
    "conv_5x5": conv("branch3.1"),
    "pool_proj": conv("branch4.1"),
}
# googlenet.py, class InceptionAux: fc1 reads the 4x4 feature map of the convolution.
AUX_V1: Table = {"conv": conv("conv"), "fc": linear("fc1", flattened=4), "classifier": linear("fc2")}

GOOGLENET: Table = {
    "conv1": conv("conv1"),
    "conv2_reduce": conv("conv2"),
    "conv2": conv("conv3"),
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
    "conv_5x5_reduce": conv("branch5x5_1"),
    "conv_5x5": conv("branch5x5_2"),
    "double_3x3_reduce": conv("branch3x3dbl_1"),
    "double_3x3_1": conv("branch3x3dbl_2"),
    "double_3x3_2": conv("branch3x3dbl_3"),
    "pool_proj": conv("branch_pool"),
}
INCEPTION_B: Table = {
    "conv_3x3": conv("branch3x3"),
    "double_3x3_reduce": conv("branch3x3dbl_1"),
    "double_3x3_1": conv("branch3x3dbl_2"),
    "double_3x3_2": conv("branch3x3dbl_3"),
}
INCEPTION_C: Table = {
    "conv_1x1": conv("branch1x1"),
    "conv_7x7_reduce": conv("branch7x7_1"),
    "conv_1x7": conv("branch7x7_2"),
    "conv_7x1": conv("branch7x7_3"),
    "double_7x7_reduce": conv("branch7x7dbl_1"),
    "double_7x1_1": conv("branch7x7dbl_2"),
    "double_1x7_1": conv("branch7x7dbl_3"),
    "double_7x1_2": conv("branch7x7dbl_4"),
    "double_1x7_2": conv("branch7x7dbl_5"),
    "pool_proj": conv("branch_pool"),
}
INCEPTION_D: Table = {
    "conv_3x3_reduce": conv("branch3x3_1"),
    "conv_3x3": conv("branch3x3_2"),
    "conv_7x7_reduce": conv("branch7x7x3_1"),
    "conv_1x7": conv("branch7x7x3_2"),
    "conv_7x1": conv("branch7x7x3_3"),
    "conv_7x7_3x3": conv("branch7x7x3_4"),
}
INCEPTION_E: Table = {
    "conv_1x1": conv("branch1x1"),
    "conv_3x3_reduce": conv("branch3x3_1"),
    "conv_1x3": conv("branch3x3_2a"),
    "conv_3x1": conv("branch3x3_2b"),
    "double_3x3_reduce": conv("branch3x3dbl_1"),
    "double_3x3": conv("branch3x3dbl_2"),
    "double_1x3": conv("branch3x3dbl_3a"),
    "double_3x1": conv("branch3x3dbl_3b"),
    "pool_proj": conv("branch_pool"),
}
AUX_V3: Table = {"conv_1x1": conv("conv0"), "conv_5x5": conv("conv1"), "classifier": linear("fc")}

INCEPTION_V3: Table = {
    "conv2d_1a_3x3": conv("Conv2d_1a_3x3"),
    "conv2d_2a_3x3": conv("Conv2d_2a_3x3"),
    "conv2d_2b_3x3": conv("Conv2d_2b_3x3"),
    "conv2d_3b_1x1": conv("Conv2d_3b_1x1"),
    "conv2d_4a_3x3": conv("Conv2d_4a_3x3"),
    **table(
        ("mixed_5b", "Mixed_5b", INCEPTION_A),
        ("mixed_5c", "Mixed_5c", INCEPTION_A),
        ("mixed_5d", "Mixed_5d", INCEPTION_A),
        ("mixed_6a", "Mixed_6a", INCEPTION_B),
        ("mixed_6b", "Mixed_6b", INCEPTION_C),
        ("mixed_6c", "Mixed_6c", INCEPTION_C),
        ("mixed_6d", "Mixed_6d", INCEPTION_C),
        ("mixed_6e", "Mixed_6e", INCEPTION_C),
        ("aux", "AuxLogits", AUX_V3),
        ("mixed_7a", "Mixed_7a", INCEPTION_D),
        ("mixed_7b", "Mixed_7b", INCEPTION_E),
        ("mixed_7c", "Mixed_7c", INCEPTION_E),
    ),
    "classifier": linear("fc"),
}

VARIANTS = {
    "inception_v1_bn": Variant(
        source="torchvision",
        model="inception_v1_bn",
        # The 3x3 instead of the 5x5 is torchvision's own known bug (its issue 906), the 2x2 pool is slim's.
        options={
            "five_by_five": 3,
            "pool4_window": 2,
            "conv1_padding": "caffe",
            "pool_rounding": "caffe",
            "aux_pool": "adaptive",
            "dropout_rate": 0.2,
            "aux_dropout_rate": 0.7,
            **BATCH_NORM,
        },
        source_array=TorchNameMap("torchvision", "inception_v1_bn", GOOGLENET),
        implementation="torchvision.models.googlenet.GoogLeNet",
        image_size=224,
        aux_heads=True,
        naming=NAMING,
    ),
    "inception_v3": Variant(
        source="torchvision",
        model="inception_v3",
        options={"count_include_pad": True, "dropout_rate": 0.5, **BATCH_NORM},
        source_array=TorchNameMap("torchvision", "inception_v3", INCEPTION_V3),
        implementation="torchvision.models.inception.Inception3",
        image_size=299,
        aux_heads=True,
        naming=NAMING,
    ),
}
