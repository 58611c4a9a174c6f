"""Saved predictions of several labels per example: their loss, their mean, and what they are not mixed with."""

import dataclasses

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.evaluation import split_predictions
from inception_jax.evaluation.split_predictions import SplitPredictions


def made(logits, labels):
    logits = np.asarray(logits, np.float64)
    about = {"dataset": "d", "split": "s", "digest": "x", "members": [{"model": "m"}]}
    index = np.arange(len(logits))
    logs = -np.logaddexp(0, -logits)
    return SplitPredictions(about, ["a", "b"], index.astype(str), index, np.asarray(labels), logs)


LABELS = np.array([[1, 0], [0, 1], [0, 0]], np.uint8)


def test_the_loss_is_exact_where_probabilities_are_near_0_and_1(tmp_path):
    logits = np.array([[60.0, -60.0], [35.0, -35.0], [0.5, -0.25]])
    predictions = made(logits, LABELS)
    expected = (np.logaddexp(0, logits) - logits * LABELS).mean(axis=1).sum() / 3
    found = predictions.accumulate().result()
    assert found["loss"] == pytest.approx(expected, rel=1e-12) and found["count"] == 3 and "top1" not in found
    predictions.save(tmp_path / "p.npz")
    again = split_predictions.load(tmp_path / "p.npz")
    assert again.label_kind == "multi" and again.accumulate().result() == found


def test_the_mean_is_that_of_the_probabilities():
    first, second = (made(np.array(x), LABELS) for x in ([[2.0, -1.0]] * 3, [[0.0, -3.0]] * 3))
    mean = split_predictions.average([first, second], ["a", "b"])
    p = (np.exp(first.log_probabilities) + np.exp(second.log_probabilities)) / 2
    np.testing.assert_allclose(np.exp(mean.log_probabilities), p, rtol=1e-14)
    near = made([[60.0, 0.0]] * 3, LABELS)  # as float64 the probability is 1
    same = split_predictions.average([near, near], ["a", "b"])
    np.testing.assert_allclose(same.log_probabilities, near.log_probabilities, rtol=1e-12)


def test_softmax_and_sigmoid_are_not_averaged():
    one_label = made([[2.0, -1.0]] * 3, np.array([0, 1, 0], np.int32))
    with pytest.raises(
        UserError, match=r"b: config.data.labels = 'single', that of a is 'multi': probabilities of sigm"
    ):
        split_predictions.average([made([[2.0, -1.0]] * 3, LABELS), one_label], ["a", "b"])


def test_float32_and_float64_give_the_same_decisions():
    """Of a probability of 0.5, which is the logit 0 of a network that has not learned, and a rounding below it."""
    logs = np.full((3, 2), np.float32(-0.6931472))
    logs[2] = np.nextafter(logs[2], np.float32(-1))
    single = dataclasses.replace(made(np.zeros((3, 2)), LABELS), log_probabilities=logs)
    found, mean = (one.accumulate() for one in (single, split_predictions.average([single], ["a"])))
    assert found.predictions().predicted.all() and found.result() == pytest.approx(mean.result(), rel=1e-7)


def test_a_logit_that_float32_cannot_tell_from_infinity_costs_what_the_largest_does():
    single = made([[120.0, 0.0]], LABELS[1:2])
    logs = single.log_probabilities.astype(np.float32)
    logs[0, 0] = -0.0  # as XLA gives it
    narrow = dataclasses.replace(single, log_probabilities=logs)
    assert narrow.accumulate().result()["loss"] == pytest.approx((87.3 + np.log(2)) / 2, rel=1e-3)
