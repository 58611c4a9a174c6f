"""Random weights and images that depend on their names alone, so that they can be drawn again instead of stored."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from inception_jax.pretrained.variants import Variant


def seeded_arrays(
    variant: Variant, *, aux_heads: bool, dtype: Any = np.float64, **options: Any
) -> dict[str, np.ndarray]:
    """Draws a publisher's arrays, scaled so that activations neither vanish nor explode in a deep network.

    Each array depends on its own name and shape alone: kernels are normal with variance 2 / fan_in, scales and
    variances uniform in [0.5, 1.5], everything else normal with standard deviation 0.1.

    Args:
      variant: gives names, shapes and layouts.
      aux_heads: whether with the auxiliary heads, where the variant has any.
      dtype: of the arrays.
      **options: further options of `create_model`, such as num_classes; unset: the variant's own.

    Returns:
      {publisher's name: array}, in the order of our network.
    """
    leaves = variant.leaves(aux_heads=aux_heads, **{"num_classes": variant.num_classes, **options})
    arrays = {}
    for path, shape in leaves.items():
        theirs = variant.source_array(path, shape)
        random = np.random.RandomState(zlib.crc32(theirs.name.encode()))
        leaf = path.rpartition("/")[2]
        if leaf.endswith("kernel"):
            # A depthwise kernel sums over its window alone.
            fan_in = np.prod(shape[:2] if leaf == "depthwise_kernel" else shape[:-1])
            values = random.standard_normal(shape) * np.sqrt(2 / fan_in)
        elif leaf in ("scale", "var"):
            values = random.uniform(0.5, 1.5, shape)
        else:
            values = random.standard_normal(shape) * 0.1
        arrays[theirs.name] = np.ascontiguousarray(theirs.layout.to_theirs(values.astype(dtype)))
    return arrays


def seeded_images(batch: int, size: int, dtype: Any = np.float64) -> np.ndarray:
    """Draws images [batch, size, size, 3]: smooth patterns and noise in [-1, 1], the range of normalized images.

    Args:
      batch: number of images.
      size: height and width in pixels; also the seed.
      dtype: of the result.
    """
    random = np.random.RandomState(size)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.empty((batch, size, size, 3))
    for k in range(batch):
        for c in range(3):
            fx, fy, phase = random.uniform(1, 6, 3)
            images[k, :, :, c] = np.sin(6.28 * (fx * columns + fy * rows) + phase)
    return np.clip(0.7 * images + 0.2 * random.standard_normal(images.shape), -1, 1).astype(dtype)


def seeded_probe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws random signs, float64: gradients are those of the sum of an output times these.

    Args:
      name: the seed.
      shape: of the output.
    """
    return np.where(np.random.RandomState(zlib.crc32(name.encode())).uniform(size=shape) < 0.5, -1.0, 1.0)
