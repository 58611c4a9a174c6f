"""The building blocks beside NumPy: convolution unit, mixed module, linear layer, dropout, auxiliary heads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.models.blocks import AvgPool, Conv, MaxPool, Mixed, ParallelConvs
from inception_jax.models.heads import AuxHeadV1, AuxHeadV4, classifier, dropout
from inception_jax.models.initialization import slim_variance_scaling
from inception_jax.models.layers import ConvUnit, LayerOptions, Linear, scaled_width
from inception_jax.models.normalization import BatchNormOptions


def style(**changes):
    return LayerOptions(
        **{"kernel_init": slim_variance_scaling, "linear_init": slim_variance_scaling, "bias": 0.2} | changes
    )


def double(**changes):
    return style(dtype=jnp.float64, param_dtype=jnp.float64, **changes)


def normal(seed, *shape):
    return np.random.RandomState(seed).standard_normal(shape)


def random_variables(module, *inputs, **arguments):
    """A module's variables with every leaf random, so that no bias or factor is left at 0 or 1."""
    tree = flatten_dict(jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **arguments), *inputs))
    values = {path: normal(i, *leaf.shape) for i, (path, leaf) in enumerate(sorted(tree.items()))}
    return unflatten_dict({path: np.abs(v) if path[-1] == "var" else v for path, v in values.items()})


def convolve(x, kernel, stride=1, pads=((0, 0), (0, 0))):
    """Convolution by its definition: [B, H, W, C] and [h, w, C, F], `pads` before and after on each axis."""
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    height, width = ((x.shape[i + 1] - kernel.shape[i]) // stride + 1 for i in (0, 1))
    result = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + kernel.shape[0], j * stride : j * stride + kernel.shape[1]]
            result[:, i, j] = np.tensordot(patch, kernel, 3)
    return result


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "pads"),
    [
        ((3, 3), 1, "SAME", ((1, 1), (1, 1))),
        ((1, 7), 1, "SAME", ((0, 0), (3, 3))),
        ((3, 3), 2, "VALID", ((0, 0), (0, 0))),
        ((7, 7), 2, 3, ((3, 3), (3, 3))),
        ((7, 7), 2, "SAME", ((2, 3), (2, 3))),  # TensorFlow pads one more after than before on even sizes
    ],
)
def test_a_convolution_unit_is_convolution_bias_relu(kernel, stride, padding, pads, x64):
    unit = ConvUnit(5, kernel, double(), stride, padding)
    x = normal(0, 2, 8, 10, 3)
    variables = random_variables(unit, x, train=False)
    expected = relu(convolve(x, variables["params"]["kernel"], stride, pads) + variables["params"]["bias"])
    assert (expected == 0).any()
    assert (expected > 0).any()
    np.testing.assert_allclose(unit.apply(variables, x, train=False), expected, rtol=1e-12, atol=1e-12)


def test_under_batch_norm_a_convolution_has_no_bias(x64):
    unit = ConvUnit(4, (1, 1), double(batch_norm=BatchNormOptions()))
    x = normal(0, 2, 3, 3, 3)
    variables = random_variables(unit, x, train=False)
    assert set(variables["params"]) == {"kernel", "bn"}
    mean, var = variables["batch_stats"]["bn"]["mean"], variables["batch_stats"]["bn"]["var"]
    scale, bias = variables["params"]["bn"]["scale"], variables["params"]["bn"]["bias"]
    expected = relu((convolve(x, variables["params"]["kernel"]) - mean) / np.sqrt(var + 1e-3) * scale + bias)
    np.testing.assert_allclose(unit.apply(variables, x, train=False), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [None, BatchNormOptions()])
@pytest.mark.parametrize("count_include_pad", [False, True])
def test_an_average_pool_may_follow_the_1x1_that_it_stands_before(norm, count_include_pad, x64):
    pool = AvgPool(3, 1, "SAME", count_include_pad)
    conv = Conv("pool_proj", 4, (1, 1))
    x = normal(0, 2, 5, 4, 6)
    module = Mixed(((pool, conv),), double(batch_norm=norm))
    variables = random_variables(module, x, train=False)
    sums = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    sums = sum(sums[:, i : i + 5, j : j + 4] for i in range(3) for j in range(3))
    inside = np.outer([2, 3, 3, 3, 2], [2, 3, 3, 2])[None, :, :, None]  # the cells of each window that are not padding
    pooled = sums / (9 if count_include_pad else inside)
    unit = {k: v["pool_proj"] for k, v in variables.items()}
    expected = ConvUnit(4, (1, 1), double(batch_norm=norm)).apply(unit, pooled, train=False)
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-12, atol=1e-12)


