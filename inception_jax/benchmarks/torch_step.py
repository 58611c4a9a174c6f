"""The training step and inference of our benchmark, in PyTorch: the same bytes, loss, update and batch-norm mode."""

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
    """A way to run PyTorch: whether maps lie channels last, and the mode of `torch.compile`, or None."""

    channels_last: bool
    compile_mode: str | None = None


class TorchTrainer:
    """A network in PyTorch, its optimizer and its batches, all on the device."""

    def __init__(self, workload: dict[str, Any], variant: TorchVariant, cores: int):
        """Builds everything; nothing has run yet.

        Args:
          workload: see `versus.make_workload`.
          variant: how PyTorch runs.
          cores: threads of the CPU's kernels, where the workload names no number.

        Raises:
          Unavailable: the workload is for a GPU and PyTorch has none.
        """
        self.workload, self.variant = workload, variant
        self.device = _device(workload["backend"])
        torch.set_num_threads(workload["threads"] or cores)
        torch.manual_seed(workload["seed"])
        if self.device.type == "cuda":
            # XLA multiplies float32 in TF32 by default where the GPU can; PyTorch only convolves so.
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
        self.pictures = synthetic_batches.fingerprint(host)
        self._batches = [self._put(batch) for batch in host]
        model = torch_models.build(workload["model"], workload["num_classes"], workload["options"])
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.macs = torch_models.count_macs(model, workload["image_size"])
        self._model = model.to(self.device, memory_format=self._format)
        # The fused update is PyTorch's fastest on both kinds of device.
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), workload["learning_rate"], workload["momentum"], fused=True
        )
        self._loss, self._logits = self._losses, self._evaluate
        if variant.compile_mode is not None:
            self._loss, self._logits = (
                torch.compile(function, mode=variant.compile_mode, dynamic=False)
                for function in (self._losses, self._evaluate)
            )
        self._taken = {kind: 0 for kind in workload["kinds"]}

    def flags(self) -> dict[str, Any]:
        """Everything about PyTorch that can change its time."""
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
        """The most bytes of the GPU's memory that PyTorch's arrays have taken so far; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Takes steps, one batch after the other, and waits for the device once, at the end.

        Args:
          kind: "train" or "inference".
          steps: at least 1.

        Returns:
          "seconds" of the block, "cpu_seconds" of all its threads; "losses" of a training block; "finite", whether all
          losses, or the last logits, are finite numbers.
        """
        training = kind == "train"
        self._model.train(training)
        step, results = self._train_step if training else self._inference_step, []
        self._wait()
        began, cpu_began = time.perf_counter(), time.process_time()
        for _ in range(steps):
            batch = self._batches[self._taken[kind] % len(self._batches)]
            self._taken[kind] += 1
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
        return loss.detach().clone()  # a replayed CUDA graph writes the next loss where this one lies

    def _inference_step(self, images: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        if self.variant.compile_mode is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode():
            return self._logits(images)

    def _losses(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The batch's mean loss: the classifier's and the weighted ones of the auxiliary heads."""
        with self._autocast():
            outputs = torch_models.heads(self._model(self._normalised(images)))
            weights = [1.0, *self.workload["aux_weights"]]
            return sum(
                weight * F.cross_entropy(logits, labels, label_smoothing=self.workload["label_smoothing"])
                for weight, logits in zip(weights, outputs, strict=True)
            )

    def _evaluate(self, images: torch.Tensor) -> torch.Tensor:
        with self._autocast():
            return torch_models.heads(self._model(self._normalised(images)))[0]

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 to [-1, 1]: x / 127.5 - 1, in the order of our own preprocessing."""
        return (images.float() - 127.5) * (1 / 127.5)

    def _put(self, batch: synthetic_batches.Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch on the device: uint8 [B, 3, H, W] as the network wants it to lie, and int64 [B]."""
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
    if backend == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no GPU; install a build of it for this GPU's driver")
    return torch.device("cuda")
