"""Xception (arXiv:1610.02357), as in its author's code (Keras, keras/src/applications/xception.py).

This is the network of the paper's Figure 5, whose middle flow works on maps of 19x19x728; other places of the paper say
18x18. There is nothing between a depthwise convolution and the 1x1 convolution after it (section 4.7 found this
better).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.atrous import OUTPUT_STRIDES, dilation_schedule
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import MaxPool
from inception_jax.models.heads import CLASSIFIER_SITE, classifier, dropout
from inception_jax.models.initialization import slim_xavier
from inception_jax.models.layers import ConvUnit, LayerOptions, SeparableConvUnit, apply_remat, relu
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool


class SeparableBlockSpec(NamedTuple):
    """A block of Figure 5: separable 3x3 convolutions, ReLUs, pool and shortcut.

    Attributes:
      features: filters of each convolution in the paper.
      stride: 1, or 2: a max pool 3x3/2 ends the block, and its shortcut is a 1x1/2 convolution.
      relu_first: whether a ReLU precedes each convolution; otherwise there is one between two convolutions.
      residual: whether the input is added to the output, through the 1x1/2 convolution where there is one.
      relu_last: whether a ReLU ends the block.
    """

    features: tuple[int, ...]
    stride: int = 1
    relu_first: bool = True
    residual: bool = True
    relu_last: bool = False


# Figure 5: 299x299x3 to 147x147x64, without padding.
STEM = {"block1_conv1": (32, 2), "block1_conv2": (64, 1)}  # 3x3 convolutions: filters, stride
BLOCKS = {
    # The entry flow: 147x147x64 to 19x19x728.
    "block2": SeparableBlockSpec((128, 128), 2, relu_first=False),
    "block3": SeparableBlockSpec((256, 256), 2),
    "block4": SeparableBlockSpec((728, 728), 2),
    # The middle flow: 19x19x728 to the same, eight times.
    **{f"block{number}": SeparableBlockSpec((728, 728, 728)) for number in range(5, 13)},
    # The exit flow: 19x19x728 to 10x10x2048.
    "block13": SeparableBlockSpec((728, 1024), 2),
    "block14": SeparableBlockSpec((1536, 2048), relu_first=False, residual=False, relu_last=True),
}


class SeparableBlock(nn.Module):
    """Runs one block of Figure 5: separable convolutions `sepconv1`, `sepconv2`, ..., and a shortcut.

    Attributes:
      spec: the block's layers.
      pool_padding: padding of the max pool, as in `pooling.max_pool`.
      options: the network's layer options.
      stride: the block's stride under the output stride: see atrous.py.
      dilation: distance in pixels between neighbouring taps of the 3x3 convolutions and of the pool.
    """

    spec: SeparableBlockSpec
    pool_padding: str | int
    options: LayerOptions
    stride: int = 1
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H', W', C'], with half the height and width for stride 2."""
        return apply_remat(self.options, lambda module, x: module.add_shortcut(x, train), self, x)

    def add_shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        """The output of the convolutions plus the shortcut."""
        spec, last = self.spec, len(self.spec.features)
        shortcut = x
        if spec.stride > 1:
            projection = ConvUnit(spec.features[-1], (1, 1), self.options, self.stride, relu=False, name="shortcut")
            shortcut = projection(x, train=train)
        for number, features in enumerate(spec.features, 1):
            if spec.relu_first:
                x = relu(x)
            relu_after = not spec.relu_first and (number < last or spec.relu_last)
            unit = SeparableConvUnit(
                features, (3, 3), self.options, dilation=self.dilation, relu=relu_after, name=f"sepconv{number}"
            )
            x = unit(x, train=train)
        if spec.stride > 1:
            padding = self.pool_padding if isinstance(self.pool_padding, str) else self.pool_padding * self.dilation
            x = MaxPool(3, self.stride, padding, self.dilation)(x, self.options.convolution)
        return x + shortcut if spec.residual else x


class Xception(BaseNetwork):
    """Xception. Batch norm and initializers (Glorot's uniform) are Keras's, from which the published weights come.

    The defaults differ from Keras's in two places that do not affect the weights' use: dropout of 0.5 before the
    classifier is the paper's for ImageNet (section 4.2; Keras has none), and `bn_momentum` is that of the other
    networks (Keras: 0.99). There is no auxiliary head: the paper trains without one (section 4.2), so `aux_heads` has
    no effect.

    The options of all networks are in `BaseNetwork`.

    Attributes:
      pool_padding: of the max pools: "same" (TensorFlow's), or "torch" (one pixel on every side) as the ports of the
        weights to PyTorch have it. They differ on maps of even size: at 299 pixels in the pool from 74x74 to 37x37.
      output_stride: 32, or 16 or 8: see atrous.py. With "same" pools its statement holds if the maps whose pools lose
        their stride are odd, as they are at 299 pixels; with "torch" always. The global pool averages all pixels.
    """

    NAME = "xception"
    MIN_IMAGE_SIZE = 71  # Keras's own limit; 3x3 pixels are left
    dropout_rate: float = 0.5
    pool_padding: str = "same"
    output_stride: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice("pool_padding", self.pool_padding, ("same", "torch"))
        checks.check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, without a head.

        Endpoints: block1_conv1, block1_conv2, block2 ... block14 (before the ReLU of the next block), global_pool.
        """
        options = self.layer_options(slim_xavier, slim_xavier)
        padding = "SAME" if self.pool_padding == "same" else 1
        endpoints: dict[str, jax.Array] = {}
        for name, (features, stride) in STEM.items():
            x = endpoints[name] = ConvUnit(features, (3, 3), options, stride, "VALID", name=name)(x, train=train)
        strides = {name: stride for name, (_, stride) in STEM.items()}
        strides |= {name: row.stride for name, row in BLOCKS.items()}
        dilated = dilation_schedule(strides, self.output_stride)
        for name, row in BLOCKS.items():
            x = endpoints[name] = SeparableBlock(row, padding, options, *dilated[name], name=name)(x, train=train)
        x = endpoints["global_pool"] = global_avg_pool(x)
        logits = classifier(self.num_classes, options)(dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE))
        return InceptionOutput(logits, (), endpoints)
