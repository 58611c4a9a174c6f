"""One of two processes, `python step_scenario.py PORT ID FOLDER`, that train a small network in either mode.

It prints the names of the modes in which numbers as arguments of the step gave the bits of constants, then those in
which a step that was kept in a file did, and then those in which weights that were prepared did in an evaluation step.
"""

import os
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.training import executables, parallel, state, step_numbers
from inception_jax.training.executable_files import Store
from inception_jax.training.step import AXIS
from tests.training import test_step_numbers
from tests.training.test_step import batch, initial


def main(port, process, folder):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    store = Store(Path(folder), executables.describe_process())
    equal, kept, prepared = [], [], []
    for mode in ("jit", "pmap"):
        setup = test_step_numbers.prepare("momentum", devices=4, mode=mode)
        results = [test_step_numbers.train(setup, how, jnp.float32) for how in (True, False)]
        test_step_numbers.assert_same_bits(*results)
        equal.append(mode)

        devices = setup.devices
        numbers = devices.place_numbers(step_numbers.read_numbers(setup))
        start = devices.replicate(state.create(initial(True, jnp.float32), setup.optimizer, keep_ema=True))
        arguments = (start, devices.put(batch(0)), numbers)
        with executables._without_compilation_cache():  # what JAX loads from there cannot be written again
            compiled = devices.compile_train(step_numbers.make_step(setup), *arguments)
        key = {"mode": mode}
        assert store.save(key, arguments, compiled.call)
        loaded = store.load(key, arguments)
        assert loaded is not None
        test_step_numbers.assert_same_bits(run(loaded, devices, arguments), results[0])
        kept.append(mode)

        assert_same_when_prepared(devices)
        prepared.append(mode)
    print(*equal, *kept, *prepared)


def assert_same_when_prepared(devices):
    def step(variables, batch):
        rows = batch["x"] * jnp.exp(variables["w"])
        return {"sum": jax.lax.psum(rows.sum(), AXIS)}, {"rows": rows}

    rows = devices.put({"x": np.arange(6.0, dtype=np.float32).reshape(2, 3)})  # of this process
    variables = devices.share({"w": np.arange(3, dtype=np.float32)})
    results = []
    for prepares in (False, True):
        sums, predictions = devices.compile_eval(step, variables, rows, prepares=prepares)(variables, rows)
        results.append((np.asarray(sums["sum"].addressable_data(0)), devices.get(predictions)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def run(step, devices, arguments):
    """(state, metrics of all steps) of the steps that `test_step_numbers.train` takes."""
    current, _, numbers = arguments
    log = []
    with parallel.no_compilation():
        for k in range(test_step_numbers.STEPS):
            current, metrics = step(current, devices.put(batch(k % 3)), numbers)
            log.append(metrics)
    return jax.device_get((current, log))


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # JAX's shutdown would wait for the other process, which waits in a collective
