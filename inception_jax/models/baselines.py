"""The networks that the Inception papers compare with: AlexNet, VGG-16, Network in Network.

They take the options of `BaseNetwork`. None has batch norm by default (with `batch_norm=True`: after every convolution
except Network in Network's last), and none has an auxiliary head.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
from jax import lax

from inception_jax.models import checks
from inception_jax.models.adaptive_pooling import adaptive_avg_pool
from inception_jax.models.base import BaseNetwork
from inception_jax.models.blocks import Conv, MaxPool, Mixed
from inception_jax.models.concatenation import concatenate_channels
from inception_jax.models.heads import CLASSIFIER_SITE, classifier, dropout
from inception_jax.models.initialization import Normal, slim_xavier
from inception_jax.models.layers import ConvUnit, LayerOptions, Linear, apply_remat, relu
from inception_jax.models.lrn import local_response_norm
from inception_jax.models.normalization import at_least_float32
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import global_avg_pool

_CAFFE_POOL = MaxPool(3, 2, "CEIL")
_FC6_SITE = 3  # number of the dropout layer, as those in heads.py


class GroupedConv(nn.Module):
    """A grouped convolution with two groups, `tower_1` and `tower_2`: AlexNet's on its two GPUs.

    Each group maps one half of the input's channels to one half of the output's. An odd channel goes to the second
    group; an input of one channel raises ModelError.

    Attributes:
      features: output channels of both groups together, before the width multiplier.
      kernel_size: (height, width) in pixels.
      options: the network's layer options.
    """

    features: int
    kernel_size: tuple[int, int]
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to [B, H, W, features]."""
        return apply_remat(self.options, lambda module, x: module.concatenate_towers(x, train), self, x)

    def concatenate_towers(self, x: jax.Array, train: bool) -> jax.Array:
        """The outputs of the two groups, concatenated along the channels."""
        half = x.shape[-1] // 2
        if half == 0:
            raise checks.ModelError(
                f"{self.name}: two towers need at least two input channels, and this width gives one"
            )
        halves = enumerate((lax.slice_in_dim(x, 0, half, axis=3), lax.slice_in_dim(x, half, None, axis=3)), 1)
        towers = [
            ConvUnit(self.features // 2, self.kernel_size, self.options, name=f"tower_{number}")(half, train=train)
            for number, half in halves
        ]
        return concatenate_channels(towers, self.options.convolution)


class AlexNet(BaseNetwork):
    """AlexNet (Krizhevsky, Sutskever and Hinton, NIPS 2012), as Caffe trained it (BVLC models/bvlc_alexnet).

    conv2, conv4 and conv5 are grouped convolutions of two groups, as in the paper (two GPUs): 60,965,224 parameters.
    LRN is Caffe's, as in GoogLeNet (alpha / size, k = 1; the paper: alpha, k = 2), and biases that are not initialized
    to 0 are initialized to 0.1 (the paper: 1). Maps that are not 6x6 after pool5 are averaged to 6x6, so that every
    image size works; 227 pixels give 6x6.
    """

    NAME = "alexnet"
    MIN_IMAGE_SIZE = 67  # maps of 15, 7 and 3 pixels before the pools: every window is whole
    batch_norm: bool = False
    dropout_rate: float = 0.5

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, without a head.

        Endpoints: conv1, norm1, pool1, conv2, norm2, pool2, conv3, conv4, conv5, pool5, fc6, fc7.
        """
        options = self.layer_options(Normal(0.01), Normal(0.01))
        biased = dataclasses.replace(options, linear_init=Normal(0.005), bias=0.1)
        endpoints: dict[str, jax.Array] = {}
        x = endpoints["conv1"] = ConvUnit(96, (11, 11), options, 4, "VALID", name="conv1")(x, train=train)
        x = endpoints["norm1"] = local_response_norm(x)
        x = endpoints["pool1"] = _CAFFE_POOL(x, self.convolution)
        x = endpoints["conv2"] = GroupedConv(256, (5, 5), biased, name="conv2")(x, train=train)
        x = endpoints["norm2"] = local_response_norm(x)
        x = endpoints["pool2"] = _CAFFE_POOL(x, self.convolution)
        x = endpoints["conv3"] = ConvUnit(384, (3, 3), options, name="conv3")(x, train=train)
        x = endpoints["conv4"] = GroupedConv(384, (3, 3), biased, name="conv4")(x, train=train)
        x = endpoints["conv5"] = GroupedConv(256, (3, 3), biased, name="conv5")(x, train=train)
        x = endpoints["pool5"] = _CAFFE_POOL(x, self.convolution)
        x = _two_wide_layers(adaptive_avg_pool(x, 6), biased, self.dropout_rate, keys, endpoints)
        return InceptionOutput(classifier(self.num_classes, options)(x), (), endpoints)


# Configuration D of Table 1 of arXiv:1409.1556: filters of the 3x3 convolutions between two pools.
VGG16_BLOCKS = {
    "block1": (64, 64),
    "block2": (128, 128),
    "block3": (256, 256, 256),
    "block4": (512, 512, 512),
    "block5": (512, 512, 512),
}


class VGG16(BaseNetwork):
    """VGG-16 (arXiv:1409.1556, configuration D of Table 1).

    Kernels are initialized by Glorot's uniform initializer, with which the authors found no pre-training of a smaller
    network necessary (section 3.1). Maps that are not 7x7 after the last pool are averaged to 7x7; 224 pixels give 7x7.
    """

    NAME = "vgg16"
    MIN_IMAGE_SIZE = 32  # five halvings leave one pixel
    batch_norm: bool = False
    dropout_rate: float = 0.5

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, without a head.

        Endpoints: block1, pool1, ... block5, pool5, fc6, fc7.
        """
        options = self.layer_options(slim_xavier, slim_xavier)
        endpoints: dict[str, jax.Array] = {}
        for number, (name, filters) in enumerate(VGG16_BLOCKS.items(), 1):
            row = tuple(Conv(f"conv{i}", features, (3, 3)) for i, features in enumerate(filters, 1))
            x = endpoints[name] = Mixed((row,), options, name=name)(x, train=train)
            x = endpoints[f"pool{number}"] = MaxPool(2, 2, "VALID")(x, self.convolution)
        x = _two_wide_layers(adaptive_avg_pool(x, 7), options, self.dropout_rate, keys, endpoints)
        return InceptionOutput(classifier(self.num_classes, options)(x), (), endpoints)


# Caffe's nin_imagenet: a convolution and 1x1 convolutions after it ("cccp"), with an initializer where its standard
# deviation is not 0.05. The fourth block ends with the classifier.
MLP_CONVS = {
    "mlpconv1": (
        Conv("conv", 96, (11, 11), 4, "VALID", init=Normal(0.01)),
        Conv("cccp1", 96, (1, 1)),
        Conv("cccp2", 96, (1, 1)),
    ),
    "mlpconv2": (Conv("conv", 256, (5, 5)), Conv("cccp1", 256, (1, 1)), Conv("cccp2", 256, (1, 1))),
    "mlpconv3": (
        Conv("conv", 384, (3, 3), init=Normal(0.01)),
        Conv("cccp1", 384, (1, 1)),
        Conv("cccp2", 384, (1, 1)),
    ),
    "mlpconv4": (Conv("conv", 1024, (3, 3)), Conv("cccp1", 1024, (1, 1))),
}


class NetworkInNetwork(BaseNetwork):
    """Network in Network (arXiv:1312.4400) for ImageNet, as its authors published it for Caffe (nin_imagenet).

    The paper prints no table of this network. The last 1x1 convolution has one filter per class; the logits are the
    means of its maps after a ReLU, and so are never negative. `dropout_rate` applies to the map before mlpconv4.
    """

    NAME = "network_in_network"
    MIN_IMAGE_SIZE = 67  # as AlexNet
    batch_norm: bool = False
    dropout_rate: float = 0.5

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """As in `BaseNetwork`, without a head.

        Endpoints: mlpconv1, pool1, ... mlpconv3, pool3, mlpconv4.
        """
        options = self.layer_options(Normal(0.05), Normal(0.05))
        endpoints: dict[str, jax.Array] = {}
        for number, (name, row) in enumerate(MLP_CONVS.items(), 1):
            if name == "mlpconv4":
                x = dropout(x, self.dropout_rate, keys, CLASSIFIER_SITE)
            x = endpoints[name] = Mixed((row,), options, name=name)(x, train=train)
            if name != "mlpconv4":
                x = endpoints[f"pool{number}"] = _CAFFE_POOL(x, self.convolution)
        if self.num_classes == 0:
            return InceptionOutput(global_avg_pool(x).astype(at_least_float32(self.dtype)), (), endpoints)
        # One filter per class whatever the width multiplier, and in float32, as every classifier here.
        exact = dataclasses.replace(options, width_multiplier=1.0, dtype=at_least_float32(self.dtype))
        last = ConvUnit(self.num_classes, (1, 1), exact, normalize=False, kernel_init=Normal(0.01), name="classifier")
        return InceptionOutput(global_avg_pool(last(x, train=train)), (), endpoints)


def _two_wide_layers(
    x: jax.Array, options: LayerOptions, rate: float, keys: jax.Array | None, endpoints: dict[str, jax.Array]
) -> jax.Array:
    """fc6 and fc7 with ReLU and dropout: [B, H, W, C] to [B, 4096]; stores both, before dropout, in `endpoints`."""
    x = x.reshape(x.shape[0], -1)
    for name, site in (("fc6", _FC6_SITE), ("fc7", CLASSIFIER_SITE)):
        layer = Linear(
            options.width(4096), options.linear_init, options.bias, options.dtype, options.param_dtype, name=name
        )
        x = endpoints[name] = relu(layer(x))
        x = dropout(x, rate, keys, site)
    return x
