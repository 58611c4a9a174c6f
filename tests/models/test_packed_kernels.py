"""Kernels that an operation of their own packs: the same bits, once for many forward passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model
from inception_jax.models import onednn, packed_kernels, platforms
from inception_jax.models.convolution import conv2d
from inception_jax.models.packed_kernels import PACKS_KERNELS
from inception_jax.models.prepared_weights import PreparedFunction
from inception_jax.models.scaled_convolution import scaled_conv2d

from .test_convolution import operands
from .test_onednn import DTYPES, SHAPES, needs_bfloat16, needs_onednn

pytestmark = needs_onednn


def calls(function, *arguments, target=onednn.PACK_TARGET):
    return jax.jit(function).lower(*arguments).as_text().count(f"@{target}(")


def assert_packed(function, *arguments):
    """The same bits, and in a forward pass that packs its kernel, where oneDNN has a layout of its own for it."""
    want = jax.jit(function)(*arguments)
    with PACKS_KERNELS(True):
        got = jax.jit(function)(*arguments)
        packs = calls(function, *arguments)
        assert calls(function, *arguments, target=onednn.PACKED_TARGET) == packs
    np.testing.assert_array_equal(got, want)
    return packs


@DTYPES
@SHAPES
def test_the_same_bits(images, window, strides, padding, dtype):
    x, kernel = operands(images, window, dtype)
    run = functools.partial(conv2d, strides=strides, padding=padding, algorithm="onednn")
    assert_packed(run, x, kernel)


@needs_bfloat16
@SHAPES
@pytest.mark.parametrize("kernel_type", [jnp.float32, jnp.bfloat16])
def test_the_same_bits_with_coefficients(images, window, strides, padding, kernel_type):
    x, kernel = operands(images, window, jnp.bfloat16)
    coefficients = jax.random.normal(jax.random.key(4), (2, window[3]))
    for relu in (False, True):
        run = functools.partial(scaled_conv2d, strides=strides, padding=padding, algorithm="onednn", relu=relu)
        assert_packed(run, x, kernel.astype(kernel_type), coefficients)


@DTYPES
def test_every_number_of_images(dtype):
    """oneDNN takes another layout of the kernel for some: that of one image is turned into it."""
    for shape, window in (((7, 7, 32), (5, 5, 32, 128)), ((7, 7, 208), (1, 1, 208, 64)), ((7, 7, 32), (5, 5, 32, 120))):
        packed = [
            assert_packed(functools.partial(conv2d, algorithm="onednn"), *operands((count, *shape), window, dtype))
            for count in (1, 2, 3, 5, 7, 9, 17, 33, 65)
        ]
        assert len(set(packed)) == 1  # whether it is packed does not depend on them


@pytest.mark.parametrize("window", [(3, 3, 64, 80), (7, 1, 64, 64), (1, 3, 64, 96)])
def test_matrices_of_winograds_filtering(window):
    x, kernel = operands((3, 28, 25, 64), window, jnp.float32)
    assert onednn.takes_winograd((1, 1), window, (3, 28, 25, window[3]))
    assert assert_packed(functools.partial(conv2d, algorithm="onednn_winograd"), x, kernel) == 1


def test_another_convolutions_kernel_is_an_error():
    x, kernel = operands((2, 14, 14, 64), (3, 3, 64, 64), jnp.float32)
    with PACKS_KERNELS(True):
        packing = packed_kernels._find_packing((1, 1), ((1, 1), (1, 1)), x, kernel)
        other = packed_kernels._find_packing((1, 1), ((1, 1), (1, 1)), x, jnp.zeros((3, 3, 64, 128)))
    nothing = jnp.zeros((2, 0))
    np.testing.assert_array_equal(
        packing.convolve(x, packing.pack(kernel), nothing, x.shape), conv2d(x, kernel, algorithm="onednn")
    )
    for wrong in (other.pack(jnp.zeros((3, 3, 64, 128))), packing.pack(kernel).astype(jnp.float32)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="packed for another convolution"):
            packing.convolve(x, wrong, nothing, x.shape).block_until_ready()


@pytest.mark.parametrize(("value", "count"), [("0", 1), ("3", 3)])
def test_the_number_of_threads_of_a_variable(monkeypatch, value, count):
    monkeypatch.setenv("NPROC", value)
    assert platforms.count_cpu_threads() == count
    x, kernel = operands((3, 14, 14, 64), (3, 3, 64, 64), jnp.float32)
    assert_packed(functools.partial(conv2d, algorithm="onednn"), x, kernel)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inception_v1", {"convolution": "onednn_winograd"}),
        ("inception_v3", {"convolution": "onednn", "fuse_siblings": True}),
        ("inception_resnet_v2", {"convolution": "onednn"}),
        pytest.param("inception_v3", {"convolution": "onednn", "dtype": jnp.bfloat16}, marks=needs_bfloat16),
        pytest.param("xception", {"convolution": "onednn", "dtype": jnp.bfloat16}, marks=needs_bfloat16),
    ],
)
def test_in_networks(name, options):
    model = create_model(name, num_classes=7, width_multiplier=0.25, dropout_rate=0.0, **options)
    x = jax.random.normal(jax.random.key(0), (3, 96, 96, 3))
    values = jax.jit(functools.partial(model.init, train=False))(jax.random.key(1), x)

    def run(values, x):
        output = model.apply(values, x, train=False)
        return output.logits, output.endpoints

    parts = PreparedFunction(run, x)
    prepared = jax.jit(parts.prepare)(values)
    selected = parts.select(values)
    got, want = jax.jit(parts.compute)(selected, prepared, x), jax.jit(run)(values, x)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    text = jax.jit(parts.compute).lower(selected, prepared, x).as_text()
    assert f"@{onednn.PACK_TARGET}(" not in text and ("rsqrt" in text) == (name == "inception_v1")  # LRN
    count = text.count(f"@{onednn.PACKED_TARGET}(")
    assert count == calls(parts.prepare, values) > 20
    assert sum(leaf.dtype == jnp.uint8 for leaf in prepared) == count
