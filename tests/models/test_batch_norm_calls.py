"""Batch norm of bfloat16 maps by the calls beside oneDNN: beside the definition in float64, in networks and meshes."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from inception_jax import create_model
from inception_jax.models import onednn
from inception_jax.models.normalization import BatchNorm, BatchNormOptions
from inception_jax.models.platforms import TRACED_FOR

from .test_onednn import needs_bfloat16

pytestmark = needs_bfloat16

TARGETS = onednn.MOMENTS_TARGET, onednn.NORMALIZE_TARGET, onednn.GRADIENT_SUMS_TARGET, onednn.NORMALIZE_GRADIENT_TARGET


def calls(function, *arguments):
    text = jax.jit(function).lower(*arguments).as_text()
    return tuple(text.count(f"@{target}(") for target in TARGETS)


def variables(options, channels):
    rng = np.random.default_rng(1)
    values = BatchNorm(options).init(jax.random.key(0), jnp.zeros((1, 1, 1, channels)), train=True)
    return jax.tree.map(lambda value: value + jnp.asarray(0.3 * rng.normal(size=value.shape), value.dtype), values)


def apply(options, algorithm, values, x, relu=True, train=True):
    return BatchNorm(options).apply(
        values, x, train=train, relu=relu, algorithm=algorithm, mutable=["batch_stats"] if train else False
    )


def in_float64(options, values, x, gradient, relu):
    """(y, statistics, gradients of parameters and of x) by the definition."""
    with jax.enable_x64(True):
        x, gradient = (jnp.asarray(np.asarray(v, np.float64)) for v in (x, gradient))
        values = jax.tree.map(lambda value: jnp.asarray(np.asarray(value, np.float64)), values)

        def formula(params, x):
            axes, stats = tuple(range(x.ndim - 1)), values["batch_stats"]
            mean, var = x.mean(axes), x.var(axes)
            count = x.size // x.shape[-1]
            kept = var * count / (count - 1) if options.unbiased_variance else var
            y = (x - mean) / jnp.sqrt(var + options.epsilon) * params.get("scale", 1.0) + params["bias"]
            new = {"mean": mean, "var": kept}
            stats = {key: options.momentum * stats[key] + (1 - options.momentum) * new[key] for key in new}
            return jnp.maximum(y, 0) if relu else y, stats

        y, pull, stats = jax.vjp(formula, values["params"], x, has_aux=True)
        return jax.tree.map(np.asarray, (y, stats, *pull(gradient)))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "options",
    [BatchNormOptions(momentum=0.9), BatchNormOptions(use_scale=False, unbiased_variance=True, epsilon=0.1)],
)
@pytest.mark.parametrize("shape", [(8, 28, 28, 64), (3, 5, 7, 19), (2, 7, 7, 112), (2, 3, 5, 2080), (5, 1, 1, 1)])
def test_equal_to_the_definition_in_float64(shape, options, relu):
    """Rounded once: half a unit of bfloat16's last place; statistics and gradients of parameters are in float32."""
    rng = np.random.default_rng(0)
    x, gradient = (jnp.asarray(rng.normal(size=shape) * 2 + 1, jnp.bfloat16) for _ in range(2))
    values = variables(options, shape[-1])

    def run(params, x, gradient):
        own = {**values, "params": params}
        y, pull, changed = jax.vjp(
            lambda params, x: apply(options, "onednn", own | {"params": params}, x, relu), params, x, has_aux=True
        )
        return y, changed["batch_stats"], *pull(gradient)

    got, want = jax.jit(run)(values["params"], x, gradient), in_float64(options, values, x, gradient, relu)
    assert calls(run, values["params"], x, gradient) == (1, 1, 1, 1)
    assert got[0].dtype == got[3].dtype == jnp.bfloat16
    for one, other in ((got[0], want[0]), (got[3], want[3])):
        np.testing.assert_allclose(
            np.asarray(one, np.float32), other, rtol=2**-8, atol=2e-5 * np.abs(other).max() + 1e-6
        )
    for one, other in zip(jax.tree.leaves(got[1:3]), jax.tree.leaves(want[1:3]), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * np.abs(other).max() + 1e-6)


def test_values_that_are_not_finite_are_seen():
    x = jnp.ones((2, 3, 3, 33), jnp.bfloat16).at[1, 0, 0, (0, 32)].set(jnp.nan).at[0, 0, 0, 1].set(jnp.inf)
    y, changed = apply(BatchNormOptions(), "onednn", variables(BatchNormOptions(), 33), x)
    assert np.isnan(np.asarray(y, np.float32)[..., (0, 1, 32)]).all()  # the ReLU hides none
    assert np.isnan(changed["batch_stats"]["mean"]).tolist() == [channel in (0, 32) for channel in range(33)]


