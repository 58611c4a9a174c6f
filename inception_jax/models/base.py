"""The base class of all networks: common options, their validation, and the PRNG keys of dropout."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.models import checks
from inception_jax.models.convolution import ALGORITHMS
from inception_jax.models.layers import LayerOptions
from inception_jax.models.normalization import BatchNormOptions
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.parameters import Initializer


class BaseNetwork(nn.Module):
    """Base class of every network; each field is an option of `registry.create_model`.

    A network has a `NAME`, for messages, a `MIN_IMAGE_SIZE`, in pixels, and `classify`; or a `__call__` of its own.

    Attributes:
      num_classes: outputs of every classifier; 0: no classifier and no auxiliary heads (as in slim and timm), and
        `logits` are the features [B, features] before the classifier.
      in_channels: channels of the images; 3: colours.
      width_multiplier: scales the filters of every layer by slim's rule, max(int(filters · multiplier), min_width);
        1 is the paper's network.
      min_width: the smallest number of filters of a layer if the multiplier is not 1.
      aux_heads: whether the network has its auxiliary heads and their parameters. It has no effect on a network whose
        source has no heads.
      dropout_rate: probability with which a feature before the classifier is set to zero in training.
      dtype: computation dtype (bfloat16, float16, float32, float64 under 64-bit JAX); statistics and logits are in at
        least float32. `config.model.dtype` takes no float16.
      param_dtype: dtype of the parameters; batch statistics are in at least float32.
      remat: rematerialization (`jax.checkpoint`): the modules of the trunk recompute their activations in the backward
        pass instead of storing them. Less memory for one more forward pass; the numbers are the same
        (with oneDNN's convolutions up to rounding).
      fuse_siblings: whether the 1x1 convolutions that read an Inception module's input run as one: fewer, larger
        kernels on an accelerator. The same sums, in another order in the input's gradient.
      convolution: algorithm of the convolutions on CPUs: "fast", "exact" (weight gradients as direct sums), "onednn"
        (the library of the extra `onednn`) or "onednn_winograd" (also Winograd's filtering, in float32). Other
        platforms do not depend on it.
      batch_norm: whether batch norm follows the convolutions, which then have no bias.
      bn_scale, bn_epsilon, bn_momentum, bn_unbiased_variance, bn_axis_name, bn_axis_index_groups, bn_group_size,
        bn_frozen: see `normalization.BatchNormOptions`; axis and group size are ignored during initialization.
    """

    NAME: ClassVar[str]
    MIN_IMAGE_SIZE: ClassVar[int]

    num_classes: int = 1000
    in_channels: int = 3
    width_multiplier: float = 1.0
    min_width: int = 16
    aux_heads: bool = True
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    remat: bool = False
    fuse_siblings: bool = False
    convolution: str = "fast"
    batch_norm: bool = True
    bn_scale: bool = True
    bn_epsilon: float = 1e-3
    bn_momentum: float = 0.9997
    bn_unbiased_variance: bool = False
    bn_axis_name: str | None = None
    bn_axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    bn_group_size: int | None = None
    bn_frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            checks.check_kind(field.name, getattr(self, field.name), field.default)
        checks.check_number("num_classes", self.num_classes, "0 or more", self.num_classes >= 0)
        checks.check_number("in_channels", self.in_channels, "from 1 to 1024", 1 <= self.in_channels <= 1024)
        checks.check_number("min_width", self.min_width, "at least 1", self.min_width >= 1)
        checks.check_number(
            "width_multiplier", self.width_multiplier, "above 0, up to 1000", 0 < self.width_multiplier <= 1000
        )
        checks.check_number("bn_epsilon", self.bn_epsilon, "above 0 and finite", 0 < self.bn_epsilon < math.inf)
        checks.check_number("bn_momentum", self.bn_momentum, "in [0, 1]", 0 <= self.bn_momentum <= 1)
        self.check_rates("dropout_rate")
        checks.check_choice("convolution", self.convolution, ALGORITHMS)
        checks.check_float_dtype("dtype", self.dtype)
        checks.check_float_dtype("param_dtype", self.param_dtype)
        if self.width_multiplier == 1:
            self.check_unused("width_multiplier is 1", "min_width")
        if not self.batch_norm:
            self.check_unused(
                "there is no batch norm",
                "bn_scale",
                "bn_epsilon",
                "bn_momentum",
                "bn_unbiased_variance",
                "bn_group_size",
                "bn_frozen",
            )
        size = self.bn_group_size
        checks.check_number("bn_group_size", size, "a whole number of at least 1", size is None or _is_count(size))
        if self.bn_axis_name is None:
            self.check_unused("bn_axis_name is None", "bn_axis_index_groups")
        elif size is not None:
            raise checks.ModelError(
                "bn_group_size and bn_axis_name: set only one: statistics are of a group of examples or over devices"
            )

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool = False, example_keys: jax.Array | None = None
    ) -> InceptionOutput:
        """Classifies images.

        Args:
          images: [B, H, W, in_channels], floating-point, normalized; H and W at least `MIN_IMAGE_SIZE` pixels.
          train: whether dropout, batch statistics and auxiliary heads are on.
          example_keys: [B] typed PRNG keys of dropout, one per example; None: they come from `rngs={"dropout": key}`.

        Returns:
          InceptionOutput; `aux_logits` are those of the heads in training, else (). `classify` lists the endpoints.

        Raises:
          ModelError: the shape or dtype of the images is not as above, or training with dropout has no keys.
        """
        checks.check_images(images, self.MIN_IMAGE_SIZE, self.NAME, self.in_channels)
        keys = self.dropout_keys(train, example_keys, images.shape[0])
        return self.classify(images.astype(self.dtype), train, keys)

    @nn.nowrap
    def classify(self, x: jax.Array, train: bool, keys: jax.Array | None) -> InceptionOutput:
        """The network's layers: `__call__` after its checks.

        Args:
          x: the images in the network's dtype.
          train: as in `__call__`.
          keys: of dropout, one per example; None: nothing is dropped.
        """
        raise NotImplementedError

    @nn.nowrap
    def runs_heads(self, train: bool) -> bool:
        """Returns whether the auxiliary heads run: in training and during initialization only."""
        return self.aux_heads and self.num_classes > 0 and (train or self.is_initializing())

    @nn.nowrap
    def check_rates(self, *fields: str) -> None:
        """Raises ModelError unless each field is a probability below 1."""
        for field in fields:
            checks.check_number(field, getattr(self, field), "in [0, 1)", 0 <= getattr(self, field) < 1)

    @nn.nowrap
    def check_unused(self, because: str, *fields: str) -> None:
        """Raises ModelError if one of `fields` was set although it has no effect."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in fields:
            if getattr(self, field) != defaults[field]:
                raise checks.ModelError(f"{field}: {getattr(self, field)!r} has no effect: {because}")

    @nn.nowrap
    def layer_options(
        self, kernel_init: Initializer, linear_init: Initializer, bias: float = 0.0, conv_bias: bool = False
    ) -> LayerOptions:
        """The options that this network's layers share.

        Args:
          kernel_init: initializer of convolution kernels.
          linear_init: initializer of the kernels of fully connected layers.
          bias: initial value of biases.
          conv_bias: see `LayerOptions`.
        """
        norm = BatchNormOptions(
            self.bn_scale,
            self.bn_epsilon,
            self.bn_momentum,
            self.bn_unbiased_variance,
            self.bn_axis_name,
            self.bn_axis_index_groups,
            self.bn_group_size,
            tuple("/".join((*self.path, layer)) for layer in self.bn_frozen),  # as a submodule, its path is before
        )
        return LayerOptions(
            kernel_init,
            linear_init,
            bias,
            norm if self.batch_norm else None,
            self.dtype,
            self.param_dtype,
            self.width_multiplier,
            self.min_width,
            conv_bias,
            self.remat,
            self.fuse_siblings,
            self.convolution,
        )

    def dropout_keys(self, train: bool, example_keys: jax.Array | None, batch: int) -> jax.Array | None:
        """Dropout keys, one per example: `example_keys`, or else keys made from the PRNG stream "dropout".

        Args:
          train: whether the network trains; dropout is off otherwise.
          example_keys: [batch] typed PRNG keys, or None.
          batch: number of examples.

        Returns:
          [batch] typed PRNG keys, or None if nothing is dropped.

        Raises:
          ModelError: training with dropout and neither is given, or `example_keys` is not one typed key per example.
        """
        if example_keys is not None:
            checks.check_example_keys(example_keys, batch)
        if not train:
            return None
        if example_keys is not None:
            return example_keys
        if self.has_rng("dropout"):
            return jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), jnp.arange(batch))
        sites = ("dropout_rate", "aux_dropout_rate") if self.runs_heads(train) else ("dropout_rate",)
        if any(getattr(self, site, 0) for site in sites) and not self.is_initializing():
            raise checks.ModelError(
                'train=True with dropout needs keys: example_keys=[one per example], or rngs={"dropout": key}'
            )
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
