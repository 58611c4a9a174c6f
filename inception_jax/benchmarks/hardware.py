"""What chips can do at most, by their makers' word: the measure that a measured step is held against.

Tensor-core and matrix-unit rates are dense (without the factor 2 of structured sparsity that some data sheets print
first). `jax.Device.device_kind` names a chip; a name that no row knows has no limits here, and nothing is guessed.
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

FLOPS_GIVEN, BANDWIDTH_GIVEN = "FLOP/s as given", "bandwidth as given"  # of `Limits.source`
_TERA, _GIGA = 1e12, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """The limits of one device, as JAX counts devices (of TPU v3: one core, half a chip).

    Attributes:
      name: what it is called.
      pattern: a regular expression that its `device_kind` begins with.
      flops: {dtype: FLOP/s at most}; float32 is what JAX's default precision makes of it: TF32 on NVIDIA chips that
        have it, one bfloat16 pass on TPUs.
      bandwidth: of its memory, bytes/s.
      source: where the numbers stand.
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


# The first pattern that fits counts. TFLOP/s in bfloat16 and float32, GB/s.
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
    """What the devices of one measurement can do at most; None where it is not known.

    Attributes:
      flops: FLOP/s of one device in the dtype that was measured.
      bandwidth: bytes/s of one device's memory.
      source: where each comes from, in words.
    """

    flops: float | None
    bandwidth: float | None
    source: str


def find_chip(device_kind: str) -> Chip | None:
    """The row of a `device_kind`, or None."""
    return next((chip for chip in CHIPS if re.match(chip.pattern, device_kind)), None)


def device_limits(device_kind: str, dtype: str, flops: float | None = None, bandwidth: float | None = None) -> Limits:
    """The limits of a device.

    Args:
      device_kind: as JAX names it.
      dtype: "bfloat16", "float32" or "float64": what the network computes in.
      flops: overrides the table, FLOP/s.
      bandwidth: overrides the table, bytes/s.

    Raises:
      UserError: an override that is not above 0.
    """
    for flag, value in (("--peak_tflops", flops), ("--bandwidth_gbs", bandwidth)):
        if value is not None and not value > 0:
            raise UserError(f"{flag}: {value:g}; a number above 0 is needed")
    chip = find_chip(device_kind)
    of_table = chip.flops.get(dtype) if chip else None
    words = [f"{chip.name}: {chip.source}"] if chip and (flops is None or bandwidth is None) else []
    words += [FLOPS_GIVEN] if flops is not None else []
    words += [BANDWIDTH_GIVEN] if bandwidth is not None else []
    return Limits(
        flops=of_table if flops is None else flops,
        bandwidth=bandwidth if bandwidth is not None else chip.bandwidth if chip else None,
        source="; ".join(words) or f"no row of the table of chips knows {device_kind!r}",
    )


_REPEATS = 10
_SECONDS = 0.05  # of one product or copy, at least: starting it then weighs nothing
_BYTES = 2**28  # of the array that is copied: larger than any cache


def measure_flops(dtype: str, device: jax.Device) -> float:
    """FLOP/s of dense square matrix products in this dtype, the best of ten.

    Args:
      dtype: of the operands; sums are in at least float32, as in the network's layers.
      device: on which.
    """
    with jax.default_device(device):
        side = 512
        while True:
            one = jnp.ones((side, side), jnp.dtype(dtype))
            seconds = _best(jax.jit(lambda a, b: a @ b), one, one)
            if seconds >= _SECONDS or side >= 16384:
                return 2 * side**3 / seconds
            side *= 2


def measure_bandwidth(device: jax.Device) -> float:
    """Bytes/s of reading one array and writing another, both larger than any cache, the best of ten."""
    with jax.default_device(device):
        array = jnp.ones(_BYTES // 4, jnp.float32)
        return 2 * _BYTES / _best(jax.jit(lambda x: x + 1), array)


def _best(function: Callable[..., Any], *arguments: Any) -> float:
    jax.block_until_ready(function(*arguments))
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        best = min(best, time.perf_counter() - start)
    return best
