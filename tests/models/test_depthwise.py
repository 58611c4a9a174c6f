"""The depthwise convolution's own forms against XLA's at 1e-12 in float64, against TensorFlow's order of channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from inception_jax import create_model
from inception_jax.models import onednn
from inception_jax.models.checks import ModelError
from inception_jax.models.convolution import conv2d
from inception_jax.models.depthwise import depthwise_conv2d

from .test_onednn import needs_bfloat16, needs_onednn

CASES = {  # name: images, kernel, stride, padding, dilation
    "3x3": ((3, 7, 6, 5), (3, 3, 5, 1), 1, "SAME", 1),
    "the stem of BN-Inception": ((2, 10, 9, 3), (7, 7, 3, 8), 2, "SAME", 1),
    "stride 2 on an even map": ((2, 8, 6, 4), (3, 3, 4, 1), 2, "SAME", 1),
    "dilation 2": ((2, 9, 8, 4), (3, 3, 4, 1), 1, "SAME", 2),
    "dilation 4 on a map that is smaller": ((2, 3, 5, 4), (3, 3, 4, 1), 1, "SAME", 4),
    "dilation and stride": ((2, 9, 8, 3), (3, 2, 3, 2), 2, 3, 2),
    "valid, a row and a column left over": ((2, 8, 10, 3), (3, 3, 3, 1), 2, "VALID", 1),
    "stride above the kernel": ((2, 8, 9, 3), (2, 1, 3, 1), 3, "VALID", 1),
    "1x1": ((2, 4, 5, 3), (1, 1, 3, 2), 1, "SAME", 1),
    "3x3 on 1x1": ((2, 1, 1, 3), (3, 3, 3, 1), 1, "SAME", 1),
    "more padding than the kernel reaches": ((2, 4, 4, 3), (2, 2, 3, 1), 1, 3, 1),
    "pairs": ((2, 5, 6, 2), (3, 2, 2, 2), 2, ((0, 1), (1, 0)), 1),
    "more channels than lanes": ((5, 6, 7, 37), (3, 3, 37, 1), 1, "SAME", 1),
    "fewer images than threads": ((1, 24, 7, 16), (3, 3, 16, 1), 1, "SAME", 1),
    "several of many channels": ((2, 6, 6, 16), (3, 3, 16, 2), 1, "SAME", 1),
}


def xla(x, kernel, stride, padding, dilation):
    height, width, channels, multiplier = kernel.shape
    padding = [(padding, padding)] * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(
        x,
        kernel.reshape(height, width, 1, channels * multiplier),
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def operands(images, window, dtype=np.float64):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=images), dtype), jnp.asarray(rng.normal(size=window), dtype)


def with_gradients(function, x, kernel, stride, padding, dilation):
    """The output, and the gradients of sum(output * weights) towards both operands, in one compiled program."""

    def loss(x, kernel):
        out = function(x, kernel, stride, padding, dilation)
        weights = np.round(np.cos(np.arange(out.size)) * 64) / 64  # exact also in bfloat16
        return (out * jnp.asarray(weights.reshape(out.shape), out.dtype)).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, kernel)
    return out, *gradients


@pytest.mark.parametrize("case", CASES)
def test_equal_to_xlas_own(x64, case):
    images, window, *rest = CASES[case]
    arguments = (*operands(images, window), *rest)
    found, expected = with_gradients(depthwise_conv2d, *arguments), with_gradients(xla, *arguments)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == want.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_the_order_of_channels_is_tensorflows(x64):
    """Channel c * multiplier + m is input channel c under kernel m: a dense kernel that is zero elsewhere does it."""
    x, kernel = operands((2, 5, 6, 3), (3, 3, 3, 4))
    dense = np.zeros((3, 3, 3, 12))
    for channel in range(3):
        for m in range(4):
            dense[:, :, channel, channel * 4 + m] = kernel[:, :, channel, m]
    np.testing.assert_allclose(depthwise_conv2d(x, kernel), conv2d(x, jnp.asarray(dense)), rtol=1e-12, atol=1e-12)


def lowered(platform, function):
    x, kernel = operands((2, 5, 5, 3), (3, 3, 3, 1), np.float32)
    step = jax.jit(jax.grad(lambda x, kernel: (function(x, kernel, 1, "SAME", 1) ** 2).sum(), (0, 1)))
    return step.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_xlas_own_three_convolutions(platform):
    text, plain = lowered(platform, depthwise_conv2d), lowered(platform, xla)
    grouped = [
        sorted(line.split("window")[1] for line in t.splitlines() if "stablehlo.convolution" in line)
        for t in (text, plain)
    ]
    assert len(grouped[0]) == 3
    assert grouped[0] == grouped[1]
    assert "stablehlo.while" not in text and "optimization_barrier" not in text


def test_cpus_get_none():
    text = lowered("cpu", depthwise_conv2d)
    assert "stablehlo.convolution" not in text
    assert "stablehlo.while" in text  # over the rows, for the weights


def test_bfloat16_is_accumulated_in_float32():
    images, window = (16, 8, 8, 8), (3, 3, 8, 1)
    x, kernel = operands(images, window, jnp.bfloat16)
    got = with_gradients(depthwise_conv2d, x, kernel, 1, "SAME", 1)
    want = with_gradients(xla, x.astype(jnp.float32), kernel.astype(jnp.float32), 1, "SAME", 1)
    assert [array.dtype for array in got] == [jnp.bfloat16] * 3
    for narrow, wide in zip(got, want, strict=True):  # one rounding, at the end
        np.testing.assert_allclose(np.asarray(narrow, np.float32), wide, rtol=2**-8, atol=1e-5)


def test_twice_differentiable(x64):
    x, kernel = operands((2, 4, 4, 2), (3, 3, 2, 2))

    def penalty(function):
        inner = jax.grad(lambda x, kernel: (function(x, kernel, 2, "SAME", 1) ** 3).sum(), (0, 1))
        return jax.jit(jax.grad(lambda x, kernel: sum((g**2).sum() for g in inner(x, kernel)), (0, 1)))(x, kernel)

    for got, want in zip(penalty(depthwise_conv2d), penalty(xla), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


def test_inside_scan_and_shard_map(x64):
    """Accumulation over a scan, and a replicated kernel whose gradient shard_map sums, with its types checked."""
    x, kernel = operands((4, 5, 5, 2), (3, 3, 2, 2))

    def gradient(function, kernel, x):
        return jax.grad(lambda kernel: (function(x, kernel, 1, "SAME", 1) ** 2).sum())(kernel)

    def accumulate(kernel, x):
        parts = x.reshape(2, 2, *x.shape[1:])
        step = lambda total, part: (total + gradient(depthwise_conv2d, kernel, part), None)  # noqa: E731
        return lax.scan(step, jnp.zeros_like(kernel), parts)[0]

    expected = gradient(xla, kernel, x)
    np.testing.assert_allclose(jax.jit(accumulate)(kernel, x), expected, rtol=1e-12, atol=1e-12)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    split = jax.shard_map(lambda k, x: gradient(depthwise_conv2d, k, x), mesh=mesh, check_vma=True, **specs)
    np.testing.assert_allclose(jax.jit(split)(kernel, x), expected, rtol=1e-12, atol=1e-12)


by_onednn = functools.partial(depthwise_conv2d, algorithm="onednn")


def count_calls(x, kernel, *rest):
    """Of oneDNN, in the convolution and its two gradients."""
    return (
        jax.jit(lambda x, kernel: with_gradients(by_onednn, x, kernel, *rest))
        .lower(x, kernel)
        .as_text()
        .count(f"@{onednn.TARGET}(")
    )


@needs_onednn
@pytest.mark.parametrize("case", CASES)
def test_onednns_are_equal_to_xlas_own(case):
    images, window, *rest = CASES[case]
    arguments = (*operands(images, window, np.float32), *rest)
    for got, want in zip(with_gradients(by_onednn, *arguments), with_gradients(xla, *arguments), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * np.abs(want).max())
    assert count_calls(*arguments) == (0 if rest[-1] > 1 or case == "several of many channels" else 3)


@needs_bfloat16
@pytest.mark.parametrize("case", CASES)
def test_onednns_of_bfloat16_are_summed_in_float32_and_rounded_once(case):
    images, window, *rest = CASES[case]
    x, kernel = operands(images, window, jnp.bfloat16)
    wide = with_gradients(xla, x.astype(jnp.float32), kernel.astype(jnp.float32), *rest)
    for got, want in zip(with_gradients(by_onednn, x, kernel, *rest), wide, strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=3e-5 * np.abs(want).max())
    calls = 3 - (rest[0] > 1)  # the gradient of the input of a stride is XLA's
    assert count_calls(x, kernel, *rest) == (0 if rest[-1] > 1 or case == "several of many channels" else calls)


@needs_bfloat16
def test_a_gradient_of_many_filters_of_each_channel_is_no_product_of_matrices():
    """As that of a dense kernel of these sizes would be."""
    x, kernel = operands((2, 4, 4, 16), (1, 1, 16, 16), jnp.bfloat16)
    call = functools.partial(onednn.depthwise_forward, (1, 1), ((0, 0), (0, 0)), x)
    y, pull = jax.vjp(call, kernel)
    wide, pull_wide = jax.vjp(lambda k: xla(x.astype(jnp.float32), k, 1, "SAME", 1), kernel.astype(jnp.float32))
    for got, want in ((y, wide), (pull(y)[0], pull_wide(y.astype(jnp.float32))[0])):
        np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=2**-8, atol=3e-5 * np.abs(want).max())


@needs_onednn
def test_a_kernel_so_large_that_a_dense_one_is_divided():
    arguments = (*operands((1, 2, 3, 22000), (3, 1, 22000, 1), np.float32), 1, "SAME", 1)
    for got, want in zip(
        with_gradients(by_onednn, *arguments), with_gradients(depthwise_conv2d, *arguments), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5 * np.abs(want).max())


@needs_onednn
def test_onednns_twice_differentiable_and_inside_shard_map():
    x, kernel = operands((4, 5, 5, 2), (3, 3, 2, 1), np.float32)

    def gradient(function, kernel, x):
        return jax.grad(lambda kernel: (function(x, kernel, 1, "SAME", 1) ** 2).sum())(kernel)

    twice = [
        jax.jit(jax.grad(lambda k, f=f: (gradient(f, k, x) ** 2).sum()))(kernel) for f in (by_onednn, xla)
    ]  # fmt: skip
    np.testing.assert_allclose(*twice, rtol=1e-4)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    split = jax.shard_map(lambda k, x: gradient(by_onednn, k, x), mesh=mesh, check_vma=True, **specs)
    np.testing.assert_allclose(jax.jit(split)(kernel, x), gradient(xla, kernel, x), rtol=1e-5)


@needs_onednn
@pytest.mark.parametrize("name", ["xception", "inception_v2"])
def test_networks_compute_depthwise_convolutions_by_onednn(name):
    options = {"aux_heads": False} if name == "inception_v2" else {}
    found = {}
    for algorithm in ("fast", "onednn"):
        model = create_model(
            name, width_multiplier=0.05, num_classes=2, dropout_rate=0.0, convolution=algorithm, **options
        )
        x = jax.random.normal(jax.random.key(0), (2, 75, 75, 3))
        variables = jax.jit(lambda model=model, x=x: model.init(jax.random.key(1), x, train=False))()

        def loss(params, model=model, x=x, stats=variables["batch_stats"]):
            given = {"params": params, "batch_stats": stats}
            return model.apply(given, x, train=True, mutable=["batch_stats"])[0].logits[:, 0].sum()

        text = jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
        assert ("stablehlo.while" in text) == (algorithm == "fast")  # of a depthwise kernel's gradient
        found[algorithm] = jax.jit(jax.grad(loss))(variables["params"])
    for one, other in zip(*map(jax.tree.leaves, found.values()), strict=True):
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=2e-3 * np.abs(other).max())


def test_mistakes():
    with pytest.raises(ModelError, match="algorithm"):
        depthwise_conv2d(*operands((2, 4, 4, 2), (3, 3, 2, 1), np.float32), algorithm="onednm")
    x, kernel = operands((2, 4, 4, 2), (3, 3, 3, 1), np.float32)
    with pytest.raises(
        ValueError, match=r"depthwise_conv2d: images \(2, 4, 4, 2\) and kernel \(3, 3, 3, 1\): expected"
    ):
        depthwise_conv2d(x, kernel)
    with pytest.raises(ValueError, match="images are float32, the kernel is bfloat16: cast one of them"):
        depthwise_conv2d(x, jnp.zeros((3, 3, 2, 1), jnp.bfloat16))
    with pytest.raises(ValueError, match="a map of 4x4 is smaller than kernel 5x5"):
        depthwise_conv2d(x, jnp.zeros((3, 3, 2, 1)), 1, "VALID", 2)
