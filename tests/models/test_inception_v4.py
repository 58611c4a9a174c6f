"""Inception-v4 as a whole; values are held beside independent networks in tests/parity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.models.inception_v4 import ORDERS
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import create_model
from inception_jax.pretrained.exporting import export_weights

from .traced import shapes

KEY = jax.random.key(0)


def test_the_output_and_the_tree():
    model = create_model("inception_v4", num_classes=7)
    output, variables = shapes(model, 107, 75, train=True)
    assert output.logits.shape == (2, 7)
    assert [head.shape for head in output.aux_logits] == [(2, 7)]
    assert shapes(model, 75)[0].aux_logits == ()
    assert output.endpoints["mixed_6h"].shape == (2, 5, 3, 1024)
    assert output.endpoints["global_pool"].shape == (2, 1536)
    params = variables["params"]
    stem = {"conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3"}
    mixed = {
        f"mixed_{number}{letter}"
        for number, last in ((3, "a"), (4, "a"), (5, "e"), (6, "h"), (7, "d"))
        for letter in "abcdefgh"[: "abcdefgh".index(last) + 1]
    }
    assert set(params) == stem | mixed | {"aux", "classifier"}
    assert set(params["aux"]) == {"conv_1x1", "conv_5x5", "classifier"}
    # slim's kernel orders: 1x7 first in the short branch of B, 7x1 first in the long one.
    kernels = {name: unit["kernel"].shape for name, unit in params["mixed_6b"].items()}
    assert kernels == {
        "conv_1x1": (1, 1, 1024, 384),
        "conv_7x7_reduce": (1, 1, 1024, 192),
        "conv_1x7": (1, 7, 192, 224),
        "conv_7x1": (7, 1, 224, 256),
        "double_7x7_reduce": (1, 1, 1024, 192),
        "double_7x1_1": (7, 1, 192, 192),
        "double_1x7_1": (1, 7, 192, 224),
        "double_7x1_2": (7, 1, 224, 224),
        "double_1x7_2": (1, 7, 224, 256),
        "pool_proj": (1, 1, 1024, 128),
    }


def test_the_order_of_the_notes_is_another_function_of_the_same_size():
    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    # timm has no auxiliary head.
    models = [create_model("inception_v4", num_classes=7, order=order, aux_heads=False) for order in ORDERS]
    outputs, variables = zip(*(shapes(model, 75) for model in models), strict=True)
    assert [x.shape for x in outputs[0].endpoints.values()] == [x.shape for x in outputs[1].endpoints.values()]
    code, notes = (
        {
            block: [(name, unit["kernel"].shape[:2], unit["kernel"].shape[3]) for name, unit in units.items()]
            for block, units in tree["params"].items()
            if block.startswith("mixed_") and block not in ("mixed_7b", "mixed_7c", "mixed_7d")  # have units in units
        }
        for tree in variables
    )  # in the order of the calls
    parameters = [{name: count(tree["params"][name]) for name in tree["params"]} for tree in variables]
    assert parameters[0] == parameters[1]  # on equal maps, so the multiply-adds are equal, too
    assert [name for name, *_ in code["mixed_4a"]][3:5] == ["conv_1x7", "conv_7x1"]
    assert [name for name, *_ in notes["mixed_4a"]][3:5] == ["conv_7x1", "conv_1x7"]
    for block in ("mixed_6b", "mixed_6h"):
        assert code[block][5:9] == [
            ("double_7x1_1", (7, 1), 192), ("double_1x7_1", (1, 7), 224),
            ("double_7x1_2", (7, 1), 224), ("double_1x7_2", (1, 7), 256),
        ]  # fmt: skip
        assert notes[block][5:9] == [
            ("double_1x7_1", (1, 7), 192), ("double_7x1_1", (7, 1), 224),
            ("double_1x7_2", (1, 7), 224), ("double_7x1_2", (7, 1), 256),
        ]  # fmt: skip
        assert code[block][:5] == notes[block][:5]
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), variables[1])
    with pytest.raises(UserError, match=r"mixed_6b/double_7x1_1/kernel is \(7, 1, 192, 224\), timm's inception_v4 has"):
        export_weights("inception_v4", zeros, source="timm", num_classes=7)


def test_the_variables_do_not_depend_on_the_image():
    model = create_model("inception_v4", num_classes=7)
    assert shapes(model, 75, 331)[1] == shapes(model, 299)[1]


def test_float64_throughout(x64):
    model = create_model("inception_v4", dtype=jnp.float64, param_dtype=jnp.float64, bn_scale=False)
    output, variables = shapes(model, 75, dtype=jnp.float64, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float64)}
    assert set(variables["params"]["mixed_7d"]["conv_1x1"]["bn"]) == {"bias"}


def test_bfloat16_maps_and_float32_logits():
    output, variables = shapes(create_model("inception_v4", dtype="bfloat16"), 75, train=True)
    assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in (output.logits, *output.aux_logits)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_every_parameter_learns():
    model = create_model("inception_v4", width_multiplier=0.125, num_classes=5)
    variables = init_variables(model, KEY, 107)
    images, keys = jax.random.normal(KEY, (4, 107, 107, 3)), jax.random.split(KEY, 4)

    def loss(params):
        given = variables | {"params": params}
        output, _ = model.apply(given, images, train=True, example_keys=keys, mutable=["batch_stats"])
        heads = jnp.stack([output.logits, *output.aux_logits])
        return jnp.sum(jax.nn.logsumexp(heads, -1) - heads[..., 0])

    gradient = jax.jit(jax.grad(loss)).lower(variables["params"]).compile({"xla_backend_optimization_level": 0})
    for path, leaf in jax.tree.leaves_with_path(gradient(variables["params"])):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.slow
def test_the_gradient_in_training_is_that_of_differences(x64):
    """Through batch norm over the smallest maps, where its size (4.6e5 here) looks like a mistake and is none."""
    model = create_model(
        "inception_v4", num_classes=10, width_multiplier=0.125, min_width=8, dtype=jnp.float64, param_dtype=jnp.float64
    )
    variables = init_variables(model, jax.random.key(0), 75)
    rng = np.random.default_rng(0)
    images, keys = jnp.asarray(rng.normal(size=(4, 75, 75, 3))), jax.random.split(jax.random.key(1), 4)

    def loss(params):
        both = {"params": params, "batch_stats": variables["batch_stats"]}
        output, _ = model.apply(both, images, train=True, example_keys=keys, mutable=["batch_stats"])
        main, aux = (jnp.diagonal(jax.nn.log_softmax(x)).mean() for x in (output.logits, *output.aux_logits))
        return -(main + 0.4 * aux)

    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    gradient = value_and_gradient(variables["params"])[1]
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), gradient)
    slope = sum(float((g * d).sum()) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    up, down = (
        float(value_and_gradient(jax.tree.map(lambda p, d, e=e: p + e * d, variables["params"], direction))[0])
        for e in (1e-10, -1e-10)
    )
    assert (up - down) / 2e-10 == pytest.approx(slope, rel=1e-3)
