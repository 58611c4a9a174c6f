"""Published and measured limits of devices: peak FLOP/s and memory bandwidth.

Published tensor-core and matrix-unit rates are dense (without the factor 2 of structured sparsity that some data sheets
print first). A chip is found by `jax.Device.device_kind`; a kind that is not in the table has no published limits, and
nothing is guessed. `measure_flops` and `measure_bandwidth` measure what the device reaches.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from inception_jax.errors import UserError

# In `Limits.source`, for a limit that the caller gave.
FLOPS_GIVEN, BANDWIDTH_GIVEN = "FLOP/s as given", "bandwidth as given"
_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published limits of one device, as JAX counts devices (of TPU v3: one core, half a chip).

    Attributes:
      name: the product's name.
      pattern: a regular expression that matches the beginning of its `device_kind`.
      flops: {dtype: peak FLOP/s}; for float32 at JAX's default precision: TF32 on NVIDIA chips that have it, one
        bfloat16 pass on TPUs.
      bandwidth: of its memory, bytes/s.
      source: the document that states the numbers.
    """

    name: str
    pattern: str
    flops: dict[str, float]
    bandwidth: float
    source: str


def _chip(name: str, pattern: str, bfloat16: float, float32: float, gigabytes: float, source: str) -> Chip:
    flops = {"bfloat16": bfloat16 * _TERA, "float32": float32 * _TERA}
    return Chip(name, pattern, flops, gigabytes * _GIGA, source)


def _tpu(name: str, pattern: str, teraflops: float, gigabytes: float) -> Chip:
    generation = pattern.rstrip("$").removeprefix("TPU ")
    page = {"v5 lite": "v5e", "v5p?": "v5p", "v6 lite": "v6e"}.get(generation, generation)
    return _chip(name, pattern, teraflops, teraflops, gigabytes, f"cloud.google.com/tpu/docs/{page}")


