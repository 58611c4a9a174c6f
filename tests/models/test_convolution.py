"""The convolution's own forms against XLA's at 1e-12 in float64, against PyTorch's numbers, and where each is used."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from inception_jax import create_model
from inception_jax.models import convolution, weight_gradient, winograd
from inception_jax.models.convolution import conv2d

from .traced import shapes

CASES = {  # name: images, kernel, strides, padding
    "stem": ((3, 9, 8, 3), (7, 7, 3, 4), 2, "SAME"),
    "3x3": ((5, 11, 6, 2), (3, 3, 2, 3), 1, "SAME"),
    "5x5 on 4x4": ((2, 4, 4, 3), (5, 5, 3, 2), 1, "SAME"),
    "3x3 on 1x1": ((2, 1, 1, 3), (3, 3, 3, 2), 1, "SAME"),
    "stride 2 on 2x3": ((2, 2, 3, 2), (3, 3, 2, 3), 2, "SAME"),
    "valid, a row left over": ((3, 8, 9, 2), (3, 3, 2, 2), 2, "VALID"),
    "1x1": ((3, 5, 4, 4), (1, 1, 4, 3), 1, "SAME"),
    "1x1 stride 2": ((3, 6, 5, 4), (1, 1, 4, 3), 2, "VALID"),
    "1x7 wider than the map": ((2, 5, 4, 3), (1, 7, 3, 2), 1, "SAME"),
    "7x1, two strides": ((3, 9, 5, 2), (7, 1, 2, 3), (1, 2), "VALID"),
    "pixels": ((2, 8, 8, 2), (7, 7, 2, 2), 2, 3),
    "pairs": ((2, 5, 6, 2), (3, 2, 2, 2), 2, ((0, 1), (1, 0))),
}


def xla(x, kernel, strides, padding):
    strides = (strides, strides) if isinstance(strides, int) else strides
    padding = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.fixture
def set_block_elements(monkeypatch):
    """Sets the size of the weight gradient's blocks; traces made with another size are forgotten, before and after."""
    traced = (convolution._convolve_once, convolution.select_by_platform)

    def set_elements(elements):
        monkeypatch.setattr(weight_gradient, "_BLOCK_ELEMENTS", elements)
        for function in traced:
            function.clear_cache()

    yield set_elements
    for function in traced:
        function.clear_cache()


def operands(images, window, dtype=np.float64):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=images), dtype), jnp.asarray(rng.normal(size=window), dtype)


