"""EMA against NumPy's recursion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.training import ema


def values(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    params = {"conv": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}}
    batch_stats = {"conv": {"bn": {"mean": rng.normal(size=4), "var": rng.uniform(size=4)}}}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), (params, batch_stats))


def trace(dtype, decay, num_updates_rule, steps):
    """The averages after `steps` updates, and NumPy's in float64 with TF's textbook decay_t."""
    averages = ema.init(*values(0, dtype))
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), averages)
    update = jax.jit(ema.update, static_argnames=("weight", "num_updates_rule"))
    for t in range(steps):
        params, batch_stats = values(t + 1, dtype)
        numbers = {"weight": ema.new_weight(decay), "step": jnp.int32(t), "num_updates_rule": num_updates_rule}
        averages = update(averages, params, batch_stats, **numbers)
        decay_t = min(decay, (1 + t) / (10 + t)) if num_updates_rule else decay
        new = {"params": params, "batch_stats": batch_stats}
        expected = jax.tree.map(
            lambda old, value, d=decay_t: d * old + (1 - d) * np.asarray(value, np.float64), expected, new
        )
    return averages, expected


@pytest.mark.parametrize("num_updates_rule", [True, False])
@pytest.mark.parametrize("decay", [0.5, 0.9999])  # with the rule, 0.5 takes over from (1 + t) / (10 + t) at t = 8
def test_float64(x64, decay, num_updates_rule):
    averages, expected = trace(jnp.float64, decay, num_updates_rule, 15)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), averages, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_updates_rule", [True, False])
def test_averages_are_kept_in_float32(dtype, num_updates_rule):
    averages, expected = trace(dtype, 0.9999, num_updates_rule, 15)
    assert {leaf.dtype for leaf in jax.tree.leaves(averages)} == {jnp.dtype(jnp.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averages, expected)


def test_a_small_weight_keeps_its_digits():
    """1 - 0.9999 formed in float32 would be off by 1.7e-4 of itself; so would 1 - (1 + t) / (10 + t) for a large t."""
    zero, one = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    for step, rule, weight in ((0, False, 1e-4), (10**6, True, 1e-4), (50_000, True, 9 / 50_010)):
        average = ema.update(
            ema.init(zero, {}), one, {}, weight=ema.new_weight(0.9999), step=step, num_updates_rule=rule
        )
        assert float(average["params"]["w"]) == pytest.approx(weight, rel=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
def test_start_values_are_copies_that_can_be_donated_together(compiled):
    params, batch_stats = values(0, np.float32)
    averages = (jax.jit(ema.init) if compiled else ema.init)(params, batch_stats)
    for copy, original in zip(
        jax.tree.leaves(averages), jax.tree.leaves({"params": params, "batch_stats": batch_stats}), strict=True
    ):
        np.testing.assert_array_equal(copy, original)
        assert copy.unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
    jax.block_until_ready(jax.jit(lambda *state: state, donate_argnums=(0, 1, 2))(params, batch_stats, averages))


def test_a_network_without_batch_norm():
    averages = ema.init({"w": jnp.ones(2)}, {})
    averages = ema.update(averages, {"w": jnp.zeros(2)}, {}, weight=0.5, step=0, num_updates_rule=False)
    assert averages["batch_stats"] == {}
    np.testing.assert_array_equal(averages["params"]["w"], [0.5, 0.5])
