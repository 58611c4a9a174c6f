"""Finds accelerators and CPU cores, divides them into slots, one per worker, and locks the slots of a driver."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from inception_jax.errors import UserError
from inception_jax.runs.manifest import make_folder
from inception_jax.sweeps.lease import try_file_lock

FOLDER = "hosts"


@dataclasses.dataclass(frozen=True)
class Slot:
    """The device or the CPU cores on which one trial at a time runs.

    Attributes:
      name: in tables and logs, such as "gpu 0" or "cores 0-1".
      environment: environment variables that restrict the training process to the device.
      cores: the CPU cores that the process may use; None: all.
    """

    name: str
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class MachineResources:
    """Accelerators and CPU cores of this machine.

    Attributes:
      kind: "gpu", "tpu" or "cpu".
      devices: ids of the accelerators.
      cores: ids of the cores that this process may use.
    """

    kind: str
    devices: tuple[str, ...]
    cores: tuple[int, ...]


def detect(environment: Mapping[str, str] = os.environ) -> MachineResources:
    """Finds the accelerators without JAX, which would reserve them for this process.

    Args:
      environment: its JAX_PLATFORMS, CUDA_VISIBLE_DEVICES and TPU_VISIBLE_CHIPS are respected.
    """
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    platforms = environment.get("JAX_PLATFORMS", "")
    if platforms == "" or re.search("cuda|gpu", platforms):
        devices = _visible_devices(environment.get("CUDA_VISIBLE_DEVICES"), _gpus)
        if devices:
            return MachineResources("gpu", devices, cores)
    if platforms == "" or "tpu" in platforms:
        devices = _visible_devices(environment.get("TPU_VISIBLE_CHIPS"), _tpus)
        if devices:
            return MachineResources("tpu", devices, cores)
    return MachineResources("cpu", (), cores)


def make_slots(machine: MachineResources, workers: int | None, devices: Sequence[str] | None) -> tuple[list[Slot], int]:
    """Divides a machine into slots.

    Args:
      machine: as `detect` gives it.
      workers: trials that this driver runs at once; None: one per accelerator, or one without accelerators.
      devices: ids of the accelerators that it may use; None: all.

    Returns:
      The slots, and the number of them that this driver needs.

    Raises:
      UserError: a device that the machine does not have, or fewer than one worker.
    """
    if devices is not None:
        if machine.kind == "cpu":
            raise UserError(f"--devices={','.join(devices)}: no accelerator was found on this machine")
        if unknown := [device for device in devices if device not in machine.devices]:
            raise UserError(f"--devices: there is no device {unknown[0]!r}; devices: {', '.join(machine.devices)}")
        if len(set(devices)) < len(devices):
            raise UserError(f"--devices={','.join(devices)}: a device is named twice")
    if workers is not None and workers < 1:
        raise UserError(f"--workers={workers}: it must be 1 or more")
    ids = tuple(devices or machine.devices)
    wanted = workers or max(1, len(ids))
    if machine.kind == "cpu":
        return _cpu_slots(machine.cores, wanted), wanted
    per_device = -(-wanted // len(ids))
    return [
        _device_slot(machine.kind, device, turn, per_device) for turn in range(per_device) for device in ids
    ], wanted


def _cpu_slots(cores: Sequence[int], workers: int) -> list[Slot]:
    """Blocks of adjacent cores, one per worker; where there are fewer cores than workers, all share all cores."""
    if workers == 1 or len(cores) < workers:
        return [Slot(f"cpu {index}" if workers > 1 else "cpu") for index in range(workers)]
    edges = [round(index * len(cores) / workers) for index in range(workers + 1)]
    blocks = [tuple(cores[low:high]) for low, high in itertools.pairwise(edges)]
    return [
        Slot(f"core {block[0]}" if len(block) == 1 else f"cores {block[0]}-{block[-1]}", {}, block) for block in blocks
    ]


def _device_slot(kind: str, device: str, turn: int, per_device: int) -> Slot:
    name = f"{kind} {device}" + (f" ({turn + 1} of {per_device})" if per_device > 1 else "")
    if kind == "gpu":
        environment = {"CUDA_VISIBLE_DEVICES": device}
        if per_device > 1:  # by default, each process would reserve three quarters of the memory
            environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / per_device:.3f}"
        return Slot(name, environment)
    if per_device > 1:
        raise UserError("a TPU chip serves one process: give at most as many --workers as chips")
    return Slot(
        name, {"TPU_VISIBLE_CHIPS": device, "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
    )


def claim_slots(
    study: Path, slots: Sequence[Slot], wanted: int, stack: contextlib.ExitStack, log: Callable[[str], None]
) -> list[Slot]:
    """Claims slots, by file locks; free slots first, then slots shared with other drivers of the study.

    Args:
      study: the study's directory.
      slots: all slots of this machine.
      wanted: number of slots to claim.
      stack: releases the locks when it closes; the kernel releases them when this process ends.
      log: gets a line where slots are shared.

    Returns:
      `wanted` slots.

    Raises:
      UserError: a lock file cannot be created.
    """
    folder = study / FOLDER / re.sub(r"[^\w.-]", "_", socket.gethostname())
    make_folder(folder)
    claimed: list[Slot] = []
    for slot in slots:
        if len(claimed) < wanted:
            attempt = try_file_lock(folder / f"{re.sub(r'[^0-9A-Za-z]+', '-', slot.name).strip('-')}.lock")
            if stack.enter_context(attempt):
                claimed.append(slot)
    if missing := wanted - len(claimed):
        shared = [slot for slot in slots if slot not in claimed][:missing]
        log(
            f"another driver of this study also uses {', '.join(slot.name for slot in shared)} of this machine: "
            "the trials of both share it"
        )
        claimed += shared
    return claimed


def _visible_devices(limit: str | None, find: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
    """The devices in a comma-separated variable; all devices where it is not set."""
    if limit is None:
        return find()
    return tuple(part.strip() for part in limit.split(",") if part.strip() not in ("", "-1"))


def _gpus() -> tuple[str, ...]:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(re.findall(r"^GPU (\d+):", done.stdout, flags=re.MULTILINE)) if done.returncode == 0 else ()


def _tpus() -> tuple[str, ...]:
    for folder, pattern in (("/dev", r"accel(\d+)"), ("/dev/vfio", r"(\d+)")):
        with contextlib.suppress(OSError):
            found = [match[1] for name in os.listdir(folder) if (match := re.fullmatch(pattern, name))]
            if found:
                return tuple(sorted(found, key=int))
    return ()
