"""The ONNX Runtime side of a comparison, as a worker process: our own network, exported, in inference on a CPU."""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.benchmarks import synthetic_batches, worker
from inception_jax.benchmarks.worker import Unavailable


class OnnxSide:
    """Runs blocks of forward passes in ONNX Runtime; a `worker.SideProtocol`."""

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Exports our network with its initial parameters, batch norm folded into the convolutions, and loads it.

        Args:
          workload: from `versus.make_workload`.

        Returns:
          "versions", "device", "flags", "parameters" (their number, before folding), "macs" (multiply-adds per image,
          forward in training), "pictures" (SHA-256 of the batches) and "prepare_seconds" (imports included).

        Raises:
          Unavailable: a package is missing, or the workload is not one of a CPU in float32.
        """
        began = time.perf_counter()
        if workload["backend"] != "cpu" or workload["dtype"] != "float32":
            raise Unavailable("ONNX Runtime is compared on a CPU in float32 only")
        try:
            import onnxruntime
        except ImportError as error:
            raise Unavailable(f"cannot import onnxruntime ({error}); pip install onnx onnxruntime") from error
        parameters, macs, model = _export(workload)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads = len(os.sched_getaffinity(0))
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        host = [
            synthetic_batches.make_batch(
                workload["seed"], number, workload["batch_size"], workload["image_size"], workload["num_classes"]
            )
            for number in range(workload["batches"])
        ]
        self._images, self._steps = [batch["image"] for batch in host], 0
        return {
            "versions": {name: importlib.metadata.version(name) for name in ("onnx", "onnxruntime")},
            "device": "cpu",
            "flags": {"threads": threads, "layout": "NCHW inside", "batch norm": "folded"},
            "parameters": parameters,
            "macs": macs,
            "pictures": synthetic_batches.fingerprint(host),
            "prepare_seconds": time.perf_counter() - began,
        }

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes `steps` forward passes, the normalization of the uint8 images included.

        Returns:
          "seconds" and "cpu_seconds" of the whole block; "finite", whether the last logits are finite.
        """
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            images = self._images[self._steps % len(self._images)]
            self._steps += 1
            (logits,) = self._session.run(["logits"], {"images": _normalize(images)})
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return {"seconds": seconds, "cpu_seconds": cpu, "finite": bool(np.isfinite(logits).all())}


def _normalize(images: np.ndarray) -> np.ndarray:
    """uint8 to [-1, 1], as `training.preprocess` does it."""
    normalized = images.astype(np.float32)
    normalized -= np.float32(127.5)
    normalized *= np.float32(1 / 127.5)
    return normalized


def _export(workload: dict[str, Any]) -> tuple[int, int, bytes]:
    """The number of parameters, the multiply-adds and the ONNX file of the network that a workload describes."""
    import jax

    from inception_jax.benchmarks import workload as workloads
    from inception_jax.exports.onnx_file import export_onnx
    from inception_jax.models.cost import count_cost
    from inception_jax.models.initialization import init_variables

    jax.config.update("jax_platforms", "cpu")
    setup = workloads.build_setup(workloads.config_of_workload(workload | {"devices": 1}))
    size, cost = workload["image_size"], count_cost(setup.model, workload["image_size"])
    variables = init_variables(setup.model, jax.random.key(workload["seed"]), size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(setup.model, variables, size, path, batch=workload["batch_size"], fold_batch_norm=True)
        return cost.parameters_with_aux, cost.macs_with_aux, path.read_bytes()


if __name__ == "__main__":
    worker.serve(OnnxSide())
