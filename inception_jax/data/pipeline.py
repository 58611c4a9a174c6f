"""Input pipelines of uint8 images: `TrainPipeline`, shuffled and augmented, and `EvalPipeline`, every example once.

A batch is a function of the seed and its number, and `batch(k)` is the only code that makes one. Threads or Grain's
worker processes call it ahead of the consumer and return the results in order. Nothing else shuffles or slices
examples, and no iterator's state is ever saved: to resume at step `k` is to ask for `batches(k)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inception_jax.data import channels as image_channels
from inception_jax.data import images
from inception_jax.data.datasets import Dataset
from inception_jax.data.eval_protocols import SINGLE, Protocol
from inception_jax.data.image_cache import ImageCache, check_cache
from inception_jax.data.loader import DataLoader
from inception_jax.data.pipeline_base import Batch, PipelineBase, check_whole
from inception_jax.data.policies import Policy
from inception_jax.data.sampling import (
    POLICY_STREAM,
    UNIFORMS_PER_EXAMPLE,
    BalancedOrder,
    ShuffledOrder,
    uniforms,
)
from inception_jax.errors import UserError


class TrainPipeline(PipelineBase):
    """Endless shuffled and augmented batches, which cross from epoch to epoch without a gap or a short batch.

    Row `r` of global batch `k` is the example at position `k * batch_size + r`; see `inception_jax.data.sampling`.

    Attributes:
      steps_per_epoch: num_examples / batch_size, not rounded.
      local_batch_size: rows per batch of this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        augmentation: Mapping[str, Any] | images.Augmentation | images.CustomAugmentation | images.EvalCrop,
        policy: Policy | None = None,
        sampling: str = "uniform",
        decode: str = "exact",
        cache_mb: int = 0,
        workers: int | None = None,
        **loading: Any,
    ):
        """Makes a pipeline; no more than one record is read yet.

        Args:
          dataset: to train on.
          seed: of the order and of the augmentation, 0 to 2**32 - 1.
          augmentation: an `images.Augmentation` or its fields; a user's own; an `images.EvalCrop` to train on the
            center crop.
          policy: further operations on each cropped image; None: none.
          sampling: "uniform": every example once per epoch (`ShuffledOrder`); "balanced": every class equally often
            (`BalancedOrder`), which needs one label per example.
          decode: "scaled": large JPEGs are decoded at a fraction of their size, see `images.decode_and_augment`; only
            with the rule "area_aspect".
          cache_mb: decoded images that are kept in memory, in 1,000,000 bytes; 0: none. The batches are the same.
            Not with worker processes, which share no memory, with `decode="scaled"`, nor for data that is in memory.
          workers: as in `PipelineBase`.
          **loading: the further arguments of `PipelineBase`.

        Raises:
          UserError: a value out of range, named.
        """
        if check_whole("cache_mb", cache_mb, 0):
            workers = check_cache(cache_mb, dataset, workers, decode)
            self._cache = ImageCache(cache_mb)
        super().__init__(dataset, workers=workers, **loading)
        self.augmentation: images.Augmentation | images.CustomAugmentation | images.EvalCrop
        if isinstance(augmentation, images.EvalCrop | images.CustomAugmentation):
            self.augmentation = augmentation
        else:
            self.augmentation = images.from_fields(images.Augmentation, augmentation, "augmentation")
            self.augmentation.check_size(self.image_size)
        self.policy = policy
        if policy and self.channels != image_channels.COLOURS:
            raise UserError(
                f"config.augmentation.policy = {policy.method!r}: it is defined for colours; with "
                f"config.model.in_channels = {self.channels} leave it 'none'"
            )
        images.check_choice("data.decode", decode, ("exact", "scaled"))
        self._scaled = decode == "scaled"
        if self._scaled and getattr(self.augmentation, "rule", "none") != "area_aspect":
            raise UserError(
                "data.decode: 'scaled' has no effect without augmentation.rule 'area_aspect'; leave it 'exact'"
            )
        if self._scaled and self.channels != image_channels.COLOURS:
            raise UserError(
                f"data.decode: 'scaled' is for colours; with model.in_channels = {self.channels} leave it 'exact'"
            )
        if self._scaled and dataset.source.in_memory:
            raise UserError(
                f"data.decode: 'scaled' has no effect on {dataset.name}, which has no files; leave it 'exact'"
            )
        self.seed = seed
        self._order: ShuffledOrder | BalancedOrder
        if sampling not in ("uniform", "balanced"):
            raise UserError(f"sampling: {sampling!r}; 'uniform' or 'balanced' is allowed")
        if sampling == "balanced" and dataset.label_kind == "multi":
            raise UserError(
                "config.data.sampling = 'balanced': an example with several labels (config.data.labels = 'multi') is "
                "of no one class; leave it 'uniform' (config.loss.class_weights weighs classes)"
            )
        if sampling == "balanced":
            self._order = BalancedOrder(seed, dataset.labels())
        else:
            self._order = ShuffledOrder(seed, dataset.num_examples)

    @property
    def steps_per_epoch(self) -> float:
        """Steps of one epoch, not rounded."""
        return self.dataset.num_examples / self.batch_size

    def batch(self, k: int, rows: int | None = None) -> Batch:
        """This process's rows of global batch `k`, a function of the seed and `k`.

        Args:
          k: >= 0; the step that trains on it, counted from 0.
          rows: of them, the first ones; None: all.

        Returns:
          "image" uint8 [local_batch_size, image_size, image_size, channels], "label" int32 [local_batch_size] (uint8
          [local_batch_size, classes] of 0 and 1 where examples have several), "mask" bool [local_batch_size], False for
          the records that `skip_corrupt` leaves out.

        Raises:
          UserError: a record that cannot be read or decoded, named; not with `skip_corrupt`.
        """
        batch = self._empty_batch(rows)
        start, count = int(k) * self.batch_size + self._first_row, len(batch["label"])
        numbers = np.empty((count, 0))
        if not isinstance(self.augmentation, images.EvalCrop):
            numbers = uniforms(self.seed, start, count)
        if self.policy:
            numbers = np.concatenate([numbers, uniforms(self.seed, start, count, POLICY_STREAM)], axis=1)
        for row, index in enumerate(self._order.indices(start, count).tolist()):
            self._fill(batch, row, index, numbers[row])
        return batch

    def _view(self, image: bytes | np.ndarray, numbers: np.ndarray, out: np.ndarray, name: Callable[[], str]) -> None:
        augmentation, size = self.augmentation, self.image_size
        crop_numbers = numbers[:UNIFORMS_PER_EXAMPLE]
        if isinstance(augmentation, images.Augmentation):
            if isinstance(image, bytes):
                images.decode_and_augment(
                    image, size, crop_numbers, augmentation, out, name, self.max_pixels, scaled=self._scaled
                )
            else:
                images.augment(self._decode(image, name), size, crop_numbers, augmentation, out=out)
        elif isinstance(augmentation, images.CustomAugmentation):
            augmentation(self._decode(image, name), size, crop_numbers, out)
        else:
            images.center_crop(self._decode(image, name), size, augmentation, out=out)
        if self.policy:
            out[...] = self.policy(out, numbers[-UNIFORMS_PER_EXAMPLE:])

    def batches(self, start: int = 0, count: int | None = None) -> DataLoader:
        """A data loader of batches `start`, `start + 1`, …, as quick from any start. Close it after use.

        Args:
          start: number of the first batch.
          count: number of batches; None: without end.
        """
        stop = 1 << 48 if count is None else start + count
        return self._data_loader(check_whole("start", start, 0), stop)


