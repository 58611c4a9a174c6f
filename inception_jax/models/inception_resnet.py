"""The common part of Inception-ResNet-v1 and -v2 (arXiv:1602.07261, section 3.2): blocks, reductions, base class.

Strides, paddings and scales that the figures do not give are those of the released code (tensorflow/models,
research/slim/nets/inception_resnet_v2.py) and, for version 1, of facenet's copy of it (davidsandberg/facenet,
src/models/inception_resnet_v1.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import flax.core
import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.atrous import OUTPUT_STRIDES, atrous, stride_32_pixels
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import Block, Branch, Conv, MaxPool, Residual, run_block
from inception_jax.models.heads import AuxHeadV4
from inception_jax.models.inception_v3 import STEM as STEM_V3
from inception_jax.models.layers import LayerOptions

AUX_STRIDE = 16  # distance in pixels of the image between neighbouring pixels of the map that the head reads

# The first layers of Inception-v3, 299x299x3 to 71x71x192: all but its second pool.
STEM = {name: block for name, block in STEM_V3.items() if name != "maxpool_5a"}

# slim's and facenet's names of endpoints. Their PreLogitsFlatten is after dropout, which evaluation does not have.
SLIM_NAMES = {
    "MaxPool_3a_3x3": "maxpool_3a",
    "MaxPool_5a_3x3": "maxpool_5a",
    **{
        name.capitalize(): name
        for name in (
            "conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3", "conv2d_3b_1x1", "conv2d_4a_3x3", "conv2d_4b_3x3",
            "mixed_5b", "mixed_6a", "mixed_7a", "conv2d_7b_1x1",
        )
    },
    "PreLogitsFlatten": "global_pool",
    "Bottleneck": "embedding",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InceptionResnetWidths:
    """Filters in which the two versions differ, in the order of a module's branches.

    Attributes:
      block35: the two 3x3 of the third branch (Figures 10 and 16); all others there are 32.
      block17: 1x1, then 1x7 and 7x1 after a 1x1 of 128 (Figures 11 and 17).
      block8: 1x3 and 3x1 (Figures 13 and 19); the 1x1 are 192.
      reduction_a: k, l, m, n of Table 1 of the paper.
      reduction_b: the second branch's 3x3, then the third's two (Figures 12 and 18); the others are 256, 384.
    """

    block35: tuple[int, int]
    block17: tuple[int, int, int]
    block8: tuple[int, int]
    reduction_a: tuple[int, int, int, int]
    reduction_b: tuple[int, int, int]


# Factors on the residuals. The paper says between 0.1 and 0.3 (section 3.3); these are the released code's, for both
# versions, and facenet's.
BLOCK35_SCALE, BLOCK17_SCALE, BLOCK8_SCALE = 0.17, 0.10, 0.20


def block35(widths: InceptionResnetWidths) -> tuple[Branch, ...]:
    """Figures 10 and 16: Inception-ResNet-A, on 35x35 maps."""
    first, second = widths.block35
    return (
        (Conv("conv_1x1", 32, (1, 1)),),
        (Conv("conv_3x3_reduce", 32, (1, 1)), Conv("conv_3x3", 32, (3, 3))),
        (
            Conv("double_3x3_reduce", 32, (1, 1)),
            Conv("double_3x3_1", first, (3, 3)),
            Conv("double_3x3_2", second, (3, 3)),
        ),
    )


def reduction_a(widths: InceptionResnetWidths) -> tuple[Branch, ...]:
    """Figure 7: 35x35 to 17x17."""
    k, l, m, n = widths.reduction_a  # noqa: E741 (the paper's letters)
    return (
        (Conv("conv_3x3", n, (3, 3), 2, "VALID"),),
        (
            Conv("double_3x3_reduce", k, (1, 1)),
            Conv("double_3x3_1", l, (3, 3)),
            Conv("double_3x3_2", m, (3, 3), 2, "VALID"),
        ),
        (MaxPool(3, 2, "VALID"),),
    )


def block17(widths: InceptionResnetWidths) -> tuple[Branch, ...]:
    """Figures 11 and 17: Inception-ResNet-B, on 17x17 maps."""
    one, wide, high = widths.block17
    return (
        (Conv("conv_1x1", one, (1, 1)),),
        (Conv("conv_7x7_reduce", 128, (1, 1)), Conv("conv_1x7", wide, (1, 7)), Conv("conv_7x1", high, (7, 1))),
    )


def reduction_b(widths: InceptionResnetWidths) -> tuple[Branch, ...]:
    """Figures 12 and 18: 17x17 to 8x8."""
    second, third, last = widths.reduction_b
    return (
        (Conv("conv_3x3_1_reduce", 256, (1, 1)), Conv("conv_3x3_1", 384, (3, 3), 2, "VALID")),
        (Conv("conv_3x3_2_reduce", 256, (1, 1)), Conv("conv_3x3_2", second, (3, 3), 2, "VALID")),
        (
            Conv("double_3x3_reduce", 256, (1, 1)),
            Conv("double_3x3_1", third, (3, 3)),
            Conv("double_3x3_2", last, (3, 3), 2, "VALID"),
        ),
        (MaxPool(3, 2, "VALID"),),
    )


def block8(widths: InceptionResnetWidths) -> tuple[Branch, ...]:
    """Figures 13 and 19: Inception-ResNet-C, on 8x8 maps."""
    wide, high = widths.block8
    return (
        (Conv("conv_1x1", 192, (1, 1)),),
        (Conv("conv_3x3_reduce", 192, (1, 1)), Conv("conv_1x3", wide, (1, 3)), Conv("conv_3x1", high, (3, 1))),
    )


def repeated(kind: str, branches: tuple[Branch, ...], count: int) -> dict[str, Block]:
    """Returns {name: branches} of `count` equal blocks, numbered from 1."""
    return {f"{kind}_{number}": branches for number in range(1, count + 1)}


class InceptionResnet(BaseNetwork):
    """Base class of both versions: three kinds of residual blocks, a reduction after each of the first two.

    The options of all networks are in `BaseNetwork`.

    Attributes:
      block35_count, block17_count, block8_count: number of blocks of each kind; 0: the number in the network's source.
      block35_scale, block17_scale, block8_scale: factors on the residuals before they are added (section 3.3).
      output_stride: 32, or 16 or 8: see atrous.py. The auxiliary head reads only the pixels of the stride-32 network;
        the global pool, and batch norm in training, average all pixels.
    """

    MIN_IMAGE_SIZE = 75  # the VALID stem and reductions leave one pixel
    dropout_rate: float = 0.2
    block35_count: int = 0
    block17_count: int = 0
    block8_count: int = 0
    block35_scale: float = BLOCK35_SCALE
    block17_scale: float = BLOCK17_SCALE
    block8_scale: float = BLOCK8_SCALE
    output_stride: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("block35_count", "block17_count", "block8_count"):
            count = getattr(self, field)
            checks.check_number(
                field, count, "a number of blocks up to 1000, or 0 for the network's own", 0 <= count <= 1000
            )
        for field in ("block35_scale", "block17_scale", "block8_scale"):
            checks.check_number(field, getattr(self, field), "a finite number", math.isfinite(getattr(self, field)))
        checks.check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)

    @nn.nowrap
    def block_counts(self) -> tuple[int, int, int]:
        """The numbers of block35, block17 and block8."""
        asked = (self.block35_count, self.block17_count, self.block8_count)
        block35s, block17s, block8s = (a or own for a, own in zip(asked, self.default_counts(), strict=True))
        return block35s, block17s, block8s

    def run_trunk(
        self, x: jax.Array, train: bool, options: LayerOptions
    ) -> tuple[jax.Array, dict[str, jax.Array], tuple[jax.Array, ...]]:
        """Runs the trunk and the auxiliary head.

        Args:
          x: images [B, H, W, in_channels] in the network's dtype.
          train: whether batch statistics and the auxiliary head are on.
          options: the network's layer options.

        Returns:
          The last map, every block's map by name, and in training the logits of the auxiliary head (else `()`).
        """
        endpoints: dict[str, jax.Array] = {}
        aux_logits: tuple[jax.Array, ...] = ()
        last_block17 = f"block17_{self.block_counts()[1]}"
        for name, block in atrous(self.blocks(), self.output_stride).items():
            x = endpoints[name] = self._run(name, block, x, train, options)
            if name == last_block17 and self.runs_heads(train):
                head = AuxHeadV4(self.num_classes, options, name="aux")
                aux_logits = (head(stride_32_pixels(x, AUX_STRIDE, self.output_stride), train=train),)
        return x, endpoints, aux_logits if train else ()

    def slim_names(self, endpoints: Mapping[str, jax.Array]) -> flax.core.FrozenDict:
        """Maps slim's or facenet's names to ours, for the endpoints of this network."""
        *_, last = self.blocks()
        names = SLIM_NAMES | {"PreAuxLogits": f"block17_{self.block_counts()[1]}", "PrePool": last}
        return flax.core.FrozenDict({alias: name for alias, name in names.items() if name in endpoints})

    def _run(self, name: str, block: Block, x: jax.Array, train: bool, options: LayerOptions) -> jax.Array:
        """Runs one block of the trunk."""
        if not name.startswith("block"):
            return run_block(name, block, options, x, train)
        assert isinstance(block, tuple)  # a residual block has branches
        linear = name == self.block_without_relu()
        scale = 1.0 if linear else getattr(self, f"{name.partition('_')[0]}_scale")
        return Residual(block, options, scale, relu=not linear, name=name)(x, train=train)
