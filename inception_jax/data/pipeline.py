"""Input pipelines of uint8 images: `TrainPipeline`, shuffled and augmented, and `EvalPipeline`, every example once.

A batch is a function of the seed and its number, and `batch(k)` is the only code that makes one. Threads or Grain's
worker processes call it ahead of the consumer and return the results in order. Nothing else shuffles or slices
examples, and no iterator's state is ever saved: to resume at step `k` is to ask for `batches(k)`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inception_jax.data import activity, images
from inception_jax.data import channels as image_channels
from inception_jax.data.datasets import Dataset
from inception_jax.data.eval_protocols import SINGLE, Protocol
from inception_jax.data.image_cache import ImageCache
from inception_jax.data.loader import DataLoader, ThreadProducer
from inception_jax.data.policies import Policy
from inception_jax.data.sampling import (
    POLICY_STREAM,
    UNIFORMS_PER_EXAMPLE,
    BalancedOrder,
    ShuffledOrder,
    uniforms,
)
from inception_jax.data.workers import WorkerProducer, check_shared_memory, needed_shared_memory
from inception_jax.errors import UserError

Batch = dict[str, np.ndarray]
_NO_NUMBERS = np.empty(0)


def default_threads() -> int:
    """min(8, cores): with more threads one process decodes no faster, because they wait for the interpreter's lock."""
    return min(8, len(os.sched_getaffinity(0)))


def default_workers(dataset: Dataset) -> int:
    """0 up to 8 cores, and for data in memory; else one worker process per 4 cores, after 2 cores for the trainer."""
    cores = len(os.sched_getaffinity(0))
    return 0 if cores <= 8 or dataset.source.in_memory else math.ceil((cores - 2) / 4)


