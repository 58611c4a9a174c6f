"""The training step and the forward pass of the benchmark in PyTorch: same bytes, loss, update and batch-norm mode.

Imports no JAX.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from typing import Any

import torch
import torch.nn.functional as F

from inception_jax.benchmarks import synthetic_batches, torch_models
from inception_jax.benchmarks.worker import Unavailable


@dataclasses.dataclass(frozen=True)
class TorchVariant:
    """Memory layout and execution mode of PyTorch.

    Attributes:
      channels_last: whether the memory layout is NHWC, in place of NCHW.
      compile_mode: mode of `torch.compile`, or None for eager execution.
    """

    channels_last: bool
    compile_mode: str | None = None


class TorchTrainer:
    """A PyTorch network, its optimizer and its batches, all on the device.

    Attributes:
      workload: from `versus.make_workload`.
      variant: how PyTorch runs.
      device: the `torch.device`.
      fingerprint: SHA-256 of the batches.
      parameters: number of parameters.
      macs: multiply-adds per image, forward in training.
    """

    def __init__(self, workload: dict[str, Any], variant: TorchVariant, cores: int):
        """Builds network, optimizer and batches; no step has run yet.

        Args:
          workload: from `versus.make_workload`.
          variant: how PyTorch runs.
          cores: threads of the CPU's kernels, if the workload gives no number.

        Raises:
          Unavailable: the workload is for a GPU and PyTorch sees none.
        """
        self.workload, self.variant = workload, variant
        self.device = _device(workload["backend"])
        torch.set_num_threads(workload["threads"] or cores)
        torch.manual_seed(workload["seed"])
        if self.device.type == "cuda":
            # XLA multiplies float32 matrices in TF32 by default where the GPU can; PyTorch only convolves in it.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        self._format = torch.channels_last if variant.channels_last else torch.contiguous_format
        host = [
            synthetic_batches.make_batch(
                workload["seed"], number, workload["batch_size"], workload["image_size"], workload["num_classes"]
            )
            for number in range(workload["batches"])
        ]
        self.fingerprint = synthetic_batches.fingerprint(host)
        self._batches = [self._put(batch) for batch in host]
        model = torch_models.build(workload["model"], workload["num_classes"], workload["options"])
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.macs = torch_models.count_macs(model, workload["image_size"])
        self._model = model.to(self.device, memory_format=self._format)
        # The fused update is PyTorch's fastest on CPU and GPU.
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), workload["learning_rate"], workload["momentum"], fused=True
        )
        self._loss, self._logits = self._compute_loss, self._compute_logits
        if variant.compile_mode is not None:
            self._loss, self._logits = (
                torch.compile(function, mode=variant.compile_mode, dynamic=False)
                for function in (self._compute_loss, self._compute_logits)
            )
        self._steps_taken = {kind: 0 for kind in workload["kinds"]}

    def flags(self) -> dict[str, Any]:
        """The settings of PyTorch that can change its speed."""
        cuda = self.device.type == "cuda"
        return {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "channels_last": self.variant.channels_last,
            "compile": self.variant.compile_mode,
            "amp": self.workload["dtype"] if self._autocasts() else None,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32 if cuda else None,
            "cudnn_benchmark": torch.backends.cudnn.benchmark if cuda else None,
            "optimizer": "torch.optim.SGD(fused=True), zero_grad(set_to_none=True)",
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "onednn": torch.backends.mkldnn.is_available(),
        }

    def memory_bytes(self) -> int | None:
        """Peak bytes of GPU memory that PyTorch has allocated so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes steps, using the batches in turn, and waits for the device once, at the end.

        Args:
          kind: "train" or "inference".
          steps: number of steps, at least 1.

        Returns:
          "seconds" of the block, "cpu_seconds" of all threads; "losses" of a training block; "finite", whether all
          losses, or the last logits, are finite numbers.
        """
        training = kind == "train"
        self._model.train(training)
        step, results = self._train_step if training else self._inference_step, []
        self._wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = self._batches[self._steps_taken[kind] % len(self._batches)]
            self._steps_taken[kind] += 1
            results.append(step(*batch))
            del results[: 0 if training else -1]  # all losses, the last logits
        self._wait()
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
        answer = {"seconds": seconds, "cpu_seconds": cpu_seconds}
        if not training:
            return answer | {"finite": bool(torch.isfinite(results[-1]).all())}
        losses = torch.stack(results).tolist()
        return answer | {"losses": losses, "finite": all(map(math.isfinite, losses))}

    def _train_step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.variant.compile_mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(images, labels)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach().clone()  # a replayed CUDA graph overwrites this loss with the next one

    def _inference_step(self, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if self.variant.compile_mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode():
            return self._logits(images)

    def _compute_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of the batch: the classifier's plus the weighted losses of the auxiliary heads."""
        with self._autocast():
            outputs = torch_models.head_logits(self._model(self._normalize(images)))
            weights = [1.0, *self.workload["aux_weights"]]
            return sum(
                weight * F.cross_entropy(logits, labels, label_smoothing=self.workload["label_smoothing"])
                for weight, logits in zip(weights, outputs, strict=True)
            )

    def _compute_logits(self, images: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return torch_models.head_logits(self._model(self._normalize(images)))[0]

    def _normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 to [-1, 1]: x / 127.5 - 1, in the order of operations of `training.preprocess`."""
        return (images.float() - 127.5) * (1 / 127.5)

    def _put(self, batch: synthetic_batches.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Puts a batch on the device: uint8 [B, 3, H, W] in the variant's memory layout, and int64 [B]."""
        images = torch.from_numpy(batch["image"]).to(self.device).permute(0, 3, 1, 2)
        labels = torch.from_numpy(batch["label"]).to(self.device, torch.int64)
        return images.contiguous(memory_format=self._format), labels

    def _autocasts(self) -> bool:
        return self.workload["dtype"] != "float32"

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._autocasts():
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, getattr(torch, self.workload["dtype"]))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _device(backend: str) -> torch.device:
    """The device of a backend; raises Unavailable if PyTorch sees no GPU."""
    if backend == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no GPU; install a build of it for this GPU's driver")
    return torch.device("cuda")
