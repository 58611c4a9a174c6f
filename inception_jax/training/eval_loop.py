"""One pass over an evaluation split: every example once, on all devices of all processes."""

from __future__ import annotations

import contextlib
import functools
import io
from typing import Any

import jax
import numpy as np

from inception_jax.data.pipeline import EvalPipeline
from inception_jax.metrics import Accumulator
from inception_jax.multihost import processes
from inception_jax.training.device_prefetch import DevicePrefetcher
from inception_jax.training.parallel import Compiled, Devices
from inception_jax.training.run_length import FaultLimits
from inception_jax.training.train_metrics import CorruptImages


def evaluate(
    eval_step: Compiled,
    devices: Devices,
    data: EvalPipeline,
    variables: Any,
    num_classes: int,
    faults: FaultLimits,
) -> Accumulator:
    """Evaluates a network on a split.

    Args:
      eval_step: compiled for the batches of `data`.
      devices: where it was compiled.
      data: the split; its last batch is padded, and the padding masked.
      variables: "params" and "batch_stats", on the devices.
      num_classes: columns of the confusion matrix.
      faults: how many pictures may be left out because they cannot be decoded, and how long the input may be silent.

    Returns:
      Sums over the whole split and the predictions of all its examples, on every process.

    Raises:
      CorruptImages: more pictures are missing than may be.
      InputStalled: no batch came for too long.
    """
    results = Accumulator(num_classes)
    waiting: tuple[int, dict[str, np.ndarray], Any] | None = None
    batches = DevicePrefetcher(
        data.batches(),
        lambda batch: (batch, devices.put(batch)),
        data.prefetch,
        warn_after=faults.stall_warning_seconds,
        give_up_after=faults.stall_limit_seconds,
    )
    with contextlib.closing(batches):
        for k, (batch, placed) in enumerate(batches):
            outputs = eval_step(variables, placed)
            if waiting is not None:
                _add(results, devices, data, *waiting)
            waiting = k, batch, outputs  # read one late: the devices work on it while the host counts the one before
    if waiting is not None:
        _add(results, devices, data, *waiting)
    missing = data.dataset.num_examples - results.count
    if missing > faults.max_corrupt:
        raise CorruptImages(
            f"{missing} pictures of {data.dataset.name} [{data.dataset.split}] cannot be decoded "
            f"(lines above name them), config.faults.max_corrupt = {faults.max_corrupt}"
        )
    return _of_all_processes(results)


def _add(results: Accumulator, devices: Devices, data: EvalPipeline, k: int, batch: dict, outputs: Any) -> None:
    sums, rows = outputs
    rows = devices.get(rows)
    first = k * data.batch_size + data.process_index * data.local_batch_size
    results.add(
        jax.device_get(sums),
        classes=rows["classes"],
        probabilities=rows["probabilities"],
        labels=batch["label"],
        mask=batch["mask"],
        index=first + np.arange(data.local_batch_size),
    )


def _of_all_processes(results: Accumulator) -> Accumulator:
    """The sums, which every process has, with the predictions of all of them."""
    if jax.process_count() == 1:
        return results
    packed = io.BytesIO()
    found = results.predictions()
    np.savez(packed, index=found.index, labels=found.labels, classes=found.classes, probabilities=found.probabilities)
    parts = []
    for content in processes.gather_bytes(packed.getvalue()):
        part = Accumulator(results.num_classes)
        part.add(results.sums, **np.load(io.BytesIO(content), allow_pickle=False))
        parts.append(part)
    return functools.reduce(lambda whole, part: whole.merge(part, shared_sums=True), parts)
