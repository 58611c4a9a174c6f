"""Inception-v3 (arXiv:1512.00567), as Google's code has it (google-research/tf-slim, tf_slim/nets/inception_v3.py).

Where the paper and the code differ, this is the code, from which all published weights come: the stem has a 1x1
convolution to 80, a 3x3 to 192 and a max pool where Table 1 prints three 3x3 convolutions (80, 192 with stride 2, 288);
the first modules have a 5x5 branch and the two 3x3 of Figure 5; the 17x17 grid has four modules and a reduction where
Table 1 counts five.
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
from inception_jax.models.initialization import TruncatedNormal, slim_variance_scaling
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

# Table 1 as in the code: 299x299x3 to 35x35x192.
STEM: dict[str, Block] = {
    "conv2d_1a_3x3": Conv("conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    "conv2d_2a_3x3": Conv("conv2d_2a_3x3", 32, (3, 3), 1, "VALID"),
    "conv2d_2b_3x3": Conv("conv2d_2b_3x3", 64, (3, 3)),
    "maxpool_3a": MaxPool(3, 2, "VALID"),
    "conv2d_3b_1x1": Conv("conv2d_3b_1x1", 80, (1, 1)),
    "conv2d_4a_3x3": Conv("conv2d_4a_3x3", 192, (3, 3), 1, "VALID"),
    "maxpool_5a": MaxPool(3, 2, "VALID"),
}
# Figure 10 on the 35x35 grid: 35x35x288 to 17x17x768.
REDUCTION_A: tuple[Branch, ...] = (
    (Conv("conv_3x3", 384, (3, 3), 2, "VALID"),),
    (
        Conv("double_3x3_reduce", 64, (1, 1)),
        Conv("double_3x3_1", 96, (3, 3)),
        Conv("double_3x3_2", 96, (3, 3), 2, "VALID"),
    ),
    (MaxPool(3, 2, "VALID"),),
)
# The reduction of the 17x17 grid: 17x17x768 to 8x8x1280.
REDUCTION_B: tuple[Branch, ...] = (
    (Conv("conv_3x3_reduce", 192, (1, 1)), Conv("conv_3x3", 320, (3, 3), 2, "VALID")),
    (
        Conv("conv_7x7_reduce", 192, (1, 1)),
        Conv("conv_1x7", 192, (1, 7)),
        Conv("conv_7x1", 192, (7, 1)),
        Conv("conv_7x7_3x3", 192, (3, 3), 2, "VALID"),
    ),
    (MaxPool(3, 2, "VALID"),),
)


def inception_a(pool_proj: int, pool: AvgPool) -> tuple[Branch, ...]:
    """Figure 5 with a 5x5 branch: 35x35 to 35x35x(224 + pool_proj)."""
    return (
        (Conv("conv_1x1", 64, (1, 1)),),
        (Conv("conv_5x5_reduce", 48, (1, 1)), Conv("conv_5x5", 64, (5, 5))),
        (Conv("double_3x3_reduce", 64, (1, 1)), Conv("double_3x3_1", 96, (3, 3)), Conv("double_3x3_2", 96, (3, 3))),
        (pool, Conv("pool_proj", pool_proj, (1, 1))),
    )


def inception_b(width: int, pool: AvgPool) -> tuple[Branch, ...]:
    """Figure 6 with n = 7: 17x17x768 to the same, `width` filters inside the factorized branches."""
    return (
        (Conv("conv_1x1", 192, (1, 1)),),
        (Conv("conv_7x7_reduce", width, (1, 1)), Conv("conv_1x7", width, (1, 7)), Conv("conv_7x1", 192, (7, 1))),
        (
            Conv("double_7x7_reduce", width, (1, 1)),
            Conv("double_7x1_1", width, (7, 1)),
            Conv("double_1x7_1", width, (1, 7)),
            Conv("double_7x1_2", width, (7, 1)),
            Conv("double_1x7_2", 192, (1, 7)),
        ),
        (pool, Conv("pool_proj", 192, (1, 1))),
    )


def inception_c(pool: AvgPool | MaxPool) -> tuple[Branch, ...]:
    """Figure 7: 8x8 to 8x8x2048."""
    return (
        (Conv("conv_1x1", 320, (1, 1)),),
        (
            Conv("conv_3x3_reduce", 384, (1, 1)),
            ParallelConvs((Conv("conv_1x3", 384, (1, 3)), Conv("conv_3x1", 384, (3, 1)))),
        ),
        (
            Conv("double_3x3_reduce", 448, (1, 1)),
            Conv("double_3x3", 384, (3, 3)),
            ParallelConvs((Conv("double_1x3", 384, (1, 3)), Conv("double_3x1", 384, (3, 1)))),
        ),
        (pool, Conv("pool_proj", 192, (1, 1))),
    )


def blocks(count_include_pad: bool = False, last_pool: str = "avg") -> dict[str, Block]:
    """The trunk under slim's names of the endpoints in lower case: the stem, 3 x A, reduction, 4 x B, reduction, 2 x C.

    Arguments are the switches of `InceptionV3`.
    """
    pool = AvgPool(3, 1, "SAME", count_include_pad)
    return STEM | {
        "mixed_5b": inception_a(32, pool),
        "mixed_5c": inception_a(64, pool),
        "mixed_5d": inception_a(64, pool),
        "mixed_6a": REDUCTION_A,
        "mixed_6b": inception_b(128, pool),
        "mixed_6c": inception_b(160, pool),
        "mixed_6d": inception_b(160, pool),
        "mixed_6e": inception_b(192, pool),
        "mixed_7a": REDUCTION_B,
        "mixed_7b": inception_c(pool),
        "mixed_7c": inception_c(MaxPool(3, 1, "SAME") if last_pool == "max" else pool),
    }


AUX_HEAD = ("mixed_6e", "aux")  # the head `aux` reads the last module of the 17x17 grid
AUX_STRIDE = 16  # distance in pixels of the image between neighbouring pixels of the map that the head reads
# slim's standard deviations (inception_v3.py: trunc_normal(0.01), trunc_normal(0.001)).
AUX_CONV_INIT, AUX_CLASSIFIER_INIT = TruncatedNormal(0.01), TruncatedNormal(0.001)

# The last two are slim's in evaluation: in training its PreLogits is after dropout.
SLIM_NAMES: flax.core.FrozenDict[str, str] = flax.core.FrozenDict(
    {
        "Conv2d_1a_3x3": "conv2d_1a_3x3",
        "Conv2d_2a_3x3": "conv2d_2a_3x3",
        "Conv2d_2b_3x3": "conv2d_2b_3x3",
        "MaxPool_3a_3x3": "maxpool_3a",
        "Conv2d_3b_1x1": "conv2d_3b_1x1",
        "Conv2d_4a_3x3": "conv2d_4a_3x3",
        "MaxPool_5a_3x3": "maxpool_5a",
        **{name.capitalize(): name for name in blocks() if name.startswith("mixed")},
        "AvgPool_1a": "global_pool",
        "PreLogits": "global_pool",
    }
)


class InceptionV3(BaseNetwork):
    """Inception-v3. The defaults are slim's: dropout keep 0.8, batch norm with epsilon 0.001 and decay 0.9997.

    One switch differs: with `bn_scale=True` every batch norm has a scale and a shift, as in torchvision and timm
    (23,834,568 parameters); slim and Keras have only the shift (`bn_scale=False`: 23,817,352). The running statistics
    change slowly: for runs of fewer than about 10,000 steps use a lower `bn_momentum`.

    The network of the Fréchet inception distance (Google's inception-2015-12-05, arXiv:1706.08500) is
    `last_pool="max", num_classes=1008, aux_heads=False`; it is measured on the endpoints maxpool_3a (64 channels),
    maxpool_5a (192), mixed_6e (768) and global_pool (2048).

    The options of all networks are in `BaseNetwork`.

    Attributes:
      count_include_pad: whether the modules' average pools count padding and divide by 9 at the border, too, as in
        torchvision and timm; TensorFlow's divide by the number of pixels inside the map.
      last_pool: pool of the last module, mixed_7c: "avg", or "max" as in the network of the FID.
      output_stride: 32, or 16 or 8: see atrous.py. The auxiliary head reads only the pixels of the stride-32 network;
        the global pool averages all pixels.
    """

    NAME = "inception_v3"
    MIN_IMAGE_SIZE = 75  # the VALID stem and reductions leave one pixel
    dropout_rate: float = 0.2
    count_include_pad: bool = False
    last_pool: str = "avg"
    output_stride: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice("last_pool", self.last_pool, ("avg", "max"))
        checks.check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, with one head.

        Endpoints: conv2d_1a_3x3, conv2d_2a_3x3, conv2d_2b_3x3, maxpool_3a, conv2d_3b_1x1, conv2d_4a_3x3, maxpool_5a,
        mixed_5b ... mixed_7c, global_pool; slim's names work, too.
        """
        # slim's classifier is a 1x1 convolution, and is initialized as one.
        options = self.layer_options(slim_variance_scaling, slim_variance_scaling)
        endpoints: dict[str, jax.Array] = {}
        aux_logits: list[jax.Array] = []
        for name, block in atrous(blocks(self.count_include_pad, self.last_pool), self.output_stride).items():
            x = endpoints[name] = run_block(name, block, options, x, train)
            if name == AUX_HEAD[0] and self.runs_heads(train):
                head = AuxHeadV4(self.num_classes, options, AUX_CONV_INIT, AUX_CLASSIFIER_INIT, name=AUX_HEAD[1])
                aux_logits.append(head(stride_32_pixels(x, AUX_STRIDE, self.output_stride), train=train))
        x = endpoints["global_pool"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, tuple(aux_logits) if train else (), endpoints, SLIM_NAMES)
