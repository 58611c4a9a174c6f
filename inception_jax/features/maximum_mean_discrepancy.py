"""Kernel Inception Distance (KID): the unbiased squared MMD of features, with a polynomial kernel."""

from __future__ import annotations

import dataclasses

import numpy as np

from inception_jax.errors import UserError
from inception_jax.features import feature_rows


@dataclasses.dataclass(frozen=True)
class KernelDistance:
    """KID over subsets.

    Attributes:
      mean: over the subsets; its expectation is the squared MMD whatever their size, and it may be negative.
      std: standard deviation over the subsets, which share images (divided by their number, as in torch-fidelity);
        None: there is one value alone, and it says nothing of the noise.
      values: float64 [subsets]; [1] where all images are taken at once.
      subset_size: images of each set in a subset.
    """

    mean: float
    std: float | None
    values: np.ndarray
    subset_size: int


def kernel_distance(
    real: np.ndarray, fake: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> KernelDistance:
    """Estimates KID as the mean of unbiased estimates on subsets (arXiv:1801.01401, section 4).

    The subsets are those of torch-fidelity: `RandomState(seed).choice` without replacement, of the fake images (its
    input 1), then of the real ones. A subset may be the whole of the smaller set, as in clean-fid; where it would be
    the whole of both sets, they are compared once.

    Args:
      real: features [n, C], floating point.
      fake: features [m, C].
      subsets: how many.
      subset_size: images of each set in a subset.
      seed: of the subsets.

    Raises:
      UserError: fewer images than `subset_size`, other shapes, or values that are not finite.
    """
    if subset_size < 2 or subsets < 1:
        raise UserError(f"kid: {subsets} subsets of {subset_size} images; at least 1 subset of 2 images is needed")
    feature_rows.check_pair(real, fake, 2, "kid")
    if subset_size > min(len(real), len(fake)):
        raise UserError(
            f"kid: subsets of {subset_size:,} images, but there are {len(real):,} real and {len(fake):,} fake ones; a "
            f"subset size of {min(len(real), len(fake)):,} would do"
        )
    if subset_size == len(real) == len(fake):
        whole = squared_mmd(*map(feature_rows.finite, (real, fake)))
        return KernelDistance(whole, None, np.array([whole]), subset_size)
    random = np.random.RandomState(seed)
    values = np.empty(subsets)
    for k in range(subsets):
        chosen = [rows[random.choice(len(rows), subset_size, replace=False)] for rows in (fake, real)]
        values[k] = squared_mmd(*map(feature_rows.finite, chosen))
    return KernelDistance(float(values.mean()), float(values.std()) if subsets > 1 else None, values, subset_size)


def squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate of the squared MMD with the kernel (x·y / C + 1)³: arXiv:1801.01401, section 3.

    Args:
      first: float64 [n, C], n >= 2.
      second: float64 [m, C], m >= 2.
    """
    n, m = len(first), len(second)
    within = _kernel_sum(first, first, diagonal=False) / (n * (n - 1))
    within += _kernel_sum(second, second, diagonal=False) / (m * (m - 1))
    return within - 2 * _kernel_sum(first, second) / (n * m)


def _kernel_sum(x: np.ndarray, y: np.ndarray, diagonal: bool = True) -> float:
    """Sums the kernel over all pairs, in blocks of rows; with one set, without the pairs of a row with itself."""
    total = 0.0
    for start in range(0, len(x), feature_rows.BLOCK):
        block = x[start : start + feature_rows.BLOCK]
        kernel = (block @ y.T / x.shape[1] + 1) ** 3
        total += kernel.sum()
        if not diagonal:
            total -= np.trace(kernel, offset=start)
    return float(total)
