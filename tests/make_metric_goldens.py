"""Writes metric_goldens.json: scikit-learn's metrics of a small unbalanced split, with a class that is never predicted.

    python tests/make_metric_goldens.py      (scikit-learn 1.9.1, NumPy 2.4)

The split has 7 classes; class 5 has examples and no prediction, class 6 neither.
"""

import json
from pathlib import Path

import numpy as np
from sklearn import calibration, metrics, utils

CLASSES = 7


def split():
    """(probabilities float64 [120, 7], labels [120])."""
    random = np.random.default_rng(3)
    labels = random.choice(6, size=120, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05])
    logits = random.normal(size=(120, CLASSES))
    logits[np.arange(120), labels] += 1.2
    logits[:, 5:] -= 7
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.round(probabilities, 8), labels


def main():
    probabilities, labels = split()
    predicted = probabilities.argmax(axis=1)
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        labels, predicted, labels=range(CLASSES), zero_division=np.nan
    )
    right, confidence = predicted == labels, probabilities.max(axis=1)
    accuracy, mean = calibration.calibration_curve(right, confidence, n_bins=15, strategy="uniform")
    bins = np.searchsorted(np.linspace(0, 1, 16)[1:-1], confidence)  # as calibration_curve has them
    share = np.bincount(bins, minlength=15) / len(labels)
    content = {
        "probabilities": probabilities.tolist(),
        "labels": labels.tolist(),
        "confusion": metrics.confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist(),
        "precision": [None if np.isnan(value) else float(value) for value in precision],
        "recall": [None if np.isnan(value) else float(value) for value in recall],
        "f1": [None if np.isnan(value) else float(value) for value in f1],
        "support": support.tolist(),
        "loss": metrics.log_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True), labels=range(7)),
        "top1": metrics.accuracy_score(labels, predicted),
        "top5": metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(CLASSES)),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro"),
        "expected_calibration_error": float(np.sum(share[share > 0] * np.abs(accuracy - mean))),
        "class_weights": utils.class_weight.compute_class_weight("balanced", classes=np.arange(6), y=labels).tolist(),
    }
    Path(__file__).with_name("metric_goldens.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
