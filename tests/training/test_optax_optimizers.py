"""Optax's optimizers by name: Optax's own updates, our decay, clipping and multipliers, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import inception_jax
from inception_jax.errors import UserError
from inception_jax.training import optax_optimizers

PARAMS = {"conv1": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.3, -0.1])}}
GRADIENTS = {"conv1": {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([0.05, -0.5])}}
KERNEL = {"conv1": {"kernel": True, "bias": False}}


def schedule(count):
    return 0.1 / (1 + count.astype(jnp.float32))


def make(name, options=None, **fields):
    return optax_optimizers.make_optimizer(name, learning_rate=schedule, options=options or {}, **fields)


def train(optimizer, steps=3):
    params, state = PARAMS, optimizer.init(PARAMS)
    for _ in range(steps):
        updates, state = optimizer.update(GRADIENTS, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


def l2(strength):
    return optax.add_decayed_weights(strength, KERNEL)


@pytest.mark.parametrize(
    ("name", "options", "decay", "expected"),
    [
        ("optax.lamb", {"b1": 0.8}, 0.0, lambda: optax.lamb(schedule, b1=0.8, weight_decay=0.0)),
        ("optax.lamb", {}, 0.1, lambda: optax.lamb(schedule, weight_decay=0.1, mask=KERNEL)),
        ("optax.adamw", {}, 0.0, lambda: optax.adamw(schedule, weight_decay=0.0)),  # Optax's own default is 1e-4
        ("optax.adam", {}, 0.1, lambda: optax.chain(l2(0.1), optax.adam(schedule))),
        ("optax.nadam", {}, 0.0, lambda: optax.nadam(schedule)),
        (
            "optax.contrib.schedule_free_sgd",
            {"b1": 0.8},
            0.0,
            lambda: optax.contrib.schedule_free_sgd(schedule, b1=0.8),
        ),
        ("optax.lars", {"momentum": 0.5}, 0.0, lambda: optax.lars(schedule, momentum=0.5)),
    ],
)
def test_the_update_is_optaxs(name, options, decay, expected):
    with jax.numpy_dtype_promotion("standard"):
        wanted = train(expected())
    assert_same(train(make(name, options, weight_decay=decay)), wanted)


def test_clipping_comes_before_and_multipliers_after():
    clipped = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(schedule))
    assert_same(train(make("optax.sgd", clip_norm=0.1)), train(clipped))
    change = [
        jax.tree.map(jnp.subtract, PARAMS, train(make("optax.lion", learning_rate_multipliers=multipliers)))
        for multipliers in ((), (("bias$", 2.0),))
    ]
    np.testing.assert_allclose(change[1]["conv1"]["bias"], 2 * change[0]["conv1"]["bias"], rtol=1e-6)
    np.testing.assert_array_equal(change[1]["conv1"]["kernel"], change[0]["conv1"]["kernel"])


def test_half_precision_parameters_have_a_float32_state():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    optimizer = make("optax.adam")
    updates, state = optimizer.update(params, optimizer.init(params), params)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}


def test_one_of_ones_own(registrations):
    inception_jax.register_optimizer("twice", lambda learning_rate, factor: optax.sgd(lambda t: factor * schedule(t)))
    assert_same(train(make("twice", {"factor": 2.0})), train(optax.sgd(lambda t: 2.0 * schedule(t))))
    with pytest.raises(UserError, match="'twice' needs 'factor'"):
        make("twice")
    inception_jax.register_optimizer("none", lambda learning_rate: None)
    with pytest.raises(UserError, match="'none': it returns NoneType"):
        make("none")
    inception_jax.register_optimizer("no_rate", lambda: None)
    with pytest.raises(UserError, match="takes no argument 'learning_rate'"):
        make("no_rate")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("optax.lamd", {}, "'optax.lamd' is unknown; did you mean 'lamb'.*; in Optax: .*adabelief"),
        ("optax.nothing.adam", {}, "is unknown"),
        ("optax.softmax_cross_entropy", {}, "is no optimizer with a learning_rate"),
        ("optax._src", {}, "is unknown"),
        ("optax.lamb", {"b_1": 0.9}, "'optax.lamb' has no option 'b_1'; did you mean 'b1'.*; its options: b1, b2, eps"),
        ("optax.lamb", {"learning_rate": 0.1}, "'learning_rate' is set by config.optimizer.learning_rate"),
        ("optax.lamb", {"weight_decay": 0.1}, "'weight_decay' is set by config.optimizer.weight_decay"),
        ("optax.lamb", {"mask": 1}, "'optax.lamb' has no option 'mask'"),
        ("optax.polyak_sgd", {}, "no optimizer with a learning_rate|from gradients and parameters alone"),
        ("optax.lbfgs", {}, "from gradients and parameters alone"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        make(name, options)


def test_a_decay_that_would_act_on_biases_is_refused():
    with pytest.raises(UserError, match=r"the decay of 'optax.novograd' has no mask .*weight_decay"):
        make("optax.novograd", weight_decay=0.1)
    make("optax.novograd", {"weight_decay": 0.1})
