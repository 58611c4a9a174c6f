"""Batch norm beside its definition in NumPy: values, gradients, running statistics, and over several devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from inception_jax.models.checks import ModelError
from inception_jax.models.normalization import BatchNorm, BatchNormOptions

SHAPE = (8, 3, 2, 4)


def normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


def variables(channels=4, scale=True):
    params = {"bias": normal(2, channels)} | ({"scale": normal(3, channels)} if scale else {})
    return {"params": params, "batch_stats": {"mean": normal(4, channels), "var": normal(5, channels) ** 2}}


def layer(**changes):
    return BatchNorm(BatchNormOptions(**{"momentum": 0.9} | changes), jnp.float64)


def normalized(x, mean, var, params, epsilon=1e-3):
    return (x - mean) / np.sqrt(var + epsilon) * params.get("scale", 1.0) + params["bias"]


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("unbiased", [False, True])
def test_in_training_the_batch_is_normalized_and_remembered(scale, unbiased, x64):
    x = normal(0, *SHAPE) * 3 + 1
    v = variables(scale=scale)
    module = layer(use_scale=scale, unbiased_variance=unbiased)
    out, updated = module.apply(v, x, train=True, mutable=["batch_stats"])
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(out, normalized(x, mean, var, v["params"]), rtol=1e-10, atol=1e-12)
    old = v["batch_stats"]
    seen = x.var((0, 1, 2), ddof=1) if unbiased else var
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-12)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * old["var"] + 0.1 * seen, rtol=1e-11)


def test_in_evaluation_the_running_statistics_serve(x64):
    x, v = normal(0, *SHAPE), variables()
    out, updated = layer(epsilon=0.5).apply(v, x, train=False, mutable=["batch_stats"])
    old = v["batch_stats"]
    np.testing.assert_allclose(out, normalized(x, old["mean"], old["var"], v["params"], 0.5), rtol=1e-12, atol=1e-12)
    assert np.array_equal(updated["batch_stats"]["mean"], old["mean"])


def test_the_gradient_is_that_of_the_definition(x64):
    x, v, weights = normal(0, *SHAPE), variables(), normal(1, *SHAPE)

    def loss(x, params):
        out, _ = layer().apply(v | {"params": params}, x, train=True, mutable=["batch_stats"])
        return (out * weights).sum()

    grad_x, grad_params = jax.grad(loss, (0, 1))(x, v["params"])
    # The formulas of arXiv:1502.03167, section 3.
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2)) + 1e-3
    hat, m = (x - mean) / np.sqrt(var), x[..., 0].size
    d_hat = weights * v["params"]["scale"]
    expected = (d_hat - d_hat.sum((0, 1, 2)) / m - hat * (d_hat * hat).sum((0, 1, 2)) / m) / np.sqrt(var)
    np.testing.assert_allclose(grad_x, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(grad_params["scale"], (weights * hat).sum((0, 1, 2)), rtol=1e-10)
    np.testing.assert_allclose(grad_params["bias"], weights.sum((0, 1, 2)), rtol=1e-10)


@pytest.mark.parametrize("unbiased", [False, True])
def test_over_an_axis_the_statistics_are_those_of_the_whole_batch(unbiased, x64):
    x, v, weights = normal(0, *SHAPE), variables(), normal(1, *SHAPE)

    def run(x, weights, axis):
        module = layer(axis_name=axis, unbiased_variance=unbiased)

        def loss(x):
            out, updated = module.apply(v, x, train=True, mutable=["batch_stats"])
            return (out * weights).sum(), (out, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(x)

    grad, (out, stats) = run(x, weights, None)
    parts, weight_parts = x.reshape(4, 2, *SHAPE[1:]), weights.reshape(4, 2, *SHAPE[1:])
    part_grad, (part_out, part_stats) = jax.vmap(lambda x, w: run(x, w, "data"), axis_name="data")(parts, weight_parts)
    np.testing.assert_allclose(part_out.reshape(SHAPE), out, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(part_grad.reshape(SHAPE), grad, rtol=1e-10, atol=1e-13)
    for name in ("mean", "var"):
        np.testing.assert_allclose(part_stats[name], np.tile(stats[name], (4, 1)), rtol=1e-12)


def test_groups_of_devices_share_their_statistics(x64):
    if jax.device_count() < 4:
        pytest.skip("needs four devices")
    x, v = normal(0, *SHAPE), variables()
    module = layer(axis_name="data", axis_index_groups=((0, 1), (2, 3)), unbiased_variance=True)
    mesh, data = Mesh(np.array(jax.devices()[:4]), "data"), PartitionSpec("data")

    def share(x):
        out, updated = module.apply(v, x, train=True, mutable=["batch_stats"])
        return out, jax.tree.map(lambda s: s[None], updated["batch_stats"])

    out, stats = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=data, out_specs=data, check_vma=False))(x)
    for group in (0, 1):
        rows = slice(4 * group, 4 * group + 4)
        expected, updated = layer(unbiased_variance=True).apply(v, x[rows], train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(out[rows], expected, rtol=1e-11, atol=1e-13)
        for device in (2 * group, 2 * group + 1):
            np.testing.assert_allclose(stats["var"][device], updated["batch_stats"]["var"], rtol=1e-12)


def test_groups_of_examples_are_normalized_apart_and_remembered_together(x64):
    x, v, weights = normal(0, *SHAPE) * 3 + 1, variables(), normal(1, *SHAPE)

    def run(module, x, weights):
        def loss(x):
            out, updated = module.apply(v, x, train=True, mutable=["batch_stats"])
            return (out * weights).sum(), (out, updated["batch_stats"])

        return jax.grad(loss, has_aux=True)(x)

    grad, (out, stats) = run(layer(group_size=4, unbiased_variance=True), x, weights)
    parts = [run(layer(unbiased_variance=True), x[rows], weights[rows]) for rows in (slice(4), slice(4, 8))]
    np.testing.assert_allclose(out, np.concatenate([part_out for _, (part_out, _) in parts]), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(grad, np.concatenate([part_grad for part_grad, _ in parts]), rtol=1e-10, atol=1e-13)
    for name in ("mean", "var"):
        mean = (parts[0][1][1][name] + parts[1][1][1][name]) / 2
        np.testing.assert_allclose(stats[name], mean, rtol=1e-12)


def test_a_batch_that_does_not_divide_into_groups_is_refused():
    with pytest.raises(ModelError, match="bn_group_size: a batch of 8 is not a multiple of 3 examples"):
        layer(group_size=3).apply(variables(), jnp.zeros(SHAPE), train=True, mutable=["batch_stats"])


def test_a_frozen_layer_normalizes_by_its_running_statistics_in_training_too(x64):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            style = BatchNormOptions(momentum=0.9, frozen=("inner/one",))
            return [BatchNorm(style, jnp.float64, name=name)(x, train=train) for name in ("one", "two")]

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return Two(name="inner")(x, train)

    x = normal(0, *SHAPE)
    v = {kind: {"inner": {"one": leaves, "two": leaves}} for kind, leaves in variables().items()}
    (one, two), updated = Outer().apply(v, x, True, mutable=["batch_stats"])
    before, after = variables(), updated["batch_stats"]["inner"]
    mean, var = before["batch_stats"]["mean"], before["batch_stats"]["var"]
    np.testing.assert_allclose(one, normalized(x, mean, var, before["params"]), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(after["one"]["var"], var)
    expected = normalized(x, x.mean((0, 1, 2)), x.var((0, 1, 2)), before["params"])
    np.testing.assert_allclose(two, expected, rtol=1e-10, atol=1e-12)
    assert not np.array_equal(after["two"]["var"], var)


@pytest.mark.parametrize("options", [{"axis_name": "data"}, {"group_size": 3}])
def test_initializing_ignores_axis_and_groups_and_keeps_the_statistics_at_rest(options):
    module = BatchNorm(BatchNormOptions(**options))
    v = module.init(jax.random.key(0), jnp.full(SHAPE, 7.0), train=True)
    assert np.array_equal(v["batch_stats"]["mean"], np.zeros(4))
    assert np.array_equal(v["batch_stats"]["var"], np.ones(4))
    assert np.array_equal(v["params"]["scale"], np.ones(4))
    assert np.array_equal(v["params"]["bias"], np.zeros(4))


def test_bfloat16_maps_keep_float32_statistics():
    x = jnp.asarray(normal(0, 64, 16, 16, 2) + 4, jnp.bfloat16)
    module = BatchNorm(BatchNormOptions(momentum=0.0), jnp.bfloat16)
    v = module.init(jax.random.key(0), x, train=False)
    assert v["batch_stats"]["mean"].dtype == jnp.float32
    out, updated = module.apply(v, x, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    assert updated["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(updated["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(updated["batch_stats"]["var"], exact.var((0, 1, 2)), rtol=1e-4)
