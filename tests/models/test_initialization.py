"""Initializers beside JAX's, and variables made leaf by leaf beside those of `model.init`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.models.checks import ModelError
from inception_jax.models.initialization import (
    Constant,
    VarianceScaling,
    caffe_xavier,
    init_variables,
    slim_variance_scaling,
    slim_xavier,
    variable_shapes,
)
from inception_jax.models.registry import create_model, get_spec

KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((1.0, "fan_in", "uniform"), (3, 3, 96, 128)),  # more values than the generator makes at once
        ((2.0, "fan_avg", "uniform"), (5, 7)),
        ((2.0, "fan_in", "truncated_normal"), (3, 1, 16, 32)),
    ],
)
def test_values_are_those_of_jax(arguments, shape):
    ours = VarianceScaling(*arguments)
    # JAX computes the factor in float32, we in float64 before rounding: a unit in the last place.
    np.testing.assert_allclose(
        ours(KEY, shape), jax.nn.initializers.variance_scaling(*arguments)(KEY, shape), rtol=3e-7
    )


def test_values_do_not_depend_on_how_they_are_made(x64):
    for dtype in (jnp.float32, jnp.float64):
        made = caffe_xavier(KEY, (70_000, 1), dtype)
        assert made.dtype == dtype
        assert np.array_equal(made, jax.jit(lambda key: caffe_xavier(key, (70_000, 1), dtype))(KEY))  # noqa: B023
    assert caffe_xavier(KEY, (3, 4), jnp.bfloat16).dtype == jnp.bfloat16


def test_another_generator_serves_as_well():
    key = jax.random.key(3, impl="rbg")
    expected = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")(key, (3, 4))
    np.testing.assert_allclose(caffe_xavier(key, (3, 4)), expected, rtol=3e-7)


def test_threefry_as_it_was_before_it_could_be_split_serves_too():
    with jax.threefry_partitionable(False):  # a value then depends on how many there are
        expected = jax.nn.initializers.variance_scaling(1.0, "fan_in", "uniform")(KEY, (3, 5))
        np.testing.assert_allclose(caffe_xavier(KEY, (3, 5)), expected, rtol=3e-7)


def test_the_publishers_distributions():
    shape = (3, 3, 40, 300)  # fan in 360, fan out 2700
    caffe = np.asarray(caffe_xavier(KEY, shape))
    assert np.abs(caffe).max() <= np.sqrt(3 / 360)
    assert caffe.std() == pytest.approx(np.sqrt(1 / 360), rel=0.01)
    slim = np.asarray(slim_variance_scaling(KEY, shape))
    assert np.abs(slim).max() == pytest.approx(2 * np.sqrt(1.3 * 2 / 360), rel=1e-3)  # cut at two deviations
    assert slim.std() == pytest.approx(1.003 * np.sqrt(2 / 360), rel=0.01)
    linear = np.asarray(slim_xavier(KEY, (100, 500)))
    assert np.abs(linear).max() == pytest.approx(np.sqrt(6 / 600), rel=1e-3)
    assert np.array_equal(Constant(0.2)(None, (3,)), np.full(3, 0.2, np.float32))


def test_variables_are_those_of_init():
    # Two modules and a head are enough to have every kind of layer at every depth, and compile four times sooner.
    modules = {"3a": (4, 4, 4, 4, 4, 4), "4a": (4, 4, 4, 4, 4, 4)}
    model = create_model("inception_v1_bn", width_multiplier=0.05, min_width=4, num_classes=3, modules=modules)
    ours = init_variables(model, KEY, 64)
    theirs = model.init(KEY, jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype, path
        assert np.array_equal(a, b), path


def started(name, size, **options):
    """{path: NumPy array} of a fresh network: parameters, and statistics."""
    variables = jax.tree.map(np.asarray, init_variables(create_model(name, **options), KEY, size))
    return [flatten_dict(variables.get(collection, {}), sep="/") for collection in ("params", "batch_stats")]


def test_where_googlenet_starts():
    params, _ = started("inception_v1", 64, width_multiplier=0.25)
    for path, leaf in params.items():
        if path.endswith("bias"):
            assert (leaf == (0.0 if "classifier" in path else np.float32(0.2))).all(), path
        else:
            bound = np.sqrt(3 / np.prod(leaf.shape[:-1]))
            assert np.abs(leaf).max() <= bound * 1.000001, path
            assert leaf.std() == pytest.approx(bound / np.sqrt(3), rel=0.2 if leaf.size < 1000 else 0.1), path
    kernels = [leaf for path, leaf in params.items() if path.endswith("kernel")]
    firsts = [float(leaf.ravel()[0] * np.sqrt(np.prod(leaf.shape[:-1]))) for leaf in kernels]
    assert len(set(firsts)) == len(kernels)  # each layer from a key of its own


def test_where_inception_v4_starts():
    params, stats = started("inception_v4", 75, width_multiplier=0.25, num_classes=10)
    for path, leaf in params.items():
        name = path.rpartition("/")[2]
        if name == "kernel":
            fan_in, fan_out = np.prod(leaf.shape[:-1]), leaf.shape[-1]
            linear = path.endswith("classifier/kernel")
            bound = np.sqrt(6 / (fan_in + fan_out)) if linear else 2 * np.sqrt(2.6 / fan_in)
            assert 0.9 * bound < np.abs(leaf).max() <= bound * 1.00001, path
        else:
            assert (leaf == {"scale": 1, "bias": 0}[name]).all(), path
    assert all((leaf == {"mean": 0, "var": 1}[path.rpartition("/")[2]]).all() for path, leaf in stats.items())


def test_variables_without_heads():
    assert not any(
        "aux" in name for name in init_variables(create_model("inception_v1", aux_heads=False), KEY, 32)["params"]
    )


@pytest.mark.parametrize("name", ["inception_v1", "inception_v3", "inception_resnet_v2", "xception", "vgg16"])
def test_shapes_are_those_of_init(name):
    model = create_model(name, width_multiplier=0.1, num_classes=3, param_dtype=jnp.bfloat16)
    size = get_spec(name).min_image_size
    theirs = jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    assert jax.tree.structure(variable_shapes(model, size)) == jax.tree.structure(theirs)
    assert variable_shapes(model, size) == theirs


def test_sizes_and_keys():
    model = create_model("inception_v1", num_classes=3, width_multiplier=0.1, aux_heads=False)
    shapes = [variable_shapes(model, size) for size in (40, (32, 40), [40, 40], np.int64(40))]
    assert all(other == shapes[0] for other in shapes)
    for size in (40.0, (32,), (32, 40, 3), "40", None):
        with pytest.raises(ModelError, match=r"^image_size: .*; give pixels, 299, or \(height, width\)$"):
            init_variables(model, KEY, size)
    for key in (0, None, jax.random.split(KEY), np.zeros((2, 2), np.uint32), jnp.zeros(2)):
        with pytest.raises(ModelError, match=r"^key: .* is no PRNG key; give jax\.random\.key\(0\)$"):
            init_variables(model, key, 32)
    assert init_variables(model, jax.random.PRNGKey(0), 32)["params"]
