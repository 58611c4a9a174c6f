"""Mean and covariance of features, and the Fréchet distance between two sets of them (FID, arXiv:1706.08500)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from inception_jax.errors import UserError, counted
from inception_jax.weight_files import npz_files
from inception_jax.weight_files.archives import ZipArchive
from inception_jax.weight_files.types import DEFAULT_LIMIT, ReadBudget, ReadError

MAX_FEATURES = 8192  # four times the widest endpoint; eigenvalues of that many take minutes


class Moments:
    """Mean and covariance of rows that are added batch by batch, in float64.

    Two sets are merged by their means and their sums of squares about them (Chan, Golub & LeVeque, "Updating formulae
    and a pairwise algorithm for computing sample variances", 1979), which avoids cancellation of large numbers.

    Attributes:
      count: rows added so far.
      mean: float64 [C].
    """

    def __init__(self, features: int):
        """Starts with no rows.

        Args:
          features: C, numbers per row.
        """
        self.count = 0
        self.mean = np.zeros(features)
        self._squares = np.zeros((features, features))

    def add(self, rows: np.ndarray) -> None:
        """Adds rows.

        Args:
          rows: [n, C] of any floating dtype.

        Raises:
          UserError: a value that is not finite.
          ValueError: another shape.
        """
        rows = np.asarray(rows, np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise ValueError(f"rows: shape {rows.shape}; [n, {len(self.mean)}] is needed")
        if not np.isfinite(rows).all():
            raise UserError("the features of an image are not finite: statistics of them do not exist")
        if not len(rows):
            return
        mean = rows.mean(0)
        centered = rows - mean
        self.merge(len(rows), mean, centered.T @ centered)

    def merge(self, count: int, mean: np.ndarray, squares: np.ndarray) -> None:
        """Adds the moments of other rows.

        Args:
          count: of those rows, at least 1.
          mean: float64 [C], their mean.
          squares: float64 [C, C], the sum of the outer products of the rows less that mean.
        """
        gap, total = mean - self.mean, self.count + count
        self._squares += squares + np.outer(gap, gap) * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """The sample covariance, divided by count - 1 as in NumPy's `cov` and pytorch-fid.

        Returns:
          float64 [C, C].

        Raises:
          UserError: fewer than two rows.
        """
        if self.count < 2:
            raise UserError(f"statistics of {counted(self.count, 'image')}: a covariance needs two or more")
        return self._squares / (self.count - 1)


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray) -> float:
    """The squared Fréchet distance of two Gaussians, |mu1 - mu2|² + tr(S1 + S2 - 2 (S1 S2)^½): FID of pool features.

    Dowson & Landau, "The Fréchet distance between multivariate normal distributions", 1982, eq. 4. The trace of the
    root is the sum of the roots of the eigenvalues of S1^½ S2 S1^½, which is symmetric where S1 S2 is not: covariances
    of fewer images than features, which are singular, need no offset on the diagonal. Equal Gaussians have the distance
    0, and rounding below 0 is cut, where pytorch-fid and clean-fid give a small number of either sign.

    Args:
      mu1: [C], the mean of the first set.
      sigma1: [C, C], its covariance.
      mu2: [C], the mean of the second set.
      sigma2: [C, C], its covariance.

    Returns:
      The distance, at least 0.

    Raises:
      UserError: shapes that do not fit together, values that are not finite, or a matrix that is not a covariance.
    """
    size = np.size(mu1)
    (mu1, one), (mu2, other) = check_moments(mu1, sigma1, size, "1"), check_moments(mu2, sigma2, size, "2")
    if np.array_equal(mu1, mu2) and np.array_equal(one, other):
        return 0.0
    values, vectors = np.linalg.eigh(one)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    product = root @ other @ root
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    gap = mu1 - mu2
    return max(float(gap @ gap + np.trace(one) + np.trace(other) - 2 * crossed), 0.0)


def check_moments(
    mean: np.ndarray, covariance: np.ndarray, size: int, number: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Checks a mean and a covariance, from which a distance is computed.

    Args:
      mean: [size].
      covariance: [size, size].
      size: features of the other set.
      number: of the set, for messages: "1" makes the names mu1 and sigma1.

    Returns:
      Mean, and the symmetric part of the covariance, float64.

    Raises:
      UserError: another shape, values that are not finite, or a matrix that is not symmetric or has a negative
        eigenvalue, by more than rounding.
    """
    mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
    name = f"sigma{number}"
    for label, array, shape in ((f"mu{number}", mean, (size,)), (name, covariance, (size, size))):
        if array.shape != shape:
            raise UserError(
                f"{label}: shape {array.shape}, {shape} is needed: both sets must be features of the same endpoint"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{label}: {int((~np.isfinite(array)).sum())} values are not finite")
    scale = np.abs(covariance).max(initial=0.0)
    if np.abs(covariance - covariance.T).max(initial=0.0) > 1e-6 * scale:
        raise UserError(f"{name}: not symmetric, so not a covariance")
    symmetric = (covariance + covariance.T) / 2
    # Files of other programs hold float32 products, whose rounding is relative to the largest eigenvalue. That is no
    # smaller than an element of the diagonal: where Cholesky's factorization exists, which takes a tenth of the time of
    # the eigenvalues, none is below that rounding.
    largest = np.diagonal(symmetric).max(initial=0.0)
    try:
        np.linalg.cholesky(symmetric + 1e-3 * largest * np.eye(size))
    except np.linalg.LinAlgError:
        values = np.linalg.eigvalsh(symmetric)
        if values[0] < -1e-3 * max(values[-1], 0.0):
            raise UserError(f"{name}: eigenvalues from {values[0]:g} to {values[-1]:g}, so not a covariance") from None
    return mean, symmetric


def read_statistics(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file that `extract --statistics` or pytorch-fid wrote, with the limits of `weight_files`.

    Args:
      path: the .npz file.

    Returns:
      (mu, sigma).

    Raises:
      UserError: there is no such file, it has no mu and sigma, or they are larger than such a file can make them.
    """
    path = Path(path)
    try:
        data = memoryview(path.read_bytes())
        # What is decompressed has a budget of its own, because the arrays made of it are charged again.
        budget = ReadBudget(DEFAULT_LIMIT, len(data))
        members = ZipArchive(data, ReadBudget(DEFAULT_LIMIT, len(data)))
        for name in ("mu", "sigma"):
            if f"{name}.npy" not in members:
                raise UserError(f"{path}: not a file of statistics ({name} is not in the archive)")
        mu, sigma = (npz_files.read_array(members.read(f"{name}.npy"), name, budget) for name in ("mu", "sigma"))
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except (OSError, ReadError) as error:
        raise UserError(f"{path}: not a NumPy archive ({error})") from None
    if mu.dtype.kind not in "iuf" or sigma.dtype.kind not in "iuf":
        raise UserError(f"{path}: not a file of statistics (mu and sigma must both be arrays of real numbers)")
    if mu.size > MAX_FEATURES:
        raise UserError(f"{path}: statistics of {mu.size:,} features; at most {MAX_FEATURES:,} are compared")
    return mu, sigma
