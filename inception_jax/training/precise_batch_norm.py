"""Estimates batch-norm statistics from training images, with the weights held fixed ("precise batch norm").

Running statistics average over past steps, whose weights were others; in a short run they also keep much of their
initial values. The statistics here are those of the present weights (arXiv:2105.07576, section 3): the mean of each
channel over all images, and the mean of its squares minus the square of that mean. Each batch is normalized by its own
statistics meanwhile, over all devices, as in training with `parallel.batch_norm = "global"`; so they do not depend on
the number of devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax import tree_paths
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.models.base import BaseNetwork
from inception_jax.training import preprocess
from inception_jax.training.device_augmentation import NO_AUGMENTATION, DeviceAugmentation
from inception_jax.training.device_prefetch import DevicePrefetcher
from inception_jax.training.freezing import Freezing, merge
from inception_jax.training.parallel import Compiled, Devices
from inception_jax.training.run_length import FaultLimits
from inception_jax.training.step import AXIS, Batch, example_keys, make_input

_DROPOUT_SEED = 0  # no batch norm follows a dropout layer: the masks change nothing


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Estimates the batch-norm statistics of given weights.

    Attributes:
      moments: the compiled step of `make_moments_step`, for batches of `data`.
      devices: where it was compiled.
      data: the training split.
      num_batches: batches to average over.
      freezing: frozen statistics stay as they are.
      faults: how long to wait for a batch.
      numbered: whether the batches of `moments` have the leaf "step".
    """

    moments: Compiled
    devices: Devices
    data: TrainPipeline
    num_batches: int
    freezing: Freezing
    faults: FaultLimits
    numbered: bool = False

    def replace_statistics(self, variables: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Replaces the batch-norm statistics by those of training images.

        The images are those of the batches `step`, `step + 1`, … of the run, with its augmentation: a function of the
        seed and the step.

        Args:
          variables: "params" and "batch_stats", on the devices.
          step: the training step of the weights.

        Returns:
          The variables; new statistics in the dtypes of the old ones.

        Raises:
          InputStalled: no batch came for too long.
        """
        totals: dict[str, np.ndarray] = {}
        steps = itertools.count(step)

        def put(batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
            number = {"step": np.full(batch["mask"].shape, next(steps), np.int32)} if self.numbered else {}
            return self.devices.put({**batch, **number})

        batches = DevicePrefetcher(
            self.data.batches(step, self.num_batches),
            put,
            self.data.prefetch,
            warn_after=self.faults.stall_warning_seconds,
            give_up_after=self.faults.stall_limit_seconds,
        )
        with contextlib.closing(batches):
            for batch in batches:
                found = tree_paths.flatten(jax.device_get(self.moments(variables, batch)[0]))
                for path, values in found.items():
                    totals[path] = totals.get(path, 0.0) + _power_moment(path, values, found)
        means = {path: total / self.num_batches for path, total in totals.items()}
        old = variables["batch_stats"]
        new = {
            path: _statistic(path, means).astype(leaf.dtype)
            for path, leaf in tree_paths.flatten(self.freezing.split_statistics(old)[0]).items()
        }
        statistics = merge(self.devices.replicate(tree_paths.nest(new)), self.freezing.split_statistics(old)[1])
        return {**variables, "batch_stats": statistics}


def _power_moment(path: str, values: np.ndarray, found: Mapping[str, np.ndarray]) -> np.ndarray:
    """A batch's mean, or for a variance the mean of the squares, in float64."""
    values = values.astype(np.float64)
    layer, _, name = path.rpartition("/")
    return values + found[f"{layer}/mean"].astype(np.float64) ** 2 if name == "var" else values


def _statistic(path: str, means: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean or biased variance over all images, from the means over batches of `_power_moment`."""
    layer, _, name = path.rpartition("/")
    return np.maximum(means[path] - means[f"{layer}/mean"] ** 2, 0.0) if name == "var" else means[path]


def build(
    model: BaseNetwork,
    variables: Mapping[str, Any],
    devices: Devices,
    data: TrainPipeline,
    images: int,
    normalization: preprocess.Normalization,
    freezing: Freezing,
    faults: FaultLimits,
    augmentation: DeviceAugmentation = NO_AUGMENTATION,
    seed: int = 0,
) -> Estimator:
    """Compiles an estimator.

    Args:
      model: the network, with its frozen layers set.
      variables: "params" and "batch_stats", on the devices: shapes to compile for.
      devices: to compile for.
      data: the training split, with the batches and the augmentation of training.
      images: to estimate from; rounded up to whole batches.
      normalization: of uint8 pixels, to the network's input.
      freezing: what is frozen.
      faults: how long to wait for a batch.
      augmentation: of training, on the device.
      seed: of the run.
    """
    batch = devices.abstract_batch(
        data.batch_size, data.image_size, channels=data.channels, label_columns=data.dataset.label_columns
    )
    numbered = bool(augmentation)
    if numbered:
        mask = batch["mask"]  # a number for each example as well
        batch["step"] = jax.ShapeDtypeStruct(mask.shape, np.int32, sharding=mask.sharding)
    step = make_moments_step(model, normalization, devices=devices.count, augmentation=augmentation, seed=seed)
    compiled = devices.compile_eval(step, variables, batch)
    return Estimator(compiled, devices, data, -(-images // data.batch_size), freezing, faults, numbered)


def make_moments_step(
    model: BaseNetwork,
    normalization: preprocess.Normalization,
    *,
    devices: int,
    augmentation: DeviceAugmentation = NO_AUGMENTATION,
    seed: int = 0,
) -> Callable[[Any, Batch], tuple[Any, dict]]:
    """Builds the step (variables, per-device batch) -> (means and biased variances of the global batch, {}).

    Args:
      model: a network with batch norm; its groups and its momentum are not used.
      normalization: of uint8 pixels, to the network's input.
      devices: size of the axis that the step will be compiled over.
      augmentation: of training, on the device; with one, the batch has the leaf "step", int32 [b]: its number.
      seed: of the run.
    """
    # With momentum 0 the running statistics after a batch are those of the batch.
    axis = AXIS if devices > 1 else None
    model = model.clone(
        bn_momentum=0.0,
        bn_unbiased_variance=False,
        bn_group_size=None,
        bn_axis_name=axis,
        bn_axis_index_groups=None,
    )

    def moments(variables: Any, batch: Batch) -> tuple[Any, dict]:
        count = batch["label"].shape[0]
        rows = lax.axis_index(AXIS) * count + jnp.arange(count, dtype=jnp.int32)
        keys = example_keys(_DROPOUT_SEED, jnp.int32(0), rows)
        input_keys = example_keys(seed, batch["step"][0], rows) if augmentation else keys
        images, _ = make_input(batch, input_keys, augmentation, normalization, model.dtype)
        _, updates = model.apply(variables, images, train=True, example_keys=keys, mutable=["batch_stats"])
        return updates["batch_stats"], {}

    return moments
