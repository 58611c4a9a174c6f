"""Inception-ResNet-v2 (arXiv:1602.07261), as released by Google and as in the paper's figures.

All published weights are of the released network (tensorflow/models, research/slim/nets/inception_resnet_v2.py), which
is not the one in Figure 15 and costs 1.4 times as much: it has Inception-v3's stem and one more module instead of
Inception-v4's stem, twice as many residual blocks, a last one without ReLU, and a 1x1 convolution to 1536 channels
before the classifier. The figures contradict themselves: Figures 17 and 19 print 1154 and 2048 channels, but the
reductions give 1152 and 2144, and both operands of a sum need the same number.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.blocks import AvgPool, Block, Branch, Conv, MaxPool, Operation, ParallelConvs
from inception_jax.models.heads import CLASSIFIER_SITE, classifier, dropout
from inception_jax.models.inception_resnet import (
    STEM,
    InceptionResnet,
    InceptionResnetWidths,
    block8,
    block17,
    block35,
    reduction_a,
    reduction_b,
    repeated,
)
from inception_jax.models.inception_v4 import MIXED_3A, MIXED_4A, MIXED_5A
from inception_jax.models.initialization import slim_variance_scaling, slim_xavier
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

# slim's Mixed_5b: 35x35x192 to 35x35x320.
MIXED_5B: tuple[Branch, ...] = (
    (Conv("conv_1x1", 96, (1, 1)),),
    (Conv("conv_5x5_reduce", 48, (1, 1)), Conv("conv_5x5", 64, (5, 5))),
    (Conv("double_3x3_reduce", 64, (1, 1)), Conv("double_3x3_1", 96, (3, 3)), Conv("double_3x3_2", 96, (3, 3))),
    (AvgPool(3, 1, "SAME"), Conv("pool_proj", 64, (1, 1))),
)
# The released network continues Inception-v3's stem with a pool and a module; the paper's has Inception-v4's stem
# (Figure 3), to 35x35x384.
STEM_V2: dict[str, Block] = {**STEM, "maxpool_5a": MaxPool(3, 2, "VALID"), "mixed_5b": MIXED_5B}
STEM_V4: dict[str, Block] = {
    **{name: STEM[name] for name in ("conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3")},
    "mixed_3a": MIXED_3A,
    "mixed_4a": MIXED_4A,
    "mixed_5a": MIXED_5A,
}
# Figures 16 to 19, and the row of Table 1.
WIDTHS = InceptionResnetWidths((48, 64), (192, 160, 192), (224, 256), (256, 256, 384, 384), (288, 288, 320))


class InceptionResnetV2(InceptionResnet):
    """Inception-ResNet-v2. The defaults are slim's: dropout keep 0.8, batch norm with epsilon 0.001 and decay 0.9997.

    One switch differs: with `bn_scale=True` every batch norm has a scale and a shift, as in the ports of the weights to
    PyTorch (55,843,464 parameters); slim has only the shift (`bn_scale=False`: 55,813,192).

    The options of both versions are in `InceptionResnet`, those of all networks in `BaseNetwork`.

    Attributes:
      form: "code" (the released network) or "paper" (the network of the figures): see the top of this file. With "code"
        the last block8 has scale 1 and no ReLU.
      align_feature_maps: pads with "SAME" where the network has "VALID" (slim's switch of that name): the pixels of
        every map are then aligned with every 2nd, 4th, ... pixel of an image of 32n + 1 pixels, its corners included.
    """

    NAME = "inception_resnet_v2"
    form: str = "code"
    align_feature_maps: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice("form", self.form, ("code", "paper"))

    def default_counts(self) -> tuple[int, int, int]:
        """The numbers of blocks in slim, or in Figure 15."""
        return (10, 20, 10) if self.form == "code" else (5, 10, 5)

    def blocks(self) -> dict[str, Block]:
        """The trunk at stride 32: slim's inception_resnet_v2_base, or Figure 15."""
        block35s, block17s, block8s = self.block_counts()
        code = self.form == "code"
        blocks = {
            **(STEM_V2 if code else STEM_V4),
            **repeated("block35", block35(WIDTHS), block35s),
            "mixed_6a": reduction_a(WIDTHS),
            **repeated("block17", block17(WIDTHS), block17s),
            "mixed_7a": reduction_b(WIDTHS),
            **repeated("block8", block8(WIDTHS), block8s),
            **({"conv2d_7b_1x1": Conv("conv2d_7b_1x1", 1536, (1, 1))} if code else {}),
        }
        return {name: _same(block) for name, block in blocks.items()} if self.align_feature_maps else blocks

    def block_without_relu(self) -> str | None:
        """The name of the block without ReLU, or None."""
        return f"block8_{self.block_counts()[2]}" if self.form == "code" else None

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, with one head.

        Endpoints: conv2d_1a_3x3 ... maxpool_5a, mixed_5b (or mixed_3a, mixed_4a, mixed_5a), block35_1 ..., mixed_6a,
        block17_1 ..., mixed_7a, block8_1 ..., conv2d_7b_1x1, global_pool.
        """
        options = self.layer_options(slim_variance_scaling, slim_xavier)
        x, endpoints, aux_logits = self.run_trunk(x, train, options)
        x = endpoints["global_pool"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, aux_logits, endpoints, self.slim_names(endpoints))


def _same(block: Block) -> Block:
    """Replaces every padding of a block by "SAME"."""
    if not isinstance(block, tuple):
        return dataclasses.replace(block, padding="SAME")
    return tuple(tuple(_same_operation(operation) for operation in branch) for branch in block)


def _same_operation(operation: Operation) -> Operation:
    if isinstance(operation, ParallelConvs):
        return ParallelConvs(tuple(dataclasses.replace(conv, padding="SAME") for conv in operation.convs))
    return dataclasses.replace(operation, padding="SAME")
