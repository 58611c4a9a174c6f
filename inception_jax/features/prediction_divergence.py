"""Inception Score (arXiv:1606.03498): exp of the mean KL divergence of the predictions from their mean."""

from __future__ import annotations

import dataclasses

import numpy as np

from inception_jax.errors import UserError
from inception_jax.features import feature_rows


@dataclasses.dataclass(frozen=True)
class InceptionScore:
    """The score over splits.

    Attributes:
      mean: over the splits. A split of few images has a low score: its mean prediction is less even.
      std: standard deviation over the splits (divided by their number).
      values: float64 [splits].
    """

    mean: float
    std: float
    values: np.ndarray


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int | None = 2020) -> InceptionScore:
    """Computes the Inception Score.

    The published scores use the 1008 outputs of the network of 2015 without their bias (the output "logits" of
    `FeatureNetwork`), as torch-fidelity's `logits_unbiased`.

    Args:
      logits: [n, classes], floating point.
      splits: parts of the images whose scores are averaged; part i begins at image i * n // splits.
      seed: of the shuffle before the split, as in torch-fidelity; None: no shuffle.

    Raises:
      UserError: fewer images than splits, another shape, or values that are not finite.
    """
    if splits < 1:
        raise UserError(f"is: {splits} splits; at least 1 is needed")
    feature_rows.check(logits, splits, "is", "fake")
    n = len(logits)
    order = np.arange(n) if seed is None else np.random.RandomState(seed).permutation(n)
    values = [_score(logits, order[k * n // splits : (k + 1) * n // splits]) for k in range(splits)]
    return InceptionScore(float(np.mean(values)), float(np.std(values)), np.array(values))


def _score(logits: np.ndarray, order: np.ndarray) -> float:
    """The score of the rows of one split.

    The mean over rows of sum(p * (log p - log q)), where q is the mean of p, is the mean of sum(p log p), less
    sum(q log q): one pass is enough.
    """
    total, negative_entropy = np.zeros(logits.shape[1]), 0.0
    for start in range(0, len(order), feature_rows.BLOCK):
        rows = feature_rows.finite(logits[order[start : start + feature_rows.BLOCK]])
        rows -= rows.max(axis=1, keepdims=True)
        log_p = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        total += p.sum(axis=0)
        negative_entropy += float((p * log_p).sum())
    q = total / len(order)
    marginal = float((q * np.log(np.where(q > 0, q, 1))).sum())
    return float(np.exp(negative_entropy / len(order) - marginal))
