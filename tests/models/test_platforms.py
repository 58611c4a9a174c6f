"""Traces for one platform: they hold its forms alone, are taken for no other one, and compute the same."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model
from inception_jax.models.convolution import conv2d
from inception_jax.models.initialization import Normal, variable_shapes
from inception_jax.models.layers import ConvUnit, LayerOptions
from inception_jax.models.lrn import local_response_norm
from inception_jax.models.normalization import BatchNormOptions
from inception_jax.models.platforms import TRACED_FOR, is_traced_for_shapes, platform_dependent, traced_for_shapes
from inception_jax.models.pooling import avg_pool, max_pool
from inception_jax.models.registry import get_spec

from .traced import sub_jaxprs


def test_a_trace_for_one_platform_is_not_taken_for_another():
    run = jax.jit(lambda x: platform_dependent(x, default=lambda x: x + 3, cpu=lambda x: x + 1, tpu=lambda x: x + 2))
    x = jnp.float32(0)

    def operations():
        return [equation.primitive.name for equation in run.trace(x).jaxpr.eqns]

    assert "cond" in operations() and run(x) == 1
    for platform, value in (("cpu", 1), ("tpu", 2), ("cuda", 3)):
        with TRACED_FOR(platform):
            assert operations() == ["add"] and run(x) == value
    assert "cond" in operations() and run(x) == 1


def test_the_forms_for_cpus_alone_give_the_bits_of_all():
    random = np.random.default_rng(0)
    x, kernel = (random.normal(size=shape).astype(np.float32) for shape in ((2, 9, 9, 5), (3, 3, 5, 6)))

    def loss(x, kernel):
        y = max_pool(local_response_norm(conv2d(x, kernel)), 3, 2, "CEIL")
        return jnp.sin(avg_pool(y, 3, 1)).sum()

    def values():
        return jax.tree.leaves(jax.jit(jax.value_and_grad(loss, (0, 1)))(x, kernel))

    everything = values()
    with TRACED_FOR("cpu"):
        alone = values()
    assert all(np.array_equal(one, other) for one, other in zip(alone, everything, strict=True))


@pytest.mark.parametrize("name", ["inception_v1", "xception"])  # biases and LRN; batch norm
def test_a_trace_for_shapes_has_those_of_the_computation_and_fewer_operations(name):
    model = create_model(name, num_classes=7, width_multiplier=0.25, dtype=jnp.bfloat16)
    size = get_spec(name).min_image_size

    def run(key, images):
        return model.init_with_output(key, images, train=False)

    def trace():
        return jax.make_jaxpr(run, return_shape=True)(jax.random.key(0), jnp.zeros((2, size, size, 3)))

    everything, expected = trace()
    with traced_for_shapes():
        jaxpr, shapes = trace()
    assert jax.tree.structure(shapes) == jax.tree.structure(expected)
    assert jax.tree.leaves(shapes) == jax.tree.leaves(expected)
    assert not is_traced_for_shapes() and count_equations(jaxpr.jaxpr) < 0.8 * count_equations(everything.jaxpr)


def count_equations(jaxpr):
    """Equations of a program and of those in it."""
    return sum(1 + sum(map(count_equations, sub_jaxprs([*one.params.values()]))) for one in jaxpr.eqns)


class Shared(nn.Module):
    """A layer with batch norm that rows of a batch share by `nn.vmap`, as a user's network may have it."""

    @nn.compact
    def __call__(self, x):
        options = LayerOptions(Normal(0.1), Normal(0.1), batch_norm=BatchNormOptions())
        run = nn.vmap(
            lambda layer, x: layer(x, train=False),
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False},
        )
        return run(ConvUnit(4, (3, 3), options), jnp.stack([x, x]))


def test_a_trace_for_shapes_inside_vmap():
    shapes = variable_shapes(Shared(), 6)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(
        jnp.shape, jax.eval_shape(Shared().init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    )