class _Pipeline:
    """The base of both pipelines: sizes, the rows of this process, one row of a batch, and the data loader."""

    _cache: ImageCache | None = None

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        image_size: int,
        process_index: int = 0,
        process_count: int = 1,
        threads: int | None = None,
        workers: int | None = None,
        prefetch: int = 2,
        skip_corrupt: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        channels: int = image_channels.COLOURS,
    ):
        _check_whole("batch_size", batch_size, 1)
        _check_whole("image_size", image_size, 1)
        _check_whole("prefetch", prefetch, 1)
        _check_whole("process_count", process_count, 1)
        if process_index not in range(process_count):
            raise UserError(f"process_index: {process_index!r}; 0 to {process_count - 1} is allowed")
        if batch_size % process_count:
            raise UserError(f"batch_size: {batch_size} does not divide evenly among {process_count} processes")
        self.dataset, self.batch_size, self.image_size = dataset, batch_size, image_size
        self.process_index, self.process_count, self.prefetch = process_index, process_count, prefetch
        if not isinstance(skip_corrupt, bool):
            raise UserError(f"skip_corrupt: {skip_corrupt!r}; True or False is needed")
        self.skip_corrupt, self.max_pixels = skip_corrupt, _check_whole("max_pixels", max_pixels, 1)
        self.workers = default_workers(dataset) if workers is None else _check_whole("workers", workers, 0)
        if threads is None:
            threads = 4 if self.workers else default_threads()
        self.threads = _check_whole("threads", threads, 1)
        # A contiguous block of the global batch, not every n-th row: device d then sees the same rows whatever the
        # number of processes.
        self.local_batch_size = batch_size // process_count
        self._first_row = process_index * self.local_batch_size
        self.channels = _check_whole("channels", channels, 1)
        self._check_channels()

    def _check_channels(self) -> None:
        """Reads the first record, where its channels may be others than the network's: before anything is compiled.

        Raises:
          OtherChannels: it has other channels.
        """
        if self.channels != image_channels.COLOURS or self.dataset.source.in_memory:
            try:
                image, _ = self.dataset.source[0]
                self._decode(image, lambda: self.dataset.record_name(0))
            except image_channels.OtherChannels:
                raise
            except UserError:  # of a record that cannot be read: when its turn comes, by `skip_corrupt`
                return

    def batch(self, k: int, rows: int | None = None) -> Batch:
        """This process's rows of global batch `k`, or only the first ones; always the same for the same `k`."""
        raise NotImplementedError

    def _empty_batch(self, rows: int | None = None) -> Batch:
        b, side = self.local_batch_size if rows is None else min(rows, self.local_batch_size), self.image_size
        columns = self.dataset.label_columns
        return {
            "image": np.zeros((b, side, side, self.channels), np.uint8),
            "label": np.zeros(b, np.int32) if columns is None else np.zeros((b, columns), np.uint8),
            "mask": np.zeros(b, np.bool_),
        }

    def _view(self, image: bytes | np.ndarray, numbers: np.ndarray, out: np.ndarray, name: Callable[[], str]) -> None:
        """Writes the network's view of a record's image to `out`.

        Args:
          image: the record's: a file, or uint8 [height, width, C].
          numbers: the random numbers of its position.
          out: uint8 [image_size, image_size, channels].
          name: returns the name of the record.
        """
        raise NotImplementedError

    def _fill(self, batch: Batch, row: int, index: int, numbers: np.ndarray = _NO_NUMBERS) -> None:
        """Puts record `index` into a row of `batch`, or leaves the row black and masked where it is corrupt."""
        activity.update(row, index)
        kept = self._cache.get(index) if self._cache is not None else None
        try:
            image, label = kept or self.dataset.record(index)
        except UserError as error:
            self._leave_out(index, error)
            return
        try:
            if self._cache is not None and kept is None and not self._cache.is_full:
                image = self._keep(self._cache, index, image, label)
            self._view(image, numbers, batch["image"][row], lambda: self.dataset.record_name(index))
        except images.UndecodableImage as error:
            self._leave_out(index, error)
            return
        except images.ImageTooLarge as error:
            self._leave_out(index, UserError(f"{self.dataset.record_name(index)}: {error}"))
            return
        batch["label"][row], batch["mask"][row] = label, True

    def _keep(self, cache: ImageCache, index: int, image: bytes | np.ndarray, label: int | np.ndarray) -> np.ndarray:
        """Decodes the image of a record, and keeps it where there is room; a copy of one that a user's object gave."""
        decoded = self._decode(image, lambda: self.dataset.record_name(index))
        if decoded is image:
            decoded = decoded.copy()
        if cache.put(index, decoded, label):
            activity.warn(
                f"config.data.cache_mb = {cache.megabytes:,} holds {len(cache):,} of {self.dataset.num_examples:,} "
                "images; the others are decoded in every epoch"
            )
        return decoded

    def _leave_out(self, index: int, error: UserError) -> None:
        if not self.skip_corrupt:
            raise error
        activity.warn_once(self.dataset.record_name(index), f"left out: {error}")

    def _decode(self, image: bytes | np.ndarray, name: Callable[[], str]) -> np.ndarray:
        if isinstance(image, bytes):
            return images.decode(image, name, self.max_pixels, channels=self.channels)
        return image_channels.fit(image, self.channels, name)

    def decode_record(self, index: int) -> np.ndarray:
        """Reads and decodes the image of a record: uint8 [height, width, channels].

        Raises:
          UserError: it cannot be read or decoded, or has other channels.
        """
        return self._decode(self.dataset.record(index)[0], lambda: self.dataset.record_name(index))

    def check_shared_memory(self) -> None:
        """Checks that shared memory can hold the batches of the worker processes, where there are any.

        Raises:
          UserError: it cannot.
        """
        if self.workers:
            check_shared_memory(needed_shared_memory(self.workers, self.prefetch, self._batch_bytes()), self.workers)

    def _batch_bytes(self) -> int:
        return sum(array.nbytes for array in self._empty_batch().values())

    def _data_loader(self, start: int, stop: int) -> DataLoader:
        """Makes batches `start … stop - 1` ahead: in threads of this process, or in worker processes."""
        record_name = self.dataset.record_name
        if not self.workers:
            ahead = self.threads + self.prefetch
            return DataLoader(ThreadProducer(self.batch, self.threads), start, stop, ahead, record_name)
        workers = WorkerProducer(
            self.batch,
            start,
            stop,
            threads=self.threads,
            workers=self.workers,
            prefetch=self.prefetch,
            nbytes=self._batch_bytes(),
            record_name=record_name,
        )
        return DataLoader(workers, start, stop, self.prefetch, record_name)


