"""Evaluation in bfloat16 by oneDNN: convolutions with batch norm or bias and ReLU; maps concatenated as integers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from inception_jax import create_model
from inception_jax.models import onednn
from inception_jax.models.concatenation import concatenate_channels
from inception_jax.models.normalization import BatchNorm, BatchNormOptions
from inception_jax.models.platforms import TRACED_FOR
from inception_jax.models.scaled_convolution import scaled_conv2d, scales

from .test_convolution import operands, xla
from .test_onednn import SHAPES, needs_bfloat16

pytestmark = needs_bfloat16

KERNELS = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
RELU = pytest.mark.parametrize("relu", [False, True])


def ours(x, kernel, coefficients, strides=1, padding="SAME", relu=True):
    return scaled_conv2d(x, kernel, coefficients, strides, padding, "onednn", relu=relu)


def form(x, kernel, coefficients, strides=1, padding="SAME", relu=True):
    """In float32, of a rounded kernel."""
    wide = xla(x.astype(jnp.float32), kernel.astype(jnp.bfloat16).astype(jnp.float32), strides, padding)
    wide = wide * coefficients[0] + coefficients[1]
    return jnp.maximum(wide, 0) if relu else wide


def example(images, window, dtype=jnp.float32):
    x, kernel = operands(images, window, jnp.bfloat16)
    return x, kernel.astype(dtype), jax.random.normal(jax.random.key(4), (2, window[3]))


def calls(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text().count(f"@{onednn.SCALED_TARGET}(")


@SHAPES
@RELU
def test_computed_in_float32_and_rounded_once(images, window, strides, padding, relu):
    arguments = example(images, window)
    run = functools.partial(ours, strides=strides, padding=padding, relu=relu)
    got, want = run(*arguments), form(*arguments, strides, padding, relu)
    assert got.dtype == jnp.bfloat16 and calls(run, *arguments) == 1
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=1e-5 * np.abs(want).max())


@KERNELS
@pytest.mark.parametrize("count", [1, 2, 3, 9, 17])
def test_every_number_of_images(count, dtype):
    arguments = example((count, 7, 7, 32), (5, 5, 32, 128), dtype)
    got, want = jax.jit(ours)(*arguments), form(*arguments)
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("window", [(1, 1, 32, 48), (3, 3, 32, 48), (7, 7, 3, 32)])
def test_a_nan_stays(window):
    """oneDNN's own ReLU makes 0 of it: a network whose maps overflow would go on with zeros."""
    x, kernel, coefficients = example((2, 9, 9, window[2]), window)
    np.testing.assert_array_equal(np.isnan(ours(x.at[0].set(jnp.nan), kernel, coefficients))[0], True)
    shifts = jnp.asarray([jnp.nan, jnp.inf, -jnp.inf, -3e38, 3.0, -3.0, 0.0])
    got = ours(jnp.zeros_like(x), kernel, coefficients.at[1, :7].set(shifts))[0, 4, 4, :7]
    np.testing.assert_array_equal(got.astype(jnp.float32), [np.nan, np.inf, np.nan, 0, 3, 0, 0])


@RELU
@KERNELS
def test_its_gradient_is_that_of_the_convolution(relu, dtype):
    x, kernel, coefficients = example((3, 8, 8, 16), (3, 3, 16, 32), dtype)
    y, pull = jax.vjp(functools.partial(ours, relu=relu), x, kernel, coefficients)
    gradient = jax.random.normal(jax.random.key(5), y.shape, jnp.bfloat16)
    _, pull_form = jax.vjp(functools.partial(form, relu=relu), x, kernel, coefficients)
    for one, other, operand in zip(
        pull(gradient), pull_form(gradient.astype(jnp.float32)), (x, kernel, coefficients), strict=True
    ):
        assert one.dtype == operand.dtype
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        # Rounding the map turns the ReLU of a value near 0, and rounds the gradient.
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(other)


def test_inside_scan_vmap_shard_map_and_pmap():
    x, kernel, coefficients = example((4, 5, 5, 8), (3, 3, 8, 16))
    want = jax.jit(ours)(x, kernel, coefficients)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    of_batch, specs = PartitionSpec("data"), (PartitionSpec("data"), PartitionSpec(), PartitionSpec())
    halves = x.reshape(2, 2, *x.shape[1:])
    for name, got in {
        "scan": jax.jit(lambda x: jax.lax.map(lambda part: ours(part, kernel, coefficients), x))(halves),
        "vmap": jax.jit(jax.vmap(lambda x: ours(x, kernel, coefficients)))(halves),
        "shard_map": jax.jit(jax.shard_map(ours, mesh=mesh, in_specs=specs, out_specs=of_batch))(
            x, kernel, coefficients
        ),
        "pmap": jax.pmap(lambda x: ours(x, kernel, coefficients), devices=jax.devices()[:2])(halves),
    }.items():
        np.testing.assert_array_equal(got.reshape(want.shape), want, err_msg=name)


def test_where_it_is_taken():
    x, kernel, coefficients = example((2, 8, 8, 16), (3, 3, 16, 32))
    assert scales(x, kernel, 1, "onednn") and scales(x, kernel, 1, "onednn_winograd")
    assert not scales(x, kernel, 1, "fast") and not scales(x, kernel, 2, "onednn")
    assert not scales(x.astype(jnp.float32), kernel, 1, "onednn")
    with TRACED_FOR("tpu"):
        assert not scales(x, kernel, 1, "onednn")
    with TRACED_FOR(None):
        traced = jax.jit(ours).trace(x, kernel, coefficients)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert onednn.SCALED_TARGET not in text and "stablehlo.convolution" in text