@pytest.mark.parametrize("case", CASES)
def test_each_algorithm_of_the_weight_gradient_is_equal_to_xlas_own(x64, case):
    images, window, strides, padding = CASES[case]
    x, kernel = operands(images, window)
    out, pull = jax.vjp(lambda kernel: xla(x, kernel, strides, padding), kernel)
    gradient = jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)
    strides = (strides, strides) if isinstance(strides, int) else strides
    pads = convolution.explicit_padding(images[1:3], window[:2], strides, padding)
    algorithms = [jax.jit(lambda x, gradient: weight_gradient.tap_gradient(strides, pads, x, kernel, gradient))]
    if window[:2] == (3, 3) and strides == (1, 1):
        algorithms.append(jax.jit(lambda x, gradient: winograd.weight_gradient(pads, x, gradient)))
    for algorithm in algorithms:
        np.testing.assert_allclose(algorithm(x, gradient), pull(gradient)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("images", "window", "strides", "padding"),
    [
        ((7, 3, 12, 3), (5, 1, 3, 16), 1, ((5, 3), (1, 0))),
        ((3, 13, 2, 1), (2, 1, 1, 7), 1, ((2, 0), (0, 0))),
        ((2, 9, 8, 4), (3, 3, 4, 8), 2, ((4, 0), (0, 5))),
        ((2, 4, 4, 2), (1, 3, 2, 3), 3, ((2, 7), (3, 3))),
    ],
)
def test_the_input_gradient_with_more_padding_than_the_kernel_reaches(images, window, strides, padding):
    """XLA's own convolution of the gradient then has negative padding, and is wrong in float32: NaN, or 1e10."""
    x, kernel = operands(images, window, np.float32)
    with jax.enable_x64(True):
        wide, wide_kernel = (jnp.asarray(np.asarray(one), jnp.float64) for one in (x, kernel))
        y, pull = jax.vjp(lambda x: xla(x, wide_kernel, strides, padding), wide)
        gradient = np.cos(np.arange(y.size, dtype=np.float32)).reshape(y.shape)
        (want,) = pull(jnp.asarray(gradient, jnp.float64))

    def run(x, gradient, algorithm):
        return jax.vjp(lambda x: conv2d(x, kernel, strides, padding, algorithm=algorithm), x)[1](gradient)[0]

    for algorithm in ("fast", "exact"):
        got = jax.jit(run, static_argnums=2)(x, gradient, algorithm)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def with_gradients(function, x, kernel, strides, padding):
    """The output, and the gradients of sum(output * weights) towards both operands, in one compiled program."""

    def loss(x, kernel):
        out = function(x, kernel, strides, padding)
        weights = np.round(np.cos(np.arange(out.size)) * 64) / 64  # exact also in bfloat16
        return (out * jnp.asarray(weights.reshape(out.shape), out.dtype)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
    return out, *gradients


@pytest.mark.parametrize("block", [2**18, 40])  # 40: every weight gradient but the smallest is cut, into uneven parts
@pytest.mark.parametrize("case", CASES)
def test_equal_to_xlas_own(x64, set_block_elements, case, block):
    set_block_elements(block)
    images, window, strides, padding = CASES[case]
    arguments = (*operands(images, window), strides, padding)
    for got, want in zip(with_gradients(conv2d, *arguments), with_gradients(xla, *arguments), strict=True):
        assert got.dtype == want.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "strides", "padding"), [("conv_3x3", 1, 1), ("conv_7x7_2", 2, 3), ("conv_1x7", 1, ((0, 0), (3, 3)))]
)
def test_equal_to_pytorchs(x64, name, strides, padding):
    goldens = np.load(Path(__file__).parent / "goldens" / "ops.npz")
    x = jnp.asarray(goldens["x"].transpose(0, 2, 3, 1))
    kernel = jnp.asarray(goldens[f"{name}/kernel"].transpose(2, 3, 1, 0))
    out, pull = jax.vjp(jax.jit(lambda x, k: conv2d(x, k, strides, padding)), x, kernel)
    np.testing.assert_allclose(out.transpose(0, 3, 1, 2), goldens[f"{name}/y"], rtol=1e-12, atol=1e-12)
    towards_x, towards_kernel = pull(jnp.asarray(goldens[f"{name}/weights"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(towards_x.transpose(0, 3, 1, 2), goldens[f"{name}/dx"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(towards_kernel.transpose(3, 2, 0, 1), goldens[f"{name}/dkernel"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strides", [1, 2])
def test_the_blocks_cover_every_image_and_row_once(x64, set_block_elements, strides):
    """All-ones operands count: each weight's gradient is the number of output positions that use it."""
    set_block_elements(30)
    x, kernel = jnp.ones((5, 13, 7, 1)), jnp.ones((3, 3, 1, 1))
    count = jax.jit(jax.grad(lambda kernel: conv2d(x, kernel, strides, "VALID").sum()))(kernel)
    rows, columns = (13 - 3) // strides + 1, (7 - 3) // strides + 1
    np.testing.assert_array_equal(count, np.full((3, 3, 1, 1), 5 * rows * columns))


def lowered(platform, images, window, strides=1, **options):
    x, kernel = operands(images, window, np.float32)
    step = jax.jit(jax.grad(lambda x, kernel: (conv2d(x, kernel, strides, **options) ** 2).sum(), (0, 1)))
    return step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


def test_accelerators_get_xlas_own_three_convolutions():
    for platform, size, channels in (("cuda", 2, 3), ("tpu", 2, 3), ("cuda", 48, 64), ("tpu", 48, 64)):
        text = lowered(platform, (2, size, size, channels), (3, 3, channels, 64))
        assert text == lowered(platform, (2, size, size, channels), (3, 3, channels, 64), algorithm="exact")
        assert text.count("stablehlo.convolution") == 3
        assert "optimization_barrier" not in text and "stablehlo.while" not in text and "dot_general" not in text


def test_what_cpus_get(set_block_elements):
    assert lowered("cpu", (2, 4, 4, 3), (1, 1, 3, 4)).count("stablehlo.dot_general") == 3
    assert "stablehlo.pad" not in lowered("cpu", (2, 5, 5, 3), (5, 5, 3, 4))
    assert lowered("cpu", (2, 4, 4, 3), (5, 5, 3, 4)).count("stablehlo.pad") == 2  # forward and input gradient
    assert "stablehlo.while" not in lowered("cpu", (2, 4, 4, 3), (3, 3, 3, 4))
    set_block_elements(64)
    assert "stablehlo.while" in lowered("cpu", (2, 4, 4, 3), (3, 3, 3, 4))


def test_a_row_of_zeros_below_a_map_without_padding(x64):
    """Where it adds no row to the output, or to many: with it, the bits of the convolution without."""
    for images, window, strides, added in (
        ((2, 9, 7, 2), (3, 3, 2, 3), 2, True),
        ((2, 8, 7, 2), (3, 3, 2, 3), 2, False),  # adds a row to three
        ((1, 36, 5, 20), (3, 3, 20, 24), 1, True),
        ((1, 9, 5, 2), (3, 3, 2, 3), 1, False),
        ((1, 36, 5, 2), (1, 1, 2, 3), 1, False),
    ):
        x, kernel = operands(images, window, np.float32)
        step = jax.jit(lambda x, kernel, strides=strides: conv2d(x, kernel, strides, "VALID"))
        assert ("pad = [[0, 1], [0, 0]]" in step.lower(x, kernel).as_text()) == added, images
        want = jax.jit(lambda x, kernel, strides=strides: xla(x, kernel, strides, "VALID"))(x, kernel)
        tolerance = 0.0 if added else 1e-6
        np.testing.assert_allclose(step(x, kernel), want, rtol=tolerance, atol=tolerance)
        for got, want in zip(
            *(with_gradients(f, *operands(images, window), strides, "VALID") for f in (conv2d, xla)), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_layers_shape_chooses_the_algorithm_of_the_weight_gradient():
    """Of forward and both gradients only Winograd's and the taps' weight gradient are matrix products."""
    for images, window, products in (
        ((8, 16, 16, 64), (3, 3, 64, 64), 36),
        ((8, 16, 16, 48), (3, 3, 48, 64), 0),  # too few channels
        ((7, 16, 16, 64), (3, 3, 64, 64), 9),  # too few tiles
        ((2, 4, 4, 32), (7, 1, 32, 32), 7),
        ((2, 4, 4, 32), (1, 7, 32, 32), 0),
    ):
        found = lowered("cpu", images, window).count("stablehlo.dot_general")
        assert found == products, (images, window)
        assert "stablehlo.dot_general" not in lowered("cpu", images, window, algorithm="exact")


def test_a_networks_option_reaches_its_convolutions():
    """AlexNet's five 3x3 convolutions, of which four are towers, take one product per tap."""
    products = {}
    for algorithm in ("fast", "exact"):
        model = create_model("alexnet", num_classes=2, width_multiplier=0.5, convolution=algorithm)
        gradients = jax.jit(jax.grad(lambda variables, x, model=model: model.apply(variables, x).logits.sum()))
        arguments = (shapes(model, 67, batch=1)[1], jax.ShapeDtypeStruct((1, 67, 67, 3), jnp.float32))
        text = gradients.trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
        products[algorithm] = text.count("stablehlo.dot_general")
    assert products["fast"] - products["exact"] == 5 * 9


def test_winograds_rounding(x64):
    """In float32 less than 2e-5 of the gradient's largest value, in float64 1e-14."""
    x, kernel = operands((4, 24, 24, 64), (3, 3, 64, 64))
    want = np.asarray(jax.jit(jax.grad(lambda kernel: (conv2d(x, kernel, algorithm="exact") ** 2).sum()))(kernel))
    for dtype, limit in ((jnp.float32, 2e-5), (jnp.float64, 1e-14)):
        low = x.astype(dtype)
        got = jax.jit(jax.grad(lambda kernel, low=low: (conv2d(low, kernel) ** 2).sum()))(kernel.astype(dtype))
        assert 0 < np.abs(np.asarray(got) - want).max() < limit * np.abs(want).max()


def test_the_first_layer_pays_for_no_input_gradient():
    x, kernel = operands((2, 8, 8, 3), (3, 3, 3, 4), np.float32)
    one, both = (
        jax.jit(jax.grad(lambda kernel, x: (conv2d(x, kernel) ** 2).sum(), wanted)).lower(kernel, x).compile()
        for wanted in (0, (0, 1))
    )
    assert one.cost_analysis()["flops"] < 0.75 * both.cost_analysis()["flops"]  # two convolutions of three


@pytest.mark.parametrize("window", [(1, 1, 8, 4), (3, 3, 8, 4)])
def test_bfloat16_is_accumulated_in_float32(set_block_elements, window):
    set_block_elements(512)  # several blocks: their sum must be float32 as well
    x, kernel = operands((16, 8, 8, 8), window, jnp.bfloat16)
    got = with_gradients(conv2d, x, kernel, 1, "SAME")
    want = with_gradients(xla, x.astype(jnp.float32), kernel.astype(jnp.float32), 1, "SAME")
    assert [array.dtype for array in got] == [jnp.bfloat16] * 3
    for narrow, wide in zip(got, want, strict=True):  # one rounding, at the end
        np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, rtol=2**-8, atol=1e-5)
    out = jax.eval_shape(lambda x, kernel: conv2d(x, kernel, 2), x, kernel)
    assert (out.shape, out.dtype) == ((16, 4, 4, 4), jnp.bfloat16)


# {algorithm: images and kernel of a layer that takes it}
TAKEN = {
    "blocks": ((2, 5, 5, 2), (3, 3, 2, 3)),
    "Winograd": ((32, 5, 5, 64), (3, 3, 64, 64)),
    "taps": ((2, 5, 4, 32), (3, 1, 32, 32)),
}


@pytest.mark.parametrize("algorithm", TAKEN)
def test_twice_differentiable(x64, algorithm):
    images, window = TAKEN[algorithm]
    assert weight_gradient.fastest((1, 1), window, (*images[:3], window[3])) == algorithm
    x, kernel = operands(images, window)

    def penalty(function):
        inner = jax.grad(lambda kernel: (function(x, kernel, 1, "SAME") ** 3).sum())
        return jax.jit(jax.grad(lambda kernel: (inner(kernel) ** 2).sum()))

    got, want = penalty(conv2d)(kernel), penalty(xla)(kernel)
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("algorithm", TAKEN)
def test_inside_scan_and_shard_map(x64, set_block_elements, algorithm):
    """Accumulation over a scan, and a replicated kernel whose gradient shard_map sums, with its types checked."""
    set_block_elements(64)
    (count, *size), window = TAKEN[algorithm]
    x, kernel = operands((2 * count, *size), window)

    def gradient(function, kernel, x):
        return jax.grad(lambda kernel: (function(x, kernel, 1, "SAME") ** 2).sum())(kernel)

    want = jax.jit(lambda kernel, x: gradient(xla, kernel, x))(kernel, x)
    limits = {"rtol": 1e-12, "atol": 1e-12 * np.abs(want).max()}
    halves = jax.jit(lambda kernel, x: lax.map(lambda part: gradient(conv2d, kernel, part), x.reshape(2, count, *size)))
    np.testing.assert_allclose(halves(kernel, x).sum(0), want, **limits)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    mapped = jax.shard_map(lambda kernel, x: gradient(conv2d, kernel, x), mesh=mesh, check_vma=True, **specs)
    np.testing.assert_allclose(jax.jit(mapped)(kernel, x), want, **limits)


@pytest.mark.parametrize("algorithm", TAKEN)
def test_gradients_in_vmap(x64, algorithm):
    images, window = TAKEN[algorithm]
    x, kernel = operands((2, *images), window)
    got, want = (jax.grad(lambda kernel, x, f=f: (f(x, kernel, 1, "SAME") ** 2).sum()) for f in (conv2d, xla))
    got, want = jax.jit(jax.vmap(got, (None, 0)))(kernel, x), np.stack([jax.jit(want)(kernel, part) for part in x])
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize("algorithm", ["fast", "exact"])
def test_a_wider_kernel_is_rounded(algorithm):
    x, kernel = operands((2, 9, 9, 8), (3, 3, 8, 16), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), kernel.shape)
    got, want = (
        jax.vjp(lambda kernel, dtype=dtype: conv2d(x, kernel.astype(dtype), algorithm=algorithm), kernel)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_array_equal(got[0], want[0])
    gradients = [towards(jnp.ones_like(y))[0] for y, towards in (got, want)]
    assert got[0].dtype == jnp.bfloat16 and gradients[0].dtype == jnp.float32
    np.testing.assert_array_equal(*gradients)


def test_mistakes():
    x, kernel = jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 3, 2))
    for arguments, message in (
        ((x, kernel[:, :, :2]), r"and kernel \(3, 3, 2, 2\): expected \[B,H,W,C\]"),
        ((x[0], kernel), r"images \(4, 4, 3\) and kernel"),
        ((x, kernel.astype(jnp.bfloat16)), "cast one"),
        ((x, kernel, 1, "REFLECT"), "padding 'REFLECT'"),
        ((x, kernel, 1, -1), "none negative"),
        ((x, kernel, 1, "SAME", 1, "quick"), "algorithm = 'quick': it must be one of 'fast', 'exact'"),
        ((x, jnp.zeros((5, 5, 3, 2)), 1, "VALID"), "smaller than"),
    ):
        with pytest.raises(ValueError, match=message):
            conv2d(*arguments)
