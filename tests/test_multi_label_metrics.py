"""The metrics of several labels per example: against scikit-learn, by hand, and added up in any order."""

import numpy as np
import pytest

from inception_jax import metric_definitions
from inception_jax.metric_definitions import METRICS, MultiLabelPredictions, average_precision
from inception_jax.metrics import Accumulator, MultiLabelAccumulator, make_accumulator

CLASSES = 6


def made(seed, n=40):
    """Labels and logits with ties, a class without examples and examples without a class."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, CLASSES)) < (0.1, 0.5, 0.9, 0.3, 0.2, 0.0)
    labels[:3] = False
    logits = (np.round(rng.normal(size=(n, CLASSES)) + labels, 1)).astype(np.float32)  # rounded: many are equal
    return labels, -np.logaddexp(0, -logits).astype(np.float32)


def compute(labels, logs):
    predictions = MultiLabelPredictions(np.arange(len(labels)), labels, logs)
    return {
        name: metric.compute_multi(predictions) for name, metric in METRICS.items() if metric.compute_multi is not None
    }


def test_the_numbers_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        labels, logs = made(seed)
        predicted = np.exp(logs.astype(np.float64)) >= 0.5 - 1e-9
        found = compute(labels, logs)
        known = labels.any(axis=0)
        each = sklearn.average_precision_score(labels[:, known], logs[:, known], average=None)
        assert found["mean_average_precision"] == pytest.approx(each.mean(), abs=1e-12)
        assert found["micro_f1"] == pytest.approx(sklearn.f1_score(labels, predicted, average="micro"), abs=1e-12)
        some = known | predicted.any(axis=0)
        f1 = sklearn.f1_score(labels[:, some], predicted[:, some], average="macro")
        assert found["macro_f1"] == pytest.approx(f1, abs=1e-12)
        assert found["exact_match"] == pytest.approx(sklearn.accuracy_score(labels, predicted), abs=1e-12)


def test_average_precision_by_hand():
    labels = np.array([True, False, True, False])
    assert average_precision(labels, np.array([4.0, 3.0, 2.0, 1.0])) == pytest.approx((1 + 2 / 3) / 2)
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):  # equal scores count together, in any order
        assert average_precision(labels[order], np.ones(4)) == 0.5
    assert np.isnan(average_precision(np.zeros(4, bool), np.arange(4.0)))
    assert np.isnan(average_precision(labels, np.array([1.0, np.nan, 0.0, 2.0])))
    for labels in ([True, False], [False, True]):
        assert average_precision(np.array(labels), np.full(2, -np.inf)) == 0.5


def test_an_accumulator_of_parts_in_any_order_has_the_whole():
    labels, logs = made(0)
    whole = MultiLabelAccumulator(CLASSES)
    whole.add({"loss": 8.0, "count": 40}, log_probabilities=logs, labels=labels)
    parts = []
    for rows in (slice(25, 40), slice(0, 25)):
        part = make_accumulator(CLASSES, "multi")
        index, mask = np.arange(40)[rows], np.append(np.ones(len(labels[rows]), bool), False)
        part.add(
            {"loss": len(index) / 5, "count": len(index)},
            log_probabilities=np.append(logs[rows], logs[:1], axis=0),  # a row of padding
            labels=np.append(labels[rows], labels[:1], axis=0),
            mask=mask,
            index=np.append(index, 0),
        )
        parts.append(part)
    merged = parts[0].merge(parts[1])
    assert merged.result() == whole.result() == {"loss": 0.2, "count": 40} | compute(labels, logs)
    assert "top1" not in whole.result() and whole.confusion is None and whole.top1_interval() is None
    found = whole.class_metrics()
    assert found.support.tolist() == labels.sum(axis=0).tolist() and np.isnan(found.average_precision[5])
    known = found.average_precision[:5]
    assert known.mean() == pytest.approx(whole.result()["mean_average_precision"])
    with pytest.raises(ValueError, match="do not merge"):
        whole.merge(Accumulator(CLASSES, max_confusion_classes=0))
    with pytest.raises(ValueError, match="more than once"):
        whole.merge(parts[1]).predictions()


def test_probabilities_near_1_are_told_apart_and_nan_is_no_value():
    logits = np.array([[40.0], [30.0], [20.0]], np.float32)  # as float32 all have the probability 1
    logs = -np.log1p(np.exp(-logits))
    labels = np.array([[True], [False], [True]])
    assert compute(labels, logs)["mean_average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert compute(labels, np.log([[0.5], [0.49], [0.5]]).astype(np.float32))["exact_match"] == 1  # at least 0.5
    broken = MultiLabelAccumulator(1)
    broken.add({"loss": np.nan, "count": 3}, log_probabilities=np.full((3, 1), np.nan), labels=labels)
    assert all(np.isnan(value) for name, value in broken.result().items() if name != "count")
    with pytest.raises(ValueError, match="rows do not fit together"):
        broken.add({"loss": 0.0, "count": 3}, log_probabilities=np.zeros((3, 2)), labels=labels)


def test_which_metrics_go_with_which_labels():
    assert metric_definitions.names_of("multi") == [
        "loss", "macro_f1", "mean_average_precision", "micro_f1", "exact_match"
    ]  # fmt: skip
    single = metric_definitions.names_of("single")
    assert {"loss", "top1", "top5", "macro_f1"} <= {*single} and "micro_f1" not in single
