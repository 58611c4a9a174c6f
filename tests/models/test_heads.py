"""The auxiliary heads of BN-Inception and Inception-v3 beside NumPy, and what they are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models.heads import AuxHeadV2, AuxHeadV4
from inception_jax.models.initialization import Constant, TruncatedNormal
from inception_jax.models.layers import LayerOptions, Linear
from inception_jax.models.normalization import BatchNormOptions

KEY = jax.random.key(0)
DOUBLE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def style(**options):
    return LayerOptions(Constant(0.1), Constant(0.1), batch_norm=BatchNormOptions(), **DOUBLE, **options)


def random_variables(module, x, **arguments):
    """Variables of the module's tree, drawn around values that keep its maps alive."""
    tree = jax.eval_shape(lambda x: module.init(KEY, x, **arguments), x)
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape) * rng.choice([-1, 1], leaf.shape))  # noqa: E731
    variables = jax.tree.map(draw, tree)
    return variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}


def normalized(x, unit, statistics):
    scaled = (x - statistics["bn"]["mean"]) / np.sqrt(statistics["bn"]["var"] + 1e-3)
    return scaled * unit["bn"]["scale"] + unit["bn"]["bias"]


def head_of(pooled, variables, names):
    """What a head makes of its pooled map: 1x1 convolution, a layer over the whole map, classifier."""
    params, stats = variables["params"], variables["batch_stats"]
    conv, whole = names
    x = np.maximum(normalized(pooled @ params[conv]["kernel"][0, 0], params[conv], stats[conv]), 0)
    kernel = params[whole]["kernel"].reshape(-1, params[whole]["kernel"].shape[-1])
    x = np.maximum(normalized(x.reshape(x.shape[0], -1) @ kernel, params[whole], stats[whole]), 0)
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


@pytest.mark.parametrize(
    ("size", "windows"),
    [
        (14, [(0, 5), (3, 8), (6, 11), (9, 14)]),
        (7, [(0, 5), (3, 7)]),  # Caffe rounds up: the last window is cut by the edge
        (6, [(0, 5), (3, 6)]),
        (4, [(0, 2), (2, 4)]),  # where it would have one window: half the map each
        (2, [(0, 1), (1, 2)]),
        (9, [(0, 5), (3, 8)]),  # where Caffe has three windows, and whole ones alone are two
        (12, [(0, 8), (4, 12)]),
    ],
)
def test_the_v2_head(size, windows, x64):
    head = AuxHeadV2(3, len(windows), style(width_multiplier=0.05, min_width=4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 6)))
    variables = random_variables(head, x, train=False)
    assert variables["params"]["fc"]["kernel"].shape == (len(windows) ** 2 * 6, 51)
    pooled = np.array([[x[:, a:b, c:d].mean((1, 2)) for c, d in windows] for a, b in windows]).transpose(2, 0, 1, 3)
    expected = head_of(pooled, variables, ("conv", "fc"))
    np.testing.assert_allclose(head.apply(variables, x, train=False), expected, rtol=1e-10)


def test_the_v2_head_on_maps_where_one_axis_alone_would_fit(x64):
    head = AuxHeadV2(3, 2, style(width_multiplier=0.05, min_width=4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 14, 6)))
    variables = random_variables(head, x, train=False)
    rows, columns = [(0, 4), (3, 7)], [(0, 9), (5, 14)]  # evenly laid on both
    pooled = np.array([[x[:, a:b, c:d].mean((1, 2)) for c, d in columns] for a, b in rows]).transpose(2, 0, 1, 3)
    expected = head_of(pooled, variables, ("conv", "fc"))
    np.testing.assert_allclose(head.apply(variables, x, train=False), expected, rtol=1e-10)


def test_the_v3_head(x64):
    head = AuxHeadV4(3, style(width_multiplier=0.05, min_width=4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 17, 6)))
    variables = random_variables(head, x, train=False)
    starts = range(0, 13, 3)
    pooled = np.array([[x[:, i : i + 5, j : j + 5].mean((1, 2)) for j in starts] for i in starts]).transpose(2, 0, 1, 3)
    expected = head_of(pooled, variables, ("conv_1x1", "conv_5x5"))
    np.testing.assert_allclose(head.apply(variables, x, train=False), expected, rtol=1e-10)


def test_the_v3_heads_own_initializers(x64):
    x = jnp.zeros((1, 5, 5, 6))
    plain = AuxHeadV4(3, style()).init(KEY, x, train=False)["params"]
    assert {float(np.unique(unit["kernel"]).item()) for unit in plain.values()} == {0.1}
    own = AuxHeadV4(3, style(), Constant(0.2), Constant(0.3)).init(KEY, x, train=False)["params"]
    values = {name: float(np.unique(unit["kernel"]).item()) for name, unit in own.items()}
    assert values == {"conv_1x1": 0.1, "conv_5x5": 0.2, "classifier": 0.3}


def test_in_training_the_v2_head_takes_the_batchs_statistics(x64):
    head = AuxHeadV2(3, 2, style(width_multiplier=0.05, min_width=4))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 7, 7, 6)))
    variables = random_variables(head, x, train=False)
    # A factor on the input falls out of batch norm, but for its epsilon.
    first, updates = head.apply(variables, x, train=True, mutable=["batch_stats"])
    second, _ = head.apply(variables, x * 1e3, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(first, second, rtol=0.02, atol=0.02 * np.abs(first).max())
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), updates["batch_stats"], variables["batch_stats"])
    assert moved == {unit: {"bn": {"mean": True, "var": True}} for unit in ("conv", "fc")}


def test_a_fully_connected_layer_under_batch_norm(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
    layer = Linear(4, Constant(0.1), None, **DOUBLE, batch_norm=BatchNormOptions())
    variables = random_variables(layer, x, train=False)
    params = variables["params"]
    assert set(params) == {"kernel", "bn"}
    expected = normalized(x @ params["kernel"], params, variables["batch_stats"])
    np.testing.assert_allclose(layer.apply(variables, x, train=False), expected, rtol=1e-12)
    biased = Linear(4, Constant(0.1), 0.5, **DOUBLE, batch_norm=BatchNormOptions(use_scale=False))
    variables = random_variables(biased, x, train=False)
    params = variables["params"]
    assert set(params) == {"kernel", "bias", "bn"}
    assert (biased.init(KEY, x, train=False)["params"]["bias"] == 0.5).all()
    params["bn"]["scale"] = 1.0
    expected = normalized(x @ params["kernel"] + params["bias"], params, variables["batch_stats"])
    np.testing.assert_allclose(biased.apply(variables, x, train=False), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 3, 96, 128), (5,)])
def test_a_truncated_normal_is_that_of_jax(shape, x64):
    expected = jax.nn.initializers.truncated_normal(0.09)(KEY, shape, jnp.float32)
    np.testing.assert_allclose(TruncatedNormal(0.09)(KEY, shape), expected, rtol=3e-7)
    for dtype in (jnp.float32, jnp.float64):
        made = TruncatedNormal(0.09)(KEY, shape, dtype)
        assert made.dtype == dtype
        np.testing.assert_array_equal(made, jax.jit(lambda key: TruncatedNormal(0.09)(key, shape, dtype))(KEY))  # noqa: B023