class EvalPipeline(PipelineBase):
    """Batches of every example exactly once, in the order of the split; the last is padded, and its mask says where.

    Each image is decoded once, and all of its crops are in one batch.

    Attributes:
      num_batches: number of global batches; the same for every process.
      local_batch_size: rows per batch of this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        crop: Mapping[str, Any] | images.EvalCrop = images.CENTER_CROP,
        protocol: Protocol = SINGLE,
        **loading: Any,
    ):
        """Makes a pipeline; no more than one record is read yet.

        Args:
          dataset: to evaluate on.
          crop: an `images.EvalCrop` or its fields.
          protocol: which crops of an image are classified.
          **loading: the further arguments of `PipelineBase`.

        Raises:
          UserError: a value out of range, named.
        """
        super().__init__(dataset, **loading)
        self.crop = images.from_fields(images.EvalCrop, crop, "crop")
        self.protocol = protocol

    @property
    def num_batches(self) -> int:
        """Number of global batches, the padded one included."""
        return math.ceil(self.dataset.num_examples / self.batch_size)

    def batch(self, k: int, rows: int | None = None) -> Batch:
        """This process's rows of global batch `k`: examples from `k * batch_size` on.

        Args:
          k: 0 <= k < num_batches.
          rows: as in `TrainPipeline.batch`.

        Returns:
          As `TrainPipeline.batch`; with several crops "image" is [local_batch_size, crops, image_size, image_size,
          channels].
          Past the last example: black images of label 0, mask False.

        Raises:
          UserError: a record that cannot be read or decoded, named; not with `skip_corrupt`.
        """
        if not 0 <= k < self.num_batches:
            raise IndexError(f"batch {k} of {self.num_batches}")
        batch = self._empty_batch(rows)
        start = int(k) * self.batch_size + self._first_row
        for row in range(max(0, min(len(batch["label"]), self.dataset.num_examples - start))):
            self._fill(batch, row, start + row)
        return batch

    def _view(self, image: bytes | np.ndarray, numbers: np.ndarray, out: np.ndarray, name: Callable[[], str]) -> None:
        del numbers
        self.protocol.cut(self._decode(image, name), self.image_size, self.crop, out)

    def _empty_batch(self, rows: int | None = None) -> Batch:
        batch, crops = super()._empty_batch(rows), self.protocol.crops
        if crops > 1:
            batch["image"] = np.zeros((len(batch["image"]), crops, *batch["image"].shape[1:]), np.uint8)
        return batch

    def batches(self) -> DataLoader:
        """A data loader of all batches in order. Close it after use."""
        return self._data_loader(0, self.num_batches)
