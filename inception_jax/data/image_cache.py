"""`ImageCache`: decoded images in memory, up to a number of bytes; from the second epoch on they are not decoded."""

from __future__ import annotations

import threading

import numpy as np

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
