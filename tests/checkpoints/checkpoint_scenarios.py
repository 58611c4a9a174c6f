"""Faults that need a process of their own: `python checkpoint_scenarios.py kill|full|devices DIRECTORY`.

Each prints `ok` as its last line, or ends with a traceback. `test_saving.py` runs them.
"""

# ruff: noqa: E402  (JAX reads the environment when it is imported)

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
if sys.argv[1] == "devices":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
warnings.simplefilter("error")
# Python 3.12 warns of a fork beside threads; those that libraries have started by then have done nothing yet.
warnings.filterwarnings("ignore", message=r".*use of fork\(\)", category=DeprecationWarning)

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax.checkpoints.saving import Checkpoints
from inception_jax.errors import DiskFull, UserError

KILLS = 5


def content(step: int) -> dict:
    """The state of a step, so that whatever comes back can be told right or wrong. NumPy: no JAX before a fork."""
    random_numbers = np.random.default_rng(step)
    return {"step": np.int32(step), "w": {f"k{i}": random_numbers.normal(size=(64, 64)) for i in range(12)}}


def same(a, b) -> bool:
    """Whether two trees are equal bit for bit."""
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


def _train_for_ever(directory: Path, pipe: int) -> None:
    """Restores, prints what was restored, and saves step after step, with a line for each, until it is killed."""
    with jax.enable_x64(True):
        told = []
        checkpoints = Checkpoints(directory, best_metric="sine", warn=told.append)
        found = checkpoints.restore_latest(content(0))
        step = found.step if found else 0
        right = found is None or (same(found.state, content(step)) and found.host == {"step": step})
        os.write(pipe, f"{step} {right and not told}\n".encode())
        while True:
            step += 1
            state = jax.tree.map(jnp.asarray, content(step))
            checkpoints.save(step, state, {"step": step}, {"sine": float(np.sin(step))})
            os.write(pipe, b"saving\n")


def kill(directory: Path) -> None:
    """SIGKILL at random moments, most of which are inside a save or a deletion: never a bad or a lost checkpoint."""
    random.seed(0)
    steps = [0]
    for _ in range(KILLS):
        reader, writer = os.pipe()
        pid = os.fork()  # the imports are done, no thread has started yet
        if pid == 0:
            os.close(reader)
            try:
                _train_for_ever(directory, writer)
            finally:
                os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as lines:
            answer = lines.readline().split()
            for _ in range(random.randint(1, 4)):
                lines.readline()
            time.sleep(random.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert answer and answer[1] == "True", answer
        steps.append(int(answer[0]))
    assert steps == sorted(steps) and steps[-1] > 1, steps
    with Checkpoints(directory) as checkpoints:
        names = {path.name for path in directory.iterdir()} - {str(step) for step in checkpoints.steps()}
        assert names <= {"deleted"}, names


def full(directory: Path) -> None:
    """A file system of 4 MB, in a mount namespace that ends with this process."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", directory], check=True)
    state = {"w": jnp.arange(250_000.0), "n": jnp.int32(1)}
    ballast = directory / "ballast"
    checkpoints = Checkpoints(directory / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state, {})
    checkpoints.wait()

    def refused(step: int) -> str:
        try:
            checkpoints.save(step, state, {})
            checkpoints.wait()
        except DiskFull as error:
            assert error.exit_code == 6
            return str(error)
        raise AssertionError("saved where there is no room")

    def leave(free: int) -> None:
        ballast.write_bytes(bytes(shutil.disk_usage(directory).free - free))

    # Found before anything is written.
    leave(900_000)
    assert "needs 1.0 MB" in refused(3)
    # Found by the write: as a quota would show itself, or another process that fills the disk meanwhile.
    ballast.unlink()
    leave(1_020_000)
    message = refused(3)
    assert "no checkpoint of step 3" in message and "\n" not in message and "existing checkpoints: 1, 2" in message, (
        message
    )
    assert sorted(path.name for path in checkpoints.directory.iterdir() if path.name != "deleted") == ["1", "2"]
    # The same object goes on when there is room again.
    ballast.unlink()
    assert checkpoints.save(4, state, {})
    checkpoints.wait()
    assert checkpoints.steps() == [2, 4]
    assert same(checkpoints.restore_latest(state).state, state)
    # A failure is also told at the end, but never instead of the error that ended the run.
    leave(1_020_000)
    checkpoints.save(5, state, {})
    try:
        checkpoints.close()
    except DiskFull:
        pass
    else:
        raise AssertionError("close hid a failed save")
    told = []
    try:
        with Checkpoints(directory / "checkpoints", warn=told.append) as checkpoints:
            checkpoints.save(5, state, {})
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert len(told) == 1 and "no checkpoint of step 5" in told[0], told
    gc.collect()  # asyncio speaks of writes that nobody waited for when they are collected


def devices(directory: Path) -> None:
    """Replicated and sharded over 4 devices, back on 1, 2 and 4 of them in other ways: bit for bit."""

    def sharding(count: int, *axes: str | None) -> NamedSharding:
        return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("data",)), PartitionSpec(*axes))

    values = {"a": np.arange(48, dtype=np.float32).reshape(8, 6) / 7, "b": np.arange(5).astype(jnp.bfloat16)}
    state = {"a": jax.device_put(values["a"], sharding(4, "data")), "b": jax.device_put(values["b"], sharding(4))}
    double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state, {})
        jax.block_until_ready(double(state))  # takes the buffers while the save is going on
        for count, axes in ((1, ()), (2, ("data",)), (4, (None,)), (2, (None, "data"))):
            shardings = {"a": sharding(count, *axes), "b": sharding(count)}
            wanted = {
                name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=shardings[name])
                for name, value in values.items()
            }
            restored = checkpoints.restore(1, wanted).state
            assert same(restored, values)
            assert jax.tree.map(lambda x: x.sharding, restored) == shardings
            # The restored buffers are the arrays' own: a step that donates them changes nothing else.
            twice = double(restored)
            for name, value in values.items():
                for shard in twice[name].addressable_shards:
                    np.testing.assert_array_equal(shard.data, np.asarray(value)[shard.index] * 2)


if __name__ == "__main__":
    try:
        {"kill": kill, "full": full, "devices": devices}[sys.argv[1]](Path(sys.argv[2]))
    except UserError as error:
        raise AssertionError("not an error that this scenario expects") from error
    print("ok")
