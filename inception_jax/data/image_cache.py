"""`ImageCache`: decoded images in memory, up to a number of bytes; from the second epoch on they are not decoded."""

from __future__ import annotations

import threading

import numpy as np

from inception_jax.data.datasets import Dataset
from inception_jax.errors import UserError

MEGABYTE = 1_000_000


class ImageCache:
    """Decoded images and their labels, by the index of the record. Threads share it.

    The images that come first are kept, and none is given up for another: an epoch draws each image once, so what was
    used last is needed last. A copy in another process begins empty.

    Attributes:
      megabytes: of pixels that are kept at most, in 1,000,000 bytes.
      is_full: an image came that there was no room for; no other one is kept from then on.
    """

    def __init__(self, megabytes: int):
        """Makes an empty cache.

        Args:
          megabytes: as the attribute.
        """
        self.megabytes = megabytes
        self.is_full = False
        self._kept: dict[int, tuple[np.ndarray, int | np.ndarray]] = {}
        self._lock, self._bytes = threading.Lock(), 0

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        return ImageCache, (self.megabytes,)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, index: int) -> tuple[np.ndarray, int | np.ndarray] | None:
        """The image and the label of a record; None: it is not kept."""
        return self._kept.get(index)

    def put(self, index: int, image: np.ndarray, label: int | np.ndarray) -> bool:
        """Keeps an image where there is room, and makes it read-only: whoever writes to it would change later epochs.

        Args:
          index: of the record.
          image: uint8 [height, width, C].
          label: of the record.

        Returns:
          Whether it is the first image that there is no room for.
        """
        with self._lock:
            if index in self._kept or self.is_full:  # by another thread, meanwhile
                return False
            if self._bytes + image.nbytes > self.megabytes * MEGABYTE:
                self.is_full = True
                return True
            self._bytes += image.nbytes
            image.flags.writeable = False
            self._kept[index] = image, label
            return False


def check_cache(cache_mb: int, dataset: Dataset, workers: int | None, decode: str) -> int:
    """Returns the number of worker processes with decoded images in memory: none.

    Args:
      cache_mb: of `TrainPipeline`, as the others.
      dataset: whose images are kept.
      workers: the number that was asked for; None: no number.
      decode: "exact" or "scaled".

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
