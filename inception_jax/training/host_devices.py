"""A CPU as two JAX devices, for inference: each computes half of every batch.

While XLA runs a part of one half on one thread, the other half uses the other cores. Training does not gain (its
gradients are summed over the devices), and its numbers would be others: it keeps one device.
"""

from __future__ import annotations

import os
import sys

import jax

from inception_jax.models.platforms import count_cpu_threads

COUNT = 2
FEWEST = 4
"""Examples; a batch is filled up to a multiple of the devices, and of 3 a quarter would be computed in vain."""

_split = False


def use_two(examples: int | None = None) -> None:
    """Makes the CPU of this process two JAX devices; a command calls it before the first array.

    It does nothing where the user has chosen a number (`JAX_NUM_CPU_DEVICES`, or
    `--xla_force_host_platform_device_count` in `XLA_FLAGS`), where XLA has one thread, where JAX's devices are in use
    already, or where the process is not a command of this package: a Python session keeps its devices. Accelerators are
    not concerned.

    Args:
      examples: that will be computed; where these are few it does nothing. None: many.
    """
    global _split
    if not _is_command() or not gains(examples):
        return
    try:
        jax.config.update("jax_num_cpu_devices", COUNT)
    except RuntimeError:  # the devices are in use
        return
    _split = True


def gains(examples: int | None = None) -> bool:
    """Whether two devices compute so many examples faster than one, and the user has chosen no number of devices."""
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    chosen = chosen or jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]  # jax declares no types for it
    return not chosen and count_cpu_threads() >= COUNT and (examples is None or examples >= FEWEST)


def is_split() -> bool:
    """Whether `use_two` has made the CPU two devices, and the devices are those."""
    return _split and jax.default_backend() == "cpu"


def _is_command() -> bool:
    """Whether this process is `python -m inception_jax.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("inception_jax.")