# The first pattern that matches counts. TFLOP/s in bfloat16 and float32, GB/s.
CHIPS = (
    _chip("B200 SXM", r"NVIDIA B200", 2250.0, 1100.0, 8000.0, "NVIDIA HGX B200 data sheet, dense = half of sparse"),
    _chip("H200 SXM", r"NVIDIA H200(?! NVL)", 989.5, 494.5, 4800.0, "NVIDIA H200 data sheet, dense = half of sparse"),
    _chip("H200 NVL", r"NVIDIA H200 NVL", 835.5, 417.5, 4800.0, "NVIDIA H200 data sheet, dense = half of sparse"),
    _chip("GH200", r"NVIDIA GH200", 989.5, 494.5, 4000.0, "NVIDIA GH200 data sheet, HBM3 model, dense"),
    _chip("H100 SXM", r"NVIDIA H100 80GB HBM3", 989.5, 494.5, 3350.0, "NVIDIA H100 data sheet, dense = half of sparse"),
    _chip("H100 NVL", r"NVIDIA H100 NVL", 835.5, 417.5, 3900.0, "NVIDIA H100 data sheet, dense = half of sparse"),
    _chip("H100 PCIe", r"NVIDIA H100 PCIe", 756.5, 378.0, 2000.0, "NVIDIA H100 PCIe product brief, dense"),
    _chip("A100 SXM 80 GB", r"NVIDIA A100-SXM4-80GB", 312.0, 156.0, 2039.0, "NVIDIA A100 data sheet"),
    _chip("A100 PCIe 80 GB", r"NVIDIA A100 80GB PCIe", 312.0, 156.0, 1935.0, "NVIDIA A100 data sheet"),
    _chip("A100 40 GB", r"NVIDIA A100-(SXM4|PCIE)-40GB", 312.0, 156.0, 1555.0, "NVIDIA A100 data sheet"),
    _chip("L40S", r"NVIDIA L40S", 362.05, 183.0, 864.0, "NVIDIA L40S data sheet, dense"),
    _chip("L4", r"NVIDIA L4$", 121.0, 60.0, 300.0, "NVIDIA L4 data sheet, dense = half of sparse"),
    _chip("A10", r"NVIDIA A10$", 125.0, 62.5, 600.0, "NVIDIA A10 data sheet"),
    _chip(
        "GeForce RTX 4090",
        r"NVIDIA GeForce RTX 4090$",
        165.2,
        82.6,
        1008.0,
        "NVIDIA Ada architecture white paper, float32 accumulation",
    ),
    _chip(
        "GeForce RTX 3090",
        r"NVIDIA GeForce RTX 3090$",
        71.0,
        35.6,
        936.0,
        "NVIDIA Ampere GA102 white paper, float32 accumulation",
    ),
    _tpu("TPU v3 core", r"TPU v3", 61.5, 450.0),
    _tpu("TPU v4", r"TPU v4$", 275.0, 1200.0),
    _tpu("TPU v5e", r"TPU v5 lite", 197.0, 800.0),
    _tpu("TPU v5p", r"TPU v5p?$", 459.0, 2765.0),
    _tpu("TPU v6e", r"TPU v6 lite", 918.0, 1600.0),
)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Peak FLOP/s and memory bandwidth that a measurement is compared with; None where not known.

    Attributes:
      flops: peak FLOP/s of one device in the dtype of the measurement.
      bandwidth: bytes/s of one device's memory.
      source: where both come from, as text.
    """

    flops: float | None
    bandwidth: float | None
    source: str


def find_chip(device_kind: str) -> Chip | None:
    """The row of `CHIPS` for a `device_kind`, or None."""
    return next((chip for chip in CHIPS if re.match(chip.pattern, device_kind)), None)


def device_limits(device_kind: str, dtype: str, flops: float | None = None, bandwidth: float | None = None) -> Limits:
    """Limits of a device: the given values, and the table's where none is given.

    Args:
      device_kind: `jax.Device.device_kind`.
      dtype: compute dtype of the network: "bfloat16", "float32" or "float64".
      flops: FLOP/s, in place of the table's.
      bandwidth: bytes/s, in place of the table's.

    Raises:
      UserError: `flops` or `bandwidth` is not above 0.
    """
    for flag, value, unit in (("--peak_tflops", flops, _TERA), ("--bandwidth_gbs", bandwidth, _GIGA)):
        if value is not None and not value > 0:
            raise UserError(f"{flag}={value / unit:g}: must be a number above 0, or 'measure'")
    chip = find_chip(device_kind)
    published = chip.flops.get(dtype) if chip else None
    sources = [f"{chip.name}: {chip.source}"] if chip and (flops is None or bandwidth is None) else []
    sources += [FLOPS_GIVEN] if flops is not None else []
    sources += [BANDWIDTH_GIVEN] if bandwidth is not None else []
    return Limits(
        flops=published if flops is None else flops,
        bandwidth=bandwidth if bandwidth is not None else chip.bandwidth if chip else None,
        source="; ".join(sources) or f"{device_kind!r} is not in the table of chips",
    )


_REPEATS = 10
_MIN_SECONDS = 0.05  # of one matrix product: long enough that the time to launch it is negligible
_ARRAY_BYTES = 2**28  # of the array that is copied: larger than any cache


def measure_flops(dtype: str, device: jax.Device) -> float:
    """Measures FLOP/s of dense square matrix products, the best of ten.

    Args:
      dtype: of the operands; JAX accumulates in at least float32, as in the network's layers.
      device: the device to measure.
    """
    with jax.default_device(device):
        side = 512
        while True:
            one = jnp.ones((side, side), jnp.dtype(dtype))
            seconds = _best_seconds(jax.jit(lambda a, b: a @ b), one, one)
            if seconds >= _MIN_SECONDS or side >= 16384:
                return 2 * side**3 / seconds
            side *= 2


def measure_bandwidth(device: jax.Device) -> float:
    """Measures bytes/s of reading one array and writing another, both larger than any cache, the best of ten."""
    with jax.default_device(device):
        array = jnp.ones(_ARRAY_BYTES // 4, jnp.float32)
        return 2 * _ARRAY_BYTES / _best_seconds(jax.jit(lambda x: x + 1), array)


def _best_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of the fastest of `_REPEATS` calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - start)
    return best
