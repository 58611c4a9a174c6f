"""num_classes=0: a network that ends with the features that its classifier would read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models.initialization import init_variables, variable_shapes
from inception_jax.models.registry import create_model, get_spec, model_names

from .traced import shapes

NARROW = {"width_multiplier": 0.05, "min_width": 4}


def features_of(output, name):
    """What the classifier of a network reads."""
    features = output.endpoints[{"inception_v1": "pool5", "network_in_network": "mlpconv4"}[name]]
    return features.mean((1, 2)) if features.ndim == 4 else features


# Both Inception-ResNets are one code, and the second takes a quarter of a minute to trace.
@pytest.mark.parametrize("name", [name for name in model_names() if name != "inception_resnet_v2"])
def test_the_logits_are_the_features_and_nothing_else_is_missing(name):
    size = get_spec(name).min_image_size
    whole, without = (create_model(name, num_classes=count, **NARROW) for count in (3, 0))
    wanted = variable_shapes(whole, size)
    trunk = {key: tree for key, tree in wanted["params"].items() if key != "classifier" and not key.startswith("aux")}
    output, found = shapes(without, size)
    assert jax.tree.map(lambda leaf: leaf.shape, found["params"]) == jax.tree.map(lambda leaf: leaf.shape, trunk)
    assert output.logits.ndim == 2 and output.aux_logits == () and output.logits.dtype == jnp.float32


@pytest.mark.parametrize("name", ["inception_v1", "network_in_network"])
def test_the_numbers(name):
    size = get_spec(name).min_image_size
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3)), jnp.float32)
    model = create_model(name, num_classes=0, **NARROW)
    output = jax.jit(model.apply)(init_variables(model, jax.random.key(0), size), images)
    np.testing.assert_allclose(output.logits, features_of(output, name), rtol=1e-6)
    assert np.ptp(output.logits) > 0


def test_training_without_heads_asks_for_no_keys():
    """A rate of heads that are not there is no dropout."""
    images = jnp.zeros((2, 64, 64, 3))
    model = create_model("inception_v1_bn", num_classes=0, dropout_rate=0.0, **NARROW)
    variables = variable_shapes(model, 64)
    run = jax.eval_shape(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[0], variables)
    assert run.aux_logits == ()
