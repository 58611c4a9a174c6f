"""BN-Inception, the network of "Batch Normalization" (arXiv:1502.03167, Figure 5), which slim calls Inception-v2.

The defaults are Google's code (google-research/tf-slim, tf_slim/nets/inception_v2.py). The paper's table contradicts
itself: with the pool projections that it prints for 4c and 4d (128) these modules have 608 channels, but its column
of output sizes says 576, as in the code (96). It prints 13.6 million parameters; no reading of the table has so many.

The paper describes no auxiliary heads. The heads here are those of caffe-googlenet-bn (lim0606, train_val.prototxt), a
network of 576 channels with a dense stem: on 3c and 4e, batch norm also after the layers of 1024, weight 0.3, no
dropout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from inception_jax.models import checks
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import AvgPool, Branch, Conv, MaxPool, Mixed
from inception_jax.models.heads import CLASSIFIER_SITE, AuxHeadV2, classifier, dropout
from inception_jax.models.initialization import TruncatedNormal, slim_variance_scaling
from inception_jax.models.layers import ConvUnit, LayerOptions, SeparableConvUnit
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool


class InceptionV2Widths(NamedTuple):
    """Filters of one module: a row of Figure 5. A module without 1x1 branch and projection halves the map."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    double_3x3_reduce: int
    double_3x3: int
    pool_proj: int


# Figure 5 of arXiv:1502.03167: #1x1, #3x3 reduce, #3x3, double #3x3 reduce, double #3x3, pool proj.
PAPER_MODULES = {
    "3a": InceptionV2Widths(64, 64, 64, 64, 96, 32),
    "3b": InceptionV2Widths(64, 64, 96, 64, 96, 64),
    "3c": InceptionV2Widths(0, 128, 160, 64, 96, 0),
    "4a": InceptionV2Widths(224, 64, 96, 96, 128, 128),
    "4b": InceptionV2Widths(192, 96, 128, 96, 128, 128),
    "4c": InceptionV2Widths(160, 128, 160, 128, 160, 128),
    "4d": InceptionV2Widths(96, 128, 192, 160, 192, 128),
    "4e": InceptionV2Widths(0, 128, 192, 192, 256, 0),
    "5a": InceptionV2Widths(352, 192, 320, 160, 224, 128),
    "5b": InceptionV2Widths(352, 192, 320, 192, 224, 128),
}
TABLES = {
    "code": PAPER_MODULES
    | {name: PAPER_MODULES[name]._replace(pool_proj=96) for name in ("4c", "4d")},  # 576 channels, then 1024
    "paper": PAPER_MODULES,  # 608 channels, then 1056
}
MAX_POOLED = "5b"  # the only module whose projection follows a max pool
AUX_HEADS = {"3c": ("aux1", 4), "4e": ("aux2", 2)}  # module -> the head that reads it, and the size of its pooled map

# slim's standard deviations (inception_v2.py); its other convolutions are initialized by variance scaling.
STEM_INIT, REDUCE_INIT, PROJECTION_INIT = TruncatedNormal(1.0), TruncatedNormal(0.09), TruncatedNormal(0.1)

# slim counts a module that halves the map among those after it: its 4a is the paper's 3c.
SLIM_NAMES: flax.core.FrozenDict[str, str] = flax.core.FrozenDict(
    {
        "Conv2d_1a_7x7": "conv1",
        "MaxPool_2a_3x3": "pool1",
        "Conv2d_2b_1x1": "conv2_reduce",
        "Conv2d_2c_3x3": "conv2",
        "MaxPool_3a_3x3": "pool2",
        "Mixed_3b": "inception_3a",
        "Mixed_3c": "inception_3b",
        "Mixed_4a": "inception_3c",
        "Mixed_4b": "inception_4a",
        "Mixed_4c": "inception_4b",
        "Mixed_4d": "inception_4c",
        "Mixed_4e": "inception_4d",
        "Mixed_5a": "inception_4e",
        "Mixed_5b": "inception_5a",
        "Mixed_5c": "inception_5b",
        "AvgPool_1a": "global_pool",
    }
)


