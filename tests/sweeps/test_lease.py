"""Locks and leases: which driver may run a trial, after the death of another one on this or another machine."""

import fcntl
import json
import multiprocessing
import os
import time

import pytest

from inception_jax.errors import UserError
from inception_jax.sweeps import lease
from inception_jax.sweeps.lease import StudyLock


def take(workdir, stale=60.0):
    return lease.acquire(workdir, "me", stale)


def left_behind(workdir, boot_id, age):
    """A lease whose driver has gone: no lock, and a last heartbeat `age` seconds ago."""
    (workdir / lease.LEASE).write_text(json.dumps({"host": "h", "boot_id": boot_id, "pid": 1, "driver": "another"}))
    os.utime(workdir / lease.LEASE, (time.time() - age,) * 2)


def test_a_living_driver_of_this_machine_keeps_its_trial(tmp_path):
    held = take(tmp_path)
    left_behind(tmp_path, lease.boot_id(), 9999)  # however old the heartbeat is: the machine may have been asleep
    assert take(tmp_path) is None
    held.release()
    assert take(tmp_path) is not None


def test_a_dead_driver_of_this_machine_is_followed_at_once(tmp_path):
    left_behind(tmp_path, lease.boot_id(), 0)
    assert take(tmp_path) is not None


def test_a_driver_of_another_machine_has_time_for_its_heartbeat(tmp_path):
    left_behind(tmp_path, "another machine", 50)
    assert take(tmp_path) is None
    left_behind(tmp_path, "another machine", 70)
    assert take(tmp_path) is not None
    (tmp_path / lease.LEASE).write_text("{")
    assert take(tmp_path) is None, "nobody knows whose it is"


def test_clocks_of_machines_need_not_agree(tmp_path, monkeypatch):
    left_behind(tmp_path, "another machine", 50)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert take(tmp_path) is None
    left_behind(tmp_path, "another machine", -time.clock_gettime(time.CLOCK_REALTIME) + 70)
    assert take(tmp_path) is not None, "the file system's clock is what counts"


def test_a_driver_notices_that_its_lease_was_taken_over(tmp_path):
    held = take(tmp_path)
    assert held.renew()
    left_behind(tmp_path, "another machine", 0)
    assert not held.renew()
    held.release()
    assert (tmp_path / lease.LEASE).exists(), "it is the other's"


def test_a_lease_ends_with_its_release(tmp_path):
    held = take(tmp_path)
    before = os.stat(tmp_path / lease.LEASE).st_mtime
    os.utime(tmp_path / lease.LEASE, (0, 0))
    held.renew()
    assert os.stat(tmp_path / lease.LEASE).st_mtime >= before
    held.release()
    held.release()
    assert lease.last_heartbeat(tmp_path) is None
    with pytest.raises(UserError, match="cannot write"):
        take(tmp_path / "absent")


def _count_up(path, turns, start):
    start.wait()
    for _ in range(turns):
        with StudyLock(path / "lock") as lock, lock:
            assert lock.held
            value = int((path / "count").read_text())
            (path / "count").write_text(str(value + 1))


def test_the_lock_of_a_study_keeps_processes_apart(tmp_path):
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(3)
    others = [context.Process(target=_count_up, args=(tmp_path, 200, start)) for _ in range(2)]
    for other in others:
        other.start()
    _count_up(tmp_path, 200, start)
    for other in others:
        other.join()
    assert (tmp_path / "count").read_text() == "600"


def test_the_lock_may_be_taken_again_by_its_holder(tmp_path):
    lock = StudyLock(tmp_path / "lock")
    with lock, lock:
        pass
    assert not lock.held
    with open(tmp_path / "lock", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = StudyLock(tmp_path / "lock")
    with lock:
        pass
    with lock:
        pass
    [line] = capsys.readouterr().err.splitlines()
    assert "has no locks" in line and "run only one driver" in line
    assert take(tmp_path) is not None
