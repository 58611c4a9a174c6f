"""The gradient of a feature with respect to the image, through every layer's own gradient."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.features.saliency import class_saliency, saliency
from inception_jax.models.checks import ModelError
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import init_variables
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.registry import create_model


@pytest.fixture(scope="module")
def network():
    with jax.enable_x64(True):
        model = create_model(
            "inception_v1",
            num_classes=3,
            width_multiplier=0.1,
            min_width=4,
            modules={name: MODULES[name] for name in ("3a", "3b", "4a")},
            aux_heads=False,
            dtype="float64",
            param_dtype="float64",
        )
        return model, jax.tree.map(np.asarray, init_variables(model, jax.random.key(0), 32))


@pytest.mark.parametrize(("endpoint", "channel"), [("Mixed_3c", 4), ("logits", -3)])
def test_it_is_the_slope_of_the_channel(endpoint, channel, network, x64):
    model, variables = network
    images = np.random.RandomState(0).uniform(-1, 1, (2, 37, 32, 3))
    gradient = jax.jit(lambda x: saliency(model, variables, x, endpoint, channel))
    found = np.asarray(gradient(images))
    assert found.shape == images.shape

    @jax.jit
    def value(x):
        output = model.apply(variables, x)
        maps = output.logits if endpoint == "logits" else output.endpoint(endpoint)
        return maps[..., channel].sum(tuple(range(1, maps.ndim - 1)))

    step = np.random.RandomState(1).standard_normal(images.shape)
    slope = (value(images + 1e-7 * step) - value(images - 1e-7 * step)) / 2e-7
    np.testing.assert_allclose((found * step).sum((1, 2, 3)), slope, 1e-5)
    assert np.abs(slope).min() > 1e-4
    # An example's gradient is its own.
    beside_another = gradient(np.stack([images[1], images[0]]))
    np.testing.assert_allclose(beside_another[0], found[1], 1e-10, 1e-14)
    np.testing.assert_allclose(gradient(np.stack([images[1] + 1, images[1]]))[1], found[1], 1e-10, 1e-14)


def test_what_is_refused(network, x64):
    model, variables = network
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float64)
    with pytest.raises(UserError, match="channel: 3; logits has channels 0 to 2"):
        jax.eval_shape(lambda x: saliency(model, variables, x, "logits", 3), images)
    with pytest.raises(ModelError, match="no endpoint 'pool6'; did you mean 'pool"):
        jax.eval_shape(lambda x: saliency(model, variables, x, "pool6", 0), images)


def test_the_map_of_a_class_is_the_largest_absolute_gradient_over_the_colours():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train=False):
            return InceptionOutput(nn.Dense(4)(images.reshape(len(images), -1)))

    model, images = Linear(), jnp.zeros((3, 5, 2, 3))
    variables = model.init(jax.random.key(0), images)
    found = class_saliency(model, variables, images, jnp.array([2, 0, 3]))
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"]).reshape(5, 2, 3, 4)
    np.testing.assert_array_equal(found, np.abs(kernel).max(2).transpose(2, 0, 1)[[2, 0, 3]])
