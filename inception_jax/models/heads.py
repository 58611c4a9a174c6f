"""The classifier, the auxiliary heads, and dropout with one PRNG key per example."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.models.adaptive_pooling import adaptive_avg_pool, even_avg_pool
from inception_jax.models.explicit_axes import rows_like
from inception_jax.models.initialization import caffe_xavier
from inception_jax.models.layers import ConvUnit, LayerOptions, Linear, relu
from inception_jax.models.normalization import at_least_float32
from inception_jax.models.parameters import Initializer
from inception_jax.models.pooling import avg_pool

# Each dropout layer of a network has its own number, so that one key per example is enough for all of them.
CLASSIFIER_SITE = 0
AUX_SITES = (1, 2)

_rates: contextvars.ContextVar[list[Any] | None] = contextvars.ContextVar("dropout_rates", default=None)


@contextlib.contextmanager
def record_dropout(rates: list[Any]) -> Iterator[None]:
    """Appends the rate of every dropout layer that is called inside the `with` block, also where nothing is dropped."""
    token = _rates.set(rates)
    try:
        yield
    finally:
        _rates.reset(token)


def dropout(x: jax.Array, rate: float, example_keys: jax.Array | None, site: int) -> jax.Array:
    """Sets each feature to zero with probability `rate` and divides the rest by 1 - rate.

    Args:
      x: [B, features].
      rate: in [0, 1).
      example_keys: [B] PRNG keys, one per example, or None: no dropout. An example's mask depends on its key and on
        `site` only, not on its row or on how the batch is split over devices.
      site: the number of this dropout layer in the network.

    Returns:
      An array of the shape and dtype of `x`.
    """
    if (rates := _rates.get()) is not None:
        rates.append(rate)
    if example_keys is None or rate == 0:
        return x

    def keep(key: jax.Array) -> jax.Array:
        # The probability in float32 whatever the network computes in: the mask is the same in every dtype.
        return jax.random.bernoulli(jax.random.fold_in(key, site), jnp.float32(1 - rate), x.shape[1:])

    return jnp.where(jax.vmap(keep)(rows_like(example_keys, x)), x / (1 - rate), jnp.zeros_like(x))


def classifier(num_classes: int, options: LayerOptions) -> Callable[[jax.Array], jax.Array]:
    """The last layer of a head, named `classifier`: [B, features] to logits [B, num_classes] in at least float32.

    With `num_classes=0` there is no layer: the features are returned, in that dtype.
    """
    # In float32 even if the network computes in bfloat16: rounded logits cost accuracy in the log-softmax, and the
    # layer is less than a thousandth of the network's work.
    dtype = at_least_float32(options.dtype)
    if num_classes == 0:
        return lambda features: features.astype(dtype)
    return Linear(num_classes, options.linear_init, 0.0, dtype, options.param_dtype, name="classifier")


class AuxHeadV1(nn.Module):
    """GoogLeNet's auxiliary head (arXiv:1409.4842, section 5).

    Average pool 5x5/3 to 4x4, 1x1 convolution to 128, fully connected 1024, dropout, classifier. On maps where the
    5x5/3 pool does not give 4x4, sixteen evenly spaced windows do (`even_avg_pool`), so that the parameters do
    not depend on the image size. With batch norm the convolution is normalized and the fully connected layer keeps
    its bias, as torchvision has it.

    Attributes:
      num_classes: outputs of the classifier.
      dropout_rate: probability with which an output of the fully connected layer is set to zero in training.
      options: the network's layer options.
      adaptive: whether the pool is torchvision's (PyTorch's adaptive average pool to 4x4), on every map.
    """

    num_classes: int
    dropout_rate: float
    options: LayerOptions
    adaptive: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, example_keys: jax.Array | None, site: int) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes] in at least float32."""
        options = self.options
        x = adaptive_avg_pool(x, 4) if self.adaptive else even_avg_pool(x, 4, 5, 3)
        x = ConvUnit(128, (1, 1), options, name="conv")(x, train=train)
        x = x.reshape(x.shape[0], -1)
        fc = Linear(
            options.width(1024), options.linear_init, options.bias, options.dtype, options.param_dtype, name="fc"
        )
        x = dropout(relu(fc(x)), self.dropout_rate, example_keys, site)
        return classifier(self.num_classes, options)(x)


class AuxHeadV2(nn.Module):
    """BN-Inception's auxiliary head, as caffe-googlenet-bn has it (train_val.prototxt; the paper describes none).

    Average pool 5x5/3, 1x1 convolution to 128, fully connected 1024, classifier; no dropout. Batch norm follows the
    fully connected layer, too. Kernels are initialized by Caffe's xavier filler. Caffe's pool rounds up: 7x7 becomes
    2x2, the last windows cut by the edge. On maps where it does not give `output` windows per axis, evenly spaced
    windows do (`even_avg_pool`).

    Attributes:
      num_classes: outputs of the classifier.
      output: height and width of the pooled map: 4 on 14x14, 2 on 7x7.
      options: the network's layer options; the initializers are replaced.
    """

    num_classes: int
    output: int
    options: LayerOptions

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes] in at least float32."""
        options = dataclasses.replace(self.options, kernel_init=caffe_xavier, linear_init=caffe_xavier)
        rounded_up = {-(-max(size - 5, 0) // 3) + 1 for size in x.shape[1:3]}
        x = avg_pool(x, 5, 3, "CEIL") if rounded_up == {self.output} else even_avg_pool(x, self.output, 5, 3)
        x = ConvUnit(128, (1, 1), options, name="conv")(x, train=train)
        fc = Linear(
            options.width(1024),
            options.linear_init,
            options.bias if options.batch_norm is None or options.conv_bias else None,
            options.dtype,
            options.param_dtype,
            options.batch_norm,
            name="fc",
        )
        x = relu(fc(x.reshape(x.shape[0], -1), train=train))
        return classifier(self.num_classes, options)(x)


class AuxHeadV4(nn.Module):
    """The auxiliary head of Inception-v3 (arXiv:1512.00567, Figure 8), v4 and the Inception-ResNets, from slim.

    Average pool 5x5/3 to 5x5, 1x1 convolution to 128, 5x5 convolution over the whole map to 768, classifier. slim's
    last convolution has the size of the map that remains (in v3: 5x5 at most), so that its weights change with the
    image size; here the pool always gives 5x5 (`even_avg_pool`), as slim's does from 299 to 346 pixels.

    Attributes:
      num_classes: outputs of the classifier.
      options: the network's layer options.
      conv_init, classifier_init: initializers of the kernels of the 5x5 convolution and of the classifier; None: those
        of `options`.
    """

    num_classes: int
    options: LayerOptions
    conv_init: Initializer | None = None
    classifier_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] to logits [B, num_classes] in at least float32."""
        x = even_avg_pool(x, 5, 5, 3)
        x = ConvUnit(128, (1, 1), self.options, name="conv_1x1")(x, train=train)
        last = ConvUnit(768, (5, 5), self.options, padding="VALID", kernel_init=self.conv_init, name="conv_5x5")
        x = last(x, train=train)
        options = dataclasses.replace(self.options, linear_init=self.classifier_init or self.options.linear_init)
        return classifier(self.num_classes, options)(x.reshape(x.shape[0], -1))
