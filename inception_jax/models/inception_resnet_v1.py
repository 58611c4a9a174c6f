"""Inception-ResNet-v1 (arXiv:1602.07261, Figure 15), the smaller of the paper's two residual networks.

Its cost is close to Inception-v3's. Google released neither code nor weights. Figures 10 to 14 and Table 1 give
everything except the scales of the residuals; those are version 2's. The published weights are facenet's (faces) and
pytorchcv's (ImageNet), both with facenet's last layers: one more residual block, and an embedding before the
classifier. Here these are switches.
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.core
import flax.linen as nn
import jax

from inception_jax.models import checks
from inception_jax.models.blocks import Block, Conv
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
from inception_jax.models.initialization import slim_variance_scaling, slim_xavier
from inception_jax.models.layers import Linear
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

# Figure 14: 299x299x3 to 35x35x256.
STEM_V1: dict[str, Block] = {**STEM, "conv2d_4b_3x3": Conv("conv2d_4b_3x3", 256, (3, 3), 2, "VALID")}
# Figures 10 to 13, and the row of Table 1.
WIDTHS = InceptionResnetWidths((32, 32), (128, 128, 128), (192, 192), (192, 192, 256, 384), (256, 256, 256))


class InceptionResnetV1(InceptionResnet):
    """Inception-ResNet-v1. The defaults are the paper's network, with version 2's dropout and batch norm.

    The paper shows no auxiliary head; this one is version 2's, on the last block17.

    The options of both versions are in `InceptionResnet`, those of all networks in `BaseNetwork`.

    Attributes:
      extra_block8: whether facenet's additional block8, with scale 1 and without ReLU, follows the others.
      bottleneck: features of a fully connected layer, with batch norm instead of a bias and no ReLU, between the global
        pool (after dropout) and the classifier; 0: none. Its output is the endpoint `embedding`; divided by its length
        it is what facenet compares faces by. The width multiplier does not apply to it.

    facenet's network and facenet-pytorch's are `extra_block8=True, bottleneck=512, aux_heads=False` (facenet with
    `bn_scale=False`); facenet-pytorch trains with dropout 0.6, facenet with `bn_momentum=0.995`. pytorchcv's
    inceptionresnetv1 is the same network with 1000 classes.
    """

    NAME = "inception_resnet_v1"
    extra_block8: bool = False
    bottleneck: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_number("bottleneck", self.bottleneck, "a number of features, or 0 for none", self.bottleneck >= 0)

    def default_counts(self) -> tuple[int, int, int]:
        """The numbers of blocks in Figure 15."""
        return (5, 10, 5)

    def blocks(self) -> dict[str, Block]:
        """The trunk (Figure 15) at stride 32."""
        block35s, block17s, block8s = self.block_counts()
        return {
            **STEM_V1,
            **repeated("block35", block35(WIDTHS), block35s),
            "mixed_6a": reduction_a(WIDTHS),
            **repeated("block17", block17(WIDTHS), block17s),
            "mixed_7a": reduction_b(WIDTHS),
            **repeated("block8", block8(WIDTHS), block8s + self.extra_block8),
        }

    def block_without_relu(self) -> str | None:
        """The name of the block without ReLU, or None."""
        return f"block8_{self.block_counts()[2] + 1}" if self.extra_block8 else None

    def slim_names(self, endpoints: Mapping[str, jax.Array]) -> flax.core.FrozenDict:
        """Adds facenet's names of the last block of each kind; its Mixed_8b is the block without ReLU."""
        block35s, block17s, block8s = self.block_counts()
        names = {
            "Mixed_5a": f"block35_{block35s}",
            "Mixed_6b": f"block17_{block17s}",
            "Mixed_8a": f"block8_{block8s}",
            "Mixed_8b": f"block8_{block8s + 1}",
        }
        return super().slim_names(endpoints).copy({alias: name for alias, name in names.items() if name in endpoints})

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, with one head. facenet's images have 160 pixels.

        Endpoints: conv2d_1a_3x3 ... conv2d_4b_3x3, block35_1 ..., mixed_6a, block17_1 ..., mixed_7a, block8_1 ...,
        global_pool, and embedding [B, bottleneck] with a bottleneck.
        """
        options = self.layer_options(slim_variance_scaling, slim_xavier)
        x, endpoints, aux_logits = self.run_trunk(x, train, options)
        x = endpoints["global_pool"] = global_avg_pool(x)
        x = dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE)
        if self.bottleneck:
            layer = Linear(
                self.bottleneck,
                options.linear_init,
                options.bias if options.batch_norm is None else None,
                options.dtype,
                options.param_dtype,
                options.batch_norm,
                name="bottleneck",
            )
            x = endpoints["embedding"] = layer(x, train=train)
        logits = classifier(self.num_classes, options)(x)
        return InceptionOutput(logits, aux_logits, endpoints, self.slim_names(endpoints))
