"""What both pipelines share: their sizes, this process's rows, one row of a batch, and the data loader."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from inception_jax.data import activity, images
from inception_jax.data import channels as image_channels
from inception_jax.data.datasets import Dataset
from inception_jax.data.image_cache import ImageCache
from inception_jax.data.loader import DataLoader, ThreadProducer
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


class PipelineBase:
    """The base of `TrainPipeline` and `EvalPipeline`."""

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
        """Makes a pipeline; no more than one record is read yet.

        Args:
          dataset: to train or to evaluate on.
          batch_size: examples per batch over all processes; a multiple of `process_count`.
          image_size: height and width of the images in a batch, in pixels.
          process_index: which contiguous block of each batch this process makes.
          process_count: processes that each make a block of each batch.
          threads: decoding threads, per process or per worker; None: min(8, cores), 4 in workers.
          workers: decoding processes; 0: none, the threads are this process's; None: `default_workers`.
          prefetch: finished batches that the data loader holds ahead of the consumer, at least.
          skip_corrupt: for a record that cannot be read or decoded, or has no label. False: it raises. True: its row is
            black, with label 0 and mask False, and one line on standard error names it, once in each process.
          max_pixels: the largest image that is decoded, height times width.
          channels: of the network's input; see `channels.fit`.

        Raises:
          UserError: a value out of range, named.
        """
        check_whole("batch_size", batch_size, 1)
        check_whole("image_size", image_size, 1)
        check_whole("prefetch", prefetch, 1)
        check_whole("process_count", process_count, 1)
        if process_index not in range(process_count):
            raise UserError(f"process_index: {process_index!r}; 0 to {process_count - 1} is allowed")
        if batch_size % process_count:
            raise UserError(f"batch_size: {batch_size} does not divide evenly among {process_count} processes")
        self.dataset, self.batch_size, self.image_size = dataset, batch_size, image_size
        self.process_index, self.process_count, self.prefetch = process_index, process_count, prefetch
        if not isinstance(skip_corrupt, bool):
            raise UserError(f"skip_corrupt: {skip_corrupt!r}; True or False is needed")
        self.left_out: set[str] = set()  # the records that `skip_corrupt` left out in this process, not in its workers
        self.skip_corrupt, self.max_pixels = skip_corrupt, check_whole("max_pixels", max_pixels, 1)
        self.workers = default_workers(dataset) if workers is None else check_whole("workers", workers, 0)
        if threads is None:
            threads = 4 if self.workers else default_threads()
        self.threads = check_whole("threads", threads, 1)
        # A contiguous block of the global batch, not every n-th row: device d then sees the same rows whatever the
        # number of processes.
        self.local_batch_size = batch_size // process_count
        self._first_row = process_index * self.local_batch_size
        self.channels = check_whole("channels", channels, 1)
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
            more = "; replace or remove it, or leave such images out: config.faults.max_corrupt (doctor lists them)"
            raise images.UndecodableImage(f"{error}{more}") if isinstance(error, images.UndecodableImage) else error
        self.left_out.add(self.dataset.source.record_name(index))
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


def check_whole(field: str, value: Any, least: int) -> int:
    """Returns the value of a field as an integer, or raises UserError: it is no whole number of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{field}: {value!r}; a whole number of {least} or more is needed")
    return int(value)
