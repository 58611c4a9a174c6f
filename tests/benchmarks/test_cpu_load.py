"""Whether a machine was free for a comparison."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inception_jax.benchmarks.timing import CpuLoadMonitor

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells")
# Works for a second of processor time, and waits for the end of its input before and after.
WORK = (
    "import sys, time\nsys.stdin.readline()\nwhile time.process_time() < 1: pass\nprint(flush=True)\nsys.stdin.read()"
)


def test_a_neighbour_is_seen_and_the_own_work_is_not_one():
    """One process works: who watches over it sees a second less of others' work than who watches over this one."""
    with subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        own, neighbours = CpuLoadMonitor(), CpuLoadMonitor()
        began = time.monotonic()
        own.start(worker.pid)
        neighbours.start(os.getpid())
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        worker.stdout.readline()
        neighbours.stop()
        own.stop()
        took = time.monotonic() - began
        worker.stdin.close()
    assert neighbours.seconds_of_others - own.seconds_of_others == pytest.approx(
        1.0, abs=0.15
    )  # the clock ticks every 0.01 s
    assert neighbours.seconds_of_others > 0.85
    assert own.wall_seconds == pytest.approx(took, abs=0.1)
    assert own.cores_of_others() == own.seconds_of_others / own.wall_seconds


def test_what_is_not_known_is_not_said():
    watch = CpuLoadMonitor()
    assert watch.cores_of_others() is None
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    watch.start(process.pid)
    watch.stop()
    assert watch.cores_of_others() is None
