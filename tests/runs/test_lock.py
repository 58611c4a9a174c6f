"""A workdir is held by one run at a time; by real processes."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax.errors import UserError
from inception_jax.runs import lock
from inception_jax.runs.lock import WorkdirLocked

ROOT = Path(lock.__file__).parents[2]

HOLDER = """
import os, sys, time
from inception_jax.runs import lock
with lock.lock_workdir(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:
        time.sleep(60)
    print("holding", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold `tmp_path / "run"` until they are killed."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "holding\n"
        return process

    yield start
    for process in processes:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.communicate()


def test_the_message_names_the_holder(holder, tmp_path):
    process = holder()
    with pytest.raises(WorkdirLocked) as caught, lock.lock_workdir(tmp_path / "run"):
        raise AssertionError("held twice")
    message = str(caught.value)
    assert f"in use by process {process.pid} on {socket.gethostname()}, started 20" in message
    assert caught.value.exit_code == 4 and "\n" not in message


def test_a_killed_holder_leaves_no_lock(holder, tmp_path):
    process = holder()
    process.kill()
    process.wait()
    with lock.lock_workdir(tmp_path / "run"):
        assert f'"pid": {os.getpid()}' in (tmp_path / "run" / "lock").read_text()
    assert (tmp_path / "run" / "lock").read_text() == ""


def test_what_a_dead_holder_forked_still_holds(holder, tmp_path):
    process = holder("and a child")
    process.kill()
    process.wait()
    with pytest.raises(WorkdirLocked, match=f"left behind by process {process.pid} .* which has ended"):
        lock.lock_workdir(tmp_path / "run").__enter__()


def test_one_process_may_not_hold_it_twice_but_again(tmp_path):
    for _ in range(2):
        with lock.lock_workdir(tmp_path / "a" / "b") as workdir:
            assert workdir == tmp_path / "a" / "b"
            with pytest.raises(WorkdirLocked, match=f"process {os.getpid()} "):
                lock.lock_workdir(workdir).__enter__()
            with lock.lock_workdir(tmp_path / "c"):
                pass
    with pytest.raises(ZeroDivisionError), lock.lock_workdir(tmp_path / "a" / "b"):
        raise ZeroDivisionError
    with lock.lock_workdir(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": "x"}', "\x00" * 10])
def test_a_holder_that_has_not_written_its_name_yet(holder, tmp_path, content):
    holder()
    (tmp_path / "run" / "lock").write_text(content)
    with pytest.raises(WorkdirLocked, match="in use by another process;"):
        lock.lock_workdir(tmp_path / "run").__enter__()


def test_children_do_not_inherit_it(tmp_path):
    """A data worker that outlives its trainer must not keep the workdir."""
    with lock.lock_workdir(tmp_path):
        child = subprocess.Popen(["sleep", "60"])
    try:
        with lock.lock_workdir(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "deep" / "run"):
        with pytest.raises(UserError, match=r"workdir .*: .*/file is a file, not a directory") as caught:
            lock.lock_workdir(workdir).__enter__()
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match=r"cannot write workdir /proc/runs/digits: "):
        lock.lock_workdir("/proc/runs/digits").__enter__()
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "new" / "run" / "lock").mkdir()  # the lock file cannot be opened
    with pytest.raises(UserError, match="Is a directory"):
        lock.lock_workdir(tmp_path / "new" / "run").__enter__()
    name = "x" * 300  # the last part cannot be made, the ones before it can
    with pytest.raises(UserError, match="File name too long"):
        lock.lock_workdir(tmp_path / "made" / "for" / name).__enter__()
    assert not (tmp_path / "made").exists()


def test_an_address_is_no_workdir():
    with pytest.raises(UserError, match="mounted file system"):
        lock.lock_workdir("gs://bucket/runs").__enter__()
    assert not Path("gs:").exists()
