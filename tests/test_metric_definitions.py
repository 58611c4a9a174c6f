"""Every metric against scikit-learn's numbers (`make_metric_goldens.py`), however the split was cut."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from inception_jax import metric_definitions
from inception_jax.errors import UserError
from inception_jax.metric_definitions import METRICS, Metric, Predictions, names_of
from inception_jax.metrics import Accumulator
from inception_jax.runs import class_tables

GOLDEN = json.loads(Path(__file__).with_name("metric_goldens.json").read_text())
PROBABILITIES, LABELS = np.array(GOLDEN["probabilities"]), np.array(GOLDEN["labels"])
NUM_CLASSES = PROBABILITIES.shape[1]


def accumulated(rows, batch_size):
    """An accumulator of some rows of the split, in padded batches."""
    accumulator = Accumulator(NUM_CLASSES)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        mask = np.arange(batch_size) < len(batch)
        index = np.concatenate([batch, np.zeros(batch_size - len(batch), int)])
        found = np.where(mask[:, None], PROBABILITIES[index], 1.0)
        order = np.argsort(-found, axis=1, kind="stable")[:, :5]
        labels = np.where(mask, LABELS[index], 0)
        hits = (order == labels[:, None]) & mask[:, None]
        own = found[np.arange(batch_size), labels] / found.sum(axis=1)
        sums = {"loss": -np.log(own)[mask].sum(), "top1": hits[:, 0].sum(), "top5": hits.sum(), "count": mask.sum()}
        top = np.take_along_axis(found, order, axis=1)
        accumulator.add(sums, classes=order, probabilities=top, labels=labels, mask=mask, index=index)
    return accumulator


def whole(cut):
    """The whole split: in one batch, in batches that do not divide it, or from two processes."""
    rows = np.arange(len(LABELS))
    if isinstance(cut, int):
        return accumulated(rows, cut)
    return accumulated(rows[1::2], 7).merge(accumulated(rows[::2], 11))


@pytest.mark.parametrize("cut", [120, 7, "two processes"])
def test_every_metric_is_scikit_learns(cut):
    found = whole(cut)
    result = found.result()
    assert set(names_of("single")) == set(result) - {"count"} and result["count"] == 120
    for name in names_of("single"):
        assert result[name] == pytest.approx(GOLDEN[name], rel=1e-12), name
    classes = found.class_metrics()
    for name in ("precision", "recall", "f1"):
        expected = [math.nan if value is None else value for value in GOLDEN[name]]
        np.testing.assert_allclose(getattr(classes, name), expected, rtol=1e-12)
    np.testing.assert_array_equal(classes.support, GOLDEN["support"])
    np.testing.assert_array_equal(found.confusion, GOLDEN["confusion"])
    assert math.isnan(classes.precision[5]) and classes.recall[5] == 0  # examples, no prediction
    assert math.isnan(classes.f1[6])  # neither


def test_bins_of_the_calibration_error_end_on_the_right():
    """Guo et al.: bin m is ((m - 1) / M, m / M]: a confidence of exactly 0.5 is in the bin that ends there."""
    predictions = Predictions(
        np.arange(4), np.array([1, 1, 0, 0]), np.zeros((4, 1), int), np.array([[0.5], [0.5], [0.75], [1.0]])
    )
    # Of two bins: 0.5 and 0.5, both wrong: a gap of 0.5; 0.75 and 1.0, both right: a gap of 0.125.
    assert metric_definitions.expected_calibration_error(predictions, bins=2) == pytest.approx((0.5 + 0.125) / 2)
    assert metric_definitions.expected_calibration_error(predictions, bins=1) == pytest.approx(abs(0.5 - 0.6875))


def test_a_network_that_gives_nan_has_no_metric():
    accumulator = Accumulator(3)
    accumulator.add(
        {"loss": math.nan, "top1": 0, "top5": 0, "count": 2},
        classes=np.zeros((2, 1), int),
        probabilities=np.array([[0.9], [math.nan]]),
        labels=np.zeros(2, int),
    )
    assert math.isnan(accumulator.result()["macro_f1"]) and math.isnan(accumulator.result()["balanced_accuracy"])


def test_directions():
    assert METRICS["loss"].is_better(1.0, 2.0) and not METRICS["loss"].is_better(2.0, 1.0)
    assert METRICS["macro_f1"].is_better(0.2, 0.1) and METRICS["macro_f1"].is_better(0.2, None)
    assert METRICS["expected_calibration_error"].mode == "min" and METRICS["balanced_accuracy"].mode == "max"
    assert not METRICS["top1"].is_better(math.nan, None) and not METRICS["top1"].is_better(0.5, 0.5)
    # One that is not registered here is described by the file that names it.
    assert metric_definitions.describe("auc", Metric("auc", "area", better="lower").to_json()).better == "lower"


def test_an_error_inside_a_metric_names_it(monkeypatch):
    monkeypatch.setitem(METRICS, "mine", Metric("mine", "mine", compute=lambda predictions: 1 / 0))
    with pytest.raises(UserError, match=r"'mine': ZeroDivisionError.*; register_metric\('mine', …\) replaces it$"):
        whole(120).result()


def test_a_table_of_the_mistakes(tmp_path, monkeypatch):
    evaluation = Accumulator(7)
    evaluation.add(
        {"loss": 0.0, "top1": 1.0, "top5": 4.0, "count": 4.0},
        index=np.array([8, 5, 6, 7]),
        labels=np.array([0, 1, 2, 6]),
        classes=np.array([[0, 1], [2, 1], [0, 2], [5, 1]]),
        probabilities=np.array([[0.9, 0.1], [0.5, 0.25], [0.75, 0.125], [0.5, 0.2]], np.float32),
    )
    class_tables.write(tmp_path, evaluation, "abcdefg", "file {}".format)
    head, *lines = (tmp_path / "mistakes.csv").read_text().splitlines()
    assert head == "example,file,true_class,predicted_class,true_probability,predicted_probability"
    assert lines == ["6,file 6,c,a,0.125,0.75", "5,file 5,b,c,0.25,0.5", "7,file 7,g,f,,0.5"]
    monkeypatch.setattr(class_tables, "MAX_MISTAKES", 1)
    class_tables.write(tmp_path, evaluation, "abcdefg", "file {}".format)
    assert (tmp_path / "mistakes.csv").read_text().splitlines()[1:] == lines[:1]


def test_tables_of_the_classes(tmp_path):
    names = ['a "quoted", name', *"bcdefg"]
    written = class_tables.write(tmp_path, whole(7), names, "file {}".format)
    assert written == ["confusion_matrix.csv", "mistakes.csv", "per_class.csv"]
    lines = (tmp_path / "per_class.csv").read_text().splitlines()
    assert lines[0] == "class,precision,recall,f1,support,predicted"
    assert lines[1].startswith('"a ""quoted"", name",') and lines[7] == "g,,,,0,0"
    matrix = [line.rsplit(",", 7)[1:] for line in (tmp_path / "confusion_matrix.csv").read_text().splitlines()[1:]]
    np.testing.assert_array_equal(np.array(matrix, int), GOLDEN["confusion"])
    report = class_tables.report_lines(tmp_path)
    assert len([line for line in report if line.startswith("|")]) == 9 and "[per_class.csv]" in report[-1]
    (tmp_path / "per_class.csv").write_text("class,precision\na,x\n")
    with pytest.raises(UserError, match=r"per_class\.csv is damaged"):
        class_tables.report_lines(tmp_path)
