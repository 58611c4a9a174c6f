"""A lost process ends the others with 8 and one line, wherever they are; and the run continues to the same bits."""

import json
from pathlib import Path

import jax
import pytest

from inception_jax.checkpoints.saving import Checkpoints
from inception_jax.errors import UserError
from inception_jax.multihost import peer_loss, processes
from inception_jax.multihost.peer_loss import PeerLost

from .lost_peers import AttackedRun

# As jaxlib 0.10.2 and Orbax 0.12.8 raise them.
GLOO = (
    "UNKNOWN: Gloo AllGather failed: [external/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1"
)
SOCKET = "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/died/restarted"
BARRIER = "DEADLINE_EXCEEDED: Barrier timed out. Id: async_write_complete::1. This usually happens because a task"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError(GLOO), True),
        (jax.errors.JaxRuntimeError(GLOO), True),
        (jax.errors.JaxRuntimeError(SOCKET), True),
        (jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce failed: remote process exited"), True),
        (jax.errors.JaxRuntimeError("INTERNAL: stream did not block host until done"), True),
        (caused(TimeoutError("Timed out while waiting for ... barrier."), jax.errors.JaxRuntimeError(BARRIER)), True),
        (caused(RuntimeError("saving failed"), ValueError(GLOO)), True),
        (PeerLost("process 1 has gone"), True),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 4 bytes"), False),
        (jax.errors.JaxRuntimeError("INVALID_ARGUMENT: a wrong program"), False),
        (ValueError("NOT_FOUND: Error opening zarr driver"), False),
        (ValueError("/data/gloomy/a.png is no image"), False),
        (OSError(5, "Input/output error"), False),
        (caused(UserError("no space left"), ValueError(GLOO)), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_what_means_a_lost_process(monkeypatch, error, lost):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    found = peer_loss.as_peer_lost(error)
    assert (found is not None) == lost
    if found:
        assert found.exit_code == 8 and "\n" not in str(found)
    monkeypatch.setattr(jax, "process_count", lambda: 1)
    assert peer_loss.as_peer_lost(error) is (error if isinstance(error, PeerLost) else None)


def test_a_save_that_another_process_left_is_not_a_mistake_of_the_user(monkeypatch, tmp_path):
    """Nor is it waited for: Orbax's barriers wait 300 s."""

    def wait():
        raise AssertionError("it waits for a process that has gone")

    with pytest.raises(PeerLost, match="a collective failed: another process of this run has ended"):
        with Checkpoints(tmp_path) as checkpoints:
            monkeypatch.setattr(jax, "process_count", lambda: 2)
            with checkpoints._as_user_error():
                monkeypatch.setattr(checkpoints, "wait", wait)
                raise ValueError(GLOO)
    monkeypatch.undo()


def test_a_mistake_is_told_though_another_process_is_lost(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def fail(*_, **__):
        raise ValueError(GLOO)

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", fail)
    with pytest.raises(UserError, match="a wrong value"), processes.fail_together():
        raise UserError("a wrong value")
    with pytest.raises(PeerLost), processes.fail_together():
        pass


def test_killed_in_a_save(start_command, own_recipe, tmp_path):
    """The other process ends with 8."""
    run = AttackedRun(start_command, own_recipe, tmp_path, 2, seed=0)
    assert not run.attack("save", "kill", victim=1).fault
    result = json.loads((run.workdir / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 8)


def test_killed_in_a_save_the_run_continues_to_the_same_bits(start_command, own_recipe, tmp_path):
    run = AttackedRun(start_command, own_recipe, tmp_path, 2, seed=1)
    assert not run.attack("save", "kill", victim=1).fault
    run.finish()
    assert run.finished


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [pytest.param(0, marks=pytest.mark.attack), 1, 2, 3, 4])
@pytest.mark.parametrize("count", [2, 3])
def test_attacked_often(start_command, own_recipe, tmp_path, count, seed):
    """Five rounds each, fifty in all, ten of them with the mark `attack`; every fault is shown at the end."""
    run = AttackedRun(start_command, own_recipe, Path(tmp_path), count, seed)
    for _ in range(5):
        run.attack()
    run.finish()
    print(run.summary())
    assert not run.summary()["faults"]
