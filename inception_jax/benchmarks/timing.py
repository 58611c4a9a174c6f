"""Times blocks of steps, each ended by waiting for the device, and monitors the CPU load of other processes."""

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
    """Seconds per step, measured over blocks of steps.

    Attributes:
      blocks: seconds per step of each block, in the order of measurement.
      steps: steps per block.
    """

    blocks: tuple[float, ...]
    steps: int

    @property
    def median(self) -> float:
        """Seconds per step of the median block."""
        return statistics.median(self.blocks)

    def percentile(self, percent: float) -> float:
        """The `percent`-th percentile of the blocks' seconds per step, interpolated linearly between two blocks."""
        ordered = sorted(self.blocks)
        position = percent / 100 * (len(ordered) - 1)
        low, high = ordered[math.floor(position)], ordered[math.ceil(position)]
        return low + (position % 1) * (high - low)

    def to_json(self, examples: int) -> dict[str, object]:
        """The entries of the JSON file.

        Args:
          examples: examples per step, over all devices.
        """
        return {
            "step_seconds": {"median": self.median, "p10": self.percentile(10), "p90": self.percentile(90)},
            "images_per_second": examples / self.median,
            "steps_per_block": self.steps,
            "blocks": list(self.blocks),
        }


_WARMUP = 3  # steps before the first block, at least


def time_steps(
    run: Callable[[int], None],
    *,
    seconds: float,
    blocks: int,
    block_seconds: float = 0.5,
    unit: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> BlockTiming:
    """Times blocks of steps, after warm-up steps.

    Warm-up steps are not timed: they fill caches, and raise a GPU's clock. A block lasts at least
    `block_seconds` (or `seconds / blocks` if that is less), so that the cost of waiting for its end is small; within it
    the steps are dispatched without waiting, as in training.

    Args:
      run: takes that many steps and returns when the device has finished the last one.
      seconds: total time of the timed blocks, approximately.
      blocks: minimum number of blocks.
      block_seconds: see above.
      unit: a block has a multiple of this many steps: those of one call of the program.
      clock: returns seconds.

    Raises:
      Recompiled: something was compiled while the blocks ran.
    """
    run(max(_WARMUP, unit))
    start = clock()
    run(unit)
    step_seconds = max((clock() - start) / unit, 1e-9)
    if step_seconds < block_seconds:  # the clock is too coarse for a single short step
        count = _round_up(min(block_seconds / step_seconds, 1000), unit)
        start = clock()
        run(count)
        step_seconds = max((clock() - start) / count, 1e-9)
    steps = _round_up(min(block_seconds, seconds / blocks) / step_seconds, unit)
    count = max(blocks, round(seconds / (steps * step_seconds)))
    times = []
    with no_compilation():
        for _ in range(count):
            start = clock()
            run(steps)
            times.append((clock() - start) / steps)
    return BlockTiming(tuple(times), steps)


def _round_up(steps: float, unit: int) -> int:
    return max(1, math.ceil(steps / unit)) * unit


# Field numbers, proc(5).
_BUSY = (1, 2, 3, 6, 7, 8)  # in a line of /proc/stat: user, nice, system, irq, softirq, steal
_OWN = (11, 12, 13, 14)  # after the name in /proc/PID/stat: utime, stime, and both of the children that it waited for


class CpuLoadMonitor:
    """Counts the processor seconds that other processes use on the cores that this process may use.

    Attributes:
      cores: number of those cores.
      seconds_of_others: processor seconds that other processes (and other virtual machines on the same hardware) have
        used while monitored; None where the system does not report it.
      wall_seconds: seconds monitored.
    """

    def __init__(self) -> None:
        """Monitors nothing until `start`."""
        self.cores = len(os.sched_getaffinity(0))
        self.seconds_of_others: float | None = 0.0 if Path("/proc/stat").exists() else None
        self.wall_seconds = 0.0

    def start(self, pid: int) -> None:
        """Starts an interval in which the work of process `pid` is not counted as work of others."""
        self._pid, self._began, self._before = pid, time.monotonic(), self._read_busy_seconds(pid)

    def stop(self) -> None:
        """Ends the interval; it is discarded if the process has exited, since its processor time is then unknown."""
        after = self._read_busy_seconds(self._pid)
        if self.seconds_of_others is not None and self._before is not None and after is not None:
            self.seconds_of_others += max(after - self._before, 0.0)
            self.wall_seconds += time.monotonic() - self._began

    def cores_of_others(self) -> float | None:
        """Mean number of cores that other processes kept busy, or None where not known."""
        if self.seconds_of_others is None or not self.wall_seconds:
            return None
        return self.seconds_of_others / self.wall_seconds

    def _read_busy_seconds(self, pid: int) -> float | None:
        """Busy seconds of the cores since the machine booted, minus those of process `pid`; None where not known."""
        if self.seconds_of_others is None:
            return None
        try:
            own = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        busy = sum(int(fields[number]) for fields in lines if fields[0] in mine for number in _BUSY)
        return (busy - sum(int(own[number]) for number in _OWN)) / os.sysconf("SC_CLK_TCK")
