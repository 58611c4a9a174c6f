"""The pictures that every side of a comparison works on: bytes that are functions of (seed, batch number) alone.

NumPy only, and of it only Philox's raw bits, which do not change from release to release: two interpreters with
different NumPys make the same bytes, and `fingerprint` proves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

Batch = dict[str, np.ndarray]

_GRID = 4  # a class's mark is a grid of so many patches a side, each with a colour of its own
_NOISE = 160  # grey levels of noise, and ...
_MARK = 96  # ... of the mark: faint in a pixel, plain in a patch


def make_batch(seed: int, number: int, batch_size: int, image_size: int, num_classes: int) -> Batch:
    """Noise that carries its label faintly, so that the loss of a network that learns falls within a few steps.

    Args:
      seed: of the whole task.
      number: of the batch; every number gives another batch.
      batch_size: pictures.
      image_size: height and width in pixels.
      num_classes: labels are in [0, num_classes).

    Returns:
      "image" uint8 [batch_size, image_size, image_size, 3], "label" int32 [batch_size], "mask" bool [batch_size], all
      True: the leaves of a training batch.
    """
    shape = (batch_size, image_size, image_size, 3)
    source = np.random.Philox(np.random.SeedSequence([seed, 1 + number]))
    labels = (source.random_raw(batch_size) % np.uint64(num_classes)).astype(np.int32)
    marks = np.random.Philox(np.random.SeedSequence([seed, 0]))  # the same marks in every batch
    marks = _bytes(marks, num_classes * _GRID * _GRID * 3).reshape(num_classes, _GRID, _GRID, 3)
    patch = np.arange(image_size) * _GRID // image_size
    image = _scaled(_bytes(source, int(np.prod(shape))), _NOISE).reshape(shape)
    image += _scaled(marks[labels], _MARK)[:, patch[:, None], patch]
    return {"image": image, "label": labels, "mask": np.ones(batch_size, bool)}


def fingerprint(batches: Iterable[Batch]) -> str:
    """SHA-256, in hexadecimal, of every byte of the batches, with their leaves' names, types and shapes."""
    digest = hashlib.sha256()
    for batch in batches:
        for name, leaf in sorted(batch.items()):
            digest.update(f"{name} {leaf.dtype} {leaf.shape};".encode())
            digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _bytes(source: np.random.Philox, count: int) -> np.ndarray:
    """uint8 [count], uniform; the same on machines of either byte order."""
    return source.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]


def _scaled(values: np.ndarray, levels: int) -> np.ndarray:
    """uint8 values in 0..255 to 0..levels - 1, evenly."""
    return (values.astype(np.uint16) * np.uint16(levels) >> np.uint16(8)).astype(np.uint8)
