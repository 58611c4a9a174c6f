"""Evaluates a network on a split: every example once, on all devices of all processes."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from inception_jax.data.pipeline import EvalPipeline
from inception_jax.metrics import Accumulator, make_accumulator
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
    every_class: list[dict[str, np.ndarray]] | None = None,
) -> Accumulator:
    """Evaluates a network on a split.

    Args:
      eval_step: compiled for the batches of `data`.
      devices: where it was compiled.
      data: the split; its last batch is padded, and the padding masked.
      variables: "params" and "batch_stats", on the devices.
      num_classes: rows and columns of the confusion matrix.
      faults: how many undecodable images may be masked, and how long to wait for a batch.
      every_class: gets a mapping per batch of this process: "index" int64 [b], the position in the split, "labels" as
        in the batch, and "log_probabilities" [b, num_classes]; the step must give them. None: they are not kept.

    Returns:
      Sums over the whole split and the predictions of all its examples, on every process.

    Raises:
      CorruptImages: more images could not be decoded than `faults` allows.
      InputStalled: no batch came for too long.
    """
    results = make_accumulator(num_classes, data.dataset.label_kind)
    previous: tuple[int, dict[str, np.ndarray], Any] | None = None
    batches = DevicePrefetcher(
        data.batches(),
        lambda batch: (batch, devices.put(batch)),
        data.prefetch,
        warn_after=faults.stall_warning_seconds,
        give_up_after=faults.stall_limit_seconds,
    )
    with contextlib.closing(batches):
        for k, (batch, on_devices) in enumerate(batches):
            outputs = eval_step(variables, on_devices)
            # Reading waits for the step: the batch before is read while the devices compute this one.
            if previous is not None:
                _add(results, devices, data, every_class, *previous)
            previous = k, batch, outputs
    if previous is not None:
        _add(results, devices, data, every_class, *previous)
    missing = data.dataset.num_examples - results.count
    if missing > faults.max_corrupt:
        raise CorruptImages(
            f"{missing} images of {data.dataset.name} [{data.dataset.split}] cannot be decoded "
            f"(lines on standard error name them); config.faults.max_corrupt = {faults.max_corrupt}: replace or remove "
            f"them, or {missing} would do"
        )
    return _merge_processes(results)


def _add(
    results: Accumulator,
    devices: Devices,
    data: EvalPipeline,
    every_class: list[dict[str, np.ndarray]] | None,
    k: int,
    batch: Mapping[str, np.ndarray],
    outputs: tuple[Any, Any],
) -> None:
    """Adds the outputs of the evaluation step for batch k."""
    sums, rows = outputs
    rows = devices.get(rows)
    first = k * data.batch_size + data.process_index * data.local_batch_size
    index, mask = first + np.arange(data.local_batch_size), batch["mask"]
    if every_class is not None:
        labels = batch["label"][mask]
        every_class.append({"index": index[mask], "labels": labels, "log_probabilities": rows["every_class"][mask]})
    if results.labels == "multi":
        columns = {"log_probabilities": rows["every_class"]}
    else:
        columns = {name: rows[name] for name in ("classes", "probabilities")}
    results.add(jax.device_get(sums), **columns, labels=batch["label"], mask=mask, index=index)


def _merge_processes(results: Accumulator) -> Accumulator:
    """Adds the predictions of all processes to the sums, which every process has."""
    if jax.process_count() == 1:
        return results
    packed = io.BytesIO()
    np.savez(packed, **vars(results.predictions()))
    gathered = []
    for content in processes.gather_bytes(packed.getvalue()):
        accumulator = make_accumulator(results.num_classes, results.labels)
        accumulator.add(results.sums, **np.load(io.BytesIO(content), allow_pickle=False))
        gathered.append(accumulator)
    return functools.reduce(lambda whole, other: whole.merge(other, shared_sums=True), gathered)
