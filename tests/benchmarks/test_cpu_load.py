"""`CpuLoadMonitor`: how much of the cores other processes used."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inception_jax.benchmarks.timing import CpuLoadMonitor

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat of Linux")
# Works for a second of processor time, and waits for the end of its input before and after.
WORK = (
    "import sys, time\nsys.stdin.readline()\nwhile time.process_time() < 1: pass\nprint(flush=True)\nsys.stdin.read()"
)


# The same in a process that it starts and waits for.
IN_A_CHILD = """import subprocess, sys
sys.stdin.readline()
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 1: pass"])
print(flush=True)
sys.stdin.read()"""


@pytest.mark.parametrize("work", [WORK, IN_A_CHILD], ids=["itself", "in a child"])
def test_work_of_others_is_counted_and_that_of_the_process_is_not(work):
    """One process works for a second: its own monitor counts a second less of others' work than a second monitor."""
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        own, others = CpuLoadMonitor(), CpuLoadMonitor()
        began = time.monotonic()
        own.start(worker.pid)
        others.start(os.getpid())
        worker.stdin.write(b"\n")
        worker.stdin.flush()
        worker.stdout.readline()
        others.stop()
        own.stop()
        took = time.monotonic() - began
        worker.stdin.close()
    assert others.seconds_of_others - own.seconds_of_others == pytest.approx(
        1.0, abs=0.15
    )  # the clock ticks every 0.01 s
    assert others.seconds_of_others > 0.85
    assert own.wall_seconds == pytest.approx(took, abs=0.1)
    assert own.cores_of_others() == own.seconds_of_others / own.wall_seconds


def test_an_unknown_load_is_none():
    monitor = CpuLoadMonitor()
    assert monitor.cores_of_others() is None
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    monitor.start(process.pid)
    monitor.stop()
    assert monitor.cores_of_others() is None
