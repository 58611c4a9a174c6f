"""Winograd's filtering beside oneDNN: its numbers against float64, where it is taken, and how it is divided."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model
from inception_jax.models import onednn
from inception_jax.models.convolution import conv2d

from .test_convolution import operands, with_gradients, xla
from .test_onednn import needs_onednn

ROOT = Path(__file__).resolve().parents[2]

pytestmark = needs_onednn


def ours(x, kernel, strides=1, padding="SAME"):
    return conv2d(x, kernel, strides, padding, algorithm="onednn_winograd")


def filtered(function, *arguments):
    """The kinds of the calls of oneDNN that take Winograd's filtering."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(r"filters = (true|false), kind = (\d)", text)
    assert len(found) == text.count(f"@{onednn.TARGET}(")
    return {int(kind) for filters, kind in found if filters == "true"}


@pytest.fixture
def everywhere(monkeypatch):
    """Takes the filtering also where the map is small."""
    monkeypatch.setattr(onednn, "_LEAST_TILES", 1)


@pytest.mark.parametrize(
    ("images", "window", "padding"),
    [
        ((2, 8, 8, 32), (3, 3, 32, 48), "SAME"),  # whole tiles
        ((3, 17, 14, 32), (3, 3, 32, 64), "VALID"),
        ((1, 5, 7, 48), (3, 3, 48, 32), ((2, 0), (1, 1))),
        ((2, 6, 9, 32), (3, 3, 32, 32), ((0, 2), (2, 1))),
        ((1, 1, 1, 32), (3, 3, 32, 32), "SAME"),
        ((2, 4, 5, 32), (3, 3, 32, 32), 3),  # more padding than the kernel reaches
        ((2, 9, 11, 64), (7, 1, 64, 80), "SAME"),
        ((2, 9, 11, 80), (1, 7, 80, 64), "SAME"),
        ((1, 10, 8, 64), (7, 1, 64, 64), ((2, 1), (0, 3))),
        ((2, 7, 6, 64), (1, 7, 64, 64), ((1, 0), (5, 2))),
        ((2, 9, 11, 64), (3, 1, 64, 64), "SAME"),
        ((2, 9, 11, 64), (1, 3, 64, 96), "VALID"),
        ((19, 8, 8, 64), (3, 3, 64, 64), "SAME"),  # several blocks of tiles, of unequal size
        ((40, 28, 28, 32), (3, 3, 32, 32), "SAME"),  # several blocks in each sum of the kernel's gradient
    ],
)
def test_equal_to_float64(everywhere, images, window, padding):
    x, kernel = operands(images, window, np.float32)
    got = with_gradients(ours, x, kernel, 1, padding)
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(operand), jnp.float64) for operand in (x, kernel))
        want = with_gradients(xla, *wide, 1, padding)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())
    assert filtered(lambda x, kernel: with_gradients(ours, x, kernel, 1, padding), x, kernel) == {0, 1, 2}


def test_where_it_is_taken():
    taken = functools.partial(onednn.takes_winograd, (1, 1))
    assert taken((3, 3, 32, 48), (4, 16, 16, 48)) and not taken((3, 3, 32, 48), (4, 12, 16, 48))
    assert taken((7, 1, 64, 64), (1, 32, 8, 64)) and not taken((7, 1, 64, 64), (1, 8, 31, 64))  # tiles of four rows
    assert taken((1, 7, 64, 64), (1, 8, 32, 64)) and not taken((1, 7, 64, 64), (1, 31, 8, 64))
    large = (64, 32, 32, 64)
    assert taken((3, 1, 64, 64), large) and not taken((3, 1, 32, 64), large)
    for window in ((1, 1, 64, 64), (5, 5, 64, 64), (3, 3, 40, 64), (3, 3, 64, 40), (3, 3, 16, 64), (3, 7, 64, 64)):
        assert not taken(window, large), window
    assert not onednn.takes_winograd((2, 2), (3, 3, 64, 64), large)


def test_each_direction_counts_its_own_tiles():
    """Without padding the output has fewer tiles than the input."""
    x, kernel = jnp.zeros((4, 17, 17, 32)), jnp.zeros((3, 3, 32, 32))
    assert filtered(lambda x, kernel: with_gradients(ours, x, kernel, 1, "VALID"), x, kernel) == {0, 1, 2}
    x = jnp.zeros((3, 17, 17, 32))
    assert filtered(lambda x, kernel: with_gradients(ours, x, kernel, 1, "VALID"), x, kernel) == {1}


def test_onednn_alone_takes_none():
    x, kernel = jnp.zeros((8, 28, 28, 64)), jnp.zeros((3, 3, 64, 64))
    direct = functools.partial(conv2d, algorithm="onednn")
    assert filtered(direct, x, kernel) == set() and filtered(ours, x, kernel) == {0}


@pytest.mark.parametrize("threads", [1, 3, 8, 40])
def test_any_number_of_threads(threads):
    """More threads than tiles, images or sums of a kernel's gradient."""
    program = """import jax, jax.numpy as jnp, numpy as np
from inception_jax.models import onednn
from inception_jax.models.convolution import conv2d
onednn._LEAST_TILES = 1
for shape in ((1, 7, 9, 32), (3, 30, 31, 32)):
    x, kernel = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (3, 3, 32, 32))
    gradients = lambda algorithm: jax.vjp(lambda x, k: conv2d(x, k, algorithm=algorithm), x, kernel)[1](jnp.ones(shape))
    for got, want in zip(*(jax.jit(gradients, static_argnums=0)(name) for name in ("onednn_winograd", "exact"))):
        assert jnp.abs(got - want).max() < 2e-5 * jnp.abs(want).max()
"""
    environment = os.environ | {"NPROC": str(threads), "XLA_FLAGS": ""}
    subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT, check=True)


def test_calls_at_the_same_time_have_memory_of_their_own():
    """Independent convolutions, which XLA's threads run at once: direct ones and those by the filtering."""
    program = """import jax, jax.numpy as jnp
from inception_jax.models.convolution import conv2d
def step(algorithm, xs, kernels):
    loss = lambda xs, kernels: sum((conv2d(x, k, algorithm=algorithm) ** 2).sum() for x, k in zip(xs, kernels))
    return jax.grad(loss, (0, 1))(xs, kernels)
keys = jax.random.split(jax.random.key(0), 12)
xs = [jax.random.normal(key, (4, 16, 16, 64)) for key in keys]
kernels = [jax.random.normal(key, (3 - 2 * (i % 2),) * 2 + (64, 64)) for i, key in enumerate(keys)]
want = jax.jit(step, static_argnums=0)("exact", xs, kernels)
call = jax.jit(step, static_argnums=0)
for _ in range(10):
    got = call("onednn_winograd", xs, kernels)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        assert jnp.abs(one - other).max() < 2e-5 * jnp.abs(other).max()
"""
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"NPROC": "8", "XLA_FLAGS": ""}, cwd=ROOT, check=True
    )


def test_a_network_takes_it_and_computes_the_same():
    model = create_model("vgg16", num_classes=3, width_multiplier=0.5)
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    own = model.clone(convolution="onednn_winograd")
    want, got = (jax.jit(network.apply)(variables, x).logits for network in (model, own))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())
    assert filtered(own.apply, variables, x) == {0}
