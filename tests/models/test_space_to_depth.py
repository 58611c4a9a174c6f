"""The rearranged stride-2 convolution against XLA's at 1e-12 in float64, and where it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models import space_to_depth
from inception_jax.models.convolution import conv2d, explicit_padding

CASES = {  # name: images, kernel, padding
    "GoogLeNet's, TensorFlow's padding": ((2, 18, 16, 3), (7, 7, 3, 4), "SAME"),
    "GoogLeNet's, Caffe's padding": ((2, 16, 17, 3), (7, 7, 3, 4), 3),
    "Inception-v3's": ((2, 15, 15, 3), (3, 3, 3, 4), "VALID"),
    "a row left over": ((1, 14, 15, 1), (3, 3, 1, 2), "VALID"),
    "an even kernel": ((1, 9, 8, 2), (4, 2, 2, 3), ((1, 2), (0, 1))),
    "one window": ((1, 3, 3, 3), (3, 3, 3, 2), "VALID"),
}


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradient_are_those_of_xla(case):
    images, window, padding = CASES[case]
    pads = explicit_padding(images[1:3], window[:2], (2, 2), padding)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(rng.standard_normal(shape)) for shape in (images, window))

        def xla(kernel):
            return jax.lax.conv_general_dilated(x, kernel, (2, 2), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))

        expected, transpose = jax.vjp(xla, kernel)
        gradient = jnp.asarray(rng.standard_normal(expected.shape))
        value = space_to_depth.forward((2, 2), pads, x, kernel)
        own = space_to_depth.kernel_gradient((2, 2), pads, x, kernel, gradient)
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(own, transpose(gradient)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("platform", "dtype", "channels", "window", "used"),
    [
        ("cuda", "bfloat16", 3, 7, True),
        ("cuda", "float16", 1, 7, True),
        ("cuda", "float32", 3, 7, False),
        ("cuda", "bfloat16", 32, 7, False),
        ("cuda", "bfloat16", 3, 3, False),
        ("tpu", "bfloat16", 3, 7, False),
        ("cpu", "bfloat16", 3, 7, False),
    ],
)
def test_it_is_used_for_16_bit_images_on_nvidia_gpus(platform, dtype, channels, window, used):
    x, kernel = jnp.zeros((2, 16, 16, channels), dtype), jnp.zeros((window, window, channels, 8), dtype)

    def loss(kernel):
        return conv2d(x, kernel, 2).astype(jnp.float32).sum()

    text = jax.jit(jax.value_and_grad(loss)).trace(kernel).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == 2  # forward, and the kernel's gradient
    assert all(f"x{4 * channels}x" in line for line in lines) == used
