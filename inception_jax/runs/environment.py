"""Describes the environment of a start, on which its numbers depend beside config, data and code; compares two of them.

The same command on the same checkpoint gives the same bits only where JAX's settings, its flags, the versions and the
device are the same. A setting that gives other numbers altogether (another generator of random numbers, another
precision) is refused when a run continues; what may change the last bits is named in its log.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.manifest import read, versions

DECIDING = (
    "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset",
    "jax_default_matmul_precision",
)  # fmt: skip
"""JAX's settings with another value of which a run would go on to other random numbers or another precision."""

_ROUNDING = (
    "jax_allow_f16_reductions", "jax_compiler_enable_remat_pass", "jax_cpu_collectives_implementation",
    "jax_disable_jit", "jax_disable_most_optimizations", "jax_exec_time_optimization_effort",
    "jax_memory_fitting_effort", "jax_memory_fitting_level", "jax_optimization_level", "jax_softmax_custom_jvp",
    "jax_use_direct_linearize", "jax_use_shardy_partitioner",
)  # fmt: skip
# They turn an error on or off, and change no number of a run that has none.
_CHECKING = ("jax_debug_infs", "jax_debug_nans", "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion")
_VARIABLES = (
    "XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG",
    "NPROC", "PJRT_NPROC",  # threads of XLA on CPUs, by which it divides a program
)  # fmt: skip
# Flags that change no number, or one that is recorded by itself: the number of devices.
_HARMLESS_FLAGS = ("--xla_dump_", "--xla_force_host_platform_device_count")
# XLA and the convolution libraries choose their code by these prefixes of a processor's features.
_FEATURES = ("amx", "asimd", "avx", "bf16", "f16c", "fma", "fphp", "i8mm", "sse4", "sve")


def describe() -> dict[str, Any]:
    """Describes the environment of this process; initializes JAX's backend.

    Returns:
      "settings": {name: value} of JAX's; "variables": those that are set of the flags of XLA and its libraries;
      "device": platform, kind, number over all processes, number of processes, version of the platform (CUDA, TPU);
      "cpu": architecture, features by which compilers choose code, number that this process may use.
    """
    import jax
    from jax.extend import backend

    devices = jax.devices()
    return {
        "settings": _settings(),
        "variables": {name: " ".join(os.environ[name].split()) for name in _VARIABLES if os.environ.get(name)},
        "device": {
            "platform": devices[0].platform,
            "kind": devices[0].device_kind,
            "count": len(devices),
            "processes": jax.process_count(),
            "version": " ".join(backend.get_backend().platform_version.split()),
        },
        "cpu": {
            "machine": platform.machine(),
            "features": " ".join(_cpu_features(processor_lines())),
            "count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
    }


def deciding_settings() -> dict[str, Any]:
    """Returns {name: value} of JAX's settings of `DECIDING`."""
    return {name: value for name, value in _settings().items() if name in DECIDING}


def decides_programs() -> dict[str, Any]:
    """Describes what must be the same on all processes of a run, which would otherwise compute different programs.

    Returns:
      {name: value} of versions, of JAX's settings, and of the flags of XLA and its libraries.
    """
    # A process may use other cores than another one: threads, and Python's patch, change no program.
    found = {name: version for name, version in versions().items() if name != "python"} | _settings()
    for name in _VARIABLES:
        if "NPROC" not in name:
            flags = os.environ.get(name, "").split()
            found[name] = " ".join(flag for flag in flags if not flag.startswith(_HARMLESS_FLAGS))
    return found


def refuse_changed_settings(workdir: str | os.PathLike) -> None:
    """Refuses to continue a run with other random numbers or another precision than it began with.

    A run of a version that did not record its settings is accepted.

    Raises:
      UserError: names the variable, the value before and now.
    """
    for name, before, now in changed_settings(read(workdir) or {}):
        raise UserError(
            f"{name.upper()}: JAX's setting is {now!r}, and the run in {workdir} began with {before!r}: it would go on "
            f"to other numbers; {_remedy(name.upper(), before)}, or choose another workdir"
        )


def note_changed_settings(manifest: Mapping[str, Any]) -> list[str]:
    """Formats notes for an evaluation with other settings than its run has; see `changed_settings`."""
    return [
        f"note: {name.upper()}: JAX's setting is {now!r}, and was {before!r} in the run: the numbers may differ"
        for name, before, now in changed_settings(manifest)
    ]


def changed_settings(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, value in the manifest, value in this process) of the settings of `DECIDING` that differ."""
    recorded = _mapping(_mapping(manifest, "environment"), "settings")
    for name, now in deciding_settings().items():
        if name in recorded and recorded[name] != now:
            yield name, recorded[name], now


def format_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Formats what has changed between two starts and may change the last bits of the numbers: one line, or none.

    Args:
      before: content of manifest.json after the earlier start; what a version did not record is not compared.
      now: the same, of this start.
    """
    old, new = dict(_rounding(before)), dict(_rounding(now))
    changes = [f"{name} {old[name]} -> {new[name]}" for name in new if name in old and old[name] != new[name]]
    if not changes:
        return []
    return [f"note: the last bits of the numbers may change from here on, because of {'; '.join(changes)}"]


def rows(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {name: value} of an environment, for a table; {} where a version did not record it."""
    found = _mapping(manifest, "environment")
    flat = {**_mapping(found, "settings"), **dict.fromkeys(_VARIABLES if "variables" in found else (), "")}
    flat |= _mapping(found, "variables")
    return flat | {
        f"{part} {name}": value for part in ("device", "cpu") for name, value in _mapping(found, part).items()
    }


def _rounding(manifest: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields (name, value as text) of what may change the last bits."""
    for name, version in _mapping(manifest, "versions").items():
        yield name, version or "(not installed)"
    if revision := _mapping(manifest, "git").get("revision"):
        yield "revision", str(revision)[:10]
    for name, value in rows(manifest).items():
        if name in _VARIABLES:
            kept = [flag for flag in str(value).split() if not flag.startswith(_HARMLESS_FLAGS)]
            yield name, repr(_cut(" ".join(kept)))
        elif name not in DECIDING and name not in _CHECKING:
            yield name, _cut(repr(value))


def _settings() -> dict[str, Any]:
    import jax

    # A later version of JAX may lack one.
    names = [name for name in sorted((*DECIDING, *_ROUNDING, *_CHECKING)) if hasattr(jax.config, name)]
    values = {name: getattr(jax.config, name) for name in names}
    return {
        name: value if isinstance(value, bool | int | float | str | None) else str(value)
        for name, value in values.items()
    }


def _remedy(variable: str, value: Any) -> str:
    if value is None:
        return f"unset {variable}"
    return f"set {variable}={int(value) if isinstance(value, bool) else value}"


def processor_lines(file: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What the system says of the first processor, line by line; [] where that is not known."""
    try:
        return file.read_text(encoding="ascii", errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return []


def _cpu_features(lines: Sequence[str]) -> list[str]:
    """The features of a processor that decide which code a compiler chooses; [] where they are not known."""
    named = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    return sorted(name for name in named.partition(":")[2].split() if name.startswith(_FEATURES))


def _cut(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:80]} … {text[-76:]}"


def _mapping(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a file that may have any form; {} where it is not a mapping."""
    value = content.get(name)
    return value if isinstance(value, Mapping) else {}
