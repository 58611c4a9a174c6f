"""The accumulator on the devices, beside NumPy's mean and covariance in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from inception_jax.errors import UserError
from inception_jax.features import DeviceMoments

C = 5


def rows_of(n, offset=3.0):
    random = np.random.RandomState(0)
    return (random.standard_normal((n, C)) @ random.standard_normal((C, C)) + offset).astype(np.float32)


def check(moments, rows, tolerance):
    rows = rows.astype(np.float64)
    scale = np.abs(np.cov(rows.T)).max()
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=tolerance)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T), rtol=tolerance, atol=tolerance * scale)


def test_many_batches_lose_nothing():
    """100,000 images far from zero: of plain sums in float32, the covariance is off in the third digit."""
    rows = rows_of(100_000, offset=100)

    def add(state, batch):
        return state.add(batch), None

    state, _ = jax.jit(lambda x: jax.lax.scan(add, DeviceMoments.zeros(C), x))(rows.reshape(12_500, 8, C))
    check(state.finish(), rows, 2e-7)

    def add_plainly(sums, batch):
        return sums + batch.T @ batch, None

    plain, _ = jax.jit(lambda x: jax.lax.scan(add_plainly, jnp.zeros((C, C)), x))(rows.reshape(12_500, 8, C))
    plain_covariance = np.asarray(plain) / len(rows) - np.outer(rows.mean(0), rows.mean(0))
    assert np.abs(plain_covariance - np.cov(rows.T)).max() > 1e-3 * np.abs(np.cov(rows.T)).max()


def test_devices_and_modes_and_masks_give_the_same_moments():
    rows, devices = rows_of(203), jax.device_count()
    padded = np.full((8 * 32, C), np.nan, np.float32)  # padding may hold anything
    padded[: len(rows)] = rows
    batches, masks = padded.reshape(4, 8, 8, C), (np.arange(256) < 203).reshape(4, 8, 8)
    found = []
    state = DeviceMoments.zeros(C)
    for batch, mask in zip(batches, masks, strict=True):
        state = jax.jit(DeviceMoments.add)(state, batch.reshape(64, C), mask.reshape(64))
    found.append(state.finish())
    assert devices == 8
    mesh = jax.make_mesh((8,), ("data",))
    split = PartitionSpec("data")
    sharding = NamedSharding(mesh, split)
    add = jax.jit(jax.shard_map(DeviceMoments.add, mesh=mesh, in_specs=split, out_specs=split))
    state = jax.device_put(DeviceMoments.zeros(C, devices=8), sharding)
    for batch, mask in zip(batches, masks, strict=True):
        state = add(state, *jax.device_put((batch.reshape(64, C), mask.reshape(64)), sharding))
    assert state.count.sum() == 203 and state.products[0].sharding.spec[0] == "data"
    found.append(state.finish())
    state = DeviceMoments.zeros(C, devices=8).for_pmap()
    for batch, mask in zip(batches, masks, strict=True):
        state = jax.pmap(DeviceMoments.add)(state, batch, mask)
    found.append(state.finish())
    for moments in found:
        check(moments, rows, 2e-6)
    np.testing.assert_array_equal(found[1].covariance(), found[2].covariance())


def test_wrong_shapes_and_no_images():
    state = DeviceMoments.zeros(C)
    for broken, rows in ((state, np.zeros((2, C + 1))), (DeviceMoments.zeros(C, 2), np.zeros((2, C)))):
        with pytest.raises(ValueError, match=r"one device's sums, \[1, …\], and rows \[b, 5\]"):
            broken.add(jnp.asarray(rows, jnp.float32))
    for mask in (jnp.ones(1, bool), jnp.ones((3, 1), bool)):
        with pytest.raises(ValueError, match=rf"^mask \({mask.shape[0]},.*\) for rows \(3, 5\): .* \[3\]$"):
            state.add(jnp.zeros((3, C)), mask)
    with pytest.raises(UserError, match="statistics of 0 images"):
        state.add(jnp.zeros((3, C)), jnp.zeros(3, bool)).finish().covariance()


def test_processes_are_added_in_float64(monkeypatch):
    """Two processes of four devices each, whose leaves `process_allgather` joins; real ones: moments_scenario.py."""
    from jax.experimental import multihost_utils

    rows = rows_of(48)
    states = []
    for half in rows.reshape(2, 24, C):
        parts = [DeviceMoments.zeros(C).add(jnp.asarray(part)) for part in half.reshape(4, 6, C)]
        states.append(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
    leaves = [[state.count, state.shift, *state.sums, *state.products] for state in states]
    gathered = [np.concatenate([np.asarray(leaf) for leaf in pair]) for pair in zip(*leaves, strict=True)]
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda leaves, tiled: gathered if tiled else None)
    check(states[0].finish(), rows, 2e-6)
