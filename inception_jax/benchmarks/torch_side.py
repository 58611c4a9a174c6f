"""PyTorch's side of a comparison, in whatever interpreter has PyTorch: `--variant=eager|channels_last|compile…`.

`versus.torch_sides` starts it. Beside PyTorch and the package of the network (torchvision or timm) it needs NumPy, and
of this package only files that import no JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from typing import Any

from inception_jax.benchmarks import equivalents, worker
from inception_jax.benchmarks.worker import Unavailable

# Maps lie as PyTorch lays them by default (NCHW), or channels last (NHWC); compiled ones always the latter.
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"channels_last": False},
    "channels_last": {"channels_last": True},
    "compile": {"channels_last": True, "compile_mode": "default"},
    "compile_max_autotune": {"channels_last": True, "compile_mode": "max-autotune"},
}

# Variables by which kernels and threads are told how to work.
_ENVIRONMENT = ("CUBLAS", "CUDNN", "DNNL_", "GOMP_", "KMP_", "MKL_", "NVIDIA_TF32", "OMP_", "ONEDNN_", "TORCH")


class TorchSide:
    """What `worker.serve` serves; one variant of PyTorch."""

    def __init__(self, variant: str):
        self._variant = variant
        self._trainer: Any = None
        self._environment = _environment()  # before PyTorch adds its own

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds the network and takes one step of each kind, so that all is allocated, tuned and compiled.

        Args:
          workload: see `versus.make_workload`.

        Returns:
          "versions", "device", "flags", "parameters" (trained numbers), "macs" (of one picture, forward in training),
          "pictures" (SHA-256), "prepare_seconds" (with the imports), "losses" (of the training step, if there was
          one), and "memory_bytes" (the most so far) on a GPU.

        Raises:
          Unavailable: a package is missing or broken, or there is no such device.
        """
        began = time.perf_counter()
        if self._variant == "compile_max_autotune" and workload["backend"] == "cpu":
            raise Unavailable("max-autotune is for GPUs; on a CPU: eager, channels_last, compile")
        packages = equivalents.get_equivalent(workload["model"]).packages
        versions = {name: _version(name, packages) for name in ("torch", *packages)}
        # After that: it imports PyTorch, and its absence has been told in a line.
        from inception_jax.benchmarks.torch_step import TorchTrainer, TorchVariant

        cores = _cores()
        self._trainer = trainer = TorchTrainer(workload, TorchVariant(**VARIANTS[self._variant]), cores)
        losses = [loss for kind in workload["kinds"] for loss in trainer.block(kind, 1).get("losses", [])]
        answer = {
            "versions": {"python": platform.python_version(), "numpy": _version("numpy", packages), **versions},
            "device": _device_name(trainer.device),
            "flags": {"cores": cores, **trainer.flags(), "environment": self._environment},
            "parameters": trainer.parameters,
            "macs": trainer.macs,
            "pictures": trainer.pictures,
            "prepare_seconds": time.perf_counter() - began,
            "losses": losses,
        }
        memory = trainer.memory_bytes()
        return answer if memory is None else answer | {"memory_bytes": memory}

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """See `torch_step.TorchTrainer.block`."""
        return self._trainer.block(kind, steps)


def _version(name: str, packages: tuple[str, ...]) -> str:
    """The version of a package that can be imported.

    Raises:
      Unavailable: it cannot; a build of torchvision for another PyTorch raises a RuntimeError.
    """
    try:
        return importlib.import_module(name).__version__
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        needed = " ".join(("torch", *packages, "numpy"))
        raise Unavailable(
            f"{sys.executable} cannot import {name} ({reason}); install there, in versions that belong together: "
            f"{needed}; or name an interpreter that has them by --torch_python"
        ) from error


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _environment() -> dict[str, str]:
    """What this process was told by variables; where something lies is no setting."""
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith(_ENVIRONMENT) and "/" not in value}


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        return importlib.import_module("torch").cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Serves the variant that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    worker.serve(TorchSide(parser.parse_args().variant))


if __name__ == "__main__":
    main()
