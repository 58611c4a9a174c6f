"""Pools against loops in NumPy, forward and gradient, with ties, at sizes where the paddings differ."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inception_jax.models import adaptive_pooling, pooling
from inception_jax.models.adaptive_pooling import adaptive_avg_pool, even_avg_pool
from inception_jax.models.pooling import avg_pool, global_avg_pool, max_pool

from ..xla_flags import OLDER_FUSIONS

PADDINGS = [
    (3, 2, "CEIL"),
    (3, 2, "SAME"),
    (3, 1, "SAME"),
    (3, 2, "VALID"),
    (2, 2, "SAME"),
    (2, 2, "CEIL"),
    (3, 2, 1),
    (2, 3, "VALID"),
    (5, 3, "VALID"),
]
GOLDENS = Path(__file__).parent / "goldens" / "ops.npz"  # PyTorch's, see make_goldens_ops.py


def with_gradient(function, x, gradient):
    """The output, and the gradient of sum(output * gradient), compiled as one program."""

    def both(x, gradient):
        out, pull = jax.vjp(function, x)
        return out, pull(gradient)[0]

    return jax.jit(both)(jnp.asarray(x), jnp.asarray(gradient))


def windows(size, window, stride, padding):
    """[(first, last + 1)] of every window along an axis, in pixels of the input; they may reach over its edges."""
    if padding == "SAME":
        count = math.ceil(size / stride)
        low = max((count - 1) * stride + window - size, 0) // 2
    elif padding == "CEIL":
        count, low = math.ceil((size - window) / stride) + 1, 0
    else:
        low = 0 if padding == "VALID" else padding
        count = (size + 2 * low - window) // stride + 1
    return [(i * stride - low, i * stride - low + window) for i in range(count)]


def reference_max(x, gradient, window, stride, padding):
    """The maxima, and the gradient at the first maximum of each window, row by row."""
    rows, columns = (windows(size, window, stride, padding) for size in x.shape[1:3])
    out, towards_x = np.empty((x.shape[0], len(rows), len(columns), x.shape[3])), np.zeros_like(x)
    for b, i, j, c in np.ndindex(out.shape):
        best, place = -math.inf, None
        for r in range(max(rows[i][0], 0), min(rows[i][1], x.shape[1])):
            for s in range(max(columns[j][0], 0), min(columns[j][1], x.shape[2])):
                if x[b, r, s, c] > best:
                    best, place = x[b, r, s, c], (b, r, s, c)
        out[b, i, j, c] = best
        if gradient is not None:
            towards_x[place] += gradient[b, i, j, c]
    return out, towards_x


def reference_mean(x, window, stride, padding, include_pad):
    rows, columns = (windows(size, window, stride, padding) for size in x.shape[1:3])
    symmetric = padding if isinstance(padding, int) else 0
    out = np.empty((x.shape[0], len(rows), len(columns), x.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        spans = [
            (max(low, 0), min(high, size))
            for (low, high), size in zip((rows[i], columns[j]), x.shape[1:3], strict=True)
        ]
        count = math.prod(high - low for low, high in spans)
        if include_pad and padding == "SAME":
            count = window * window
        elif include_pad:  # Caffe's AVE: the window, cut off where the padded image ends
            count = math.prod(
                min(high, size + symmetric) - max(low, -symmetric)
                for (low, high), size in zip((rows[i], columns[j]), x.shape[1:3], strict=True)
            )
        (a, b), (c, d) = spans
        out[:, i, j] = x[:, a:b, c:d].sum((1, 2)) / count
    return out


@pytest.mark.parametrize(("window", "stride", "padding"), PADDINGS)
@pytest.mark.parametrize("size", [7, 8])
def test_max_pool_and_its_gradient_with_ties(x64, window, stride, padding, size):
    rng = np.random.default_rng(size)
    x = rng.integers(0, 3, (2, size, size + 1, 2)).astype(np.float64)  # three values: most windows have ties
    gradient = rng.normal(size=reference_max(x, None, window, stride, padding)[0].shape)
    want, towards_x = reference_max(x, gradient, window, stride, padding)
    out, got = with_gradient(lambda x: max_pool(x, window, stride, padding), x, gradient)
    np.testing.assert_array_equal(out, want)
    np.testing.assert_allclose(got, towards_x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("window", "stride", "padding"), [(3, 2, "SAME"), (3, 1, "SAME"), (2, 2, "VALID")])
def test_ties_go_where_xlas_own_gradient_sends_them(x64, window, stride, padding):
    rng = np.random.default_rng(6)
    x = rng.integers(0, 3, (2, 9, 8, 3)).astype(np.float64)
    sides, steps = (1, window, window, 1), (1, stride, stride, 1)
    xla = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, sides, steps, padding)  # noqa: E731
    gradient = rng.normal(size=xla(jnp.asarray(x)).shape)
    want, got = (with_gradient(f, x, gradient) for f in (xla, lambda x: max_pool(x, window, stride, padding)))
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("max_caffe_even", lambda x: max_pool(x, 3, 2, "CEIL")),
        ("max_padded", lambda x: max_pool(x, 3, 1, 1)),
        ("max_valid", lambda x: max_pool(x, 3, 2, "VALID")),
        ("avg_include", lambda x: avg_pool(x, 3, 1, 1, True)),
        ("avg_exclude", lambda x: avg_pool(x, 3, 1, 1, False)),
        ("avg_ceil", lambda x: avg_pool(x, 3, 2, "CEIL", True)),
        ("avg_aux", lambda x: avg_pool(x, 5, 3, "VALID")),
    ],
)
def test_equal_to_pytorchs(x64, name, pool):
    goldens = np.load(GOLDENS)
    x, gradient = (goldens[part].transpose(0, 2, 3, 1) for part in ("x", f"{name}/weights"))
    out, towards_x = with_gradient(pool, x, gradient)
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), goldens[f"{name}/y"], rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(towards_x.transpose(0, 3, 1, 2), goldens[f"{name}/dx"], rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("padding", ["CEIL", "SAME", "VALID", 1])
def test_the_form_of_tpus_gives_the_numbers_of_the_others(x64, padding):
    """XLA's own windows and their gradients, of maxima with ties and of sums."""
    rng = np.random.default_rng(10)
    maps = jnp.asarray(rng.integers(0, 3, (2, 8, 9, 2)).astype(np.float64))
    geometries = [(3, 2, padding, 1), (3, 1, padding, 1), (2, 3, padding, 1), (5, 3, padding, 1)]
    forms = [
        (pooling._sum_by_slices, pooling._sum_by_window, None),
        (pooling._max_by_slices, pooling._max_by_window, pooling._max_gradient_by_slices),
        (pooling._max_by_parts, pooling._max_by_window, pooling._max_gradient_by_parts),
    ]

    def results(x):
        for geometry, (by_slices, by_window, gradient_by_slices) in itertools.product(geometries, forms):
            out, pull = jax.vjp(lambda x: by_window(x, *geometry), x)  # noqa: B023
            weights = jnp.asarray(rng.normal(size=out.shape))
            if gradient_by_slices:
                gradient = gradient_by_slices(x, weights, *geometry)
            else:
                gradient = jax.vjp(lambda x: by_slices(x, *geometry), x)[1](weights)[0]  # noqa: B023
            yield by_slices(x, *geometry), out, gradient, pull(weights)[0]

    for by_slices, by_window, gradient, of_window in jax.jit(lambda x: list(results(x)))(maps):
        np.testing.assert_array_equal(by_slices, by_window)
        np.testing.assert_allclose(gradient, of_window, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("size", "dtype"), [(1, "bfloat16"), (4, "float32"), (9, "float64")])