@dataclasses.dataclass(frozen=True)
class CeilPoolBesideConv(MaxPool):
    """Caffe's max pool 3x3/2 next to a 3x3/2 convolution with one pixel of padding, whose outputs are concatenated.

    On even maps it is the "CEIL" pool. On odd maps that gives one pixel less than the convolution, so that Caffe
    rejects the network; here the pool then uses the convolution's windows, which begin one pixel before the map.
    """

    def __call__(self, x: jax.Array, algorithm: str = "fast") -> jax.Array:
        """[B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), C]."""
        edges = [(0, 0, 0), *((size % 2, 0, 0) for size in x.shape[1:3]), (0, 0, 0)]
        return super().__call__(lax.pad(x, jnp.array(-jnp.inf, x.dtype), edges), algorithm)


def inception(widths: InceptionV2Widths, pool: AvgPool | MaxPool) -> tuple[Branch, ...]:
    """A module that keeps the map's size: the 5x5 of GoogLeNet as two 3x3."""
    return (
        (Conv("conv_1x1", widths.conv_1x1, (1, 1)),),
        *_convolutions(widths, 1, "SAME"),
        (pool, Conv("pool_proj", widths.pool_proj, (1, 1), init=PROJECTION_INIT)),
    )


def reduction(widths: InceptionV2Widths, padding: str | int, pool: MaxPool) -> tuple[Branch, ...]:
    """A module that halves the map: no 1x1 branch, and no projection after the pool."""
    return (*_convolutions(widths, 2, padding), (pool,))


def _convolutions(widths: InceptionV2Widths, stride: int, padding: str | int) -> tuple[Branch, Branch]:
    return (
        (
            Conv("conv_3x3_reduce", widths.conv_3x3_reduce, (1, 1), init=REDUCE_INIT),
            Conv("conv_3x3", widths.conv_3x3, (3, 3), stride, padding),
        ),
        (
            Conv("double_3x3_reduce", widths.double_3x3_reduce, (1, 1), init=REDUCE_INIT),
            Conv("double_3x3_1", widths.double_3x3, (3, 3)),
            Conv("double_3x3_2", widths.double_3x3, (3, 3), stride, padding),
        ),
    )


