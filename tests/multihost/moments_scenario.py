"""One of two processes, `python moments_scenario.py PORT ID FOLDER`, that keep features on their devices.

Each has two of the four devices. It writes FOLDER/ID.npz: count, mean, covariance and the features, by each mode.
"""

import functools
import os
import sys
import traceback
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from inception_jax.features import DeviceMoments, DeviceRows

STEPS, DEVICES, ROWS, C = 3, 4, 5, 6
MOMENTS = functools.partial(DeviceMoments.zeros, C)
EVERY_ROW = functools.partial(DeviceRows.zeros, C, STEPS * DEVICES * ROWS)


def add(state, rows, mask):
    return state.add(rows, mask)


def batches():
    """(features [steps, devices, rows, C], mask [steps, devices, rows]); what is masked is NaN."""
    random = np.random.RandomState(0)
    rows = random.standard_normal((STEPS, DEVICES, ROWS, C)).astype(np.float32) * np.arange(1, C + 1) + 50
    mask = random.uniform(size=(STEPS, DEVICES, ROWS)) < 0.8
    return np.where(mask[..., None], rows, np.nan).astype(np.float32), mask


def by_shard_map(zeros):
    """Those of the devices of all processes."""
    mesh, split = jax.make_mesh((DEVICES,), ("data",)), PartitionSpec("data")
    sharding = NamedSharding(mesh, split)

    def place(array):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    step = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=split, out_specs=split))
    state = jax.tree.map(lambda leaf: place(np.asarray(leaf)), zeros(devices=DEVICES))
    for rows, mask in zip(*batches(), strict=True):
        state = step(state, place(rows.reshape(-1, C)), place(mask.reshape(-1)))
    return state


def by_jit_of_all(zeros):
    """One of all, with a copy on every device: XLA divides the batch."""
    mesh = jax.make_mesh((DEVICES,), ("data",), (jax.sharding.AxisType.Auto,))
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    step = jax.jit(add, in_shardings=(whole, split, split), out_shardings=whole)
    state = jax.tree.map(np.asarray, zeros())
    for rows, mask in zip(*batches(), strict=True):
        placed = (
            jax.make_array_from_callback(array.shape, split, lambda index, array=array: array[index])
            for array in (rows.reshape(-1, C), mask.reshape(-1))
        )
        state = step(state, *placed)
    return state


def by_pmap(zeros, devices):
    """Those of the devices of all processes, of each its own."""
    state = zeros(devices=len(devices)).for_pmap()
    for rows, mask in zip(*batches(), strict=True):
        state = jax.pmap(add)(state, rows[devices], mask[devices])
    return state


def by_jit(zeros, devices):
    """One of the process's own batches."""
    state = zeros()
    for rows, mask in zip(*batches(), strict=True):
        state = jax.jit(add)(state, rows[devices].reshape(-1, C), mask[devices].reshape(-1))
    return state


def main(port, process, folder):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    own = [2 * process, 2 * process + 1]
    modes = {
        "shard_map": by_shard_map,
        "jit_of_all": by_jit_of_all,
        "pmap": functools.partial(by_pmap, devices=own),
        "jit": functools.partial(by_jit, devices=own),
    }
    arrays = {}
    for mode, run in modes.items():
        arrays[f"{mode} rows"] = run(EVERY_ROW).finish()
        moments = run(MOMENTS).finish()
        arrays |= {f"{mode} count": moments.count, f"{mode} mean": moments.mean}
        arrays[f"{mode} covariance"] = moments.covariance()
    np.savez(Path(folder) / f"{process}.npz", **arrays)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # JAX's shutdown would wait for the other process, which waits in a collective
