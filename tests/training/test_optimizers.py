"""Optimizers against their publishers' formulas in NumPy, with a learning rate that changes at every step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from inception_jax.errors import UserError
from inception_jax.training import gradient_transformations, optimizers

STEPS = 5
RATES = 0.5 * 0.7 ** np.arange(STEPS)
PATHS = ("conv1/kernel", "conv1/bias", "conv1/bn/scale", "conv1/bn/bias", "aux1/fc/kernel", "aux1/fc/bias")
DECAYED = ("conv1/kernel", "aux1/fc/kernel")


def nest(flat, dtype):
    """{"a/b": array} -> {"a": {"b": array}}."""
    tree = {}
    for path, value in flat.items():
        *scopes, leaf = path.split("/")
        node = tree
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[leaf] = jnp.asarray(value, dtype)
    return tree


def flatten(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def random(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=(3, 2) if path.endswith("kernel") else 2) for path in PATHS}


def schedule(count):
    return jnp.asarray(RATES, jnp.result_type(float))[count]


def run(optimizer, dtype):
    """Parameters after each of STEPS updates by gradients random(1), random(2), ..."""
    params = nest(random(0), dtype)
    state, history = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for step in range(STEPS):
        updates, state = update(nest(random(step + 1), dtype), state, params)
        params = optax.apply_updates(params, updates)
        history.append(flatten(params))
    return history, state


def caffe_sgd(w, g, lr, slots, *, momentum):
    """SGDSolver::ComputeUpdateValue."""
    slots["v"] = momentum * slots.get("v", 0.0) + lr * g
    return w - slots["v"]


def caffe_nesterov(w, g, lr, slots, *, momentum):
    """NesterovSolver::ComputeUpdateValue: (1 + momentum) * v_new - momentum * v_old."""
    old = slots.get("v", 0.0)
    slots["v"] = momentum * old + lr * g
    return w - ((1 + momentum) * slots["v"] - momentum * old)


def tf_rmsprop(w, g, lr, slots, *, decay, epsilon, momentum):
    """ApplyRMSProp, with the slots that RMSPropOptimizer makes: ms ones, mom zeros."""
    ms = slots.get("ms", np.ones_like(w))
    slots["ms"] = ms + (g * g - ms) * (1 - decay)
    slots["mom"] = momentum * slots.get("mom", 0.0) + lr * g / np.sqrt(slots["ms"] + epsilon)
    return w - slots["mom"]


def adamw(w, g, lr, slots, *, b1, b2, epsilon, decoupled=0.0):
    """arXiv:1711.05101 Algorithm 2, the decay multiplied by the learning rate."""
    slots["t"] = slots.get("t", 0) + 1
    slots["m"] = b1 * slots.get("m", 0.0) + (1 - b1) * g
    slots["v"] = b2 * slots.get("v", 0.0) + (1 - b2) * g * g
    m, v = slots["m"] / (1 - b1 ** slots["t"]), slots["v"] / (1 - b2 ** slots["t"])
    return w - lr * (m / (np.sqrt(v) + epsilon) + decoupled * w)


def reference(rule, *, weight_decay=0.0, decoupled=0.0, clip_norm=None, factors=None, **options):
    params, slots, history = random(0), {path: {} for path in PATHS}, []
    for step in range(STEPS):
        gradients = random(step + 1)
        for path in DECAYED:
            gradients[path] = gradients[path] + weight_decay * params[path]
        if clip_norm:
            norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
            gradients = {path: g * clip_norm / max(norm, clip_norm) for path, g in gradients.items()}
        for path in PATHS:
            own = {"decoupled": decoupled} if decoupled and path in DECAYED else {}
            rate = RATES[step] * (factors or {}).get(path, 1.0)
            params[path] = rule(params[path], gradients[path], rate, slots[path], **options, **own)
        history.append(dict(params))
    return history


def assert_equal(history, expected, **tolerance):
    for ours, theirs in zip(history, expected, strict=True):
        assert set(ours) == set(theirs)
        for path, value in theirs.items():
            np.testing.assert_allclose(ours[path], value, err_msg=path, **tolerance)


RULES = {
    "sgd": ("sgd", {"momentum": 0.9}, caffe_sgd, {"momentum": 0.9}),
    "plain": ("sgd", {"momentum": 0.0}, caffe_sgd, {"momentum": 0.0}),
    "nesterov": ("sgd", {"momentum": 0.8, "nesterov": True}, caffe_nesterov, {"momentum": 0.8}),
    "rmsprop": ("rmsprop", {}, tf_rmsprop, {"decay": 0.9, "epsilon": 1.0, "momentum": 0.9}),
    "rmsprop_sharp": (
        "rmsprop",
        {"decay": 0.5, "epsilon": 1e-3, "momentum": 0.0},
        tf_rmsprop,
        {"decay": 0.5, "epsilon": 1e-3, "momentum": 0.0},
    ),
    "adamw": ("adamw", {}, adamw, {"b1": 0.9, "b2": 0.999, "epsilon": 1e-8}),
    "adamw_other": (
        "adamw",
        {"b1": 0.0, "b2": 0.9, "epsilon": 0.1},
        adamw,
        {"b1": 0.0, "b2": 0.9, "epsilon": 0.1},
    ),
}


@pytest.mark.parametrize("case", RULES)
def test_rule_in_float64(x64, case):
    name, options, rule, constants = RULES[case]
    history, _ = run(optimizers.specify(name, **options).build(schedule), jnp.float64)
    assert_equal(history, reference(rule, **constants), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("case", ["sgd", "rmsprop", "adamw"])
def test_everything_at_once_in_float64(x64, case):
    name, options, rule, constants = RULES[case]
    optimizer = optimizers.specify(
        name,
        weight_decay=0.3,
        clip_norm=2.0,
        learning_rate_multipliers=((r"^aux1/fc/bias$", 0.0), (r"(^|/)bias$", 2.0)),
        **options,
    ).build(schedule)
    history, _ = run(optimizer, jnp.float64)
    decay = {"decoupled": 0.3} if name == "adamw" else {"weight_decay": 0.3}
    factors = {"conv1/bias": 2.0, "conv1/bn/bias": 2.0, "aux1/fc/bias": 0.0}
    expected = reference(rule, clip_norm=2.0, factors=factors, **decay, **constants)
    assert_equal(history, expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(history[-1]["aux1/fc/bias"], random(0)["aux1/fc/bias"])  # frozen


@pytest.mark.parametrize("case", ["sgd", "rmsprop", "adamw"])
def test_float32(case):
    name, options, rule, constants = RULES[case]
    optimizer = optimizers.specify(name, clip_norm=1.5, **options).build(schedule)
    history, _ = run(optimizer, jnp.float32)
    assert_equal(history, reference(rule, clip_norm=1.5, **constants), rtol=2e-5, atol=2e-5)


def test_rmsprop_is_optax_with_tensorflows_constants(x64):
    ours, _ = run(optimizers.specify("rmsprop").build(0.1), jnp.float64)
    theirs, _ = run(
        optax.rmsprop(0.1, decay=0.9, eps=1.0, momentum=0.9, initial_scale=1.0, eps_in_sqrt=True), jnp.float64
    )
    assert_equal(ours, theirs, rtol=1e-13)


def test_old_gradients_keep_the_rate_that_they_came_with(x64):
    """One gradient, then none, while the learning rate drops to zero: the velocity coasts on (Caffe, TF's RMSProp)."""
    params = {"kernel": jnp.zeros(())}
    optimizer = optimizers.specify("sgd").build(lambda count: jnp.where(count == 0, 1.0, 0.0))
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient, expected in ((1.0, -1.0), (0.0, -1.9), (0.0, -2.71)):
        updates, state = update({"kernel": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        assert float(params["kernel"]) == pytest.approx(expected, rel=1e-12)


def test_weight_decay_comes_before_clipping(x64):
    params = {"fc": {"kernel": jnp.asarray([3.0, 4.0]), "bias": jnp.asarray([9.0])}}
    gradients = jax.tree.map(jnp.zeros_like, params)
    optimizer = optimizers.specify("sgd", momentum=0.0, weight_decay=2.0, clip_norm=5.0).build(1.0)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    np.testing.assert_allclose(updates["fc"]["kernel"], [-3.0, -4.0], rtol=1e-14)  # 2 * w has norm 10, clipped to 5
    np.testing.assert_array_equal(updates["fc"]["bias"], [0.0])


def test_an_infinite_gradient_is_not_clipped_to_nothing():
    params = {"kernel": jnp.ones(2), "bias": jnp.ones(2)}
    gradients = {"kernel": jnp.asarray([jnp.inf, 0.0]), "bias": jnp.ones(2)}
    optimizer = optimizers.specify("sgd", clip_norm=5.0).build(1.0)
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", optimizers.OPTIONS)
def test_bfloat16_parameters_have_float32_state(name):
    history, state = run(optimizers.specify(name, weight_decay=0.1, clip_norm=1.0).build(schedule), jnp.bfloat16)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state)} == {"float32", "int32"}
    assert all(np.isfinite(value).all() for value in history[-1].values())


def test_global_norm_of_bfloat16_is_summed_in_float32():
    tree = {"a": jnp.ones(4096, jnp.bfloat16), "b": jnp.ones(1, jnp.bfloat16)}
    assert float(gradient_transformations.global_norm(tree)) == pytest.approx(np.sqrt(4097), rel=1e-6)


@pytest.mark.parametrize("name", optimizers.OPTIONS)
def test_state_survives_a_checkpoint_and_donation(name, tmp_path):
    optimizer = optimizers.specify(name, weight_decay=0.1, clip_norm=1.0).build(schedule)
    params = nest(random(0), jnp.float32)
    update = jax.jit(optimizer.update, donate_argnums=(1, 2))
    _, state = update(nest(random(1), jnp.float32), optimizer.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.0, "nesterov": True}, r"config\.optimizer\.momentum = 0\.0; .*with nesterov"),
        ({"learning_rate_multipliers": (("*", 2.0),)}, r"learning_rate_multipliers: '\*' is not a regular"),
    ],
)
def test_mistakes_name_the_field(options, message):
    with pytest.raises(UserError, match=message):
        optimizers.specify("sgd", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate_multipliers": (("biases", 2.0),)}, r"multipliers: 'biases' matches no path of a trained "),
        ({"learning_rate_multipliers": (("bias", 2.0), ("bn/bias", 1.0))}, r"multipliers: 'bn/bias' .*earlier pattern"),
        ({"learning_rate_multipliers": (("(^|/)kernel$", 2.0),)}, r"multipliers: '\(\^\|/\)kernel\$' matches no path"),
        ({"weight_decay": 1e-4}, r"config\.optimizer\.weight_decay: no kernel is trained .*; set it to 0"),
    ],
)
def test_a_pattern_that_finds_nothing_is_an_error_at_the_start(options, message):
    optimizer = optimizers.specify("sgd", **options).build(0.1)
    with pytest.raises(UserError, match=message):
        optimizer.init({"bn": {"bias": jnp.zeros(2)}, "fc": {"bias": jnp.zeros(2)}})