def test_the_form_of_cpus_has_the_bits_of_the_one_without_parts(x64, size, dtype):
    """With none, one and many windows between the edges; of ties, infinities and NaN; also of no map at all."""
    rng = np.random.default_rng(size)
    values, odds = (0, 1, 2, -np.inf, np.inf, np.nan), (0.3, 0.2, 0.2, 0.2, 0.05, 0.05)
    x = jnp.asarray(rng.choice(values, (2, size, size + 1, 2), p=odds), dtype)
    geometries = [(3, 1, "SAME", 1), (3, 2, "CEIL", 1), (3, 2, 1, 1), (2, 3, "SAME", 1)]
    if size > 1:
        geometries += [(7, 1, 3, 1)]

    def results(x):
        for geometry in geometries:
            out, by_parts = pooling._max_by_slices(x, *geometry), pooling._max_by_parts(x, *geometry)
            weights = jnp.asarray(rng.normal(size=out.shape), dtype)
            forms = (pooling._max_gradient_by_slices, pooling._max_gradient_by_parts)
            yield (out, by_parts), tuple(form(x, weights, *geometry) for form in forms)

    compiled = jax.jit(lambda x: list(results(x))).lower(x).compile({"xla_backend_optimization_level": 0})
    for pair in itertools.chain.from_iterable(compiled(x)):
        np.testing.assert_array_equal(*(np.asarray(part, np.float64) for part in pair))
        assert pair[0].dtype == pair[1].dtype == dtype
    assert jax.eval_shape(jax.grad(lambda x: max_pool(x, 3, 1).sum()), x[:0]).shape == (0, size, size + 1, 2)


