"""What a training loop keeps on the devices: beside NumPy's mean and covariance in float64, and the features added."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from inception_jax.errors import UserError
from inception_jax.features import DeviceMoments, DeviceRows

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


def in_each_mode(rows, kind, *sizes):
    """Adds 203 rows, in four batches of 64 with padding: by `jit` on one device, by `shard_map` and `pmap` on eight."""
    assert jax.device_count() == 8 and len(rows) == 203
    padded = np.full((8 * 32, C), np.nan, np.float32)  # padding may hold anything
    padded[: len(rows)] = rows
    batches, masks = padded.reshape(4, 8, 8, C), (np.arange(256) < 203).reshape(4, 8, 8)
    state = kind.zeros(*sizes)
    for batch, mask in zip(batches, masks, strict=True):
        state = jax.jit(kind.add, donate_argnums=0)(state, batch.reshape(64, C), mask.reshape(64))
    yield state.finish()
    mesh = jax.make_mesh((8,), ("data",))
    split = PartitionSpec("data")
    sharding = NamedSharding(mesh, split)
    add = jax.jit(jax.shard_map(kind.add, mesh=mesh, in_specs=split, out_specs=split))
    state = jax.device_put(kind.zeros(*sizes, devices=8), sharding)
    for batch, mask in zip(batches, masks, strict=True):
        state = add(state, *jax.device_put((batch.reshape(64, C), mask.reshape(64)), sharding))
    assert state.count.sum() == 203 and all(leaf.sharding.spec[0] == "data" for leaf in jax.tree.leaves(state))
    yield state.finish()
    state = kind.zeros(*sizes, devices=8).for_pmap()
    for batch, mask in zip(batches, masks, strict=True):
        state = jax.pmap(kind.add)(state, batch, mask)
    yield state.finish()


def test_devices_and_modes_and_masks_give_the_same_moments():
    rows = rows_of(203)
    found = list(in_each_mode(rows, DeviceMoments, C))
    for moments in found:
        check(moments, rows, 2e-6)
    np.testing.assert_array_equal(found[1].covariance(), found[2].covariance())


def test_devices_and_modes_and_masks_keep_every_row():
    rows = rows_of(203)
    in_order, *on_devices = in_each_mode(rows, DeviceRows, C, 203)
    np.testing.assert_array_equal(in_order, rows)
    padded = np.arange(256).reshape(4, 8, 8).transpose(1, 0, 2).reshape(-1)  # device by device
    for found in on_devices:
        np.testing.assert_array_equal(found, rows[padded[padded < 203]])


def test_rows_of_a_scan_and_too_many_rows():
    rows = rows_of(48)
    scan = jax.jit(lambda state, x: jax.lax.scan(lambda state, batch: (state.add(batch), None), state, x)[0])
    np.testing.assert_array_equal(scan(DeviceRows.zeros(C, 50), rows.reshape(6, 8, C)).finish(), rows)
    full = scan(DeviceRows.zeros(C, 47), rows.reshape(6, 8, C))
    with pytest.raises(UserError, match=r"^48 images were added on a device that has room for 47: .*capacity=48\)$"):
        full.finish()
    np.testing.assert_array_equal(full.rows[0], rows[:47])  # nothing is written over
    assert DeviceRows.zeros(C, 4).finish().shape == (0, C)


@pytest.mark.parametrize("zeros", [DeviceMoments.zeros, functools.partial(DeviceRows.zeros, capacity=9)])
def test_wrong_shapes(zeros):
    state = zeros(C)
    for broken, rows in ((state, np.zeros((2, C + 1))), (zeros(C, devices=2), np.zeros((2, C)))):
        with pytest.raises(ValueError, match=r"what one device keeps, \[1, …\], and rows \[b, 5\]"):
            broken.add(jnp.asarray(rows, jnp.float32))
    for mask in (jnp.ones(1, bool), jnp.ones((3, 1), bool)):
        with pytest.raises(ValueError, match=rf"^mask \({mask.shape[0]},.*\) for rows \(3, 5\): .* \[3\]$"):
            state.add(jnp.zeros((3, C)), mask)


def test_no_images():
    with pytest.raises(UserError, match="statistics of 0 images"):
        DeviceMoments.zeros(C).add(jnp.zeros((3, C)), jnp.zeros(3, bool)).finish().covariance()


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
