"""Max pools by the calls beside oneDNN: the numbers of the slices, the windows of the definition, and their bits."""

import functools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model
from inception_jax.models import onednn
from inception_jax.models.pooling import max_pool

from .test_onednn import DTYPES, needs_bfloat16, needs_onednn
from .test_pooling import PADDINGS, reference_max, with_gradient

pytestmark = needs_onednn

ours = functools.partial(max_pool, algorithm="onednn")


def calls(function, *arguments):
    text = jax.jit(function).lower(*arguments).as_text()
    return tuple(text.count(f"@{target}(") for target in (onednn.POOL_TARGET, onednn.POOL_GRADIENT_TARGET))


@DTYPES
@pytest.mark.parametrize(("window", "stride", "padding"), PADDINGS)
@pytest.mark.parametrize(
    ("size", "channels"), [(7, 2), (8, 19), (6, 29)]
)  # channels: one at a time; with 16, 8, 4 and 1
def test_ties_and_padding(window, stride, padding, size, channels, dtype):
    rng = np.random.default_rng(size)
    x = rng.integers(0, 3, (2, size, size + 1, channels)).astype(np.float32)
    shape = reference_max(x, None, window, stride, padding)[0].shape
    gradient = rng.integers(-8, 8, shape).astype(np.float32)  # sums that are exact in any order
    want, towards_x = reference_max(x, gradient, window, stride, padding)
    x, gradient = (jnp.asarray(values, dtype) for values in (x, gradient))
    out, got = with_gradient(lambda x: ours(x, window, stride, padding), x, gradient)
    assert out.dtype == got.dtype == dtype
    np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(got, towards_x)
    assert calls(jax.vjp, jax.tree_util.Partial(lambda x: ours(x, window, stride, padding)), x) == (1, 0)


