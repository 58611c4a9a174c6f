"""The PyTorch side of a comparison, as a worker process: `--variant=eager|channels_last|compile|compile_max_autotune`.

`versus.torch_sides` gives the command that starts it, in any interpreter that has PyTorch. Beside PyTorch and the
package of the network (torchvision or timm) it needs NumPy, and of this package only files that import no JAX.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import time
from typing import Any

from inception_jax.benchmarks import equivalents, worker
from inception_jax.benchmarks.worker import Unavailable

# Memory layout of feature maps: PyTorch's default (NCHW) or channels last (NHWC); compiled variants use the latter.
VARIANTS: dict[str, dict[str, Any]] = {
    "eager": {"channels_last": False},
    "channels_last": {"channels_last": True},
    "compile": {"channels_last": True, "compile_mode": "default"},
    "compile_max_autotune": {"channels_last": True, "compile_mode": "max-autotune"},
}

# Prefixes of environment variables that configure kernels and threads.
_ENVIRONMENT = ("CUBLAS", "CUDNN", "DNNL_", "GOMP_", "KMP_", "MKL_", "NVIDIA_TF32", "OMP_", "ONEDNN_", "TORCH")


class TorchSide:
    """Runs blocks of steps in one variant of PyTorch; a `worker.SideProtocol`."""

    def __init__(self, variant: str):
        """Imports nothing yet.

        Args:
          variant: one of `VARIANTS`.
        """
        self._variant = variant
        self._trainer: Any = None
        self._environment = _environment()  # read before PyTorch adds variables of its own

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds the network and takes one step of each kind, so that all is allocated, tuned and compiled.

        Args:
          workload: from `versus.make_workload`.

        Returns:
          "versions", "device", "flags", "parameters" (their number), "macs" (multiply-adds per image, forward in
          training), "pictures" (SHA-256 of the batches), "prepare_seconds" (imports included), "losses" (of the
          training step, if there was one), and on a GPU "memory_bytes" (peak so far).

        Raises:
          Unavailable: a package is missing or broken, or the device is missing.
        """
        began = time.perf_counter()
        if self._variant == "compile_max_autotune" and workload["backend"] == "cpu":
            raise Unavailable("max-autotune is for GPUs; on a CPU: eager, channels_last, compile")
        packages = equivalents.get_equivalent(workload["model"]).packages
        needed = " ".join(("torch", *packages, "numpy"))
        versions = {
            name: worker.import_version(name, needed, "--torch_python") for name in ("torch", *packages, "numpy")
        }
        # Imports PyTorch: only now, after a missing one would have been reported.
        from inception_jax.benchmarks.torch_step import TorchTrainer, TorchVariant

        cores = len(os.sched_getaffinity(0))
        self._trainer = trainer = TorchTrainer(workload, TorchVariant(**VARIANTS[self._variant]), cores)
        losses = [loss for kind in workload["kinds"] for loss in trainer.block(kind, 1).get("losses", [])]
        answer = {
            "versions": {"python": platform.python_version(), **versions},
            "device": _device_name(trainer.device),
            "flags": {"cores": cores, **trainer.flags(), "environment": self._environment},
            "parameters": trainer.parameters,
            "macs": trainer.macs,
            "pictures": trainer.fingerprint,
            "prepare_seconds": time.perf_counter() - began,
            "losses": losses,
        }
        memory = trainer.memory_bytes()
        return answer if memory is None else answer | {"memory_bytes": memory}

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` steps; see `torch_step.TorchTrainer.block`."""
        return self._trainer.block(kind, steps)


def _environment() -> dict[str, str]:
    """The environment variables that configure kernels and threads, without those that are paths."""
    variables = sorted(os.environ.items())
    return {name: value for name, value in variables if name.startswith(_ENVIRONMENT) and "/" not in value}


def _device_name(device: Any) -> str:
    """The name of a `torch.device`: of the GPU, or of the processor."""
    if device.type == "cuda":
        return importlib.import_module("torch").cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    """Serves the variant that the command line names, until the parent closes the pipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    worker.serve(TorchSide(parser.parse_args().variant))


if __name__ == "__main__":
    main()