class InceptionV2(BaseNetwork):
    """BN-Inception. The defaults are slim's, except for batch norm in the stem and batch norm's scale.

    slim's own network is `stem_batch_norm=False, bn_scale=False, aux_heads=False` (11,178,336 parameters). The paper
    trained without dropout; `dropout_rate` 0.2 is slim's keep 0.8. Cadene's and pytorchcv's bninception is
    `table="paper", stem="dense", conv_bias=True, bn_epsilon=1e-5, count_include_pad=True, conv1_padding="caffe",
    reduction_padding="caffe", pool_rounding="caffe", aux_heads=False` (11,295,240); caffe-googlenet-bn is
    `stem="dense", count_include_pad=True` with the same three paddings (11,194,984 and its heads).

    The options of all networks are in `BaseNetwork`.

    Attributes:
      table: "code" (576 channels) or "paper" (608).
      modules: filters by module that replace the table; None: the table's.
      stem: "separable" (7x7 depthwise, 8 channels per colour, then 1x1 to 64; the paper's appendix) or "dense" (7x7).
      stem_batch_norm: whether conv1 has batch norm; slim's has a bias instead, because the arg scope that sets batch
        norm does not list separable convolutions.
      conv_bias: whether convolutions have a bias before their batch norm.
      count_include_pad: whether average pools count padding and divide by 9 at the border, too (Caffe and its ports).
      conv1_padding: "same" (TensorFlow's: 2 pixels before and 3 after at 224) or "caffe" (3 on every side).
      reduction_padding: of the stride-2 convolutions of 3c and 4e: "same" (none before and 1 after an even map) or
        "caffe" (1 on every side).
      pool_rounding: of the stride-2 max pools: "same" (TensorFlow's) or "caffe" (output sizes round up, nothing padded
        before). They agree on maps of even size, which all maps are at 224 pixels.
    """

    NAME = "inception_v2"
    MIN_IMAGE_SIZE = 32  # five halvings leave one pixel
    dropout_rate: float = 0.2
    table: str = "code"
    modules: Mapping[str, InceptionV2Widths] | None = None
    stem: str = "separable"
    stem_batch_norm: bool = True
    conv_bias: bool = False
    count_include_pad: bool = False
    conv1_padding: str = "same"
    reduction_padding: str = "same"
    pool_rounding: str = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice("table", self.table, tuple(TABLES))
        checks.check_choice("stem", self.stem, ("separable", "dense"))
        for field in ("conv1_padding", "reduction_padding", "pool_rounding"):
            checks.check_choice(field, getattr(self, field), ("same", "caffe"))
        if self.modules is not None:
            checks.check_modules(self.modules, PAPER_MODULES, len(InceptionV2Widths._fields))
            self.check_unused("modules are given", "table")
        if not self.batch_norm:
            self.check_unused("there is no batch norm", "stem_batch_norm", "conv_bias")

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`; the heads are on 3c and 4e.

        Endpoints: conv1, pool1, conv2_reduce, conv2, pool2, inception_3a ... inception_5b, global_pool; slim's names
        work, too.
        """
        # slim's classifier is a 1x1 convolution, and is initialized as one.
        options = self.layer_options(slim_variance_scaling, slim_variance_scaling, conv_bias=self.conv_bias)
        endpoints: dict[str, jax.Array] = {}
        x = self._stem(x, options, train, endpoints)
        aux_logits: list[jax.Array] = []
        for module, widths in (TABLES[self.table] if self.modules is None else self.modules).items():
            name = f"inception_{module}"
            branches = self._branches(module, InceptionV2Widths(*widths))
            x = endpoints[name] = Mixed(branches, options, name=name)(x, train=train)
            if module in AUX_HEADS and self.runs_heads(train):
                head, side = AUX_HEADS[module]
                aux_logits.append(AuxHeadV2(self.num_classes, side, options, name=head)(x, train=train))
        x = endpoints["global_pool"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, tuple(aux_logits) if train else (), endpoints, SLIM_NAMES)

    def _stem(self, x: jax.Array, options: LayerOptions, train: bool, endpoints: dict[str, jax.Array]) -> jax.Array:
        """conv1 to pool2: [B, H, W, in_channels] to [B, H/8, W/8, 192]; writes its endpoints into `endpoints`."""
        padding = 3 if self.conv1_padding == "caffe" else "SAME"
        conv1: ConvUnit | SeparableConvUnit
        if self.stem == "dense":
            conv1 = ConvUnit(
                64, (7, 7), options, 2, padding, normalize=self.stem_batch_norm, kernel_init=STEM_INIT, name="conv1"
            )
        else:
            # slim's rule: at most as many channels between the two convolutions as after the second.
            maps = max(1, min(options.width(64) // self.in_channels, 8))
            conv1 = SeparableConvUnit(
                64,
                (7, 7),
                options,
                2,
                padding,
                normalize=self.stem_batch_norm,
                multiplier=maps,
                depthwise_init=STEM_INIT,
                pointwise_init=STEM_INIT,
                name="conv1",
            )
        x = endpoints["conv1"] = conv1(x, train=train)
        pool = MaxPool(3, 2, "CEIL" if self.pool_rounding == "caffe" else "SAME")
        x = endpoints["pool1"] = pool(x, self.convolution)
        reduce = ConvUnit(64, (1, 1), options, kernel_init=PROJECTION_INIT, name="conv2_reduce")
        x = endpoints["conv2_reduce"] = reduce(x, train=train)
        x = endpoints["conv2"] = ConvUnit(192, (3, 3), options, name="conv2")(x, train=train)
        x = endpoints["pool2"] = pool(x, self.convolution)
        return x

    def _branches(self, module: str, widths: InceptionV2Widths) -> tuple[Branch, ...]:
        if widths.conv_1x1 and widths.pool_proj:
            average = AvgPool(3, 1, "SAME", self.count_include_pad)
            return inception(widths, MaxPool(3, 1, "SAME") if module == MAX_POOLED else average)
        pool = CeilPoolBesideConv(3, 2, "CEIL") if self.pool_rounding == "caffe" else MaxPool(3, 2, "SAME")
        return reduction(widths, 1 if self.reduction_padding == "caffe" else "SAME", pool)