# {network: (its options, convolutions in evaluation, of which in one pass)}; an average pool moves behind the 1x1
# convolution of its branch, which is therefore not. Nor are depthwise ones, which nothing follows.
NETWORKS = {
    "inception_v1": ({}, 57, 57),  # a bias and a ReLU follow each
    "inception_v2": ({"conv_bias": True}, 70, 62),
    "inception_resnet_v1": ({}, None, None),
    "xception": ({}, 74, 40),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_in_networks(name):
    options, convolutions, expected = NETWORKS[name]
    model = create_model(name, num_classes=7, width_multiplier=0.25, dtype=jnp.bfloat16, dropout_rate=0.0, **options)
    x = jax.random.normal(jax.random.key(0), (3, 96, 96, 3))
    rng = np.random.default_rng(2)
    values = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), x)
    values = jax.tree.map(
        lambda v: v * jnp.asarray(rng.uniform(0.5, 1.5, v.shape), v.dtype) + (0.3 if v.ndim == 1 else 0), values
    )
    wide, fast, fused = (
        jax.jit(functools.partial(model.clone(convolution=algorithm, dtype=dtype).apply, train=False))
        for algorithm, dtype in (("onednn", jnp.float32), ("fast", jnp.bfloat16), ("onednn", jnp.bfloat16))
    )
    text = fused.lower(values, x).as_text()
    found = text.count(f"@{onednn.SCALED_TARGET}(")
    rest = text.count(f"@{onednn.TARGET}(")
    assert found > 5 * rest if expected is None else (found + rest, found) == (convolutions, expected)
    assert onednn.SCALED_TARGET not in wide.lower(values, x).as_text()
    logits, of_fast, want = (np.asarray(run(values, x).logits, np.float32) for run in (fused, fast, wide))
    error, usual = (np.linalg.norm(one - want) / np.linalg.norm(want) for one in (logits, of_fast))
    assert error < max(0.01, 1.5 * usual), (error, usual)
    training = model.clone(convolution="onednn", aux_heads=False).apply
    training = jax.jit(functools.partial(training, train=True, mutable=["batch_stats"]))
    assert onednn.SCALED_TARGET not in training.lower(values, x).as_text()


def test_with_64_bits_enabled():
    """The coefficients stay float32: of a bias, and of batch norm."""
    x = jnp.ones((1, 64, 64, 3))
    for name in ("inception_v1", "inception_v1_bn"):
        model = create_model(name, num_classes=2, width_multiplier=0.1, aux_heads=False, dtype=jnp.bfloat16)
        values = model.init(jax.random.key(0), x, train=False)
        run = jax.jit(
            lambda model, v: model.clone(convolution="onednn").apply(v, x, train=False).logits, static_argnums=0
        )
        want = run(model, values)
        with jax.enable_x64(True):
            np.testing.assert_array_equal(run(model, values), want)


def test_coefficients_that_do_not_fit_are_refused():
    x, kernel, coefficients = example((2, 8, 8, 16), (3, 3, 16, 32))
    for wrong in (coefficients[:, 1:], coefficients[0], coefficients.astype(jnp.bfloat16)):
        with pytest.raises(ValueError, match="expected float32"):
            ours(x, kernel, wrong)


@pytest.mark.parametrize("options", [BatchNormOptions(), BatchNormOptions(use_scale=False, epsilon=1e-5)])
def test_coefficients_are_those_of_evaluation(options):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 8))
    rng = np.random.default_rng(1)
    values = BatchNorm(options).init(jax.random.key(0), x, train=True)
    values = jax.tree.map(lambda value: value + jnp.asarray(rng.uniform(size=value.shape), value.dtype), values)
    factor, shift = BatchNorm(options).apply(values, 8, method="coefficients")
    want = BatchNorm(options).apply(values, x, train=False)
    np.testing.assert_allclose(x * factor + shift, want, rtol=1e-6, atol=1e-6)


def test_maps_are_concatenated_as_bits():
    maps = [jax.random.normal(jax.random.key(n), (2, 5, 5, n), jnp.bfloat16) for n in (3, 16, 1)]
    maps[1] = maps[1].at[0].set(jnp.nan).at[1, 0].set(-0.0)
    join = functools.partial(concatenate_channels, algorithm="onednn")
    got, want = jax.jit(join)(maps), jnp.concatenate(maps, axis=-1)
    np.testing.assert_array_equal(*(one.view(jnp.uint16) for one in (got, want)))
    gradient = jax.random.normal(jax.random.key(9), want.shape, jnp.bfloat16)
    (of_maps,) = jax.jit(lambda maps, g: jax.vjp(join, maps)[1](g))(maps, gradient)
    for one, first, last in zip(of_maps, (0, 3, 19), (3, 19, 20), strict=True):
        np.testing.assert_array_equal(one, gradient[..., first:last])
    for algorithm, dtype, cast in (
        ("onednn", jnp.bfloat16, True),
        ("fast", jnp.bfloat16, False),
        ("onednn", jnp.float32, False),
    ):
        text = jax.jit(lambda m, algorithm=algorithm: concatenate_channels(m, algorithm)).lower(
            [one.astype(dtype) for one in maps]
        )
        assert ("bitcast_convert" in text.as_text()) == cast
    with jax.numpy_dtype_promotion("standard"):
        mixed = concatenate_channels([maps[0], maps[1].astype(jnp.float32)], "onednn")
    assert mixed.dtype == jnp.float32 and mixed.shape == (2, 5, 5, 19)
    with TRACED_FOR(None):
        assert "bitcast_convert" not in jax.jit(join).trace(maps).lower(lowering_platforms=("cuda",)).as_text()
