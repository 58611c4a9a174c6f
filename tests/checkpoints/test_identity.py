"""A checkpoint is restored as that of its step and its run, or not at all."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.checkpoints import checksums, layout, reading
from inception_jax.checkpoints.identity import RunIdentity, new_run_id
from inception_jax.checkpoints.reading import CheckpointDamaged, CheckpointError, CheckpointForeign
from inception_jax.checkpoints.saving import Checkpoints, load_record, load_variables

RUN = RunIdentity("1234567890abcdef", {"seed": 0, "data.name": "digits", "optimizer.betas": (0.9, 0.99)})


def state(step, value=0.0):
    return {"step": jnp.asarray(step, jnp.int32), "params": {"w": jnp.full(3, step + value)}}


def save(directory, run, steps=(10, 20), value=0.0):
    with Checkpoints(directory, run=run, best_metric="top1") as checkpoints:
        for step in steps:
            checkpoints.save(step, state(step, value), {}, {"top1": step / 100 + value})
    return directory


@pytest.fixture
def directory(tmp_path):
    """The checkpoints of steps 10 and 20 of `RUN`."""
    return save(tmp_path / "run" / "checkpoints", RUN)


@pytest.fixture
def other(tmp_path):
    """Those of steps 10, 20 and 30 of another run, which is better."""
    return save(tmp_path / "other" / "checkpoints", RunIdentity("fedcba0987654321", RUN.config), (10, 20, 30), 0.5)


def restore(directory, run=RUN):
    """(the restored step, the warnings)."""
    told = []
    with Checkpoints(directory, run=run, warn=told.append) as checkpoints:
        found = checkpoints.restore_latest(state(0))
    np.testing.assert_array_equal(found.state["params"]["w"], np.full(3, found.step))
    return found.step, told


def test_swapped_steps(directory):
    (directory / "10").rename(directory / "15")
    (directory / "20").rename(directory / "10")
    (directory / "15").rename(directory / "20")
    with Checkpoints(directory, run=RUN) as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"all 2 are damaged, or of another step or run; .*/20 holds the"
        ) as e:
            checkpoints.restore_latest(state(0))
    assert e.value.exit_code == 5 and reading.list_steps(directory) == [10, 20]
    with pytest.raises(CheckpointError, match=r"/20 holds the checkpoint of step 10: it was renamed or copied"):
        load_variables(directory)
    with pytest.raises(CheckpointError, match=r"/10 holds the checkpoint of step 20"):
        load_variables(directory / "10")


def test_a_copy_under_another_number(directory):
    shutil.copytree(directory / "10", directory / "30")
    told = []
    np.testing.assert_array_equal(load_variables(directory, warn=told.append)["params"]["w"], np.full(3, 20))
    assert len(told) == 1 and told[0].startswith("foreign checkpoint skipped: ")
    step, told = restore(directory)
    assert step == 20 and len(told) == 1
    assert told[0].startswith(f"foreign checkpoint moved to {directory / 'damaged' / '30'}: ")
    assert reading.list_steps(directory) == [10, 20]


def test_a_step_of_another_run(directory, other):
    shutil.copytree(other / "30", directory / "30")
    shutil.rmtree(directory / "20")
    shutil.copytree(other / "20", directory / "20")
    told = []
    loaded = load_variables(directory, warn=told.append, run_id=RUN.id)["params"]["w"]
    np.testing.assert_array_equal(loaded, np.full(3, 10))
    assert len(told) == 2 and "belongs to another run (run_id fedcba0987654321, here 1234567890abcdef)" in told[0]
    assert load_record(directory, "best", lambda text: None, RUN.id)["step"] == 10
    assert load_record(directory)["step"] == 30  # of any run
    with Checkpoints(directory, run=RUN, best_metric="top1") as checkpoints:
        assert checkpoints.best_step() == 10  # and it is the one that is kept
        with pytest.raises(CheckpointForeign, match="belongs to another run"):
            checkpoints.restore(30, state(0))
    assert restore(directory)[0] == 10 and reading.list_steps(directory) == [10]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RUN.config | {"seed": 1}, "seed = 0, here 1"),
        ({"seed": 0, "data.name": "digits"}, r"optimizer.betas = \[0.9, 0.99\], here 'the default'"),
        (RUN.config | {"batch_size": 8}, "batch_size = 'the default', here 8"),
    ],
)
def test_the_same_run_with_another_config(directory, config, message):
    with Checkpoints(directory, run=RunIdentity(RUN.id, config)) as checkpoints:
        with pytest.raises(CheckpointError, match=rf"was trained with another config \({message}\)"):
            checkpoints.restore_latest(state(0))


def test_the_state_of_another_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state(9), {})
        with pytest.raises(CheckpointDamaged, match="/10 is recorded as step 10, but holds the state of another step"):
            checkpoints.restore(10, state(0))


def test_what_was_saved_without_an_identity_is_accepted(directory, tmp_path):
    save(tmp_path / "older", None)
    assert restore(tmp_path / "older") == (20, [])
    assert restore(directory, None) == (20, [])
    assert restore(directory, RunIdentity(RUN.id)) == (20, [])
    assert "run" not in load_record(tmp_path / "older")
    assert load_record(directory)["run"] == {"id": RUN.id, "config": {**RUN.config, "optimizer.betas": [0.9, 0.99]}}


def test_variables_are_named_by_the_step_that_they_are_of(directory):
    """Where the arrays of the newest are damaged, those of the step before are loaded, and called so."""
    file = directory / "20" / layout.HOST / layout.RECORD_FILE
    record = load_record(directory)
    record["leaves"]["params/w"]["crc32"] ^= 1
    file.write_text(checksums.dump_with_crc(record))
    variables, step = reading.load_variables_and_step(directory, warn=lambda text: None)
    np.testing.assert_array_equal(variables["params"]["w"], np.full(3, 10))
    assert step == 10 and load_record(directory)["step"] == 20


def test_run_ids_are_random():
    assert len({new_run_id() for _ in range(100)}) == 100
