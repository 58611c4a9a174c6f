"""Limits of memory and time for a block of a test, by the system."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def limited(megabytes: int, seconds: float) -> Iterator[None]:
    """Within the block, this process's memory grows by at most so many MB; then asserts the thread's processor time."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), before[1]))
    started = time.thread_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.thread_time() - started < seconds
