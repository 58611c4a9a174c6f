"""Precision, recall, density and coverage: which images lie within the k-nearest-neighbor balls of the other set.

The distances are computed block by block: memory grows with the number of images, not with its square.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from inception_jax.errors import UserError
from inception_jax.features import feature_rows

_COLUMNS = 4096  # rows of the other set in a block of distances
_SAME = 1e-12  # squared distance, relative to the squared norms, of features that differ by rounding alone


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision and recall (arXiv:1904.06991).

    Attributes:
      precision: fraction of the fake images within the ball of a real one.
      recall: fraction of the real images within the ball of a fake one.
    """

    precision: float
    recall: float


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
    """Density and coverage (arXiv:2002.09797).

    Attributes:
      density: balls of real images that a fake one lies in, divided by k; about 1 for equal distributions, unbounded.
      coverage: fraction of the real images whose ball has a fake one in it.
    """

    density: float
    coverage: float


def precision_recall(real: np.ndarray, fake: np.ndarray, *, neighbors: int = 3) -> PrecisionRecall:
    """Computes precision and recall; a ball reaches to its center's k-th neighbor in its own set, which counts as in.

    Args:
      real: features [n, C], floating point.
      fake: features [m, C].
      neighbors: k; 3 in the paper, in torch-fidelity and in ADM's evaluator.

    Raises:
      UserError: not more images than neighbors, other shapes, or values that are not finite.
    """
    _check(real, fake, neighbors, "precision and recall")
    origin = _origin(real)
    radii_of_real, radii_of_fake = (squared_radii(one, neighbors, origin) for one in (real, fake))
    fake_inside, real_inside = np.zeros(len(fake), bool), np.zeros(len(real), bool)
    for rows, columns, distances in _distance_blocks(real, fake, origin):
        fake_inside[columns] |= (distances <= radii_of_real[rows, None]).any(axis=0)
        real_inside[rows] |= (distances <= radii_of_fake[None, columns]).any(axis=1)
    return PrecisionRecall(float(fake_inside.mean()), float(real_inside.mean()))


def density_coverage(real: np.ndarray, fake: np.ndarray, *, neighbors: int = 5) -> DensityCoverage:
    """Computes density and coverage; what lies at the radius itself is outside, as in the authors' `prdc`.

    Args:
      real: features [n, C], floating point.
      fake: features [m, C].
      neighbors: k; 5 in the paper.

    Raises:
      UserError: as `precision_recall`.
    """
    _check(real, fake, neighbors, "density and coverage")
    origin = _origin(real)
    radii = squared_radii(real, neighbors, origin)
    inside, covered = 0, np.zeros(len(real), bool)
    for rows, _, distances in _distance_blocks(real, fake, origin):
        within = distances < radii[rows, None]
        inside += int(within.sum())
        covered[rows] |= within.any(axis=1)
    return DensityCoverage(inside / (neighbors * len(fake)), float(covered.mean()))


def squared_radii(rows: np.ndarray, neighbors: int, origin: np.ndarray | None = None) -> np.ndarray:
    """The squared distance of each row to its k-th nearest other row: float64 [n].

    Args:
      rows: [n, C], n > neighbors.
      neighbors: k.
      origin: [C], subtracted from the rows first; None: a mean of them.
    """
    origin = _origin(rows) if origin is None else origin
    nearest = np.full((len(rows), neighbors + 1), np.inf)  # a row is its own nearest one
    for places, _, distances in _distance_blocks(rows, rows, origin):
        candidates = np.concatenate([nearest[places], distances], axis=1)
        nearest[places] = np.partition(candidates, neighbors, axis=1)[:, : neighbors + 1]
    return nearest.max(axis=1)


def _check(real: np.ndarray, fake: np.ndarray, neighbors: int, metric: str) -> None:
    if neighbors < 1:
        raise UserError(f"{metric}: {neighbors} neighbors; at least 1 is needed")
    feature_rows.check_pair(real, fake, neighbors + 1, metric)


def _origin(rows: np.ndarray) -> np.ndarray:
    """The mean of the first rows, float64 [C]. Norms about it are as large as the spread, however far from 0 it is."""
    return feature_rows.finite(rows[: feature_rows.BLOCK]).mean(0)


def _distance_blocks(
    first: np.ndarray, second: np.ndarray, origin: np.ndarray
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yields (slice of first, slice of second, squared distances float64 [rows, columns])."""
    for start in range(0, len(first), feature_rows.BLOCK):
        x = feature_rows.finite(first[start : start + feature_rows.BLOCK], start) - origin
        x_squares = np.einsum("ij,ij->i", x, x)
        for other in range(0, len(second), _COLUMNS):
            y = feature_rows.finite(second[other : other + _COLUMNS], other) - origin
            norms = x_squares[:, None] + np.einsum("ij,ij->i", y, y)
            distances = norms - 2 * (x @ y.T)
            # Equal rows have the distance 0, which the difference of large numbers is not.
            distances[distances < _SAME * norms] = 0
            yield slice(start, start + len(x)), slice(other, other + len(y)), distances
