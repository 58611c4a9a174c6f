"""The JAX side of a comparison, as a worker process: `versus.jax_side` gives the command that starts it."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from inception_jax.benchmarks import worker

_ENVIRONMENT = ("XLA_FLAGS", "ONEDNN_MAX_CPU_ISA", "CXX")  # of what computes our step


class JaxSide:
    """Runs blocks of the training step and of the forward pass that `benchmark` times; a `worker.SideProtocol`."""

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Builds the setup and compiles its steps.

        Args:
          workload: from `versus.make_workload`.

        Returns:
          "versions", "device", "flags", "parameters" (their number), "macs" (multiply-adds per image, forward in
          training), "pictures" (SHA-256 of the batches), "prepare_seconds", and "memory_bytes" (peak so far), None on a
          CPU.
        """
        import jax

        from inception_jax.benchmarks import steps
        from inception_jax.benchmarks import workload as workloads
        from inception_jax.runs import manifest
        from inception_jax.training import parallel

        parallel.enable_compilation_cache()
        start = time.perf_counter()
        setup = workloads.build_setup(workloads.config_of_workload(workload))
        self._bench = steps.Bench(
            setup, batches=workload["batches"], seed=workload["seed"], trains="train" in workload["kinds"]
        )
        for kind in workload["kinds"]:
            self._bench.compile(kind)
        device = setup.devices.first_device
        stats = device.memory_stats() or {}
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]  # JAX makes it at run time
        return {
            "versions": {name: manifest.versions()[name] for name in ("python", "jax", "jaxlib", "flax")},
            "device": device.device_kind,
            "flags": {
                "mode": setup.devices.mode,
                "devices": setup.devices.count,
                "steps_per_execution": setup.steps_per_execution,
                "dtype": workload["dtype"],
                "threads": len(os.sched_getaffinity(0)),
                "options": workload["options"],
                "matmul_precision": precision or "default",
                "environment": {name: os.environ[name] for name in _ENVIRONMENT if os.environ.get(name)},
            },
            "parameters": self._bench.num_parameters,
            "macs": self._bench.cost.macs_with_aux,
            "pictures": self._bench.fingerprint,
            "prepare_seconds": time.perf_counter() - start,
            "memory_bytes": stats.get("peak_bytes_in_use"),
        }

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` steps.

        Returns:
          "seconds" and "cpu_seconds" of the whole block; "losses" of its steps ("train"), or "finite", whether the last
          logits are finite ("inference").
        """
        from inception_jax.training.compilation import no_compilation

        with no_compilation():
            start, cpu = time.perf_counter(), time.process_time()
            output = self._bench.run(kind, steps)
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        answer: dict[str, Any] = {"seconds": seconds, "cpu_seconds": cpu}
        if kind == "train":
            return answer | {"losses": self._bench.pop_losses()}
        return answer | {"finite": bool(np.isfinite(np.asarray(output[1]["logits"])).all())}


if __name__ == "__main__":
    worker.serve(JaxSide())
