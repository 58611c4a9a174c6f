"""What a run hands to its plots."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.models.initialization import init_variables
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
