"""How much of the processor other processes use while a side works: what makes a comparison on a CPU unfair.

Threads that wait for each other in a loop, as PyTorch's OpenMP threads do, lose far more to a neighbour than threads
that sleep. Seen on two x86-64 cores with one other busy process: PyTorch's blocks took 10 to 20 times their time, ours
2.5 times.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_BUSY = (1, 2, 3, 6, 7, 8)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal; proc(5)
_OWN = (11, 12)  # after the name in /proc/PID/stat: utime, stime


class Watch:
    """Counts the processor seconds that others take on the cores that this process may use.

    Attributes:
      cores: how many those are.
      others: seconds that other processes (and other machines on the same hardware) have taken while watched; None
        where the system does not tell.
      wall: seconds watched.
    """

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.others: float | None = 0.0 if Path("/proc/stat").exists() else None
        self.wall = 0.0

    def start(self, pid: int) -> None:
        """Begins to watch a time in which the work of `pid` is nobody else's."""
        self._pid, self._began, self._before = pid, time.monotonic(), self._foreign(pid)

    def stop(self) -> None:
        """Ends it. A process that is no more has told nothing: its time is left out."""
        after = self._foreign(self._pid)
        if self._before is not None and after is not None:
            self.others += max(after - self._before, 0.0)
            self.wall += time.monotonic() - self._began

    def busy_cores(self) -> float | None:
        """How many cores others kept busy on the average, or None where that is not known."""
        return None if self.others is None or not self.wall else self.others / self.wall

    def _foreign(self, pid: int) -> float | None:
        """Busy seconds of the cores since the machine started, less those of the process."""
        if self.others is None:
            return None
        try:
            own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        busy = sum(int(words[place]) for words in lines if words[0] in mine for place in _BUSY)
        return (busy - sum(int(own[place]) for place in _OWN)) / os.sysconf("SC_CLK_TCK")
