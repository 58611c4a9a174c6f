"""GoogLeNet, the Inception network of "Going Deeper with Convolutions" (arXiv:1409.4842).

The defaults are the paper's network; where the paper says nothing, as Caffe trained it (BVLC
models/bvlc_googlenet/train_val.prototxt): true 5x5 branches, a ReLU after every convolution, biases initialized to 0.2,
local response normalization, max pools that round up, dropout 40 %, two auxiliary heads with dropout 70 %. The
switches make the other published variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import flax.core
import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import Branch, Conv, MaxPool, Mixed
from inception_jax.models.heads import AUX_SITES, CLASSIFIER_SITE, AuxHeadV1, classifier, dropout
from inception_jax.models.initialization import caffe_xavier, slim_variance_scaling
from inception_jax.models.layers import ConvUnit, LayerOptions
from inception_jax.models.lrn import local_response_norm
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

CONV_BIAS = 0.2  # bvlc_googlenet: every bias_filler except the classifiers', which is 0


class GoogLeNetWidths(NamedTuple):
    """Filters of one Inception module: a row of Table 1."""

    conv_1x1: int
    conv_3x3_reduce: int
    conv_3x3: int
    conv_5x5_reduce: int
    conv_5x5: int
    pool_proj: int


# Table 1 of arXiv:1409.4842: #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj.
MODULES = {
    "3a": GoogLeNetWidths(64, 96, 128, 16, 32, 32),
    "3b": GoogLeNetWidths(128, 128, 192, 32, 96, 64),
    "4a": GoogLeNetWidths(192, 96, 208, 16, 48, 64),
    "4b": GoogLeNetWidths(160, 112, 224, 24, 64, 64),
    "4c": GoogLeNetWidths(128, 128, 256, 24, 64, 64),
    "4d": GoogLeNetWidths(112, 144, 288, 32, 64, 64),
    "4e": GoogLeNetWidths(256, 160, 320, 32, 128, 128),
    "5a": GoogLeNetWidths(256, 160, 320, 32, 128, 128),
    "5b": GoogLeNetWidths(384, 192, 384, 48, 128, 128),
}
# Google's released graph (inception5h, tensorflow_inception_graph.pb) has two other numbers. With them 4a gives 508
# channels, and the "ops" are those that the paper prints for 4a, 4b and 5a: its table was made of this network.
INCEPTION5H_MODULES = MODULES | {
    "4a": MODULES["4a"]._replace(conv_3x3=204),
    "5a": MODULES["5a"]._replace(conv_5x5_reduce=48),
}
TABLES = {"paper": MODULES, "inception5h": INCEPTION5H_MODULES}
AUX_HEADS = {"4a": "aux1", "4d": "aux2"}  # module -> the head that reads it (section 5 of the paper)
POOLED = ("3b", "4e")  # modules followed by pool3 and pool4
POOL_PADDINGS: dict[str, str | int] = {"caffe": "CEIL", "same": "SAME", "pad1": 1}  # of `pool_rounding`

# The columns "params" (thousands) and "ops" (millions) of the paper's Table 1. Not all follow from its own filter
# columns: conv1's are those of a separable convolution, and the ops of 4a and 5a those of 204 and 48 filters where it
# prints 208 and 32.
PAPER_PARAMS_AND_OPS = {
    "conv1": (2.7, 34), "conv2": (112, 360), "inception_3a": (159, 128), "inception_3b": (380, 304),
    "inception_4a": (364, 73), "inception_4b": (437, 88), "inception_4c": (463, 100), "inception_4d": (580, 119),
    "inception_4e": (840, 170), "inception_5a": (1072, 54), "inception_5b": (1388, 71), "classifier": (1000, 1),
}  # fmt: skip

# slim's names of the endpoints (tf_slim/nets/inception_v1.py): its letters are one later than the paper's.
SLIM_NAMES: flax.core.FrozenDict[str, str] = flax.core.FrozenDict(
    {
        "Conv2d_1a_7x7": "conv1",
        "MaxPool_2a_3x3": "pool1",
        "Conv2d_2b_1x1": "conv2_reduce",
        "Conv2d_2c_3x3": "conv2",
        "MaxPool_3a_3x3": "pool2",
        "Mixed_3b": "inception_3a",
        "Mixed_3c": "inception_3b",
        "MaxPool_4a_3x3": "pool3",
        "Mixed_4b": "inception_4a",
        "Mixed_4c": "inception_4b",
        "Mixed_4d": "inception_4c",
        "Mixed_4e": "inception_4d",
        "Mixed_4f": "inception_4e",
        "MaxPool_5a_2x2": "pool4",
        "Mixed_5b": "inception_5a",
        "Mixed_5c": "inception_5b",
        "AvgPool_0a_7x7": "pool5",
        "global_pool": "pool5",
    }
)


def reduced_module(widths: GoogLeNetWidths, five_by_five: int) -> tuple[Branch, ...]:
    """Figure 2(b): 1x1 reductions before the 3x3 and 5x5 convolutions, and a projection after the pool."""
    five = (five_by_five, five_by_five)
    return (
        (Conv("conv_1x1", widths.conv_1x1, (1, 1)),),
        (Conv("conv_3x3_reduce", widths.conv_3x3_reduce, (1, 1)), Conv("conv_3x3", widths.conv_3x3, (3, 3))),
        (Conv("conv_5x5_reduce", widths.conv_5x5_reduce, (1, 1)), Conv("conv_5x5", widths.conv_5x5, five)),
        (MaxPool(3, 1, "SAME"), Conv("pool_proj", widths.pool_proj, (1, 1))),
    )


def naive_module(widths: GoogLeNetWidths, five_by_five: int) -> tuple[Branch, ...]:
    """Figure 2(a): no 1x1 reductions, and no projection after the pool: channels grow from module to module."""
    return (
        (Conv("conv_1x1", widths.conv_1x1, (1, 1)),),
        (Conv("conv_3x3", widths.conv_3x3, (3, 3)),),
        (Conv("conv_5x5", widths.conv_5x5, (five_by_five, five_by_five)),),
        (MaxPool(3, 1, "SAME"),),
    )


class InceptionV1(BaseNetwork):
    """GoogLeNet; with `batch_norm=True, lrn=False` its batch-normalized variant.

    The options of all networks are in `BaseNetwork`.

    Attributes:
      aux_dropout_rate: dropout inside the auxiliary heads.
      table: "paper" (Table 1) or "inception5h" (Google's released graph, which differs in two numbers).
      modules: filters by module that replace the table; None: the table's.
      module: "reduced" (Figure 2(b)) or "naive" (Figure 2(a), for the ablation).
      conv2_reduce: whether there is a 1x1 convolution before conv2, as Table 1's "#3x3 reduce" column says; without it
        the network has the 6,994,392 parameters that are often quoted.
      five_by_five: kernel size of the 5x5 branches: 5, or 3 as in slim and torchvision (parameter names stay).
      pool4_window: 3, or 2 as in slim and torchvision; the stride is 2.
      conv1_padding: "caffe" (3 pixels on every side) or "same" (TensorFlow's: 2 before and 3 after at 224).
      pool_rounding: of the stride-2 max pools: "caffe" (output sizes round up, nothing padded before), "same"
        (TensorFlow's; the two agree on maps of even size), or "pad1" (one pixel of padding on every side, sizes round
        down: `MaxPool2d(3, 2, padding=1)`, as PyTorch code in circulation has it). "pad1" gives the sizes of "same",
        but each window begins one pixel earlier on maps of even size: another function. It needs `pool4_window=3`.
      lrn: whether local response normalization follows pool1 and conv2.
      aux_pool: the average pool of the heads: "paper" (5x5/3), or "adaptive" (torchvision's), whose windows on 14x14
        are 4x4 at 0, 3, 7 and 10: another function. It is part of a published variant and allowed without heads.
      lrn_size, lrn_alpha, lrn_beta, lrn_k: constants of LRN in Caffe's definition, x · (k + alpha / size · Σ x²)^-beta.
    """

    NAME = "inception_v1"
    MIN_IMAGE_SIZE = 32  # five halvings leave one pixel
    batch_norm: bool = False
    dropout_rate: float = 0.4
    aux_dropout_rate: float = 0.7
    table: str = "paper"
    modules: Mapping[str, GoogLeNetWidths] | None = None
    module: str = "reduced"
    conv2_reduce: bool = True
    five_by_five: int = 5
    pool4_window: int = 3
    conv1_padding: str = "caffe"
    pool_rounding: str = "caffe"
    aux_pool: str = "paper"
    lrn: bool = True
    lrn_size: int = 5
    lrn_alpha: float = 1e-4
    lrn_beta: float = 0.75
    lrn_k: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rates("aux_dropout_rate")
        checks.check_choice("table", self.table, tuple(TABLES))
        checks.check_choice("aux_pool", self.aux_pool, ("paper", "adaptive"))
        checks.check_choice("module", self.module, ("reduced", "naive"))
        checks.check_choice("five_by_five", self.five_by_five, (5, 3))
        checks.check_choice("pool4_window", self.pool4_window, (3, 2))
        checks.check_choice("conv1_padding", self.conv1_padding, ("caffe", "same"))
        checks.check_choice("pool_rounding", self.pool_rounding, tuple(POOL_PADDINGS))
        if self.pool_rounding == "pad1":
            self.check_unused("pool_rounding is 'pad1', and its pools are 3x3", "pool4_window")
        odd = self.lrn_size % 2 == 1 and 0 < self.lrn_size < 2**16
        checks.check_number("lrn_size", self.lrn_size, "an odd number of channels, below 65,536", odd)
        checks.check_number("lrn_alpha", self.lrn_alpha, "0 or greater", self.lrn_alpha >= 0)
        checks.check_number("lrn_k", self.lrn_k, "greater than 0", self.lrn_k > 0)
        if not self.lrn:
            self.check_unused("lrn is False", "lrn_size", "lrn_alpha", "lrn_beta", "lrn_k")
        if not (self.aux_heads and self.num_classes):
            self.check_unused("there are no auxiliary heads", "aux_dropout_rate")
        if self.modules is not None:
            checks.check_modules(self.modules, MODULES, len(GoogLeNetWidths._fields))
            self.check_unused("modules are given", "table")

    @property
    def widths(self) -> Mapping[str, GoogLeNetWidths]:
        """Filters of every module, in order."""
        return TABLES[self.table] if self.modules is None else self.modules

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`; the heads are on 4a and 4d.

        Endpoints: conv1, pool1, norm1, conv2_reduce, conv2, norm2, pool2, inception_3a ... inception_5b with pool3 and
        pool4 between them, pool5; slim's names work, too.
        """
        # With batch norm the scale of a kernel does not matter; slim's variance scaling gives maps of variance one.
        init = slim_variance_scaling if self.batch_norm else caffe_xavier
        options = self.layer_options(init, caffe_xavier, 0.0 if self.batch_norm else CONV_BIAS)
        endpoints: dict[str, jax.Array] = {}
        x = self._stem(x, options, train, endpoints)
        aux_logits: list[jax.Array] = []
        build = {"reduced": reduced_module, "naive": naive_module}[self.module]
        for module, widths in self.widths.items():
            name = f"inception_{module}"
            branches = build(GoogLeNetWidths(*widths), self.five_by_five)
            x = endpoints[name] = Mixed(branches, options, name=name)(x, train=train)
            head = AUX_HEADS.get(module)
            if head and self.runs_heads(train):
                adaptive = self.aux_pool == "adaptive"
                aux = AuxHeadV1(self.num_classes, self.aux_dropout_rate, options, adaptive, name=head)
                aux_logits.append(aux(x, train=train, example_keys=keys, site=AUX_SITES[len(aux_logits)]))
            if module in POOLED:
                pool = f"pool{3 + POOLED.index(module)}"
                x = endpoints[pool] = self._pool(x, self.pool4_window if pool == "pool4" else 3)
        x = endpoints["pool5"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, tuple(aux_logits) if train else (), endpoints, SLIM_NAMES)

    def _stem(self, x: jax.Array, options: LayerOptions, train: bool, endpoints: dict[str, jax.Array]) -> jax.Array:
        """conv1 to pool2: [B, H, W, in_channels] to [B, H/8, W/8, 192]; writes its endpoints into `endpoints`."""
        padding = 3 if self.conv1_padding == "caffe" else "SAME"
        x = endpoints["conv1"] = ConvUnit(64, (7, 7), options, 2, padding, name="conv1")(x, train=train)
        x = endpoints["pool1"] = self._pool(x, 3)
        if self.lrn:
            x = endpoints["norm1"] = self._normalize(x)
        if self.conv2_reduce:
            x = endpoints["conv2_reduce"] = ConvUnit(64, (1, 1), options, name="conv2_reduce")(x, train=train)
        x = endpoints["conv2"] = ConvUnit(192, (3, 3), options, name="conv2")(x, train=train)
        if self.lrn:
            x = endpoints["norm2"] = self._normalize(x)
        x = endpoints["pool2"] = self._pool(x, 3)
        return x

    def _pool(self, x: jax.Array, window: int) -> jax.Array:
        return MaxPool(window, 2, POOL_PADDINGS[self.pool_rounding])(x, self.convolution)

    def _normalize(self, x: jax.Array) -> jax.Array:
        return local_response_norm(x, self.lrn_size, self.lrn_alpha, self.lrn_beta, self.lrn_k)