@DTYPES
@pytest.mark.parametrize("images", [1, 2, 9])
def test_few_images_are_divided_by_channels(images, dtype):
    """Gradients are added in float32, and rounded once."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(images, 13, 11, 70)), dtype)
    for geometry in ((3, 2, "CEIL"), (3, 1, "SAME"), (2, 3, "SAME"), (5, 1, "SAME")):

        def loss(x, pool, geometry=geometry):
            return (pool(x, *geometry).astype(np.float32) ** 2).sum()

        got, want = jax.jit(jax.value_and_grad(loss), static_argnums=1)(x, ours), jax.value_and_grad(loss)(x, max_pool)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
        if dtype != np.float32:
            want = jax.value_and_grad(loss)(x.astype(np.float32), max_pool)
        rtol = 1e-5 if dtype == np.float32 else 2**-8
        assert got[1].dtype == dtype
        np.testing.assert_allclose(np.asarray(got[1], np.float32), want[1], rtol=rtol, atol=1e-5)


@needs_bfloat16
def test_a_sum_halfway_between_two_numbers_becomes_the_even_one():
    x = jnp.asarray([[0, 1, 0]], jnp.bfloat16)[None, ..., None] * jnp.ones((17,), jnp.bfloat16)
    for one, want in ((1.0, 1.0), (1 + 2**-7, 1 + 2**-6)):
        given = jnp.asarray([[one, 2**-8]], jnp.bfloat16)[None, ..., None] * jnp.ones((17,), jnp.bfloat16)
        got = onednn.max_pool_gradient(x, given, [2, 1, 0, 0])
        np.testing.assert_array_equal(np.asarray(got, np.float32)[0, 0, :, :], [[0] * 17, [want] * 17, [0] * 17])


@DTYPES
def test_values_that_are_not_finite(dtype):
    x = np.full((1, 4, 4, 17), -np.inf, dtype)
    x[0, 1, 1] = np.nan
    x[0, 3, 3] = np.inf
    got, want = (jax.jit(lambda x, pool=pool: pool(x, 2, 2, "VALID"))(x) for pool in (ours, max_pool))
    got = np.asarray(got, np.float32)
    np.testing.assert_array_equal(got, np.asarray(want, np.float32))
    assert np.isnan(got[0, 0, 0]).all() and np.isneginf(got[0, 0, 1]).all() and np.isposinf(got[0, 1, 1]).all()


@DTYPES
@pytest.mark.parametrize("channels", [1, 17])
@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_nan_is_the_value_of_its_window_and_gets_its_gradient(place, channels, dtype):
    """Wherever it is; the last one of several."""
    x = np.ones((1, 2, 2, channels), dtype)
    for nan in (place, (1, 1)):
        x[0, nan[0], nan[1]] = np.nan
        out, got = with_gradient(lambda x: ours(x, 2, 2, "VALID"), jnp.asarray(x), jnp.ones((1, 1, 1, channels), dtype))
        assert np.isnan(out).all() and np.isnan(max_pool(jnp.asarray(x), 2, 2, "VALID")).all()
        want = np.zeros_like(x)
        want[0, nan[0], nan[1]] = 1
        np.testing.assert_array_equal(got, want)


def test_twice_differentiable_and_mapped():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 9, 8, 17)), jnp.float32)

    def penalty(pool, x):
        return (jax.grad(lambda x: (pool(x, 3, 2, "SAME") ** 3).sum())(x) ** 2).sum()

    got, want = (jax.jit(jax.vmap(jax.grad(functools.partial(penalty, pool))))(x) for pool in (ours, max_pool))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_what_is_left_to_the_slices(monkeypatch):
    """Other dtypes, dilation, no images."""
    monkeypatch.setattr(onednn, "load", lambda: onednn.Calls("", False, lambda *_: 0))
    x = jnp.zeros((2, 9, 9, 16))
    assert calls(lambda x: ours(x, 3, 2), x) == (1, 0)
    assert calls(lambda x: ours(x, 3, 1, "SAME", 2), x) == (0, 0)
    assert calls(lambda x: ours(x, 3, 2), x.astype(jnp.float16)) == (0, 0)
    assert calls(lambda x: ours(x, 3, 2), x.astype(jnp.bfloat16)) == (0, 0)  # on a processor without products of it
    assert calls(lambda x: ours(x, 3, 2), x[:0]) == (0, 0)
    assert calls(lambda x: max_pool(x, 3, 2), x) == (0, 0)


@pytest.mark.parametrize(
    ("name", "size", "pools"),
    [("inception_v1", 32, 13), ("inception_v2", 32, 5), ("inception_v3", 75, 4), ("inception_v4", 75, 4),
     ("inception_resnet_v1", 75, 3), ("inception_resnet_v2", 75, 4), ("xception", 71, 4), ("alexnet", 67, 3),
     ("vgg16", 32, 5), ("network_in_network", 67, 3)],
)  # fmt: skip
def test_every_network_hands_its_option_to_its_pools(name, size, pools):
    model = create_model(name, width_multiplier=0.05, num_classes=2, aux_heads=False, convolution="onednn")
    images = jnp.zeros((1, size, size, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert calls(lambda variables: model.apply(variables, images).logits, variables) == (pools, 0)


@pytest.mark.slow  # builds the calls anew and runs other tests with them
@pytest.mark.parametrize("target", ["avx512f", "avx2", "sse2"])
def test_the_versions_for_other_processors(target):
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags is None or target not in flags[1].split():
        pytest.skip(f"this processor has no {target}")
    folder = Path(__file__).parent
    files = [str(folder / name) for name in ("test_max_pool_calls.py", "test_onednn_winograd.py")]
    chosen = "ties_and_padding or few_images or not_finite or nan_is_the_value or equal_to_float64"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-rs", "-k", chosen, *files]
    compiler = shlex.join([*shlex.split(os.environ.get("CXX") or "c++"), f'-DTEST_TARGET="{target}"'])
    done = subprocess.run(
        command, cwd=folder.parents[1], env=os.environ | {"CXX": compiler}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout + done.stderr
