"""Local response normalization against loops in NumPy and against differences, in float64."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models import lrn
from inception_jax.models.lrn import local_response_norm


def reference(x, size, alpha, beta, k):
    out, half = np.empty_like(x), size // 2
    for c in range(x.shape[-1]):
        window = x[..., max(0, c - half) : c + half + 1]
        out[..., c] = x[..., c] * (k + alpha / size * (window**2).sum(-1)) ** -beta
    return out


CONSTANTS = [
    (5, 1e-4, 0.75, 1.0),
    (5, 1e-4, 0.5, 1.0),
    (9, 1e-4, 0.5, 1.0),
    (3, 0.1, 1.0, 1.0),
    (3, 0.02, 0.6, 2.0),
    (5, 0.5, 0.75, 0.3),
]


def with_gradient(function, x, gradient):
    """The output, and the gradient of sum(output * gradient), compiled as one program."""

    def both(x, gradient):
        out, pull = jax.vjp(function, x)
        return out, pull(gradient)[0]

    return jax.jit(both)(jnp.asarray(x), jnp.asarray(gradient))


@pytest.mark.parametrize(
    ("name", "constants"),
    [("lrn_caffe", (5, 1e-4, 0.75, 1.0)), ("lrn_strong", (5, 2.0, 0.75, 0.5)), ("lrn_root", (3, 1.0, 0.5, 2.0))],
)
def test_equal_to_pytorchs(x64, name, constants):
    goldens = np.load(Path(__file__).parent / "goldens" / "ops.npz")  # see make_goldens_ops.py
    x, gradient = (goldens[part].transpose(0, 2, 3, 1) for part in ("x", f"{name}/weights"))
    out, towards_x = with_gradient(lambda x: local_response_norm(x, *constants), x, gradient)
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), goldens[f"{name}/y"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(towards_x.transpose(0, 3, 1, 2), goldens[f"{name}/dx"], rtol=1e-12, atol=1e-14)


def test_twice_differentiable(x64):
    x = jnp.asarray(np.random.default_rng(9).normal(size=(2, 6)))

    def penalty(function):
        inner = jax.grad(lambda x: (function(x) ** 2).sum())
        return jax.jit(jax.grad(lambda x: (inner(x) ** 2).sum()))(x)

    def plain(x):
        padded = jnp.pad(x * x, ((0, 0), (1, 1)))
        return x * (1 + 0.5 / 3 * sum(padded[:, i : i + 6] for i in range(3))) ** -0.75

    np.testing.assert_allclose(penalty(lambda x: local_response_norm(x, 3, 0.5)), penalty(plain), rtol=1e-11)


def test_constants_that_cannot_be():
    with pytest.raises(ValueError, match="size 4"):
        local_response_norm(jnp.zeros((1, 8)), size=4)
    with pytest.raises(ValueError, match="k 0"):
        local_response_norm(jnp.zeros((1, 8)), k=0)


@pytest.mark.parametrize(("size", "alpha", "beta", "k"), CONSTANTS)
@pytest.mark.parametrize("channels", [1, 4, 11])
def test_forward_and_gradient(x64, size, alpha, beta, k, channels):
    rng = np.random.default_rng(channels)
    x = rng.normal(size=(2, 3, 2, channels)) * 60  # the size of Caffe's inputs: the sum matters
    gradient = rng.normal(size=x.shape)
    out, got = with_gradient(lambda x: local_response_norm(x, size, alpha, beta, k), x, gradient)
    np.testing.assert_allclose(out, reference(x, size, alpha, beta, k), rtol=1e-13)
    want, step = np.empty_like(x), 1e-4
    for place in np.ndindex(x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        up, down = (reference(x + sign * moved, size, alpha, beta, k) for sign in (1, -1))
        want[place] = ((up - down) * gradient).sum() / (2 * step)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_it_is_caffes_form_alpha_over_size():
    """One channel of value 10 alone: x · (1 + 1e-4 / 5 · 100)^-0.75."""
    assert float(local_response_norm(jnp.full((1, 1, 1, 1), 10.0))[0, 0, 0, 0]) == pytest.approx(10 * 1.002**-0.75)


def test_bfloat16_in_and_out_computed_in_float32():
    x = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32) * 60
    narrow = jnp.asarray(x, jnp.bfloat16)
    got = local_response_norm(narrow)
    assert got.dtype == jnp.bfloat16
    want = reference(np.asarray(narrow, np.float64), 5, 1e-4, 0.75, 1.0)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-8)  # one rounding, at the end
    assert jax.grad(lambda x: local_response_norm(x).astype(jnp.float32).sum())(narrow).dtype == jnp.bfloat16


def test_tpus_sum_channels_by_a_band(x64):
    x = jnp.asarray(np.random.default_rng(10).normal(size=(2, 3, 2, 11)))
    for size in (1, 5, 9):
        np.testing.assert_allclose(lrn._sum_by_band(x, size), lrn._sum_by_slices(x, size), rtol=1e-12, atol=1e-13)
    traced = jax.jit(jax.grad(lambda x: local_response_norm(x).sum())).trace(jnp.zeros((1, 2, 2, 8), jnp.bfloat16))
    texts = {name: traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda", "tpu")}
    products = {name: re.findall(r"dot_general.*precision = \[(\w+), (\w+)\]", text) for name, text in texts.items()}
    assert products == {"cpu": [], "cuda": [], "tpu": [("HIGHEST", "HIGHEST")] * 2}


def test_gpus_store_the_summed_product_in_bfloat16(monkeypatch):
    """It enters the gradient times 3e-5: the gradient is nearly as near to the exact one as with one in float32."""
    numbers = np.random.default_rng(0)
    x, g = (jnp.asarray(numbers.normal(size=(64, 192)) * scale, jnp.bfloat16) for scale in (60, 1))
    with jax.enable_x64(True):
        wide = (jnp.asarray(np.asarray(each, np.float64)) for each in (x, g))
        exact = np.asarray(lrn._normalize_backward(5, 1e-4, 0.75, 1.0, *wide)[0])
    errors = []
    for platform in ("cpu", "cuda"):
        form = lambda *arrays, default, p=platform, **forms: forms.get(p, default)(*arrays)  # noqa: E731
        monkeypatch.setattr(lrn.lax, "platform_dependent", form)
        found = np.asarray(lrn._normalize_backward(5, 1e-4, 0.75, 1.0, x, g)[0], np.float64)
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    assert 0 < errors[1] < 1.03 * errors[0]
    monkeypatch.undo()
    traced = jax.jit(lambda *arrays: lrn._normalize_backward(5, 1e-4, 0.75, 1.0, *arrays)).trace(x, g)
    for platform, stored in (("cpu", 1), ("cuda", 2), ("tpu", 1)):  # the input, and the product
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert len(re.findall(r"optimization_barrier %\w+ : tensor<64x192xbf16>", text)) == stored, platform


def test_no_power_is_computed_for_the_papers_exponent():
    gradient = jax.grad(lambda x: local_response_norm(x).sum())
    text = jax.jit(gradient).lower(jnp.zeros((1, 2, 2, 8))).as_text()
    assert "power" not in text and "reduce_window" not in text