GRADIENT = """
import sys, jax, jax.numpy as jnp, numpy as np
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.registry import create_model

jax.config.update("jax_enable_x64", True)
options = {"modules": {"3a": MODULES["3a"]}, "width_multiplier": 0.1, "num_classes": 3, "aux_heads": False}
precision = {"dtype": jnp.float64, "param_dtype": jnp.float64}
model = create_model("inception_v1_bn", dropout_rate=0.0, **options, **precision)
images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)) * 60)
variables = model.init(jax.random.key(0), images, train=False)

def loss(params):
    output, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
    return (output.logits**2).sum()

np.savez(sys.argv[1], *jax.tree.leaves(jax.jit(jax.grad(loss))(variables["params"])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not OLDER_FUSIONS, reason="this jaxlib has no older fusions")
def test_maps_that_are_computed_twice_with_different_rounding(tmp_path):
    """With fused multiply-adds, XLA's older fusions compute a map here with one and there without (on x86-64)."""
    gradients = []
    for isa in ("", "--xla_cpu_max_isa=AVX"):  # AVX has no fused multiply-add
        flags = f"--xla_backend_optimization_level=0 {OLDER_FUSIONS} {isa}"
        file = tmp_path / f"gradient{isa}.npz"
        subprocess.run([sys.executable, "-c", GRADIENT, file], env={**os.environ, "XLA_FLAGS": flags}, check=True)
        gradients.append(np.load(file))
    got, want = gradients
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-9, atol=1e-12 * abs(want[name]).max(), err_msg=name)


def test_each_platform_has_its_form_alone():
    """One form is left in a program for one platform: parts on CPUs, XLA's windows on TPUs, unless they are dilated."""

    def loss(x, dilation):
        return (max_pool(x, 3, 2, "SAME", dilation) ** 2).sum() + (avg_pool(x, 3, 1, dilation=dilation) ** 2).sum()

    traced = jax.jit(jax.grad(loss), static_argnums=1)
    maps = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.bfloat16)
    found = {}
    for platform, dilation in (("cpu", 1), ("cuda", 1), ("tpu", 1), ("tpu", 2)):
        lowered = traced.trace(maps, dilation).lower(lowering_platforms=(platform,))
        text = lowered.as_text()
        if platform == "cpu":
            assert " conditional(" not in lowered.compile().as_text()  # the choice costs nothing
        found[platform, dilation] = {
            name: text.count(f"stablehlo.{name}") for name in ("reduce_window", "select_and_scatter", "concatenate")
        }
    assert found["cpu", 1]["concatenate"] > found["cuda", 1]["concatenate"] > 0
    assert found["cpu", 1]["reduce_window"] == found["cpu", 1]["select_and_scatter"] == 0
    assert found["tpu", 1]["reduce_window"] >= 3 and found["tpu", 1]["select_and_scatter"] == 1
    assert found["tpu", 2]["reduce_window"] == 0 and found["tpu", 2]["select_and_scatter"] == 0


