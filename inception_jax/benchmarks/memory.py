"""Memory of a step: the compiler's plan, the device's counters, and the search for the largest batch that fits."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from inception_jax.benchmarks import workload
from inception_jax.benchmarks.steps import Bench
from inception_jax.training.memory_check import TooLarge
from inception_jax.training.parallel import Compiled, PreparedStep

_MAX_EXAMPLES = 2**20  # per device; ends a search in which everything fits
_RESOLUTION = 16  # the search ends when the bounds are within a sixteenth of each other


def program_memory(compiled: Compiled, accelerator: bool = False) -> dict[str, int] | None:
    """Bytes on one device as the compiler plans them; None where it does not report them.

    Args:
      compiled: the step.
      accelerator: whether the device is no CPU.

    Returns:
      "arguments" (state and batch), "outputs" (without those written over an argument), "temporary" (activations and
      workspace), "code", and "total", their sum; for accelerators also "peak", the most that is in use at once.
    """
    executable: Any = compiled.call  # a jax.stages.Compiled
    analysis = executable.memory_analysis()
    if analysis is None:
        return None
    arguments = analysis.argument_size_in_bytes
    if isinstance(compiled, PreparedStep):  # takes what was prepared; the variables are there, too
        preparation: Any = compiled.prepare
        arguments += preparation.memory_analysis().argument_size_in_bytes
    parts = {
        "arguments": arguments,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    peak = getattr(analysis, "peak_memory_in_bytes", 0)  # of CPUs it is not that of a step
    return parts | {"total": sum(parts.values())} | ({"peak": peak} if peak and accelerator else {})


def device_memory(device: jax.Device) -> dict[str, int] | None:
    """The device's own counters since the process began: {"peak", "in_use", "limit"} in bytes; None on a CPU."""
    stats = device.memory_stats()
    if not stats:
        return None
    names = {"peak": "peak_bytes_in_use", "in_use": "bytes_in_use", "limit": "bytes_limit"}
    return {name: stats[key] for name, key in names.items() if key in stats}


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that a program may use: the device's limit, or on a CPU the memory that is available now; None: unknown."""
    counters = device_memory(device)
    if counters:
        return counters.get("limit")
    return available_host_memory() if device.platform == "cpu" else None


def available_host_memory() -> int | None:
    """Bytes of host memory that are available now; None: unknown."""
    match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    return int(match[1]) * 1024 if match else None


def largest_batch(fits: Callable[[int], bool], unit: int = 1) -> int:
    """Finds the largest batch that fits, to within a sixteenth: doubles the size, then bisects.

    Args:
      fits: whether a batch of that size fits; never called with a size above one that did not fit.
      unit: every size is a multiple of it.

    Returns:
      The largest size that was tried and fits; 0 if not even `unit` fits.
    """
    low, high = 0, unit
    while high <= _MAX_EXAMPLES * unit and fits(high):
        low, high = high, 2 * high
    while high - low > max(unit, low // _RESOLUTION):
        middle = (low + high) // 2 // unit * unit
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def make_training_fits(config: Any, report: Callable[[str], None]) -> Callable[[int], bool]:
    """Makes `fits` for `largest_batch`: whether one training step with that batch size can be compiled and run.

    On a CPU an allocation is not refused: the kernel kills a process instead. So there the compiler's plan decides: it
    must leave a tenth of the available memory free.

    Args:
      config: config of the run; its batch size is changed.
      report: called with one line per size.
    """

    def fits(size: int) -> bool:
        config.batch_size = size
        config.evaluation.batch_size = None
        try:
            setup = workload.build_setup(config)
        except TooLarge as error:
            report(f"batch {size:,}: {error}")
            return False
        device = setup.devices.first_device
        available = memory_limit(device) or 0
        bench: Bench | None = None
        try:
            with workload.translate_out_of_memory(setup):
                bench = Bench(setup, batches=1)
                planned = program_memory(bench.compile("train"))
                if device.platform == "cpu" and planned and planned["total"] > 0.9 * available:
                    plan = format_bytes(planned["total"])
                    report(f"batch {size:,}: {plan} planned, {format_bytes(available)} available: no")
                    return False
                bench.run("train", 1)
        except workload.OutOfMemory:
            report(f"batch {size:,}: out of memory")
            return False
        finally:
            bench = None
            gc.collect()
        report(f"batch {size:,}: fits" + (f", {format_bytes(planned['total'])} planned" if planned else ""))
        return True

    return fits


def format_bytes(count: float) -> str:
    """Formats a number of bytes: `1.23 GiB`, `4.5 MiB`."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