def test_the_bits_do_not_depend_on_the_number_of_threads():
    program = """import jax, jax.numpy as jnp, hashlib, numpy as np
from inception_jax.models.normalization import BatchNorm, BatchNormOptions
x = jax.random.normal(jax.random.key(0), (8, 33, 31, 48)).astype(jnp.bfloat16)
bn = BatchNorm(BatchNormOptions())
values = bn.init(jax.random.key(0), x, train=True)
def run(values, x):
    y, pull, kept = jax.vjp(lambda values, x: bn.apply(values, x, train=True, relu=True, algorithm="onednn",
        mutable=["batch_stats"]), values, x, has_aux=True)
    return y, kept, pull(y)
leaves = jax.tree.leaves(jax.jit(run)(values, x))
print(hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"NPROC": str(threads), "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in (1, 3, 8)
    }
    assert len(digests) == 1


def test_statistics_of_several_devices():
    """In a `shard_map` with `axis_name`, with JAX's own sums of gradients and without: those of the whole batch."""
    mesh = Mesh(np.asarray(jax.devices()[:2]), ("batch",))
    x, gradient = (jax.random.normal(jax.random.key(i), (4, 5, 5, 40), jnp.bfloat16) for i in range(2))
    values = variables(BatchNormOptions(), 40)
    batch, all_of_it = PartitionSpec("batch"), PartitionSpec()

    def run(options, values, x, gradient):
        y, pull, changed = jax.vjp(
            lambda params, x: apply(options, "onednn", {**values, "params": params}, x),
            values["params"],
            x,
            has_aux=True,
        )
        return y, changed["batch_stats"], *pull(gradient)

    want = run(BatchNormOptions(), values, x, gradient)
    for check in (True, False):

        def shard(values, x, gradient, check=check):
            y, changed, of_params, of_x = run(BatchNormOptions(axis_name="batch"), values, x, gradient)
            if not check:
                of_params = jax.lax.psum(of_params, "batch")
            return y, changed, of_params, of_x

        specs = (batch, all_of_it, all_of_it, batch)
        mapped = jax.shard_map(shard, mesh=mesh, in_specs=(all_of_it, batch, batch), out_specs=specs, check_vma=check)
        got = jax.jit(mapped)(values, x, gradient)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
            np.testing.assert_allclose(one, other, rtol=2**-7, atol=1e-4, err_msg=f"check_vma={check}")


def test_twice_differentiable_and_mapped():
    options, values = BatchNormOptions(), variables(BatchNormOptions(), 17)
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 17), jnp.bfloat16)

    def penalty(algorithm, x):
        def loss(x):
            return (apply(options, algorithm, values, x)[0].astype(np.float32) ** 3).mean()

        return (jax.grad(loss)(x).astype(np.float32) ** 2).sum()

    got, want = (
        jax.jit(jax.vmap(jax.grad(functools.partial(penalty, algorithm))))(x) for algorithm in ("onednn", "fast")
    )
    got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
    np.testing.assert_allclose(got, want, atol=0.05 * np.abs(want).max())


def test_what_is_left_to_xla(monkeypatch):
    """float32 and float64, evaluation, frozen layers, groups, other algorithms, processors without bfloat16."""
    x, none = jnp.ones((4, 2, 2, 16), jnp.bfloat16), (0, 0, 0, 0)

    def count(options=BatchNormOptions(), algorithm="onednn", x=x, train=True):  # noqa: B008
        return calls(lambda x: apply(options, algorithm, variables(options, 16), x, train=train), x)

    assert count() == count(algorithm="onednn_winograd") == (1, 1, 0, 0)
    assert count(algorithm="fast") == count(train=False) == count(x=x.astype(jnp.float32)) == none
    assert count(BatchNormOptions(group_size=2)) == count(x=x[:0]) == none
    with TRACED_FOR(None):
        text = jax.jit(lambda x: apply(BatchNormOptions(), "onednn", variables(BatchNormOptions(), 16), x)).trace(x)
        assert not any(target in text.lower(lowering_platforms=("tpu",)).as_text() for target in TARGETS)
    monkeypatch.setattr(onednn, "load", lambda: onednn.Calls("", False, lambda *_: 0))
    assert count() == none


@pytest.mark.parametrize(
    ("name", "size", "norms"), [("inception_v1_bn", 32, 57), ("inception_v3", 75, 94), ("xception", 71, 40)]
)
def test_a_network_takes_them(name, size, norms):
    model = create_model(
        name, width_multiplier=0.05, num_classes=2, aux_heads=False, convolution="onednn", dtype=jnp.bfloat16
    )
    images = jnp.zeros((2, size, size, 3))
    values = jax.eval_shape(model.init, jax.random.key(0), images)
    keys = {"dropout": jax.random.key(0)}

    def logits(values):
        return model.apply(values, images, train=True, rngs=keys, mutable=["batch_stats"])[0].logits

    assert calls(logits, values) == (norms, norms, 0, 0)
