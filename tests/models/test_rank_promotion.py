"""Under `jax_numpy_rank_promotion="raise"`: no operand gets axes that the code does not name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.features import DeviceMoments, DeviceRows
from inception_jax.models import batch_norm_calls
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import create_model, get_spec, model_names
from inception_jax.training import losses, preprocess


@pytest.fixture(autouse=True)
def no_rank_promotion():
    with jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {}) for name in model_names()]
    + [
        ("inception_v1_bn", {"bn_group_size": 1}),
        ("inception_v1", {"aux_pool": "adaptive", "dtype": jnp.bfloat16}),
    ],
)
def test_a_network_its_loss_and_their_gradient(name, options):
    spec, model = get_spec(name), create_model(name, num_classes=5, width_multiplier=0.1, **options)
    size = spec.min_image_size
    variables, images = variable_shapes(model, size), jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)

    def loss(params, variables, images):
        variables = variables | {"params": params}
        rngs = {"dropout": jax.random.key(0)}
        output, _ = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
        return losses.inception_loss(output, [0, 4], spec.aux_weights, 0.1, [1.0] * 5)[0].sum()

    jax.eval_shape(jax.grad(loss, (0, 2)), variables["params"], variables, images)
    assert jax.eval_shape(model.apply, variables, images).logits.shape == (2, 5)


def test_what_is_around_a_network():
    images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
    preprocess.preprocess(images, normalization=preprocess.get_normalization("imagenet"), dtype=jnp.float32)
    logits = jnp.zeros((2, 5))
    assert losses.top_k_correct(logits, [0, 4], 1).tolist() == [True, False]
    losses.sigmoid_cross_entropy(logits, jnp.ones((2, 5)), class_weights=[1.0] * 5)
    maps, coefficients = jnp.zeros((2, 4, 4, 3), jnp.bfloat16), jnp.zeros((4, 3))
    batch_norm_calls.scale_form(True, maps, coefficients[:2])
    batch_norm_calls._gradient_form(True, maps, maps, coefficients)
    moments = DeviceMoments.zeros(3).add(jnp.ones((4, 3)), jnp.array([True] * 3 + [False])).add(jnp.ones((4, 3)))
    np.testing.assert_array_equal(moments.finish().mean, 1)
    rows = DeviceRows.zeros(3, 8).add(jnp.ones((4, 3)), jnp.array([True] * 3 + [False]))
    np.testing.assert_array_equal(rows.finish(), np.ones((3, 3)))