def test_a_bfloat16_gradient_reaches_the_rounded_maximum():
    """Whatever precision the compiler carries in between: the sum of the gradient arrives, at the first of the ties."""
    x = np.random.default_rng(7).normal(size=(2, 8, 8, 4)).astype(np.float32)

    def loss(x):
        maps = (x * 1.001).astype(jnp.bfloat16)  # rounded, and the compiler might keep what was rounded away
        return max_pool(maps, 3, 2, "SAME").astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(x))
    assert float(gradient.sum()) == pytest.approx(1.001 * 2 * 4 * 4 * 4, rel=1e-2)


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, "VALID"), (3, 1, "SAME")])
def test_max_pool_is_twice_differentiable_mapped_and_recomputed(x64, window, stride, padding):
    x = np.random.default_rng(8).normal(size=(2, 1, 4, 5, 2))
    pool = jax.checkpoint(lambda x: max_pool(x, window, stride, padding))
    inner = jax.grad(lambda x: (pool(x) ** 3).sum())
    twice = jax.jit(jax.vmap(jax.grad(lambda x: (inner(x) ** 2).sum())))
    compiled = twice.lower(x).compile({"xla_backend_optimization_level": 0})
    for maps, gradient in zip(x, compiled(x), strict=True):
        ones = np.ones_like(reference_max(maps, None, window, stride, padding)[0])
        _, wins = reference_max(maps, ones, window, stride, padding)  # the windows whose maximum a pixel is
        # Of the sum of (wins 3 x^2)^2.
        np.testing.assert_allclose(gradient, 36 * wins**2 * maps**3, rtol=1e-12)


def test_the_three_paddings_of_a_stride_of_two_are_three_functions():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype(np.float32))
    ceil, same, one = (max_pool(x, 3, 2, padding) for padding in ("CEIL", "SAME", 1))
    np.testing.assert_array_equal(ceil, same)  # equal at even sizes
    assert np.mean(np.asarray(ceil != one)) > 0.3  # padding 1 is another network, of the same shapes
    odd = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    assert np.any(np.asarray(max_pool(odd, 3, 2, "CEIL")) != np.asarray(max_pool(odd, 3, 2, "SAME"))[:, :4, :4])


def test_no_select_and_scatter_is_left_in_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x, 3, 2, "CEIL").sum())
    text = jax.jit(gradient).lower(jnp.zeros((1, 8, 8, 2))).as_text()
    assert "select_and_scatter" not in text
    assert "optimization_barrier" in text  # what the backward pass computes again, the forward pass need not keep


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_max_pool_keeps_the_dtype(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 5, 2)), dtype)
    np.testing.assert_array_equal(
        jax.jit(lambda x: max_pool(x, 3, 2, "SAME"))(x), reference_max(np.asarray(x, np.float64), None, 3, 2, "SAME")[0]
    )
    gradient = jax.eval_shape(jax.grad(lambda x: max_pool(x, 3, 2, "SAME").astype(jnp.float32).sum()), x)
    assert gradient.dtype == dtype


@pytest.mark.parametrize(("window", "stride", "padding"), PADDINGS)
@pytest.mark.parametrize("include_pad", [False, True])
def test_avg_pool(x64, window, stride, padding, include_pad):
    x = np.random.default_rng(1).normal(size=(2, 7, 8, 3))
    got = jax.jit(lambda x: avg_pool(x, window, stride, padding, include_pad))(jnp.asarray(x))
    np.testing.assert_allclose(got, reference_mean(x, window, stride, padding, include_pad), rtol=1e-12, atol=1e-14)


def test_avg_pool_of_ones_tells_the_conventions_apart():
    ones = jnp.ones((1, 5, 5, 1))
    assert float(avg_pool(ones, 3, 1, "SAME")[0, 0, 0, 0]) == pytest.approx(1.0)
    assert float(avg_pool(ones, 3, 1, "SAME", True)[0, 0, 0, 0]) == pytest.approx(4 / 9)


def test_avg_pool_gradient(x64):
    x = np.random.default_rng(2).normal(size=(1, 6, 7, 2))
    gradient = np.random.default_rng(3).normal(size=(1, 3, 4, 2))
    _, got = with_gradient(lambda x: avg_pool(x, 3, 2, "SAME"), x, gradient)
    want = np.zeros_like(x)
    for place in np.ndindex(x.shape):  # linear: the gradient is the answer to every unit image
        unit = np.zeros_like(x)
        unit[place] = 1.0
        want[place] = (reference_mean(unit, 3, 2, "SAME", False) * gradient).sum()
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)