def test_a_mixed_module_concatenates_its_branches_in_order(x64):
    branches = (
        (Conv("a", 2, (1, 1)),),
        (Conv("b", 3, (1, 1)), ParallelConvs((Conv("c", 1, (1, 3)), Conv("d", 2, (3, 1))))),
        (MaxPool(3, 1, "SAME"),),
    )
    x = normal(0, 1, 4, 4, 2)
    module = Mixed(branches, double())
    variables = random_variables(module, x, train=False)
    p = variables["params"]
    assert set(p) == {"a", "b", "c", "d"}

    def unit(name, x, pads):
        return relu(convolve(x, p[name]["kernel"], 1, pads) + p[name]["bias"])

    none = ((0, 0), (0, 0))
    b = unit("b", x, none)
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-np.inf)
    largest = np.max([padded[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], axis=0)
    parts = [unit("a", x, none), unit("c", b, ((0, 0), (1, 1))), unit("d", b, ((1, 1), (0, 0))), largest]
    expected = np.concatenate(parts, -1)
    np.testing.assert_allclose(module.apply(variables, x, train=False), expected, rtol=1e-12, atol=1e-12)


def test_widths_follow_slims_rule():
    assert [scaled_width(d, 0.25, 16) for d in (16, 64, 96, 208)] == [16, 16, 24, 52]
    assert scaled_width(63, 0.5, 16) == 31  # int() cuts
    assert scaled_width(10, 0.5, 2) == 5
    assert scaled_width(8, 1.0, 16) == 8  # a multiplier of 1 is the paper's network, whatever the minimum
    assert scaled_width(64, 2, 16) == 128


def test_a_linear_layer(x64):
    layer = Linear(3, slim_variance_scaling, 0.2, jnp.float64, jnp.float64)
    x = normal(0, 2, 5)
    variables = random_variables(layer, x)
    expected = x @ variables["params"]["kernel"] + variables["params"]["bias"]
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-12)


def test_the_classifier_computes_in_float32_where_the_network_is_bfloat16():
    layer = classifier(3, style(dtype=jnp.bfloat16))
    x = jnp.asarray(normal(0, 4, 512), jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)
    logits = layer.apply(variables, x)
    assert logits.dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(variables["params"]["kernel"], np.float64)
    np.testing.assert_allclose(logits, exact, rtol=0, atol=1e-5)  # a bfloat16 product would be 1e-3 off


