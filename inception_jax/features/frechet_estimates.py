"""FID of features, and what is known of its error: the bias of few images (FID-infinity), a bootstrap interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from inception_jax.errors import UserError
from inception_jax.features import feature_rows
from inception_jax.features.statistics import Moments, check_moments, frechet_distance

_Z95 = 1.959963984540054  # quantile of the normal distribution


def moments_of(rows: np.ndarray, order: np.ndarray | None = None) -> Moments:
    """Mean and covariance of features.

    Args:
      rows: [n, C], floating point.
      order: positions of those that count; None: all.
    """
    moments = Moments(rows.shape[1])
    for block in feature_rows.blocks(rows, order=order):
        moments.add(block)
    return moments


def distance(real: Moments, fake: Moments) -> float:
    """The Fréchet distance of two sets, `statistics.frechet_distance`."""
    return frechet_distance(real.mean, real.covariance(), fake.mean, fake.covariance())


def distance_of_rows(real: np.ndarray, fake: np.ndarray) -> float:
    """The Fréchet distance of two sets of features, in the time of the smaller of images and features.

    With A and B the centered rows over the roots of n - 1 and m - 1, tr((AᵀA BᵀB)^½) is the sum of the singular values
    of A Bᵀ, because the eigenvalues of AᵀA BᵀB are their squares. No root of a rounded eigenvalue is taken, so it is
    also the more exact form for fewer images than features. Equal sets have the distance 0.

    Args:
      real: [n, C], floating point.
      fake: [m, C].

    Raises:
      UserError: fewer than two images, other shapes, or values that are not finite.
    """
    feature_rows.check_pair(real, fake, 2, "fid")
    if min(len(real), len(fake)) > real.shape[1] or max(len(real), len(fake)) > 8 * real.shape[1]:
        return distance(moments_of(real), moments_of(fake))
    x, y = feature_rows.finite(real), feature_rows.finite(fake)
    if np.array_equal(x, y):
        return 0.0
    gap = x.mean(0) - y.mean(0)
    x, y = ((rows - rows.mean(0)) / np.sqrt(len(rows) - 1) for rows in (x, y))
    crossed = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(float(gap @ gap + (x * x).sum() + (y * y).sum() - 2 * crossed), 0.0)


def distance_to_statistics(rows: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The Fréchet distance of features from a mean and a covariance: quick for fewer images than features.

    With A [n, C] the centered rows over the root of n - 1, the eigenvalues of AᵀA S that are not 0 are those of A S Aᵀ,
    which is [n, n]. One of these is 0, because the rows add up to 0: it is left out, not rounded, so that for a regular
    S the distance is exact.

    Args:
      rows: [n, C], floating point.
      mean: [C].
      covariance: [C, C], S.

    Raises:
      UserError: fewer than two images, another shape, values that are not finite, or a matrix that is not a covariance.
    """
    feature_rows.check(rows, 2, "fid", "images")
    x = feature_rows.finite(rows)
    mean, covariance = check_moments(mean, covariance, x.shape[1])
    center = x.mean(0)
    x, gap = (x - center) / np.sqrt(len(x) - 1), center - mean
    values = np.linalg.eigvalsh(x @ covariance @ x.T)[1:]
    crossed = np.sqrt(np.maximum(values, 0)).sum()
    return max(float(gap @ gap + (x * x).sum() + np.trace(covariance) - 2 * crossed), 0.0)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """FID-infinity: the FID that a line through FIDs of fewer images reaches at infinitely many.

    Attributes:
      value: the intercept.
      slope: of FID over 1 / images: the bias of n images is about slope / n.
      counts: int64 [points], fake images of each FID.
      distances: float64 [points].
    """

    value: float
    slope: float
    counts: np.ndarray
    distances: np.ndarray


def fid_infinity(
    real: Moments, fake: np.ndarray, *, points: int = 15, smallest: int | None = None, seed: int = 0
) -> Extrapolation:
    """Extrapolates FID over the number of fake images (arXiv:1911.07023, section 3.2).

    FID of n images is biased upward by about slope / n, with a slope that depends on the generator: two generators can
    change places. A line through FIDs of subsets, in 1 / n, has the unbiased value at 0. The real statistics stay
    what they are: their own bias remains.

    Args:
      real: mean and covariance of the real images.
      fake: features [n, C], floating point.
      points: subsets, whose sizes are evenly spaced up to n.
      smallest: images of the smallest subset; None: as the authors' code, 5000, or max(n / 10, 2000) of fewer images,
        but at most half of them.
      seed: of the shuffles.

    Raises:
      UserError: too few images, another number of features, or values that are not finite.
    """
    feature_rows.check(fake, 4, "fid_infinity", "fake")
    n = len(fake)
    smallest = smallest or min(5000, max(n // 10, 2000), n // 2)
    if not 2 <= smallest < n or points < 2:
        raise UserError(
            f"fid_infinity: {points} subsets of {smallest:,} to {n:,} images; at least 2 points, of 2 images or more, "
            "are needed"
        )
    counts = np.unique(np.linspace(smallest, n, points).astype(np.int64))
    random = np.random.RandomState(seed)
    distances = np.array([distance(real, moments_of(fake, random.permutation(n)[:count])) for count in counts])
    slope, value = np.polyfit(1 / counts, distances, 1)
    return Extrapolation(float(value), float(slope), counts, distances)


@dataclasses.dataclass(frozen=True)
class ConfidenceInterval:
    """A bootstrap interval.

    Attributes:
      error: standard error: the standard deviation over the resamples.
      low: value - 1.96 error.
      high: value + 1.96 error.
    """

    error: float
    low: float
    high: float


def bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float],
    real: np.ndarray,
    fake: np.ndarray,
    value: float,
    *,
    resamples: int,
    seed: int = 0,
) -> ConfidenceInterval:
    """Estimates the standard error of a metric by resampling the images of both sets, and its 95 % interval.

    The interval is value ± 1.96 standard errors, not one of percentiles: resampled sets have fewer different images,
    which shifts FID upward, so the percentiles lie above the value. It says nothing of the bias.

    Args:
      metric: of (real features, fake features).
      real: features [n, C].
      fake: features [m, C].
      value: of the metric on all images.
      resamples: at least 2.
      seed: of the resamples.
    """
    if resamples < 2:
        raise UserError(f"bootstrap: {resamples} resamples; at least 2 are needed")
    random = np.random.RandomState(seed)
    values = [
        metric(*(rows[np.sort(random.randint(0, len(rows), len(rows)))] for rows in (real, fake)))
        for _ in range(resamples)
    ]
    error = float(np.std(values, ddof=1))
    return ConfidenceInterval(error, value - _Z95 * error, value + _Z95 * error)
