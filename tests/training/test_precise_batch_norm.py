"""Batch-norm statistics estimated from training images are those of the images, on any devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.data import datasets, images
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.models.base import BaseNetwork
from inception_jax.models.heads import classifier
from inception_jax.models.initialization import slim_variance_scaling
from inception_jax.models.layers import ConvUnit
from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import parallel, precise_batch_norm, preprocess
from inception_jax.training.device_augmentation import DeviceAugmentation
from inception_jax.training.freezing import Freezing
from inception_jax.training.mixing import Mixing
from inception_jax.training.run_length import FaultLimits
from inception_jax.training.step import example_keys, make_input

BATCH, SIZE = 16, 8
NORMALIZATION = preprocess.get_normalization("inception")
NOTHING_FROZEN = Freezing()
FAULTS = FaultLimits(0, None, 0, 60.0, 60.0)


class Two(BaseNetwork):
    """Two convolutions with batch norm and a classifier."""

    @nn.compact
    def __call__(self, x, *, train=False, example_keys=None):
        options = self.layer_options(slim_variance_scaling, slim_variance_scaling)
        x = ConvUnit(6, (3, 3), options, name="conv1")(x, train=train)
        x = ConvUnit(5, (3, 3), options, strides=2, name="conv2")(x, train=train)
        return InceptionOutput(classifier(self.num_classes, options)(x.mean((1, 2))), (), {})


@pytest.fixture(scope="module")
def data():
    return TrainPipeline(
        datasets.load("digits", "train[:100]", None),
        batch_size=BATCH,
        image_size=SIZE,
        seed=1,
        threads=1,
        augmentation=images.Augmentation(rule="area_aspect", area=(0.5, 1.0)),
    )


def network(**options):
    return Two(num_classes=10, dtype=jnp.float64, param_dtype=jnp.float64, bn_momentum=0.9, **options)


@functools.cache
def variables():
    return jax.device_get(network().init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3))))


def estimate(data, count, step=0, devices=1, mode="jit", freezing=NOTHING_FROZEN, **options):
    mesh = parallel.Devices(mode, devices)
    placed = mesh.replicate(variables())
    estimator = precise_batch_norm.build(network(**options), placed, mesh, data, count, NORMALIZATION, freezing, FAULTS)
    return jax.device_get(estimator.replace_statistics(placed, step))


def inputs(data, *numbers):
    pixels = np.concatenate([data.batch(number)["image"] for number in numbers])
    return preprocess.preprocess(jnp.asarray(pixels), normalization=NORMALIZATION, dtype=jnp.float64)


def assert_close(one, other, rtol=1e-10):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-12), one, other)


@pytest.mark.parametrize(
    ("devices", "mode", "options"),
    [
        (1, "jit", {}),
        (1, "jit", {"bn_group_size": 4, "bn_unbiased_variance": True}),
        (8, "jit", {"bn_axis_name": "data", "bn_axis_index_groups": ((0, 1, 2, 3), (4, 5, 6, 7))}),
        (4, "pmap", {}),
    ],
)
def test_with_those_of_one_batch_evaluation_computes_what_training_does(x64, data, devices, mode, options):
    found = estimate(data, BATCH, step=3, devices=devices, mode=mode, **options)
    assert found["params"] is not None
    x = inputs(data, 3)
    training, _ = network().apply(variables(), x, train=True, mutable=["batch_stats"])
    assert_close(network().apply(found, x).logits, training.logits)
    assert np.abs(np.asarray(network().apply(variables(), x).logits) - training.logits).max() > 0.1


def test_they_are_the_moments_of_all_images(x64, data):
    found = estimate(data, 2 * BATCH + 1, step=5)["batch_stats"]  # rounded up to three batches
    x = inputs(data, 5, 6, 7)
    kernel = variables()["params"]["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(found["conv1"]["bn"], {"mean": maps.mean((0, 1, 2)), "var": maps.var((0, 1, 2))})


def test_they_see_the_augmentation_of_training(x64, data):
    """That of the same steps: each of the two batches has its own random numbers."""
    augmentation = DeviceAugmentation(lighting=0.5, mixing=Mixing(cutmix_alpha=1.0))
    mesh = parallel.Devices("jit", 2)
    placed = mesh.replicate(variables())
    estimator = precise_batch_norm.build(
        network(), placed, mesh, data, 2 * BATCH, NORMALIZATION, NOTHING_FROZEN, FAULTS, augmentation, seed=7
    )
    found = jax.device_get(estimator.replace_statistics(placed, 3))["batch_stats"]["conv1"]["bn"]
    rows = jnp.arange(BATCH, dtype=jnp.int32)
    make = jax.jit(
        functools.partial(make_input, augmentation=augmentation, normalization=NORMALIZATION, dtype="float64")
    )
    x = jnp.concatenate([make(data.batch(k), example_keys(7, jnp.int32(k), rows))[0] for k in (3, 4)])
    kernel = variables()["params"]["conv1"]["kernel"]
    maps = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    assert_close(found, {"mean": maps.mean((0, 1, 2)), "var": maps.var((0, 1, 2))}, rtol=1e-9)


def test_they_are_a_function_of_the_step_and_leave_frozen_ones_alone(x64, data):
    first, again, later = (estimate(data, BATCH, step)["batch_stats"] for step in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(first["conv1"]["bn"]["mean"] - later["conv1"]["bn"]["mean"]).max() > 1e-6
    frozen = Freezing(frozenset({"conv1/bn/bias"}), ("conv1/bn",), ("conv1/bn",))
    found = estimate(data, 2 * BATCH, freezing=frozen, bn_frozen=("conv1/bn",))["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, found["conv1"], variables()["batch_stats"]["conv1"])
    assert np.abs(found["conv2"]["bn"]["mean"] - variables()["batch_stats"]["conv2"]["bn"]["mean"]).max() > 1e-3
