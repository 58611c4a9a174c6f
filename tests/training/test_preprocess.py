"""Normalizations against their publishers' formulas, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.training import preprocess

# As the publishers write them, for x in 0..255, RGB.
FORMULAS = {
    "inception": lambda x: (x / 255 - 0.5) * 2,
    "caffe": lambda x: (x[..., ::-1] - [104, 117, 123])[..., ::-1],
    "caffe_bgr": lambda x: x[..., ::-1] - [104, 117, 123],
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "cadene_bgr": lambda x: x[..., ::-1] - [104, 117, 128],
    "inception5h": lambda x: x - 117,
    "facenet": lambda x: (x - 127.5) / 128,
    "zero_one": lambda x: x / 255,
}


def all_values():
    """All 256 values in every channel, the channels different."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    return np.concatenate([ramp, ramp[:, ::-1], ramp[:, :, ::-1]], axis=-1)


def test_every_record_has_a_formula():
    assert set(FORMULAS) == set(preprocess.NORMALIZATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_float64(x64, name):
    images = all_values()
    output = preprocess.preprocess(
        jnp.asarray(images), normalization=preprocess.get_normalization(name), dtype=jnp.float64
    )
    assert output.dtype == jnp.float64
    np.testing.assert_allclose(output, FORMULAS[name](images.astype(np.float64)), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_float32_has_the_same_bits_compiled_or_not(name):
    images = jnp.asarray(all_values())
    run = lambda x: preprocess.preprocess(  # noqa: E731
        x, normalization=preprocess.get_normalization(name), dtype=jnp.float32
    )
    output = run(images)
    np.testing.assert_array_equal(output, jax.jit(run)(images))
    np.testing.assert_allclose(output, FORMULAS[name](np.asarray(images, np.float64)), rtol=3e-7, atol=2e-7)


def test_bfloat16_is_rounded_once_from_float32():
    images = jnp.asarray(all_values())
    normalization = preprocess.get_normalization("imagenet")
    precise = preprocess.preprocess(images, normalization=normalization, dtype=jnp.float32)
    output = preprocess.preprocess(images, normalization=normalization, dtype=jnp.bfloat16)
    assert output.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output, precise.astype(jnp.bfloat16))


def test_the_ends_of_the_range_are_exact():
    images = jnp.asarray([0, 255], jnp.uint8)[:, None, None, None] * jnp.ones((1, 1, 1, 3), jnp.uint8)
    for name, ends in (("inception", (-1.0, 1.0)), ("zero_one", (0.0, 1.0))):
        normalization = preprocess.get_normalization(name)
        output = preprocess.preprocess(images, normalization=normalization, dtype=jnp.float32)
        assert (output[0] == ends[0]).all() and (output[1] == ends[1]).all()


def test_mistakes():
    with pytest.raises(UserError, match=r"config\.data\.normalization = 'imagnet'.*did you mean 'imagenet'"):
        preprocess.get_normalization("imagnet")
    normalization = preprocess.get_normalization("inception")
    with pytest.raises(ValueError, match=r"float32\[1, 2, 2, 3\]; allowed: uint8"):  # normalized twice
        preprocess.preprocess(jnp.zeros((1, 2, 2, 3)), normalization=normalization, dtype=jnp.float32)
    with pytest.raises(ValueError, match="allowed: uint8"):
        preprocess.preprocess(jnp.zeros((1, 2, 2, 1), jnp.uint8), normalization=normalization, dtype=jnp.float32)
    with pytest.raises(ValueError, match="channel_order = 'GRB'"):
        preprocess.Normalization((0.0,) * 3, (1.0,) * 3, "GRB")


def test_torchvisions_transform_input_undoes_its_normalization(x64):
    """torchvision normalizes by ImageNet's mean and deviation, and its GoogLeNet and Inception-v3 with
    transform_input=True first multiply by std / 0.5 and add (mean - 0.5) / 0.5: together that is "inception"."""
    images = jnp.asarray(all_values())
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    theirs = preprocess.preprocess(images, normalization=preprocess.get_normalization("imagenet"), dtype=jnp.float64)
    theirs = np.asarray(theirs) * (std / 0.5) + (mean - 0.5) / 0.5
    ours = preprocess.preprocess(images, normalization=preprocess.get_normalization("inception"), dtype=jnp.float64)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-14)
