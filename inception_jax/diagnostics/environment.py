"""Checks of the installation and the machine: versions, devices, memory and cores, processes, optional packages."""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import importlib.util
import os
import platform
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path

from inception_jax import command_line
from inception_jax.diagnostics.findings import Finding, fail, ok, warn

_ROOT = Path(__file__).resolve().parents[2]  # of a clone; an installed package has none of the files below it
_INSTALL = "pip install -c .ci/constraints.txt -e . (in a clone) installs the versions that were tested together"
_NUMERIC = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")
_EXTRAS = {
    "gpu": (("jax_cuda12_plugin",), "NVIDIA GPUs"),
    "tpu": (("libtpu",), "TPUs"),
    "sweep": (("optuna", "sklearn"), "sweep"),
    "convert": (("h5py",), "Keras's weights"),
    "tf": (("tensorflow",), "TFDS's own builders"),
    "onnx": (("onnx",), "export --to=onnx"),
    "onednn": (("onednn-devel-cpu-gomp",), "faster on CPUs: model.convolution=onednn_winograd"),
    "tensorboard": (("tensorboard",), "shows a run's events"),
}
"""{extra: (modules, or distributions that have none, what it is for)}."""


def check_versions() -> Finding:
    """Compares versions with the least ones that this package needs, and with those that were tested together."""
    from packaging.requirements import Requirement
    from packaging.version import Version

    wrong = []
    for requirement in map(Requirement, _requirements()):
        installed = _version(requirement.name)
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(f"{requirement} (installed: {installed or 'none'})")
    known = {name: _version(name) for name in _NUMERIC}
    text = f"Python {platform.python_version()}, " + ", ".join(f"{name} {version}" for name, version in known.items())
    if wrong:
        return fail("versions", f"needed: {', '.join(wrong)}", _INSTALL)
    if known["jax"] and known["jaxlib"] and Version(known["jaxlib"]) > Version(known["jax"]):
        return fail("versions", f"jaxlib {known['jaxlib']} is newer than jax {known['jax']}", _INSTALL)
    tested = _tested_versions()
    others = [
        f"{name} {known[name]} (tested: {tested[name]})"
        for name in known
        if tested.get(name, known[name]) != known[name]
    ]
    if others:
        return warn("versions", f"not the tested ones: {', '.join(others)}", _INSTALL)
    return ok("versions", text)


def _requirements() -> list[str]:
    """The package's dependencies: of the clone's pyproject.toml, otherwise of the installed distribution."""
    file = _ROOT / "pyproject.toml"
    if file.is_file() and (_ROOT / "inception_jax").is_dir():
        return tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    return [line for line in importlib.metadata.requires("inception_jax") or () if "extra ==" not in line]


def _tested_versions() -> dict[str, str]:
    """{package: version} of the clone's constraints; {} where there is no clone."""
    file = _ROOT / ".ci" / "constraints.txt"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_devices(environment: Mapping[str, str] = os.environ) -> Finding:
    """Compares the devices that JAX computes on with the accelerators of the machine.

    Args:
      environment: its JAX_PLATFORMS is read.
    """
    import jax

    from inception_jax.benchmarks.memory import format_bytes, memory_limit

    if problem := command_line.device_problem():
        return fail("devices", problem, "leave JAX_PLATFORMS unset, or install the extra for the device: gpu or tpu")
    devices = jax.local_devices()
    first = devices[0]
    limit = memory_limit(first)
    memory = (
        "" if not limit else f", {format_bytes(limit)} " + ("available to all" if first.platform == "cpu" else "each")
    )
    text = f"{len(devices)} {first.platform} device{'s' * (len(devices) > 1)} ({first.device_kind}){memory}"
    kind, count = _accelerators()
    if first.platform != "cpu" or not kind:
        return ok("devices", text)
    text += f"; this machine has {count} {kind}{'s' * (count > 1)} that JAX does not use"
    if chosen := environment.get("JAX_PLATFORMS"):
        return warn("devices", text, f"unset JAX_PLATFORMS, which is {chosen!r}, or train on the CPU")
    extra = "gpu" if kind == "GPU" else "tpu"
    if all(map(importlib.util.find_spec, _EXTRAS[extra][0])):
        look = (
            "whether `nvidia-smi` works, and whether its driver is new enough" if extra == "gpu" else "the log of JAX"
        )
        return warn("devices", text, f"JAX's plugin is installed, but finds none: look {look}")
    return warn("devices", text, f"pip install 'inception_jax[{extra}]'")


