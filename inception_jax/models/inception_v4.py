"""Inception-v4 (arXiv:1602.07261), as Google's code has it (tensorflow/models, research/slim/nets/inception_v4.py).

Where the paper's figures and the code differ, this is the code, from which the published weights come: the last
convolution of the stem has stride 2 (Figure 3 prints none, though its output is 35x35), Inception-B's middle branch
is 1x7 then 7x1 (Figure 5 prints 1x7 twice), and an auxiliary head, which the paper does not show, reads the last
Inception-B module. The figures also transpose some 1x7 and 7x1: `order="paper_notes"` makes these.
"""

from __future__ import annotations

import flax.core
import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.atrous import OUTPUT_STRIDES, atrous, stride_32_pixels
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import AvgPool, Block, Branch, Conv, MaxPool, ParallelConvs, run_block
from inception_jax.models.heads import CLASSIFIER_SITE, AuxHeadV4, classifier, dropout
from inception_jax.models.initialization import slim_variance_scaling, slim_xavier
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

# Figure 3: the stem, 299x299x3 to 35x35x384. First three convolutions in a row, then three modules.
STEM: dict[str, Block] = {
    "conv2d_1a_3x3": Conv("conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    "conv2d_2a_3x3": Conv("conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    "conv2d_2b_3x3": Conv("conv2d_2b_3x3", 64, (3, 3)),
}
MIXED_3A: tuple[Branch, ...] = (
    (MaxPool(3, 2, "VALID"),),
    (Conv("conv_3x3", 96, (3, 3), 2, "VALID"),),
)
MIXED_4A: tuple[Branch, ...] = (
    (Conv("conv_3x3_reduce", 64, (1, 1)), Conv("conv_3x3", 96, (3, 3), 1, "VALID")),
    (
        Conv("conv_7x7_reduce", 64, (1, 1)),
        Conv("conv_1x7", 64, (1, 7)),
        Conv("conv_7x1", 64, (7, 1)),
        Conv("conv_7x7_3x3", 96, (3, 3), 1, "VALID"),
    ),
)
MIXED_5A: tuple[Branch, ...] = (
    (Conv("conv_3x3", 192, (3, 3), 2, "VALID"),),
    (MaxPool(3, 2, "VALID"),),
)
# Figure 4: 35x35x384 to the same.
INCEPTION_A: tuple[Branch, ...] = (
    (Conv("conv_1x1", 96, (1, 1)),),
    (Conv("conv_3x3_reduce", 64, (1, 1)), Conv("conv_3x3", 96, (3, 3))),
    (
        Conv("double_3x3_reduce", 64, (1, 1)),
        Conv("double_3x3_1", 96, (3, 3)),
        Conv("double_3x3_2", 96, (3, 3)),
    ),
    (AvgPool(3, 1, "SAME"), Conv("pool_proj", 96, (1, 1))),
)
# Figure 7 with Table 1's k = 192, l = 224, m = 256, n = 384: 35x35x384 to 17x17x1024.
REDUCTION_A: tuple[Branch, ...] = (
    (Conv("conv_3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("double_3x3_reduce", 192, (1, 1)),
        Conv("double_3x3_1", 224, (3, 3)),
        Conv("double_3x3_2", 256, (3, 3), 2, "VALID"),
    ),
    (MaxPool(3, 2, "VALID"),),
)
# Figure 5: 17x17x1024 to the same.
INCEPTION_B: tuple[Branch, ...] = (
    (Conv("conv_1x1", 384, (1, 1)),),
    (Conv("conv_7x7_reduce", 192, (1, 1)), Conv("conv_1x7", 224, (1, 7)), Conv("conv_7x1", 256, (7, 1))),
    (
        Conv("double_7x7_reduce", 192, (1, 1)),
        Conv("double_7x1_1", 192, (7, 1)),
        Conv("double_1x7_1", 224, (1, 7)),
        Conv("double_7x1_2", 224, (7, 1)),
        Conv("double_1x7_2", 256, (1, 7)),
    ),
    (AvgPool(3, 1, "SAME"), Conv("pool_proj", 128, (1, 1))),
)
# Figure 8: 17x17x1024 to 8x8x1536.
REDUCTION_B: tuple[Branch, ...] = (
    (Conv("conv_3x3_reduce", 192, (1, 1)), Conv("conv_3x3", 192, (3, 3), 2, "VALID")),
    (
        Conv("conv_7x7_reduce", 256, (1, 1)),
        Conv("conv_1x7", 256, (1, 7)),
        Conv("conv_7x1", 320, (7, 1)),
        Conv("conv_7x7_3x3", 320, (3, 3), 2, "VALID"),
    ),
    (MaxPool(3, 2, "VALID"),),
)
# Figure 6: 8x8x1536 to the same.
INCEPTION_C: tuple[Branch, ...] = (
    (Conv("conv_1x1", 256, (1, 1)),),
    (
        Conv("conv_3x3_reduce", 384, (1, 1)),
        ParallelConvs((Conv("conv_1x3", 256, (1, 3)), Conv("conv_3x1", 256, (3, 1)))),
    ),
    (
        Conv("double_3x3_reduce", 384, (1, 1)),
        Conv("double_3x1_1", 448, (3, 1)),
        Conv("double_1x3_1", 512, (1, 3)),
        ParallelConvs((Conv("double_1x3_2", 256, (1, 3)), Conv("double_3x1_2", 256, (3, 1)))),
    ),
    (AvgPool(3, 1, "SAME"), Conv("pool_proj", 256, (1, 1))),
)

# Figure 9, under slim's names of the endpoints in lower case: the stem, 4 x A, reduction, 7 x B, reduction, 3 x C.
MODULES: dict[str, Block] = {
    "mixed_3a": MIXED_3A,
    "mixed_4a": MIXED_4A,
    "mixed_5a": MIXED_5A,
    **{f"mixed_5{letter}": INCEPTION_A for letter in "bcde"},
    "mixed_6a": REDUCTION_A,
    **{f"mixed_6{letter}": INCEPTION_B for letter in "bcdefgh"},
    "mixed_7a": REDUCTION_B,
    **{f"mixed_7{letter}": INCEPTION_C for letter in "bcd"},
}
# What `order="paper_notes"` replaces: 7x1 comes before 1x7 in the stem, 1x7 is first in the long branch of Inception-B.
NOTES_MIXED_4A: tuple[Branch, ...] = (
    MIXED_4A[0],
    (
        Conv("conv_7x7_reduce", 64, (1, 1)),
        Conv("conv_7x1", 64, (7, 1)),
        Conv("conv_1x7", 64, (1, 7)),
        Conv("conv_7x7_3x3", 96, (3, 3), 1, "VALID"),
    ),
)
NOTES_INCEPTION_B: tuple[Branch, ...] = (
    *INCEPTION_B[:2],
    (
        Conv("double_7x7_reduce", 192, (1, 1)),
        Conv("double_1x7_1", 192, (1, 7)),
        Conv("double_7x1_1", 224, (7, 1)),
        Conv("double_1x7_2", 224, (1, 7)),
        Conv("double_7x1_2", 256, (7, 1)),
    ),
    INCEPTION_B[3],
)
ORDERS: dict[str, dict[str, Block]] = {
    "code": MODULES,
    "paper_notes": MODULES
    | {"mixed_4a": NOTES_MIXED_4A}
    | {name: NOTES_INCEPTION_B for name, block in MODULES.items() if block is INCEPTION_B},
}
AUX_HEAD = ("mixed_6h", "aux")  # the head `aux` reads the last Inception-B
AUX_STRIDE = 16  # distance in pixels of the image between neighbouring pixels of the map that the head reads

# The last two are slim's in evaluation: in training its PreLogitsFlatten is after dropout.
SLIM_NAMES: flax.core.FrozenDict[str, str] = flax.core.FrozenDict(
    {name.capitalize(): name for name in (*STEM, *MODULES)}
    | {"AvgPool_1a": "global_pool", "PreLogitsFlatten": "global_pool"}
)


class InceptionV4(BaseNetwork):
    """Inception-v4. The defaults are slim's: dropout keep 0.8, batch norm with epsilon 0.001 and decay 0.9997.

    One switch differs: with `bn_scale=True` every batch norm has a scale and a shift, as in the ports of the weights to
    PyTorch (42,679,816 parameters); slim has only the shift (`bn_scale=False`: 42,648,232). The running statistics
    change slowly: for runs of fewer than about 10,000 steps use a lower `bn_momentum`. Average pools do not count
    padding.

    The options of all networks are in `BaseNetwork`.

    Attributes:
      output_stride: 32, or 16 or 8: see atrous.py. The auxiliary head reads only the pixels of the stride-32 network;
        the global pool averages all pixels.
      order: of the 1x7 and 7x1 convolutions. "code": slim's, in which the weights were published: 1x7 before 7x1 in
        the stem (mixed_4a); in Inception-B 1x7 then 7x1 in the middle branch, and 7x1, 1x7, 7x1, 1x7 in the long one.
        "paper_notes": as notes on the paper list its figures: 7x1 before 1x7 in the stem, and 1x7, 7x1, 1x7, 7x1 in
        Inception-B's long branch. The figure of Inception-B prints 1x7 twice in the middle branch; here it is 1x7 then
        7x1 in both orders. Inception-C and the reductions are the code's in both, too. Output shapes, parameters and
        multiply-adds are the same, the function is another one: weights are of one order.
    """

    NAME = "inception_v4"
    MIN_IMAGE_SIZE = 75  # the VALID stem and reductions leave one pixel
    dropout_rate: float = 0.2
    output_stride: int = 32
    order: str = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice("order", self.order, tuple(ORDERS))
        checks.check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, with one head.

        Endpoints: conv2d_1a_3x3, conv2d_2a_3x3, conv2d_2b_3x3, mixed_3a ... mixed_7d, global_pool; slim's names work,
        too.
        """
        options = self.layer_options(slim_variance_scaling, slim_xavier)
        endpoints: dict[str, jax.Array] = {}
        aux_logits: list[jax.Array] = []
        for name, block in atrous(STEM | ORDERS[self.order], self.output_stride).items():
            x = endpoints[name] = run_block(name, block, options, x, train)
            if name == AUX_HEAD[0] and self.runs_heads(train):
                head = AuxHeadV4(self.num_classes, options, name=AUX_HEAD[1])
                aux_logits.append(head(stride_32_pixels(x, AUX_STRIDE, self.output_stride), train=train))
        x = endpoints["global_pool"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, tuple(aux_logits) if train else (), endpoints, SLIM_NAMES)
