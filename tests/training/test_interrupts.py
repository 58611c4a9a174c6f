"""Real signals, to this process and to others."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inception_jax.errors import DiskFull, ExitCode, NonFiniteLoss, signal_exit_code, write_error
from inception_jax.training import interrupts
from inception_jax.training.interrupts import Interrupts

ROOT = Path(interrupts.__file__).parents[2]


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


PREAMBLE = """
import signal, sys, time
from inception_jax.errors import signal_exit_code
from inception_jax.training.interrupts import Interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in a shell's background
"""


def start(body):
    """A process that runs `body`, as far as it says that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + body],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


LOOP = """
with Interrupts() as interrupts:
    print("ready", flush=True)
    while not (name := interrupts.requested()):
        time.sleep(0.01)
    print("saved after", name, flush=True)
    sys.exit(signal_exit_code(name))
"""

# OpenSSL's work cannot be interrupted and lets go of the interpreter lock, as XLA's compilation does.
DEAF = """
import hashlib
with Interrupts() as interrupts:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha512", b"a", b"b", 2_000_000_000)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_first_signal_lets_the_loop_save(number):
    process = start(LOOP)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert out == f"saved after {number.name}\n"
    assert process.returncode == signal_exit_code(number.name) == 128 + number
    assert err.startswith(f"{number.name}: finishing this step") and err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_stops_at_once_while_the_main_thread_is_deaf(number):
    process = start(DEAF)
    process.send_signal(number)
    assert process.stderr.readline().startswith(f"{number.name}: finishing")
    time.sleep(Interrupts.REPEAT_SECONDS + 0.1)
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143 and err == "SIGTERM again: stopped at once\n"
    assert time.monotonic() - begin < 5


def test_one_signal_that_comes_twice_is_one():
    """coreutils' timeout signals its child and then its process group, to which the child belongs."""
    process = start(LOOP.replace("sys.exit", "time.sleep(0.5); print('end'); sys.exit"))
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)  # or the kernel makes one of the two
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out == "saved after SIGTERM\nend\n"


def test_hanging_up_twice_still_saves():
    """Where a terminal is closed, its shell and the kernel may send a signal each, one later than the other."""
    process = start(LOOP.replace("sys.exit", "time.sleep(0.6); print('end'); sys.exit"))
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "saved after SIGHUP\n"
    time.sleep(Interrupts.REPEAT_SECONDS + 0.1)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=20)
    assert out == "end\n" and process.returncode == 129


def test_a_report_that_fails_does_not_end_the_watch():
    process = start(LOOP.replace("()", "(lambda text: 1 / 0)", 1).replace("sys.exit", "time.sleep(60); sys.exit"))
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saved after SIGINT\n"
    time.sleep(Interrupts.REPEAT_SECONDS + 0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_everything_is_put_back():
    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    threads = threading.active_count()
    try:
        for _ in range(3):
            lines = []
            with Interrupts(lines.append, signals=(signal.SIGTERM,)) as caught:
                assert caught.requested() is None
                os.kill(os.getpid(), signal.SIGTERM)
                wait_for(caught.requested)
                assert caught.requested() == "SIGTERM" and len(lines) == 1
            assert signal.getsignal(signal.SIGTERM) is mine
            assert signal.set_wakeup_fd(-1) == -1
            assert threading.active_count() == threads
        with pytest.raises(ZeroDivisionError), Interrupts():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interrupts() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            assert caught.requested() is None
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_caught():
    answers = []

    def run():
        with Interrupts() as caught:
            answers.append(caught.requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert answers == [None]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_children_inherit_nothing():
    """A data worker that is started inside must end by SIGTERM as any other process."""
    with Interrupts() as caught:
        child = subprocess.Popen(["sleep", "60"])
        child.terminate()
        assert child.wait(timeout=20) == -signal.SIGTERM
        assert caught.requested() is None


def test_exit_codes():
    """What the README and the shell scripts of users rely on."""
    codes = {code.name: int(code) for code in ExitCode}
    assert codes == {
        "DONE": 0,
        "USER_ERROR": 2,
        "NON_FINITE": 3,
        "LOCKED": 4,
        "NO_CHECKPOINT": 5,
        "DISK_FULL": 6,
        "STALLED": 7,
        "PEER_LOST": 8,
    }
    assert NonFiniteLoss("").exit_code == 3
    assert (signal_exit_code("SIGINT"), signal_exit_code("SIGTERM")) == (130, 143)


def test_write_errors():
    full = write_error("/x/y", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert isinstance(full, DiskFull) and full.exit_code == 6 and "cannot write /x/y: No space left" in str(full)
    assert isinstance(write_error("/x", OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))), DiskFull)
    other = write_error("/x", OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert other.exit_code == 2 and str(other) == "cannot write /x: Permission denied"
