"""What an evaluation adds up: sums and counts, so that batches, devices and their order leave the result alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

SUMS = ("loss", "top1", "top5", "count")
MAX_CONFUSION_CLASSES = 2000  # a matrix of int64: 32 MB


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was predicted for each example, in the order of the split.

    Attributes:
      index: int64 [n], the example's position in the split; increasing, none twice.
      labels: int32 [n], the true class.
      classes: int32 [n, k], the most probable classes, most probable first.
      probabilities: float32 [n, k], their probabilities.
    """

    index: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


class Accumulator:
    """Adds up the evaluation of a split, batch by batch."""

    def __init__(self, num_classes: int, *, max_confusion_classes: int = MAX_CONFUSION_CLASSES):
        """Args:
        num_classes: of the classifier.
        max_confusion_classes: with more classes than this, no confusion matrix is kept.
        """
        self.num_classes = num_classes
        self._sums = dict.fromkeys(SUMS, 0.0)
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_rows = 0
        kept = num_classes <= max_confusion_classes
        self._confusion = np.zeros((num_classes, num_classes), np.int64) if kept else None

    def add(
        self,
        sums: Mapping[str, Any],
        *,
        classes: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        """Adds one batch.

        Args:
          sums: scalars over the unmasked examples: "loss" (nats), "top1", "top5" and "count".
          classes: int [b, k], each example's most probable classes, first the most probable. With it come
            `probabilities` and `labels`; without it only the sums are added.
          probabilities: float [b, k], of `classes`.
          labels: int [b].
          mask: bool [b], False for padding; None where there is none.
          index: int [b], each example's position in the split; None numbers the unmasked examples as they come, which
            is their position where one process reads the split in order.

        Raises:
          ValueError: arrays that do not fit together, a sum that is missing, or a label that is no class.
        """
        if missing := [name for name in SUMS if name not in sums]:
            raise ValueError(f"sums lack {missing}; {list(SUMS)} are needed")
        if classes is not None:
            self._add_rows(classes, probabilities, labels, mask, index)
        for name in SUMS:
            self._sums[name] += float(sums[name])

    def _add_rows(self, classes, probabilities, labels, mask, index) -> None:
        if labels is None or probabilities is None:
            raise ValueError("classes come with probabilities and labels")
        classes, probabilities, labels = np.asarray(classes), np.asarray(probabilities), np.asarray(labels)
        mask = np.ones(labels.shape, bool) if mask is None else np.asarray(mask, bool)
        if (
            labels.ndim != 1
            or classes.shape != probabilities.shape
            or not (len(classes) == len(labels) == len(mask) and (index is None or len(index) == len(labels)))
        ):
            raise ValueError(
                f"rows do not fit together: classes {classes.shape}, probabilities {probabilities.shape}, "
                f"labels {labels.shape}, mask {mask.shape}"
            )
        count = int(mask.sum())
        index = np.arange(self._num_rows, self._num_rows + count) if index is None else np.asarray(index)[mask]
        classes, probabilities, labels = classes[mask], probabilities[mask], labels[mask]
        if count and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"labels from {labels.min()} to {labels.max()}, but there are {self.num_classes} classes")
        if self._confusion is not None:
            np.add.at(self._confusion, (labels, classes[:, 0]), 1)
        self._rows.append(
            (
                index.astype(np.int64),
                labels.astype(np.int32),
                classes.astype(np.int32),
                probabilities.astype(np.float32),
            )
        )
        self._num_rows += count

    def merge(self, other: Accumulator, *, shared_sums: bool = False) -> Accumulator:
        """Adds what another accumulator has seen to this one.

        Args:
          other: of other examples and the same classes; it is left as it is.
          shared_sums: both were given the same sums, over the batch of all processes (as the evaluation step's are,
            after its all-reduce), and each the rows of its own process: then the sums are kept once.

        Returns:
          This accumulator.

        Raises:
          ValueError: another number of classes, or "shared" sums that differ.
        """
        if self.num_classes != other.num_classes or (self._confusion is None) != (other._confusion is None):
            raise ValueError(f"{self.num_classes} and {other.num_classes} classes do not merge")
        if shared_sums and self._sums != other._sums:
            raise ValueError(f"the sums are not shared: {self._sums} and {other._sums}")
        if not shared_sums:
            self._sums = {name: total + other._sums[name] for name, total in self._sums.items()}
        if self._confusion is not None:
            self._confusion = self._confusion + other._confusion
        self._rows = self._rows + other._rows
        self._num_rows += other._num_rows
        return self

    @property
    def sums(self) -> dict[str, float]:
        """The sums added so far, by the names of `SUMS`."""
        return dict(self._sums)

    @property
    def count(self) -> int:
        """Examples in the sums."""
        return round(self._sums["count"])

    def result(self) -> dict[str, float | int]:
        """{"loss": mean in nats, "top1" and "top5": fractions, "count": examples}.

        Raises:
          ValueError: no example, or more predictions than examples (rows that were added twice).
        """
        if self.count == 0:
            raise ValueError("no example was evaluated")
        if self._num_rows > self.count:
            raise ValueError(f"{self._num_rows} predictions for {self.count} examples: some were added twice")
        means: dict[str, float | int] = {name: self._sums[name] / self.count for name in ("loss", "top1", "top5")}
        return means | {"count": self.count}

    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of the top-1 accuracy (`wilson_interval`)."""
        return wilson_interval(round(self._sums["top1"]), self.count)

    @property
    def confusion(self) -> np.ndarray | None:
        """int64 [C, C], examples of the true class (row) that were taken for a class (column); None: not kept.

        It counts the rows added here: where several processes share a split, merge theirs first.
        """
        return self._confusion

    def per_class_accuracy(self) -> np.ndarray:
        """float64 [C], the part of each class's examples that was right; NaN where it had none.

        Raises:
          ValueError: no confusion matrix is kept for so many classes.
        """
        if self._confusion is None:
            raise ValueError(f"no confusion matrix is kept for {self.num_classes} classes")
        totals = self._confusion.sum(axis=1)
        return np.divide(np.diagonal(self._confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)

    def predictions(self) -> Predictions:
        """The predictions of every example added here, in the order of the split.

        Raises:
          ValueError: none were added, or those of one example twice.
        """
        if not self._rows:
            raise ValueError("no predictions were added")
        index, labels, classes, probabilities = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
        order = np.argsort(index, kind="stable")
        index = index[order]
        if (repeated := index[1:][index[1:] == index[:-1]]).size:
            raise ValueError(f"example {repeated[0]} was evaluated more than once ({repeated.size} repetitions in all)")
        return Predictions(index, labels[order], classes[order], probabilities[order])


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion, which keeps its coverage near 0 and 1, where accuracies lie.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927) 209-212; without continuity correction.

    Args:
      successes: 0 to `trials`.
      trials: at least 1.
      z: quantile of the normal distribution; the default gives 95 %.

    Returns:
      (lower, upper), within [0, 1].

    Raises:
      ValueError: counts that are not possible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    p, square = successes / trials, z * z / trials
    centre = (p + square / 2) / (1 + square)
    half = z * math.sqrt(p * (1 - p) / trials + square / (4 * trials)) / (1 + square)
    # At the ends the formula gives exactly 0 or 1, but for rounding.
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)
