"""Time of completed work: blocks of steps, each ended by waiting for the device, and what their spread says."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from inception_jax.training.compilation import no_compilation


@dataclasses.dataclass(frozen=True)
class BlockTiming:
    """Seconds per step over blocks of steps.

    Attributes:
      blocks: seconds per step of each block, in the order in which they were measured.
      steps: steps of a block.
    """

    blocks: tuple[float, ...]
    steps: int

    @property
    def median(self) -> float:
        """Seconds per step of the median block."""
        return statistics.median(self.blocks)

    def percentile(self, percent: float) -> float:
        """Seconds per step that so many percent of the blocks stay below, between two blocks by interpolation."""
        ordered = sorted(self.blocks)
        place = percent / 100 * (len(ordered) - 1)
        low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
        return low + (place % 1) * (high - low)

    def to_json(self, examples: int) -> dict[str, object]:
        """As the JSON file holds it.

        Args:
          examples: examples per step, over all devices.
        """
        return {
            "step_seconds": {"median": self.median, "p10": self.percentile(10), "p90": self.percentile(90)},
            "images_per_second": examples / self.median,
            "steps_per_block": self.steps,
            "blocks": list(self.blocks),
        }


def time_steps(
    run: Callable[[int], None],
    *,
    seconds: float,
    blocks: int,
    block_seconds: float = 0.5,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> BlockTiming:
    """Times blocks of steps.

    The first steps are not counted: they fill caches, and on a GPU raise the clock. Then a block is made long enough
    (`block_seconds`) that starting it and waiting for its end weigh nothing, while within it the steps follow each
    other as closely as in training.

    Args:
      run: takes so many steps and returns when the device has done the last of them.
      seconds: that all counted blocks together shall take, about.
      blocks: how many there are at least; the spread needs some.
      block_seconds: of one block, at least, where the steps are short.
      warmup: steps before the first block, at least.
      clock: seconds.

    Raises:
      Recompiled: something was compiled while the blocks ran.
    """
    run(warmup)
    start = clock()
    run(1)
    one = max(clock() - start, 1e-9)
    if one < block_seconds:  # a single short step says little
        some = math.ceil(min(block_seconds / one, 1000))
        start = clock()
        run(some)
        one = max((clock() - start) / some, 1e-9)
    steps = max(1, math.ceil(min(block_seconds, seconds / blocks) / one))
    count = max(blocks, round(seconds / (steps * one)))
    times = []
    with no_compilation():
        for _ in range(count):
            start = clock()
            run(steps)
            times.append((clock() - start) / steps)
    return BlockTiming(tuple(times), steps)


_BUSY = (1, 2, 3, 6, 7, 8)  # of a line of /proc/stat: user, nice, system, irq, softirq, steal; proc(5)
_OWN = (11, 12)  # after the name in /proc/PID/stat: utime, stime


class CpuLoadMonitor:
    """Counts the processor seconds that others take on the cores that this process may use.

    Attributes:
      cores: how many those are.
      seconds_of_others: processor seconds that other processes (and other virtual machines on the same hardware) have
        used while monitored; None where the system does not report it.
      wall_seconds: seconds watched.
    """

    def __init__(self) -> None:
        self.cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.seconds_of_others: float | None = 0.0 if Path("/proc/stat").exists() else None
        self.wall_seconds = 0.0

    def start(self, pid: int) -> None:
        """Begins to watch a time in which the work of `pid` is nobody else's."""
        self._pid, self._began, self._before = pid, time.monotonic(), self._read_busy_seconds(pid)

    def stop(self) -> None:
        """Ends it. A process that is no more has told nothing: its time is left out."""
        after = self._read_busy_seconds(self._pid)
        if self._before is not None and after is not None:
            self.seconds_of_others += max(after - self._before, 0.0)
            self.wall_seconds += time.monotonic() - self._began

    def cores_of_others(self) -> float | None:
        """How many cores others kept busy on the average, or None where that is not known."""
        return (
            None
            if self.seconds_of_others is None or not self.wall_seconds
            else self.seconds_of_others / self.wall_seconds
        )

    def _read_busy_seconds(self, pid: int) -> float | None:
        """Busy seconds of the cores since the machine started, less those of the process."""
        if self.seconds_of_others is None:
            return None
        try:
            own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        busy = sum(int(words[place]) for words in lines if words[0] in mine for place in _BUSY)
        return (busy - sum(int(own[place]) for place in _OWN)) / os.sysconf("SC_CLK_TCK")
