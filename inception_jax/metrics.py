"""Accumulates evaluation metrics as sums and counts, so that batches, devices and their order do not matter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from inception_jax.errors import UserError
from inception_jax.metric_definitions import (
    METRICS,
    MULTI_SUMMED,
    SUMMED,
    ClassMetrics,
    Metric,
    MultiLabelPredictions,
    Predictions,
    class_metrics,
    multi_label_class_metrics,
)

SUMS = (*SUMMED, "count")
MAX_CONFUSION_CLASSES = 2000  # a matrix of int64: 32 MB


class Accumulator:
    """Accumulates the evaluation of a split, batch by batch, on the host.

    The devices give sums and the most probable classes; the confusion matrix is counted here from those (1000 classes:
    8 MB), so it costs the evaluation step nothing.

    Attributes:
      labels: "single": one label per example; "multi": several, in `MultiLabelAccumulator`.
    """

    labels = "single"
    _kind: type[Predictions | MultiLabelPredictions] = Predictions
    _sum_names: tuple[str, ...] = SUMS

    def __init__(self, num_classes: int, *, max_confusion_classes: int = MAX_CONFUSION_CLASSES):
        """Starts without examples.

        Args:
          num_classes: of the classifier.
          max_confusion_classes: with more classes than this, no confusion matrix is kept.
        """
        self.num_classes = num_classes
        self._sums = dict.fromkeys(self._sum_names, 0.0)
        self._rows: list[tuple[np.ndarray, ...]] = []
        self._predictions: Predictions | MultiLabelPredictions | None = None
        self._result: dict[str, float | int] | None = None
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
          classes: int [b, k], each example's most probable classes, most probable first; needs `probabilities` and
            `labels`. None: only the sums are added.
          probabilities: float [b, k], of `classes`.
          labels: int [b].
          mask: bool [b], False for padding; None: no padding.
          index: int [b], each example's position in the split; None: unmasked examples are numbered in the order of
            the calls, which is their position if one process reads the split in order.

        Raises:
          ValueError: shapes do not match, a sum is missing, or a label is not a class.
        """
        self._check_sums(sums)
        if classes is not None:
            index, labels, classes, probabilities = self._unmasked(
                mask, index, labels=labels, classes=classes, probabilities=probabilities
            )
            if labels.ndim != 1 or classes.shape != probabilities.shape:
                raise ValueError(
                    f"rows do not fit together: labels {labels.shape}, classes {classes.shape}, probabilities "
                    f"{probabilities.shape}"
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
                raise ValueError(
                    f"labels from {labels.min()} to {labels.max()}, but there are {self.num_classes} classes"
                )
            if self._confusion is not None:
                np.add.at(self._confusion, (labels, classes[:, 0]), 1)
            wide = np.promote_types(probabilities.dtype, np.float32)
            self._rows.append((index, labels.astype(np.int32), classes.astype(np.int32), probabilities.astype(wide)))
        self._add_sums(sums)

    def _unmasked(
        self, mask: np.ndarray | None, index: np.ndarray | None, **columns: np.ndarray | None
    ) -> list[np.ndarray]:
        """The unmasked rows of columns: their positions in the split, int64, and the columns."""
        if missing := [name for name, column in columns.items() if column is None]:
            raise ValueError(f"{', '.join(columns)} do not fit together: there is no {missing[0]}")
        arrays = {name: np.asarray(column) for name, column in columns.items()}
        arrays["mask"] = np.ones(len(arrays["labels"]), bool) if mask is None else np.asarray(mask, bool)
        arrays |= {} if index is None else {"index": np.asarray(index)}
        if len({len(array) for array in arrays.values()}) > 1:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
            raise ValueError(f"rows do not fit together: {shapes}")
        kept = arrays.pop("mask")
        place = arrays.pop("index")[kept] if index is not None else self._num_rows + np.arange(kept.sum())
        return [place.astype(np.int64), *(array[kept] for array in arrays.values())]

    @property
    def _num_rows(self) -> int:
        return sum(len(index) for index, *_ in self._rows)

    def _check_sums(self, sums: Mapping[str, Any]) -> None:
        if missing := [name for name in self._sum_names if name not in sums]:
            raise ValueError(f"sums lack {missing}; {list(self._sum_names)} are needed")

    def _add_sums(self, sums: Mapping[str, Any]) -> None:
        self._predictions = self._result = None
        for name in self._sum_names:
            self._sums[name] += float(sums[name])

    def merge(self, other: Accumulator, *, shared_sums: bool = False) -> Accumulator:
        """Adds the content of another accumulator to this one.

        Args:
          other: of other examples and the same classes; it is not changed.
          shared_sums: both have the same sums, over the examples of all processes (as from the evaluation step, after
            its all-reduce), and each the rows of its own process: the sums are not added.

        Returns:
          This accumulator.

        Raises:
          ValueError: the number of classes differs, or the shared sums do.
        """
        same_form = type(self) is type(other) and (self._confusion is None) == (other._confusion is None)
        if self.num_classes != other.num_classes or not same_form:
            raise ValueError(f"{self.num_classes} and {other.num_classes} classes do not merge")
        if shared_sums and self._sums != other._sums:
            raise ValueError(f"the sums are not shared: {self._sums} and {other._sums}")
        if not shared_sums:
            self._sums = {name: total + other._sums[name] for name, total in self._sums.items()}
        if self._confusion is not None and other._confusion is not None:
            self._confusion = self._confusion + other._confusion
        self._predictions = self._result = None
        self._rows = self._rows + other._rows
        return self

    @property
    def sums(self) -> dict[str, float]:
        """The sums so far, by the names of `SUMS`."""
        return dict(self._sums)

    @property
    def count(self) -> int:
        """Number of examples in the sums."""
        return round(self._sums["count"])

    def result(self) -> dict[str, float | int]:
        """The value of every metric of `METRICS`, and "count", the number of examples.

        The metrics that need the predictions are left out where this accumulator has not those of all examples (sums
        alone, or one of several processes before `merge`). They are NaN where a probability is NaN: such an example has
        no predicted class.

        Raises:
          ValueError: there is no example, or there are more predictions than examples (rows were added twice).
        """
        if self.count == 0:
            raise ValueError("no example was evaluated")
        if self._num_rows > self.count:
            raise ValueError(f"{self._num_rows} predictions for {self.count} examples: some were added twice")
        if self._result is None:
            values: dict[str, float | int] = {}
            is_whole = self._num_rows == self.count
            broken = is_whole and bool(np.isnan(self.predictions().probabilities).any())
            for name, metric in METRICS.items():
                if not metric.is_of(self.labels):
                    continue
                if name in self._sum_names:
                    values[name] = self._sums[name] / self.count
                elif is_whole:
                    values[name] = math.nan if broken else _compute(metric, self.predictions())
            self._result = values | {"count": self.count}
        return dict(self._result)

    def class_metrics(self) -> ClassMetrics:
        """Precision, recall and F1 of every class; raises as `predictions`."""
        return class_metrics(self.predictions(), self.num_classes)

    def top1_interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the top-1 accuracy (`wilson_interval`); None with several labels per example."""
        return wilson_interval(round(self._sums["top1"]), self.count)

    @property
    def confusion(self) -> np.ndarray | None:
        """Confusion matrix, int64 [C, C]: true class by row, predicted class by column; None: not kept.

        It counts the rows added here: with several processes, merge their accumulators first.
        """
        return self._confusion

    def predictions(self) -> Any:
        """The predictions of every example added here, in the order of the split: `Predictions`.

        Raises:
          ValueError: none were added, or those of an example twice.
        """
        if not self._rows:
            raise ValueError("no predictions were added")
        if self._predictions is None:
            self._predictions = self._kind(*self._sorted_columns())
        return self._predictions

    def _sorted_columns(self) -> list[np.ndarray]:
        """The columns of all rows, `index` first, in the order of the split."""
        index, *columns = (np.concatenate(parts) for parts in zip(*self._rows, strict=True))
        order = np.argsort(index, kind="stable")
        index = index[order]
        if (repeated := index[1:][index[1:] == index[:-1]]).size:
            raise ValueError(f"example {repeated[0]} was evaluated more than once ({repeated.size} repetitions in all)")
        return [index, *(column[order] for column in columns)]


class MultiLabelAccumulator(Accumulator):
    """The same where examples have several labels: the metrics of "multi", no confusion matrix and no top-1.

    It keeps the probabilities of all classes: 5 bytes for each example and class.
    """

    labels = "multi"
    _kind = MultiLabelPredictions
    _sum_names = (*MULTI_SUMMED, "count")

    def __init__(self, num_classes: int):
        """Starts without examples.

        Args:
          num_classes: of the classifier.
        """
        super().__init__(num_classes, max_confusion_classes=0)

    def add(  # type: ignore[override]  # other columns
        self,
        sums: Mapping[str, Any],
        *,
        log_probabilities: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> None:
        """Adds one batch.

        Args:
          sums: scalars over the unmasked examples: "loss" (nats, the mean over the classes) and "count".
          log_probabilities: float [b, C], as in `MultiLabelPredictions`; None: only the sums are added.
          labels: bool or 0 and 1 [b, C].
          mask: as in `Accumulator.add`.
          index: as in `Accumulator.add`.

        Raises:
          ValueError: shapes do not match, or a sum is missing.
        """
        self._check_sums(sums)
        if log_probabilities is not None:
            own, labels, logs = self._unmasked(mask, index, labels=labels, log_probabilities=log_probabilities)
            if not logs.shape == labels.shape == (len(logs), self.num_classes):
                raise ValueError(
                    f"rows do not fit together: labels {labels.shape}, log_probabilities {logs.shape}; "
                    f"{self.num_classes} classes"
                )
            self._rows.append((own, labels.astype(bool), logs.astype(np.promote_types(logs.dtype, np.float32))))
        self._add_sums(sums)

    def class_metrics(self) -> ClassMetrics:
        """Precision, recall and F1 at a probability of 0.5, and average precision; raises as `predictions`."""
        return multi_label_class_metrics(self.predictions())

    def top1_interval(self) -> None:
        """None: there is no top-1 accuracy."""
        return None


def make_accumulator(num_classes: int, labels: str = "single") -> Accumulator:
    """An accumulator without examples, for these `config.data.labels`."""
    return MultiLabelAccumulator(num_classes) if labels == "multi" else Accumulator(num_classes)


def _compute(metric: Metric, predictions: Predictions | MultiLabelPredictions) -> float:
    """The value of a metric, as a float; an error inside a registered one becomes a line with its name.

    Raises:
      UserError: it raises, or returns no number.
    """
    compute: Any = metric.compute_multi if isinstance(predictions, MultiLabelPredictions) else metric.compute
    try:
        return float(compute(predictions))
    except Exception as error:  # whatever a user's function raises
        raise UserError(
            f"metric {metric.name!r}: {type(error).__name__}: {error}; register_metric({metric.name!r}, …) replaces it"
        ) from error


def wilson_interval(successes: int, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval of a proportion; its coverage is right also near 0 and 1, where accuracies lie.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the American
    Statistical Association 22 (1927) 209-212; without continuity correction.

    Args:
      successes: 0 to `trials`.
      trials: at least 1.
      z: quantile of the normal distribution; the default gives 95 %.

    Returns:
      (lower, upper), within [0, 1].

    Raises:
      ValueError: the counts are not possible.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is not a proportion")
    p, square = successes / trials, z * z / trials
    center = (p + square / 2) / (1 + square)
    half = z * math.sqrt(p * (1 - p) / trials + square / (4 * trials)) / (1 + square)
    # At the ends the formula gives exactly 0 or 1, except for rounding.
    return (0.0 if successes == 0 else center - half, 1.0 if successes == trials else center + half)


def accuracy_interval(accuracy: float | None, count: int | None) -> tuple[float, float] | None:
    """The 95 % interval of an accuracy of so many examples; None where these are not known, or are impossible."""
    if accuracy is None or not count or not 0 <= accuracy <= 1 <= count:
        return None
    return wilson_interval(round(accuracy * count), int(count))