def _accelerators() -> tuple[str, int]:
    """(kind, number) of the accelerators that the operating system shows; ("", 0): none."""
    from inception_jax.sweeps import resources

    machine = resources.detect({})
    kind, count = {"gpu": "GPU", "tpu": "TPU"}.get(machine.kind, ""), len(machine.devices)
    if not kind and (nodes := [path for path in glob.glob("/dev/nvidia*") if re.fullmatch(r"/dev/nvidia\d+", path)]):
        kind, count = "GPU", len(nodes)
    return kind, count


def check_host() -> Finding:
    """Looks at cores, memory and shared memory; the latter are compared with a run's needs by other checks."""
    from inception_jax.benchmarks.memory import format_bytes

    cores = len(os.sched_getaffinity(0))
    text = f"{cores} core{'s' * (cores > 1)}"
    available = available_memory()
    text += f", {format_bytes(available)} of memory available" if available else ""
    try:
        stat = os.statvfs("/dev/shm")
        text += f", {format_bytes(stat.f_bavail * stat.f_frsize)} free in /dev/shm"
    except OSError:
        text += ", no /dev/shm"
    if available is not None and available < 1 << 30:
        return warn(
            "host", text, "end other programs, or give the container more memory: JAX and the data need about 1 GiB"
        )
    return ok("host", text)


def available_memory() -> int | None:
    """Bytes of memory that a process may still take: of the machine, and of its control group; None: not known."""
    from inception_jax.benchmarks.memory import available_host_memory

    found = [available_host_memory()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        values = [_read_number(Path("/sys/fs/cgroup") / name) for name in (limit, used)]
        if values[0] is not None and values[1] is not None:
            found.append(max(0, values[0] - values[1]))
    return min((value for value in found if value is not None), default=None)


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # "max": no limit
        return None


def check_processes(flags: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Finding:
    """Looks at how several processes would find each other.

    Args:
      flags: with those of `command_line.add_processes`.
      environment: of this process.

    Raises:
      UserError: flags that `train` refuses.
    """
    from inception_jax.multihost import processes

    launch = processes.find_launch(flags, environment)
    if launch is None:
        return ok("processes", "one process")
    address, process_id = processes.read_coordinator(launch)
    if not address:
        return ok("processes", f"several, found by {launch.found_by}; each is checked as if it were alone")
    count = f" of {launch.num_processes}" if launch.num_processes else ""
    text = f"process {process_id}{count}, found by {launch.found_by}"
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        size = environment.get(name, "")
        if launch.found_by == "flags" and size.isdigit() and int(size) not in (1, launch.num_processes):
            remedy = "leave the flags out under a launcher, or start as many processes as they say"
            return warn("processes", f"{text}, but {name}={size}", remedy)
    return _check_coordinator(text, address, process_id == 0)


def _check_coordinator(text: str, address: str, first: bool) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, ValueError, OverflowError) as error:
        return fail("processes", f"{text}: {address} is no address: {error}", "give HOST:PORT of process 0")
    if first:  # it listens there
        family, kind, protocol, _, place = found[0]
        try:
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(place)
        except OSError as error:
            remedy = "choose a free port of this machine; is process 0 of an earlier run still there?"
            return fail("processes", f"{text}: cannot listen on {address}: {error.strerror or error}", remedy)
    return ok("processes", f"{text}, coordinator {address}; each is checked as if it were alone")


def check_extras() -> Finding:
    """Lists the optional packages."""
    installed = [
        extra
        for extra, (names, _) in _EXTRAS.items()
        if all(importlib.util.find_spec(name) or _version(name) for name in names)
    ]
    missing = [f"{extra} ({purpose})" for extra, (_, purpose) in _EXTRAS.items() if extra not in installed]
    return ok(
        "extras",
        f"installed: {', '.join(installed) or 'none'}"
        + (f"; not installed: {', '.join(missing)}: pip install 'inception_jax[NAME]'" if missing else ""),
    )
