"""Evaluation metrics against NumPy on the whole split at once, however it was cut into batches and processes."""

import math

import numpy as np
import pytest

from inception_jax.metric_definitions import names_of
from inception_jax.metrics import SUMS, Accumulator, wilson_interval


def split(num_examples, num_classes, seed=0):
    """Random logits and labels of a split: (probabilities [n, C], labels [n])."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_examples, num_classes))
    labels = random.integers(num_classes, size=num_examples)
    logits[np.arange(num_examples), labels] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return probabilities, labels


def batches(probabilities, labels, batch_size, k=5):
    """What the pipeline and the evaluation step give: padded batches of (sums, rows)."""
    for start in range(0, len(labels), batch_size):
        real = len(labels[start : start + batch_size])
        mask = np.arange(batch_size) < real
        padding = np.full((batch_size - real, probabilities.shape[1]), 0.1)
        rows = np.concatenate([probabilities[start : start + real], padding])
        label = np.concatenate([labels[start : start + real], np.zeros(batch_size - real, int)]).astype(np.int32)
        classes = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        hits = classes == label[:, None]
        sums = {
            "loss": np.float32(-np.log(rows[np.arange(batch_size), label])[mask].sum()),
            "top1": np.float32(hits[mask, :1].sum()),
            "top5": np.float32(hits[mask, :5].sum()),
            "count": np.float32(mask.sum()),
        }
        top = np.take_along_axis(rows, classes, axis=1).astype(np.float32)
        yield sums, {"classes": classes.astype(np.int32), "probabilities": top, "labels": label, "mask": mask}


def accumulated(probabilities, labels, batch_size, **options):
    accumulator = Accumulator(probabilities.shape[1], **options)
    for sums, rows in batches(probabilities, labels, batch_size):
        accumulator.add(sums, **rows)
    return accumulator


@pytest.mark.parametrize("batch_size", [1, 7, 64, 103, 200])
def test_means_and_confusion_are_those_of_the_split_however_it_is_batched(batch_size):
    probabilities, labels = split(103, 10)
    accumulator = accumulated(probabilities, labels, batch_size)
    predicted = probabilities.argmax(axis=1)
    order = np.argsort(-probabilities, axis=1)
    expected = {
        "loss": pytest.approx(-np.log(probabilities[np.arange(103), labels]).mean(), rel=1e-6),
        "top1": (predicted == labels).mean(),
        "top5": (order[:, :5] == labels[:, None]).any(axis=1).mean(),
        "count": 103,
    }
    assert {name: accumulator.result()[name] for name in expected} == expected
    assert set(accumulator.result()) == {*names_of("single"), "count"}
    assert type(accumulator.result()["count"]) is int
    confusion = [[((labels == true) & (predicted == taken)).sum() for taken in range(10)] for true in range(10)]
    np.testing.assert_array_equal(accumulator.confusion, confusion)
    accuracy = [np.mean(predicted[labels == true] == true) for true in range(10)]
    np.testing.assert_allclose(accumulator.class_metrics().recall, accuracy)


def test_sums_are_added_in_float64():
    accumulator = Accumulator(10)
    for loss in [2.0**24, *[1.0] * 100]:  # in float32 the ones would vanish
        accumulator.add({"loss": np.float32(loss), "top1": 1.0, "top5": 1.0, "count": 1.0})
    assert accumulator.result()["loss"] == (2**24 + 100) / 101


def test_predictions_are_in_the_order_of_the_split_without_padding():
    probabilities, labels = split(23, 10)
    predictions = accumulated(probabilities, labels, 8).predictions()
    order = np.argsort(-probabilities, axis=1)[:, :5]
    np.testing.assert_array_equal(predictions.index, np.arange(23))
    np.testing.assert_array_equal(predictions.labels, labels)
    np.testing.assert_array_equal(predictions.classes, order)
    np.testing.assert_allclose(predictions.probabilities, np.take_along_axis(probabilities, order, 1), rtol=1e-6)
    assert [array.dtype for array in (predictions.index, predictions.labels, predictions.classes)] == [
        np.int64,
        np.int32,
        np.int32,
    ]


@pytest.mark.parametrize("shared", [False, True])
def test_two_processes_together_are_one(shared):
    """Each process has every second block of 8; with shared sums each also has the sums of both, as after a psum."""
    probabilities, labels = split(64, 10)
    whole = accumulated(probabilities, labels, 8)
    parts = [Accumulator(10), Accumulator(10)]
    for start in range(0, 64, 16):
        blocks = list(batches(probabilities[start : start + 16], labels[start : start + 16], 8))
        total = {name: blocks[0][0][name] + blocks[1][0][name] for name in blocks[0][0]}
        for process, (sums, rows) in enumerate(blocks):
            index = start + 8 * process + np.arange(8)
            parts[process].add(total if shared else sums, **rows, index=index)
    if shared:  # each alone knows the means already, and no metric of the predictions of all
        assert parts[0].result() == pytest.approx({name: whole.result()[name] for name in SUMS})
    merged = parts[1].merge(parts[0], shared_sums=shared)
    assert merged.result() == pytest.approx(whole.result())
    np.testing.assert_array_equal(merged.confusion, whole.confusion)
    for name in ("index", "labels", "classes", "probabilities"):
        np.testing.assert_array_equal(getattr(merged.predictions(), name), getattr(whole.predictions(), name))


def test_merging_leaves_the_other_alone_and_refuses_what_does_not_fit():
    probabilities, labels = split(16, 10)
    a, b = accumulated(probabilities, labels, 16), accumulated(probabilities[:8], labels[:8], 8)
    before = b.confusion.copy()
    with pytest.raises(ValueError, match="not shared"):
        a.merge(b, shared_sums=True)
    a.merge(b)
    np.testing.assert_array_equal(b.confusion, before)
    assert (a.count, b.count) == (24, 8)
    with pytest.raises(ValueError, match="10 and 11 classes"):
        a.merge(Accumulator(11))
    with pytest.raises(ValueError, match=r"example 0 was evaluated more than once \(8 repetitions"):
        a.predictions()


def test_rows_that_were_added_twice_are_noticed():
    ((sums, rows),) = batches(*split(8, 10), 8)
    accumulator = Accumulator(10)
    accumulator.add(sums, **rows)
    accumulator.add({**sums, "count": 0.0}, **rows)
    with pytest.raises(ValueError, match="16 predictions for 8 examples"):
        accumulator.result()


def test_many_classes_keep_no_matrix_but_everything_else():
    probabilities, labels = split(40, 30)
    accumulator = accumulated(probabilities, labels, 16, max_confusion_classes=29)
    assert accumulator.confusion is None
    assert accumulator.result()["top1"] == (probabilities.argmax(axis=1) == labels).mean()
    assert len(accumulator.predictions().index) == 40
    assert accumulator.class_metrics().support.sum() == 40


def test_a_class_without_examples_has_no_accuracy():
    accumulator = Accumulator(3)
    accumulator.add(
        {"loss": 1, "top1": 1, "top5": 2, "count": 2},
        classes=np.array([[0], [0]]),
        probabilities=np.ones((2, 1)),
        labels=np.array([0, 2]),
    )
    np.testing.assert_array_equal(accumulator.class_metrics().recall, [1.0, math.nan, 0.0])


def test_sums_alone_are_enough_for_means():
    accumulator = Accumulator(10)
    accumulator.add({"loss": 4.0, "top1": 1.0, "top5": 2.0, "count": 2.0})
    assert accumulator.result() == {"loss": 2.0, "top1": 0.5, "top5": 1.0, "count": 2}
    with pytest.raises(ValueError, match="no predictions"):
        accumulator.predictions()


def test_what_does_not_fit_is_refused_and_changes_nothing():
    ((sums, rows),) = batches(*split(8, 10), 8)
    accumulator = Accumulator(10)
    bad = [
        ({"loss": 1.0, "top1": 1.0}, {}),
        (sums, {**rows, "labels": None}),
        (sums, {**rows, "labels": rows["labels"][:-1]}),
        (sums, {**rows, "mask": np.ones(3, bool)}),
        (sums, {**rows, "probabilities": rows["probabilities"][:, :2]}),
        (sums, {**rows, "labels": rows["labels"] + 10}),
        (sums, {**rows, "index": np.arange(3)}),
    ]
    for its_sums, its_rows in bad:
        with pytest.raises(ValueError, match=r"lack|do not fit|labels from"):
            accumulator.add(its_sums, **its_rows)
    assert accumulator.count == 0 and accumulator.confusion.sum() == 0
    with pytest.raises(ValueError, match="no example"):
        accumulator.result()


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (355, 360), (1, 3), (34_935, 50_000)])
def test_wilson_interval_ends_where_the_score_test_does(successes, trials):
    """Its definition: the p at which |successes / trials - p| is z standard errors at p, found here by bisection."""
    z, estimate = 1.959963984540054, successes / trials

    def boundary(inside, outside):
        for _ in range(200):
            middle = (inside + outside) / 2
            if abs(estimate - middle) <= z * math.sqrt(middle * (1 - middle) / trials):
                inside = middle
            else:
                outside = middle
        return inside

    low, high = wilson_interval(successes, trials)
    assert low == pytest.approx(boundary(estimate, 0.0) if successes else 0.0, abs=1e-9)
    assert high == pytest.approx(boundary(estimate, 1.0) if successes < trials else 1.0, abs=1e-9)
    assert 0.0 <= low <= estimate <= high <= 1.0


def test_wilson_interval_of_published_example_and_of_an_accumulator():
    # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, Table I, method 3: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    accumulator = Accumulator(10)
    accumulator.add({"loss": 0.0, "top1": 81.0, "top5": 263.0, "count": 263.0})
    assert accumulator.top1_interval() == wilson_interval(81, 263)
    for successes, trials in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="not a proportion"):
            wilson_interval(successes, trials)
