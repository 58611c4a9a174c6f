"""The workers of a comparison: what they print, how their deaths are reported, and that none is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inception_jax.benchmarks.worker import SideError, Worker

ROOT = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).with_name("fake_side.py")
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}


def worker(timeout=60.0, **script):
    script.setdefault("seconds", {"train": [0.5] * 9})
    return Worker("fake", [sys.executable, str(FAKE), json.dumps(script)], ENVIRONMENT, timeout)


def test_answers_cross_whatever_is_printed():
    with worker(fault="print_everywhere", losses=[1.5, float("nan")], before=0) as side:
        assert side.pid != os.getpid()
        assert side.prepare({"model": "é"})["task"] == {"model": "é"}
        answer = side.block("train", 2)
        assert answer["seconds"] == 1.0
        assert answer["losses"][0] == 1.5 and answer["losses"][1] != answer["losses"][1]  # NaN crosses, too


def test_the_error_of_a_dead_worker_quotes_the_end_of_its_log():
    with worker(fault="die") as side:
        side.prepare({})
        with pytest.raises(
            SideError, match=r"^fake: its worker died with exit code 3 in 'block'; the end of its log: .*\| last words$"
        ):
            side.block("train", 1)
        with pytest.raises(SideError, match="was closed"):
            side.block("train", 1)


def test_a_kill_is_explained_as_out_of_memory():
    with worker(fault="be_killed") as side, pytest.raises(SideError, match=r"by SIGKILL \(is the machine out of mem"):
        side.block("train", 1)


def test_a_hanging_worker_is_given_up_and_killed(tmp_path):
    with worker(fault="hang", path=str(tmp_path / "pid")) as side:
        side.prepare({})
        with pytest.raises(SideError, match=r"^fake: gave no answer to 'block' within 0.5 s"):
            side.block("train", 1, timeout=0.5)
        assert not Path(f"/proc/{side.pid}").exists()


@pytest.mark.parametrize(
    "fault, kind, message",
    [
        ("memory", "out_of_memory", "fake: MemoryError"),
        ("xla", "out_of_memory", "fake: RuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes."),
        ("cuda", "out_of_memory", "fake: RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("cpu_allocator", "out_of_memory", None),
        ("disk", "failed", "fake: RuntimeError: RESOURCE_EXHAUSTED: tempfile; No space left on device"),
        ("unavailable", "unavailable", "fake: no torch here"),
        ("user", "failed", "fake: batch_size = -1"),
        ("bug", "failed", "fake: ValueError: the first line"),
        ("silent_bug", "failed", "fake: AssertionError"),
        ("say_no_json", "failed", "fake: TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_errors_cross_as_one_line_and_a_kind(fault, kind, message):
    with worker(fault=fault, before="prepare") as side:
        with pytest.raises(SideError) as caught:
            side.prepare({})
        with pytest.raises(SideError, match="was closed"):  # its memory is given back at once
            side.block("train", 1)
    assert (caught.value.side, caught.value.kind) == ("fake", kind)
    assert message is None or str(caught.value) == message


def test_a_program_that_is_not_there_is_unavailable(tmp_path):
    with pytest.raises(SideError, match=r"^gone: cannot start .*python: No such file") as caught:
        Worker("gone", [str(tmp_path / "python")])
    assert caught.value.kind == "unavailable"


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system tells no peak of a process")
def test_the_peak_of_memory_is_that_since_the_last_time():
    with worker(allocated=[200_000_000, 0]) as side:
        side.prepare({})
        start = side.pop_peak_memory()
        side.block("train", 1)
        high = side.pop_peak_memory()
        side.block("train", 1)
        low = side.pop_peak_memory()
    assert 0 < start < 150e6 and start + 180e6 < high < start + 240e6 and low < high - 150e6
    assert side.pop_peak_memory() is None  # it has ended


def test_a_closed_worker_ends_by_itself(tmp_path):
    side = worker(fault="end_normally", path=str(tmp_path / "end"))
    side.prepare({})
    side.close()
    assert (tmp_path / "end").read_text() == "ended"
    side.close()  # does nothing


def test_a_child_of_a_dead_worker_does_not_keep_its_pipe_open(tmp_path):
    try:
        with worker(fault="leave_a_child", path=str(tmp_path / "release")) as side:
            with pytest.raises(SideError, match="died with exit code 4"):
                side.block("train", 1)
    finally:
        (tmp_path / "release").touch()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a worker sees its parent's end after its block")
def test_a_worker_does_not_outlive_a_parent_that_is_killed(tmp_path):
    script = {"fault": "hang", "before": "prepare", "path": str(tmp_path / "pid")}
    program = (
        "import json, sys; from inception_jax.benchmarks.worker import Worker; "
        "Worker('fake', [sys.executable, *sys.argv[1:]]).prepare({})"
    )
    command = [sys.executable, "-c", program, str(FAKE), json.dumps(script)]
    parent = subprocess.Popen(command, env=os.environ | ENVIRONMENT)
    try:
        pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text()))
        assert is_running(pid)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not is_running(pid))


def test_a_worker_that_nobody_started_says_so():
    command = [sys.executable, str(FAKE), "{}"]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == (
        "this module is a worker process: it is started by `python -m inception_jax.benchmark --vs=torch`"
    )


def wait_for(condition, seconds=30):
    """The first true value of the condition."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


def is_running(pid):
    """Whether the process is there, and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
