"""What a step needs of a device's memory: by the compiled program, by the device's own count, and by trying."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from inception_jax.benchmarks import workload
from inception_jax.benchmarks.steps import Bench
from inception_jax.training.parallel import Compiled

_MOST = 2**20  # examples per device; no search goes on for ever
_FINENESS = 16  # the search ends where its two ends are within a sixteenth of each other


def program_memory(compiled: Compiled) -> dict[str, int] | None:
    """Bytes on one device by the compiler's plan, None where it does not tell.

    Returns:
      "arguments" (state and batch), "outputs" that are not written over an argument, "temporary" (activations and
      workspace), "code", and "total", their sum.
    """
    analysis = compiled.call.memory_analysis()
    if analysis is None:
        return None
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values())}


def device_memory(device: jax.Device) -> dict[str, int] | None:
    """What the device has counted since the process began: {"peak", "in_use", "limit"} in bytes; None on a CPU."""
    stats = device.memory_stats()
    if not stats:
        return None
    names = {"peak": "peak_bytes_in_use", "in_use": "bytes_in_use", "limit": "bytes_limit"}
    return {name: stats[key] for name, key in names.items() if key in stats}


def memory_limit(device: jax.Device) -> int | None:
    """Bytes that a program may have: the device's, or on a CPU what the machine has available at this moment."""
    counted = device_memory(device)
    if counted:
        return counted.get("limit")
    if device.platform == "cpu":
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
        return int(found[1]) * 1024 if found else None
    return None


def largest_batch(fits: Callable[[int], bool], unit: int = 1) -> int:
    """The largest batch that fits, to within a sixteenth: by doubling, then by halving the gap.

    Args:
      fits: whether a batch of that size does; larger batches than one that does not are not asked for.
      unit: every size tried is a multiple of it.

    Returns:
      The largest size that was tried and fits; 0 where not even `unit` does.
    """
    low, high = 0, unit
    while high <= _MOST * unit and fits(high):
        low, high = high, 2 * high
    while high - low > max(unit, low // _FINENESS):
        middle = (low + high) // 2 // unit * unit
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def make_training_fits(config: Any, report: Callable[[str], None]) -> Callable[[int], bool]:
    """A judge for `largest_batch`: whether one training step of this recipe can be compiled and taken.

    On a CPU nothing refuses memory before the kernel kills somebody, so there the compiler's plan is the judge: it must
    leave a tenth of what is available.

    Args:
      config: of the run; its batch size is changed.
      report: gets one line per size.
    """

    def fits(size: int) -> bool:
        config.batch_size = size
        config.evaluation.batch_size = None
        setup = workload.build_setup(config)
        device = setup.devices.mesh.devices.flat[0]
        before = memory_limit(device) or 0
        try:
            with workload.translate_out_of_memory(setup):
                bench = Bench(setup, batches=1)
                planned = program_memory(bench.compile("train"))
                if device.platform == "cpu" and planned and planned["total"] > 0.9 * before:
                    plan = format_bytes(planned["total"])
                    report(f"batch {size:,}: {plan} planned, {format_bytes(before)} available: no")
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
    """`1.23 GiB`, `4.5 MiB`."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