class TrainPipeline(_Pipeline):
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
        batch_size: int,
        image_size: int,
        seed: int,
        augmentation: Mapping[str, Any] | images.Augmentation | images.CustomAugmentation | images.EvalCrop,
        policy: Policy | None = None,
        sampling: str = "uniform",
        decode: str = "exact",
        process_index: int = 0,
        process_count: int = 1,
        threads: int | None = None,
        workers: int | None = None,
        prefetch: int = 2,
        skip_corrupt: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        channels: int = image_channels.COLOURS,
        cache_mb: int = 0,
    ):
        """Makes a pipeline; no more than one record is read yet.

        Args:
          dataset: to train on.
          batch_size: examples per step over all processes; a multiple of `process_count`.
          image_size: height and width of the images in a batch, in pixels.
          seed: of the order and of the augmentation, 0 to 2**32 - 1.
          augmentation: an `images.Augmentation` or its fields; a user's own; an `images.EvalCrop` to train on the
            center crop.
          policy: further operations on each cropped image; None: none.
          sampling: "uniform": every example once per epoch (`ShuffledOrder`); "balanced": every class equally often
            (`BalancedOrder`), which needs one label per example.
          decode: "scaled": large JPEGs are decoded at a fraction of their size, see `images.decode_and_augment`; only
            with the rule "area_aspect".
          process_index: which contiguous block of each batch this process makes.
          process_count: processes that each make a block of each batch.
          threads: decoding threads, per process or per worker; None: min(8, cores), 4 in workers.
          workers: decoding processes; 0: none, the threads are this process's; None: see `default_workers`.
          prefetch: finished batches that the data loader holds ahead of the consumer, at least.
          skip_corrupt: for a record that cannot be read or decoded, or has no label. False: it raises. True: its row is
            black, with label 0 and mask False, and one line on standard error names it, once in each process.
          max_pixels: the largest image that is decoded, height times width.
          channels: of the network's input; see `channels.fit`.
          cache_mb: decoded images that are kept in memory, in 1,000,000 bytes; 0: none. The batches are the same.
            Not with worker processes, which share no memory, with `decode="scaled"`, nor for data that is in memory.

        Raises:
          UserError: a value out of range, named.
        """
        if _check_whole("cache_mb", cache_mb, 0):
            workers = _check_cache(cache_mb, dataset, workers, decode)
            self._cache = ImageCache(cache_mb)
        super().__init__(
            dataset,
            batch_size=batch_size,
            image_size=image_size,
            process_index=process_index,
            process_count=process_count,
            threads=threads,
            workers=workers,
            prefetch=prefetch,
            skip_corrupt=skip_corrupt,
            max_pixels=max_pixels,
            channels=channels,
        )
        self.augmentation: images.Augmentation | images.CustomAugmentation | images.EvalCrop
        if isinstance(augmentation, images.EvalCrop | images.CustomAugmentation):
            self.augmentation = augmentation
        else:
            self.augmentation = images.from_fields(images.Augmentation, augmentation, "augmentation")
            self.augmentation.check_size(image_size)
        self.policy = policy
        if policy and channels != image_channels.COLOURS:
            raise UserError(
                f"config.augmentation.policy = {policy.method!r}: it is defined for colours; with "
                f"config.model.in_channels = {channels} leave it 'none'"
            )
        images.check_choice("data.decode", decode, ("exact", "scaled"))
        self._scaled = decode == "scaled"
        if self._scaled and getattr(self.augmentation, "rule", "none") != "area_aspect":
            raise UserError(
                "data.decode: 'scaled' has no effect without augmentation.rule 'area_aspect'; leave it 'exact'"
            )
        if self._scaled and channels != image_channels.COLOURS:
            raise UserError(
                f"data.decode: 'scaled' is for colours; with model.in_channels = {channels} leave it 'exact'"
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
        return self._data_loader(_check_whole("start", start, 0), stop)


class EvalPipeline(_Pipeline):
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
        batch_size: int,
        image_size: int,
        crop: Mapping[str, Any] | images.EvalCrop = images.CENTER_CROP,
        protocol: Protocol = SINGLE,
        process_index: int = 0,
        process_count: int = 1,
        threads: int | None = None,
        workers: int | None = None,
        prefetch: int = 2,
        skip_corrupt: bool = False,
        max_pixels: int = images.MAX_PIXELS,
        channels: int = image_channels.COLOURS,
    ):
        """Makes a pipeline; no more than one record is read yet.

        Args:
          dataset: to evaluate on.
          batch_size: examples per batch over all processes; a multiple of `process_count`.
          image_size: height and width of the images in a batch, in pixels.
          crop: an `images.EvalCrop` or its fields.
          protocol: which crops of an image are classified.
          process_index: as in `TrainPipeline`.
          process_count: as in `TrainPipeline`.
          threads: as in `TrainPipeline`.
          workers: as in `TrainPipeline`.
          prefetch: as in `TrainPipeline`.
          skip_corrupt: as in `TrainPipeline`.
          max_pixels: as in `TrainPipeline`.
          channels: as in `TrainPipeline`.

        Raises:
          UserError: a value out of range, named.
        """
        super().__init__(
            dataset,
            batch_size=batch_size,
            image_size=image_size,
            process_index=process_index,
            process_count=process_count,
            threads=threads,
            workers=workers,
            prefetch=prefetch,
            skip_corrupt=skip_corrupt,
            max_pixels=max_pixels,
            channels=channels,
        )
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


def _check_whole(field: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{field}: {value!r}; a whole number of {least} or more is needed")
    return int(value)


def _check_cache(cache_mb: int, dataset: Dataset, workers: int | None, decode: str) -> int:
    """The number of worker processes with decoded images in memory: none.

    Raises:
      UserError: there are such processes, or the images are not decoded whole or not at all.
    """
    field = f"config.data.cache_mb = {cache_mb:,}"
    if workers:
        raise UserError(
            f"{field}: threads share the decoded images, worker processes cannot; set config.data.workers = 0 "
            f"instead of {workers}, or leave config.data.cache_mb 0"
        )
    if decode != "exact":
        raise UserError(
            f"{field}: config.data.decode = {decode!r} decodes an image for its crop, and the images that are kept are "
            "whole; choose one of the two"
        )
    if dataset.source.in_memory:
        raise UserError(f"{field}: {dataset.name} is in memory already; leave it 0")
    return 0