class TestDropout:
    """A mask belongs to an example's key and to the place in the network, and to nothing else."""

    rows, features = 8, 1000

    @staticmethod
    @functools.cache
    def drop():
        """`dropout` at rate 0.7, compiled once per dtype."""
        return jax.jit(lambda x, positions, site: dropout(x, 0.7, keys_of(positions), site))

    def test_zeroes_that_fraction_and_keeps_the_mean(self):
        dropped = np.asarray(self.drop()(jnp.ones((self.rows, self.features)), jnp.arange(self.rows), 0))
        kept = dropped > 0
        assert abs(kept.mean() - 0.3) < 0.02  # 8,000 draws: a standard deviation of 0.005
        np.testing.assert_allclose(dropped[kept], 1 / 0.3, rtol=1e-6)
        assert len(np.unique(kept, axis=0)) == self.rows  # each example its own

    def test_does_not_depend_on_the_row_or_the_company(self):
        x = jnp.asarray(normal(0, self.rows, self.features), jnp.float32)
        whole = self.drop()(x, jnp.arange(self.rows), 0)
        order = np.array([2, 0, 3, 1, 7, 6, 5, 4])
        assert np.array_equal(self.drop()(x[order], jnp.asarray(order), 0), whole[order])
        others = self.drop()(x, jnp.arange(self.rows).at[4:].add(50), 0)
        assert np.array_equal(others[:4], whole[:4])
        assert not np.array_equal(others[4:], whole[4:])

    def test_does_not_depend_on_the_split(self):
        x = jnp.asarray(normal(0, self.rows, self.features), jnp.float32)
        part = dropout(x[5:7], 0.7, keys_of(jnp.arange(5, 7)), 0)
        assert np.array_equal(part, self.drop()(x, jnp.arange(self.rows), 0)[5:7])

    def test_places_differ(self):
        x, positions = jnp.ones((self.rows, self.features)), jnp.arange(self.rows)
        assert not np.array_equal(self.drop()(x, positions, 0), self.drop()(x, positions, 1))

    def test_masks_are_the_same_in_every_dtype(self, x64):
        double = self.drop()(jnp.ones((self.rows, self.features)), jnp.arange(self.rows, dtype=jnp.int32), jnp.int32(0))
        assert double.dtype == jnp.float64
        half = dropout(jnp.ones((1, self.features), jnp.bfloat16), 0.7, keys_of(jnp.arange(1, dtype=jnp.int32)), 0)
        assert half.dtype == jnp.bfloat16
        with jax.enable_x64(False):
            single = self.drop()(jnp.ones((self.rows, self.features)), jnp.arange(self.rows), 0)
        assert np.array_equal(double > 0, single > 0)
        assert np.array_equal(half[0] > 0, single[0] > 0)

    def test_without_keys_or_rate_is_nothing(self):
        x = jnp.ones((2, 3))
        assert dropout(x, 0.5, None, 0) is x
        assert dropout(x, 0.0, keys_of(jnp.arange(2)), 0) is x


def keys_of(positions):
    """One key per example, as the training step makes them."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), positions)


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        (14, [(0, 5), (3, 8), (6, 11), (9, 14)]),  # the paper's 5x5/3 windows
        (4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        (2, [(0, 1), (0, 1), (1, 2), (1, 2)]),  # 32 pixels
    ],
)
def test_the_v1_head(size, windows, x64):
    head = AuxHeadV1(3, 0.5, double())
    x = normal(0, 2, size, size, 6)
    arguments = {"train": True, "example_keys": None, "site": 1}
    variables = random_variables(head, x, **arguments)
    p = variables["params"]
    pooled = np.array([[x[:, a:b, c:d].mean((1, 2)) for c, d in windows] for a, b in windows]).transpose(2, 0, 1, 3)
    h = relu(convolve(pooled, p["conv"]["kernel"]) + p["conv"]["bias"]).reshape(2, -1)
    h = relu(h @ (p["fc"]["kernel"]) + p["fc"]["bias"])
    expected = h @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    assert p["fc"]["kernel"].shape == (4 * 4 * 128, 1024)
    np.testing.assert_allclose(head.apply(variables, x, **arguments), expected, rtol=1e-10)


def test_the_v1_head_drops_after_its_hidden_layer():
    head = AuxHeadV1(3, 0.7, style(width_multiplier=0.02, min_width=8))
    x = jnp.ones((2, 4, 4, 6))
    keys = keys_of(jnp.array([0, 0]))
    variables = head.init(jax.random.key(0), x, train=False, example_keys=None, site=1)
    out = head.apply(variables, x, train=True, example_keys=keys, site=1)
    assert np.array_equal(out[0], out[1])  # the same key: the same mask
    assert not np.array_equal(out[0], head.apply(variables, x, train=True, example_keys=keys, site=2)[0])


@pytest.mark.parametrize("size", [1, 3, 17, 25])
def test_the_parameters_of_the_heads_do_not_depend_on_the_image(size):
    x = jax.ShapeDtypeStruct((1, size, size, 8), jnp.float32)
    v1 = jax.eval_shape(
        lambda x: AuxHeadV1(3, 0.5, style()).init(jax.random.key(0), x, train=False, example_keys=None, site=1), x
    )
    v4 = jax.eval_shape(lambda x: AuxHeadV4(3, style()).init(jax.random.key(0), x, train=False), x)
    assert v1["params"]["fc"]["kernel"].shape == (2048, 1024)
    assert v4["params"]["conv_5x5"]["kernel"].shape == (5, 5, 128, 768)
    assert v4["params"]["classifier"]["kernel"].shape == (768, 3)
