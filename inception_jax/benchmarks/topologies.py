"""Describes hardware that is not present, so that XLA compiles for it: `--topology=h200`, `h100:8`, `v5e:16x16`.

The compilers are in public wheels and need no device: NVIDIA's in JAX's CUDA plugin (which reads the text of
`gpu_targets.py`), Google's in libtpu (which knows its chips). `jax.experimental.topologies` hands out the devices.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from inception_jax.benchmarks.gpu_targets import GPU_TARGETS
from inception_jax.errors import UserError

GPUS_PER_HOST = 8  # of the DGX and HGX machines with these GPUs
_GIGABYTES = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}  # per chip, cloud.google.com/tpu/docs/<name>
_SMALLEST = {"v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2"}  # that libtpu describes, one host's
_TYPES = {"v4": ("v4", 2), "v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}
"""{chip: (Google's name of an accelerator type, what its number counts per chip)}: v5litepod-4 and v4-8 are 2x2."""
NAMES = (*GPU_TARGETS, *_GIGABYTES)
_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Described hardware.

    Attributes:
      name: as it was given, such as `v5e:16x16`.
      chip: `h200`, `v5e`, …
      sizes: number of chips along each axis of a TPU's torus; of GPUs one number, of all.
      devices: to build a mesh of; they cannot run anything.
      memory_bytes: of one device.
      compiler: name and version of the wheel whose compiler is used.
    """

    name: str
    chip: str
    sizes: tuple[int, ...]
    devices: tuple[Any, ...]
    memory_bytes: int
    compiler: str


def describe(name: str) -> Topology:
    """Describes the hardware of a name; for a TPU it sets variables that libtpu reads, where the environment has none.

    Args:
      name: a GPU (`h200`: one; `h200:16`: as many, eight per host) or a TPU (`v5e`: one chip; `v5e:4x4`: a slice).

    Raises:
      UserError: no such hardware is known, or a wheel is missing; says how to install it.
    """
    chip, separator, text = name.partition(":")
    if chip not in NAMES or (separator and not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,3}){0,2}", text)):
        raise UserError(
            f"--topology={name!r}: must be one of {', '.join(GPU_TARGETS)} with ':' and the number of GPUs, or of "
            f"{', '.join(_GIGABYTES)} with ':' and a shape such as 4x4; without ':' it is one device"
        )
    sizes = tuple(int(size) for size in text.split("x")) if text else (1,)
    return _describe_gpus(name, chip, sizes) if chip in GPU_TARGETS else _describe_tpus(name, chip, sizes)


def _describe_gpus(name: str, chip: str, sizes: tuple[int, ...]) -> Topology:
    if len(sizes) > 1 or (sizes[0] > GPUS_PER_HOST and sizes[0] % GPUS_PER_HOST):
        raise UserError(
            f"--topology={name!r}: give the number of GPUs, up to {GPUS_PER_HOST} or a multiple of it: {chip}:8"
        )
    plugin = next((name for name in _CUDA_PLUGINS if importlib.util.find_spec(name)), None)
    if plugin is None:
        raise UserError(
            f"--topology={name}: the compiler for NVIDIA GPUs is missing (wheel jax-cuda13-plugin, no GPU needed): "
            f"{install_command('cuda13')}"
        )
    hosts = -(-sizes[0] // GPUS_PER_HOST)
    text = GPU_TARGETS[chip].text(cudnn_version(plugin))
    devices = _devices(name, "", "cuda", topology=f"1x{hosts}x{sizes[0] // hosts}", target_config=text)
    return Topology(name, chip, sizes, devices, GPU_TARGETS[chip].memory_bytes, _version(plugin))


def _describe_tpus(name: str, chip: str, sizes: tuple[int, ...]) -> Topology:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name}: the compiler for TPUs is missing (wheel libtpu, no TPU needed): "
            f"{install_command('tpu')}"
        )
    count = math.prod(sizes)
    shape = _SMALLEST[chip] if count == 1 else "x".join(map(str, sizes))
    kind, per_chip = _TYPES[chip]
    number = per_chip * math.prod(int(side) for side in shape.split("x"))
    for variable, value in {
        # Without them libtpu asks Google's machines for a TPU, and waits.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Without it libtpu prints that it does not know the machine.
        "TPU_ACCELERATOR_TYPE": f"{kind}-{number}",
        # libtpu locks the machine's TPUs for a process. None is used here, so two processes may compile at a time.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ.setdefault(variable, value)
    devices = _devices(name, f"{chip}:{shape}", "tpu")[:count]
    return Topology(name, chip, sizes, devices, _GIGABYTES[chip] * 10**9, _version("libtpu"))


def _devices(name: str, described: str, platform: str, **options: Any) -> tuple[Any, ...]:
    try:
        return tuple(topologies.get_topology_desc(described, platform, **options).devices)
    except Exception as error:  # the plugins raise what they like: also RuntimeError, NotImplementedError
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise UserError(f"--topology={name}: the compiler does not take it: {reason}") from None


def install_command(extra: str) -> str:
    """The command that installs JAX's wheels of an extra in the version of JAX that is here."""
    return f"pip install 'jax[{extra}]=={jax.__version__}'"


def cudnn_version(plugin: str) -> tuple[int, int, int]:
    """Version of the cuDNN that is installed beside a CUDA plugin; 9.0.0 if none is.

    Args:
      plugin: its module, `jax_cuda13_plugin` or `jax_cuda12_plugin`.
    """
    try:
        version = importlib.metadata.version(f"nvidia-cudnn-cu{plugin[8:10]}")
    except importlib.metadata.PackageNotFoundError:
        return 9, 0, 0
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    return major, minor, patch


def _version(module: str) -> str:
    package = module.replace("_", "-")
    return f"{package} {importlib.metadata.version(package)}"
