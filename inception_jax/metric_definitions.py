"""The metrics of an evaluation: name, title, direction, unit and definition of each. This is the only list of them.

`loss`, `top1` and `top5` are means of sums that the evaluation step makes; the others are functions of the predictions
of the whole split, computed on the host after the one pass over it. `inception_jax.register_metric` adds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

CALIBRATION_BINS = 15
"""Bins of the expected calibration error: as many as C. Guo et al. use (arXiv:1706.04599, section 5)."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of each example, in the order of the split.

    Attributes:
      index: int64 [n], the example's position in the split; strictly increasing.
      labels: int32 [n], the true class.
      classes: int32 [n, k], the most probable classes, most probable first; k is 5, or all classes if there are fewer.
      probabilities: at least float32 [n, k], their probabilities.
    """

    index: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
      name: its key in metrics.jsonl and result.json.
      title: its name in texts and plots.
      better: the direction in which a network improves.
      percent: whether it is a fraction that is shown in per cent.
      short: its name at the head of a column.
      compute: of the predictions of a split; None: the evaluation step sums it.
      decimals: of a value as text; None: as many as its size needs.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = True
    short: str = ""
    compute: Callable[[Predictions], float] | None = None
    decimals: int | None = None

    @property
    def column(self) -> str:
        """The head of a column of its values."""
        return self.short or self.title

    @property
    def is_proportion(self) -> bool:
        """Whether it counts right answers: then its value has a binomial confidence interval."""
        return self.name in ("top1", "top5")

    @property
    def mode(self) -> Literal["max", "min"]:
        """Whether the best value is the largest ("max") or the smallest ("min")."""
        return "max" if self.better == "higher" else "min"

    @property
    def unit(self) -> float:
        """The factor by which values are shown: 100 for per cent."""
        return 100.0 if self.percent else 1.0

    @property
    def axis_label(self) -> str:
        """The label of an axis of its values."""
        return self.title + (", %" if self.percent else "")

    def is_better(self, value: float, than: float | None) -> bool:
        """Returns whether a value is better than another one; NaN never is, and any number is better than None."""
        if np.isnan(value):
            return False
        return than is None or (value > than if self.better == "higher" else value < than)

    def to_json(self) -> dict[str, Any]:
        """What a file records of it, so that a reader need not have it registered."""
        return {"title": self.title, "better": self.better, "percent": self.percent}


def class_counts(predictions: Predictions, num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts per class: int64 [num_classes] each, examples of the class, predictions of it, and right predictions."""
    predicted = predictions.classes[:, 0]
    right = predictions.labels[predictions.labels == predicted]
    support, taken, correct = (
        np.bincount(classes, minlength=num_classes) for classes in (predictions.labels, predicted, right)
    )
    return support, taken, correct


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of every class.

    Attributes:
      support: int64 [C], examples of the class.
      predicted: int64 [C], predictions of the class.
      correct: int64 [C], right predictions of the class.
    """

    support: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Right predictions per prediction of the class, float64 [C]; NaN for a class that was never predicted."""
        return _ratio(self.correct, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Right predictions per example of the class, float64 [C]; NaN for a class without examples."""
        return _ratio(self.correct, self.support)

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, float64 [C]; NaN for a class without examples and predictions."""
        return _ratio(2 * self.correct, self.support + self.predicted)


def class_metrics(predictions: Predictions, num_classes: int) -> ClassMetrics:
    """Precision, recall and F1 of every class, by the most probable class of each example."""
    return ClassMetrics(*class_counts(predictions, num_classes))


def balanced_accuracy(predictions: Predictions) -> float:
    """Mean recall of the classes that have examples (scikit-learn's `balanced_accuracy_score`)."""
    return float(np.nanmean(class_metrics(predictions, _num_classes(predictions)).recall))


def macro_f1(predictions: Predictions) -> float:
    """Mean F1 of the classes that have examples or predictions (scikit-learn's `f1_score(average="macro")`)."""
    return float(np.nanmean(class_metrics(predictions, _num_classes(predictions)).f1))


def expected_calibration_error(predictions: Predictions, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance of accuracy and confidence, over bins of equal width of the largest probability.

    C. Guo et al., "On Calibration of Modern Neural Networks" (arXiv:1706.04599), equation 3: bin m holds the examples
    whose confidence is in ((m - 1) / bins, m / bins], and weighs as many examples as it holds.
    """
    confidence = predictions.probabilities[:, 0].astype(np.float64)
    right = predictions.labels == predictions.classes[:, 0]
    bin_of = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side="left")
    gaps = np.bincount(bin_of, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", better="lower", percent=False),
        Metric("top1", "top-1 accuracy", short="top-1"),
        Metric("top5", "top-5 accuracy", short="top-5"),
        Metric("balanced_accuracy", "balanced accuracy", short="balanced", compute=balanced_accuracy),
        Metric("macro_f1", "macro F1", compute=macro_f1),
        Metric(
            "expected_calibration_error",
            "expected calibration error",
            better="lower",
            short="calibration error",
            compute=expected_calibration_error,
        ),
    )
}
"""{name: metric} of every evaluation; those that are registered come after the package's own."""

BUILT_IN = frozenset(METRICS)
TO_TARGET: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("steps_to_target", "steps to target", better="lower", percent=False, decimals=0),
        Metric("epochs_to_target", "epochs to target", better="lower", percent=False, decimals=2),
        Metric("images_to_target", "images to target", better="lower", percent=False, decimals=0),
        Metric("wall_seconds_to_target", "wall seconds to target", better="lower", percent=False, decimals=1),
        Metric("training_seconds_to_target", "training seconds to target", better="lower", percent=False, decimals=1),
    )
}
"""{name: metric} of a run rather than of an evaluation: what it needed to reach `config.stop.target`."""

SUMMED = tuple(name for name, metric in METRICS.items() if metric.compute is None)
"""The metrics that the evaluation step sums over the examples."""


def describe(name: str, recorded: Mapping[str, Any] | None = None) -> Metric:
    """The metric of a name that stands in a file; it need not be registered here.

    Args:
      name: of the metric.
      recorded: what the file says of it, from `Metric.to_json`; used where the name is not registered.
    """
    if name in METRICS or name in TO_TARGET:
        return METRICS.get(name) or TO_TARGET[name]
    known = recorded or {}
    return Metric(
        name,
        title=str(known.get("title") or name),
        better="lower" if known.get("better") == "lower" else "higher",
        percent=bool(known.get("percent", False)),
    )


def _num_classes(predictions: Predictions) -> int:
    return int(max(predictions.labels.max(), predictions.classes[:, 0].max())) + 1


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)
