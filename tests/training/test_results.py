"""What a run hands to its plots."""

import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models.initialization import init_variables, slim_variance_scaling
from inception_jax.models.layers import ConvUnit, LayerOptions
from inception_jax.models.registry import create_model
from inception_jax.training import preprocess, results
from inception_jax.training.parallel import Devices


def test_activations_are_those_of_the_blocks_in_the_order_of_the_network():
    model = create_model("inception_v1", num_classes=3, width_multiplier=0.1, aux_heads=False)
    variables = init_variables(model, jax.random.key(0), 64)
    normalization = preprocess.get_normalization("caffe")
    setup = types.SimpleNamespace(
        model=model,
        input=types.SimpleNamespace(normalization=normalization, dtype=jnp.float32),
        devices=Devices(count=2),
    )
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    maps = results._blocks(setup, variables)(image)
    assert list(maps) == [
        *("conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2", "inception_3a", "inception_3b"),
        *("pool3", *(f"inception_4{letter}" for letter in "abcde"), "pool4", "inception_5a", "inception_5b"),
    ]
    inputs = preprocess.preprocess(image[None], normalization=normalization, dtype=jnp.float32)
    expected = jax.jit(lambda v, x: model.apply(v, x).endpoints["inception_4a"])(variables, inputs)
    np.testing.assert_allclose(maps["inception_4a"], expected[0], rtol=1e-4, atol=1e-4)


class TwoLayers(nn.Module):
    """The first layer is the last one by name, as in the Inception-ResNets, and both read as many channels."""

    in_channels: int = 3

    @nn.compact
    def __call__(self, images):
        options = LayerOptions(slim_variance_scaling, slim_variance_scaling, min_width=1)
        x = ConvUnit(self.in_channels, (5, 5), options, name="conv2d_1a")(images, train=False)
        return ConvUnit(4, (1, 1), options, name="block35")(x, train=False)


@pytest.mark.parametrize(
    ("channels", "normalization", "drawn"),
    [(3, "caffe", [0, 1, 2]), (3, "caffe_bgr", [2, 1, 0]), (16, "inception", [0, 1, 2]), (2, "inception", [0])],
)
def test_the_picture_of_the_first_layer_is_of_the_layer_that_reads_the_image(channels, normalization, drawn):
    model = TwoLayers(channels)
    shape = lambda *numbers: np.arange(np.prod(numbers), dtype=np.float32).reshape(numbers)  # noqa: E731
    first = shape(5, 5, channels, channels)
    params = {"block35": {"kernel": shape(1, 1, channels, 4)}, "conv2d_1a": {"kernel": first}}  # sorted, as restored
    found = preprocess.get_normalization(normalization, channels)
    network_input = types.SimpleNamespace(channels=channels, image_size=8, normalization=found)
    setup = types.SimpleNamespace(model=model, input=network_input)
    np.testing.assert_array_equal(results.first_kernel(setup, params), first[:, :, drawn])
    foreign = {"conv": {"kernel": first}}  # a single kernel needs no trace of the network
    np.testing.assert_array_equal(results.first_kernel(setup, foreign), first[:, :, drawn])
    assert results.first_kernel(setup, {"dense": {"kernel": shape(3, 4)}}) is None
