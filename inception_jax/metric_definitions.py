"""The metrics of an evaluation: name, title, direction, unit and definition of each. This is the only list of them.

`loss`, `top1` and `top5` are means of sums that the evaluation step makes; the others are functions of the predictions
of the whole split, computed on the host after the one pass over it. `inception_jax.register_metric` adds one. With
several labels per example (`data.labels=multi`) an evaluation has other metrics: `Metric.is_of`.
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
class MultiLabelPredictions:
    """The predictions of each example for every class, in the order of the split, where examples have several labels.

    Attributes:
      index: int64 [n], the example's position in the split; strictly increasing.
      labels: bool [n, C], whether the example has the class.
      log_probabilities: at least float32 [n, C], log of the probability of each class by itself (log-sigmoid of the
        logits): it tells probabilities near 1 apart, which as float32 are equal.
    """

    index: np.ndarray
    labels: np.ndarray
    log_probabilities: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """The probabilities [n, C]; they do not add up to 1."""
        return np.exp(self.log_probabilities)

    @property
    def predicted(self) -> np.ndarray:
        """Whether a class has a probability of at least 0.5 but for one rounding in float32, bool [n, C].

        So it is the same of float32 and of float64, and where sigmoid in float32 gives 0.5 (`predict`).
        """
        return self.log_probabilities.astype(np.float32) >= np.nextafter(np.float32(np.log(0.5)), np.float32(-1))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of an evaluation.

    Attributes:
      name: its key in metrics.jsonl and result.json.
      title: its name in texts and plots.
      better: the direction in which a network improves.
      percent: whether it is a fraction that is shown in per cent.
      short: its name at the head of a column.
      compute: of the predictions of a split with one label per example; None: the evaluation step sums it, or only
        `compute_multi` is defined.
      compute_multi: the same with several labels per example.
      decimals: of a value as text; None: as many as its size needs.
    """

    name: str
    title: str
    better: Literal["higher", "lower"] = "higher"
    percent: bool = True
    short: str = ""
    compute: Callable[[Predictions], float] | None = None
    decimals: int | None = None
    compute_multi: Callable[[MultiLabelPredictions], float] | None = None

    def is_of(self, labels: str) -> bool:
        """Whether an evaluation has it with these `config.data.labels`, "single" or "multi"."""
        if labels == "multi":
            return self.name in MULTI_SUMMED or self.compute_multi is not None
        return self.name in SUMMED or self.compute is not None

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


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of every class.

    Attributes:
      support: int64 [C], examples of the class.
      predicted: int64 [C], predictions of the class.
      correct: int64 [C], right predictions of the class.
      average_precision: float64 [C], of several labels per example (`average_precision`); None with one label.
    """

    support: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray
    average_precision: np.ndarray | None = None

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
    predicted = predictions.classes[:, 0]
    right = predictions.labels[predictions.labels == predicted]
    columns = (predictions.labels, predicted, right)
    return ClassMetrics(*(np.bincount(classes, minlength=num_classes) for classes in columns))


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


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """The area under the precision-recall curve as a sum of steps, without interpolation.

    AP = sum of (R_k - R_(k-1)) P_k over the distinct scores, in descending order, where P_k and R_k are precision and
    recall of the examples with at least score k: scikit-learn's `average_precision_score`. Examples of equal score
    count together, so that their order changes nothing.

    Args:
      labels: bool [n].
      scores: [n].

    Returns:
      NaN where no example has the label, or a score is NaN.
    """
    if not labels.any() or np.isnan(scores).any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(order) - 1)  # the last example of each score
    right = np.cumsum(labels[order])[ends]
    return float((np.diff(right, prepend=0) * (right / (ends + 1))).sum() / right[-1])


def multi_label_class_metrics(predictions: MultiLabelPredictions) -> ClassMetrics:
    """Precision, recall and F1 at a probability of 0.5, and average precision, of every class."""
    labels, predicted = predictions.labels, predictions.predicted
    support, given, right = (table.sum(axis=0, dtype=np.int64) for table in (labels, predicted, labels & predicted))
    columns = zip(labels.T, predictions.log_probabilities.T, strict=True)
    return ClassMetrics(support, given, right, np.array([average_precision(*column) for column in columns]))


def mean_average_precision(predictions: MultiLabelPredictions) -> float:
    """Mean `average_precision` of the classes that some example has (macro mAP).

    A class without examples has no recall and is left out, as torchmetrics' `MultilabelAveragePrecision` does;
    scikit-learn counts it as 0.
    """
    found = multi_label_class_metrics(predictions)
    assert found.average_precision is not None
    values = found.average_precision[found.support > 0]
    return float(values.mean()) if len(values) else float("nan")


def micro_f1(predictions: MultiLabelPredictions) -> float:
    """F1 of all decisions together, at a probability of 0.5 (scikit-learn's `f1_score(average="micro")`).

    NaN where no example has a label and none is predicted.
    """
    right = (predictions.labels & predictions.predicted).sum()
    total = predictions.labels.sum() + predictions.predicted.sum()
    return float(2 * right / total) if total else float("nan")


def multi_label_macro_f1(predictions: MultiLabelPredictions) -> float:
    """Mean F1, at a probability of 0.5, of the classes that have examples or predictions; NaN where none has."""
    labels, predicted = predictions.labels, predictions.predicted
    total = labels.sum(axis=0) + predicted.sum(axis=0)
    f1 = _ratio(2 * (labels & predicted).sum(axis=0), total)
    return float(f1[total > 0].mean()) if total.any() else float("nan")


def exact_match(predictions: MultiLabelPredictions) -> float:
    """Fraction of the examples whose predicted labels, at a probability of 0.5, are exactly their labels.

    Subset accuracy: scikit-learn's `accuracy_score` of label indicators.
    """
    return float((predictions.labels == predictions.predicted).all(axis=1).mean())


SUMMED = ("loss", "top1", "top5")
"""The metrics that the evaluation step sums over the examples, with one label per example."""

MULTI_SUMMED = ("loss",)
"""The same with several labels per example."""

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("loss", "loss", better="lower", percent=False),
        Metric("top1", "top-1 accuracy", short="top-1"),
        Metric("top5", "top-5 accuracy", short="top-5"),
        Metric("balanced_accuracy", "balanced accuracy", short="balanced", compute=balanced_accuracy),
        Metric("macro_f1", "macro F1", compute=macro_f1, compute_multi=multi_label_macro_f1),
        Metric(
            "expected_calibration_error",
            "expected calibration error",
            better="lower",
            short="calibration error",
            compute=expected_calibration_error,
        ),
        Metric("mean_average_precision", "mean average precision", short="mAP", compute_multi=mean_average_precision),
        Metric("micro_f1", "micro F1", compute_multi=micro_f1),
        Metric("exact_match", "exact match", compute_multi=exact_match),
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

DEFAULT_METRIC = {"single": "top1", "multi": "mean_average_precision"}
"""{`config.data.labels`: the metric that chooses the best checkpoint where the config names none}."""


def names_of(labels: str) -> list[str]:
    """The names of the metrics of evaluations with these `config.data.labels`."""
    return [name for name, metric in METRICS.items() if metric.is_of(labels)]


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
