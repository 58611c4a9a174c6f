"""Generates the batches for all sides of a comparison: bytes that depend on (seed, batch number) alone.

NumPy only, and of NumPy only the raw bits of Philox, which are the same in all releases: two interpreters with
different versions of NumPy make the same bytes, and `fingerprint` proves it. Imports no JAX.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

Batch = dict[str, np.ndarray]

_GRID = 4  # a class has a pattern of _GRID x _GRID patches, each of one colour
_NOISE = 160  # grey levels of the noise
_PATTERN = 96  # grey levels of the pattern: weak in one pixel, clear in the mean of a patch


def make_batch(seed: int, number: int, batch_size: int, image_size: int, num_classes: int, channels: int = 3) -> Batch:
    """Makes a batch of noise with a weak pattern per class, so that the loss of a network that learns falls soon.

    Args:
      seed: seed of the workload.
      number: number of the batch; every number gives another batch.
      batch_size: number of images.
      image_size: height and width in pixels.
      num_classes: labels are in [0, num_classes).
      channels: of an image.

    Returns:
      "image" uint8 [batch_size, image_size, image_size, channels], "label" int32 [batch_size], "mask" bool
      [batch_size], all True: the same leaves as a training batch.
    """
    shape = (batch_size, image_size, image_size, channels)
    source = np.random.Philox(np.random.SeedSequence([seed, 1 + number]))
    labels = (source.random_raw(batch_size) % np.uint64(num_classes)).astype(np.int32)
    pattern_source = np.random.Philox(np.random.SeedSequence([seed, 0]))  # the same patterns in every batch
    size = (num_classes, _GRID, _GRID, channels)
    patterns = _bytes(pattern_source, int(np.prod(size))).reshape(size)
    patch = np.arange(image_size) * _GRID // image_size
    image = _scaled(_bytes(source, int(np.prod(shape))), _NOISE).reshape(shape)
    image += _scaled(patterns[labels], _PATTERN)[:, patch[:, None], patch]
    return {"image": image, "label": labels, "mask": np.ones(batch_size, bool)}


def fingerprint(batches: Iterable[Batch]) -> str:
    """SHA-256, in hexadecimal, of all bytes of the batches and of the names, dtypes and shapes of their leaves."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, leaf in sorted(batch.items()):
            digest.update(f"{name} {leaf.dtype} {leaf.shape};".encode())
            digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _bytes(source: np.random.Philox, count: int) -> np.ndarray:
    """Uniform uint8 [count]; the same on machines of either byte order."""
    return source.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]


def _scaled(values: np.ndarray, levels: int) -> np.ndarray:
    """Scales uint8 values from 0..255 to 0..levels - 1."""
    return (values.astype(np.uint16) * np.uint16(levels) >> np.uint16(8)).astype(np.uint8)