def test_bfloat16_is_summed_in_float32():
    x = jnp.full((1, 32, 32, 1), 1.0078125, jnp.bfloat16)  # a running bfloat16 sum of 1,024 of them would be far off
    assert float(global_avg_pool(x)[0, 0]) == 1.0078125
    assert float(avg_pool(x, 5, 3, "VALID")[0, 0, 0, 0]) == 1.0078125


@pytest.mark.parametrize(
    ("size", "output", "nominal"), [(14, 4, 14), (15, 4, 14), (16, 4, 14), (17, 5, 17), (19, 5, 17)]
)
def test_even_avg_pool_is_the_papers_pool_where_that_fits(x64, size, output, nominal):
    x = np.random.default_rng(4).normal(size=(2, size, size, 3))
    want = reference_mean(x, 5, 3, "VALID", False)
    assert want.shape[1] == output and (output - 1) * 3 + 5 == nominal
    # atol: a mean of 25 values near 1 may itself be near 0.
    np.testing.assert_allclose(jax.jit(lambda x: even_avg_pool(x, output, 5, 3))(x), want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("size", "width", "starts"),
    [(4, 1, [0, 1, 2, 3]), (6, 2, [0, 1, 3, 4]), (19, 7, [0, 4, 8, 12]), (2, 1, [0, 0, 1, 1]), (1, 1, [0, 0, 0, 0])],
)
def test_even_avg_pool_scales_its_windows_elsewhere(x64, size, width, starts):
    x = np.random.default_rng(5).normal(size=(1, size, size, 2))
    got = np.asarray(jax.jit(lambda x: even_avg_pool(x, 4, 5, 3))(x))
    assert got.shape == (1, 4, 4, 2)
    for i, j in np.ndindex(4, 4):
        part = x[:, starts[i] : starts[i] + width, starts[j] : starts[j] + width]
        np.testing.assert_allclose(got[:, i, j], part.mean((1, 2)), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("size", "output"), [(14, 4), (7, 2), (19, 4), (2, 4), (1, 4)])
def test_even_avg_pools_gradient_is_that_of_its_slices(size, output):
    """In float32 to the last bit: what JAX makes of the slices themselves is the reference."""
    x, gradient = (np.random.default_rng(11).normal(size=(2, n, n, 3)).astype(np.float32) for n in (size, output))
    width, starts = adaptive_pooling._even_windows(size, output, 5, 3)

    def plain(x):
        for axis in (2, 1):
            x = adaptive_pooling._sum_windows.fun(x, axis, width, tuple(starts))
        return x / float(width * width)

    (out, got), (plain_out, want) = (
        with_gradient(f, x, gradient) for f in (lambda x: even_avg_pool(x, output, 5, 3), plain)
    )
    np.testing.assert_array_equal(out, plain_out)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(("window", "padding"), [(9, "VALID"), (3, "ROUND"), (3, 3), (3, -1)])
def test_windows_and_paddings_that_cannot_be(window, padding):
    with pytest.raises(ValueError, match=r"padding|does not fit"):
        max_pool(jnp.zeros((1, 8, 8, 1)), window, 2, padding)


@pytest.mark.parametrize(
    ("size", "output", "windows"),
    [
        (14, 4, [(0, 4), (3, 7), (7, 11), (10, 14)]),  # torchvision's heads at 224 pixels
        (4, 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (3, 4, [(0, 1), (0, 2), (1, 3), (2, 3)]),
        (15, 4, [(0, 4), (3, 8), (7, 12), (11, 15)]),
    ],
)
def test_adaptive_pool_has_pytorchs_windows(size, output, windows, x64):
    x = np.random.RandomState(0).standard_normal((2, size, size, 3))
    pooled = adaptive_avg_pool(jnp.asarray(x), output)
    for i, (top, bottom) in enumerate(windows):
        for j, (left, right) in enumerate(windows):
            expected = x[:, top:bottom, left:right].mean((1, 2))
            np.testing.assert_allclose(pooled[:, i, j], expected, rtol=1e-13, atol=1e-15)
    assert adaptive_avg_pool(jnp.zeros((1, size, size, 1), jnp.bfloat16), output).dtype == jnp.bfloat16
