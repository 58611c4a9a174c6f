"""Distortions of colour: TensorFlow's numbers in TF-Slim's orders, Pillow's in Howard's, AlexNet's lighting."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from inception_jax.training import photometric

from .make_photometric import ORDERS, sample_images, sample_numbers

GOLDEN = np.load(Path(__file__).parent / "photometric.npz")


def padded(numbers, place):
    """The numbers of an image, and one that chooses this order."""
    rows = np.zeros((len(numbers), photometric.NUMBERS))
    rows[:, : numbers.shape[1]], rows[:, numbers.shape[1]] = numbers, place
    return rows


@pytest.mark.parametrize("method", ORDERS)
def test_slims_orders_are_tensorflows_operations(x64, method):
    """All orders in one batch: each image has its own. TensorFlow computes in float32."""
    images, numbers = sample_images(6), sample_numbers(6)
    rows = np.concatenate([padded(numbers, (place + 0.5) / 4) for place in range(4)])  # fast mode has one order
    pixels = jnp.asarray(np.tile(images, (4, 1, 1, 1)), jnp.float64)
    found = jax.jit(photometric.distort, static_argnums=2)(pixels, jnp.asarray(rows), method)
    orders = ORDERS[method]
    expected = np.concatenate([GOLDEN[f"{method}/{place % len(orders)}"] for place in range(4)])
    np.testing.assert_allclose(found, expected, atol=5e-4)
    assert len({expected[6 * place + 2].tobytes() for place in range(4)}) == len(orders)


def test_howards_orders_are_pillows_enhancements():
    """Pillow cuts off what is below a byte after each of three steps, and a later one enlarges that by up to half."""
    images, factors = sample_images(6), 0.5 + sample_numbers(6)[:, :3]
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for place, order in enumerate(itertools.permutations(range(3))):
        numbers = jnp.asarray(padded(factors - 0.5, (place + 0.5) / 6), jnp.float32)
        found = photometric.distort(jnp.asarray(images, jnp.float32), numbers, "howard")
        for image, factor, result in zip(images, factors, found, strict=True):
            expected = Image.fromarray(image)
            for step in order:
                expected = kinds[step](expected).enhance(factor[step])
            difference = np.abs(np.asarray(result) - np.asarray(expected))
            assert difference.max() < 1 + 1.5 + 1.5**2 and difference.mean() < 1.6


def test_lighting_has_the_covariance_of_the_components():
    normals = jax.random.normal(jax.random.key(0), (40_000, 3))
    pixels = jnp.full((len(normals), 1, 1, 3), 100.0)
    noise = np.asarray(photometric.add_lighting(pixels, normals, 0.1))[:, 0, 0] - 100.0
    values, vectors = np.array(photometric.EIGENVALUES), np.array(photometric.EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    covariance = (vectors * (25.5 * values) ** 2) @ vectors.T
    np.testing.assert_allclose(np.cov(noise.T), covariance, atol=0.03 * covariance.max())
    assert np.abs(noise.mean(0)).max() < 5 * np.sqrt(covariance.max() / len(noise))
    by_hand = 100.0 + 255.0 * 0.1 * sum(values[k] * float(normals[7, k]) * vectors[:, k] for k in range(3))
    np.testing.assert_allclose(photometric.add_lighting(pixels, normals, 0.1)[7, 0, 0], by_hand, rtol=1e-5)
