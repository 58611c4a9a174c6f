"""Compares the training with the evaluation split: examples that are in both, classes that training never sees."""

from __future__ import annotations

import os

import numpy as np

from inception_jax.data.datasets import Dataset
from inception_jax.data.label_sets import Labels, LabelSets, count_labels

_MAX_NAMES = 4


def compare_splits(train: Dataset, evaluation: Dataset) -> list[str]:
    """Says why the accuracy on an evaluation split is not that of a network on new images of what it was trained on.

    Args:
      train: the training split.
      evaluation: the evaluation split, of the same data set.

    Returns:
      A line for each reason; [] where there is none, or it cannot be known without reading records.
    """
    found = [*_format_shared(train, evaluation), *_format_unseen_classes(train, evaluation)]
    return found or _format_sorted(train, evaluation)


def count_shared(train: Dataset, evaluation: Dataset) -> int:
    """Counts the evaluation examples that are training examples, too, by their places in the data set.

    Args:
      train: the training split.
      evaluation: the evaluation split, of the same data set.
    """
    shared = 0
    for split, start, stop in evaluation.ranges:
        inside = np.zeros(max(0, stop - start), bool)
        for other, first, last in train.ranges:
            if other == split:
                inside[max(0, first - start) : max(0, last - start)] = True
        shared += int(inside.sum())
    return shared


def count_repeated(train: Dataset, evaluation: Dataset) -> int:
    """Counts the evaluation examples whose image file is that of a training example; 0 for other data than lists.

    Args:
      train: the training split.
      evaluation: the evaluation split, of the same data set.
    """
    if not train.name.startswith("list:"):
        return 0
    trained = set(_paths(train))
    return sum(path in trained for path in _paths(evaluation))


def _paths(dataset: Dataset) -> list[str]:
    return [os.path.normpath(dataset.source.record_name(index)) for index in range(dataset.num_examples)]


def _format_shared(train: Dataset, evaluation: Dataset) -> list[str]:
    if shared := count_shared(train, evaluation):
        parts = "config.data.train_split = 'train[:90%]' with config.data.eval_split = 'train[90%:]'"
        remedy = f"{parts} holds out a part of train"
    elif shared := count_repeated(train, evaluation):
        remedy = "remove the rows of their images from one of the splits"
    else:
        return []
    return [
        f"{shared:,} of the {evaluation.num_examples:,} evaluation examples ({evaluation.split}) are training examples "
        f"({train.split}), too, so the evaluation does not tell what the network does with new images; {remedy}"
    ]


def _format_unseen_classes(train: Dataset, evaluation: Dataset) -> list[str]:
    trained, asked = (getattr(split.source, "labels", None) for split in (train, evaluation))
    if trained is None or asked is None:
        return []
    counts = count_labels(trained, train.num_classes)[: train.num_classes]
    unseen = np.flatnonzero((counts == 0) & (count_labels(asked, train.num_classes)[: train.num_classes] > 0))
    if not len(unseen):
        return []
    names = ", ".join(repr(train.class_names[label]) for label in unseen[:_MAX_NAMES])
    more = f" and {len(unseen) - _MAX_NAMES:,} more" if len(unseen) > _MAX_NAMES else ""
    remedy = (
        "are they sorted by class? Then bring them (the rows of a list) into random order"
        if {split for split, _, _ in train.ranges} & {split for split, _, _ in evaluation.ranges}
        else "choose a training split that has them"
    )
    return [
        f"{train.split} has no examples of {names}{more}, but {_count_examples(asked, unseen):,} of the "
        f"{evaluation.num_examples:,} examples of {evaluation.split} are of these classes, which the network cannot "
        f"learn; {remedy}"
    ]


def _format_sorted(train: Dataset, evaluation: Dataset) -> list[str]:
    """A line where both are parts of a split that is sorted by class, and the evaluation lacks classes of training."""
    labels = [getattr(split.source, "labels", None) for split in (train, evaluation)]
    if not ({split for split, _, _ in train.ranges} & {split for split, _, _ in evaluation.ranges}):
        return []
    if any(own is None or isinstance(own, LabelSets) for own in labels):
        return []
    trained, asked = map(np.asarray, labels)
    missing = np.setdiff1d(trained, asked)
    if not len(missing) or not (_is_sorted(trained) and _is_sorted(asked)):
        return []
    return [
        f"{train.split} and {evaluation.split} are sorted by class, and {evaluation.split} has no examples of "
        f"{len(missing):,} of the {train.num_classes:,} classes; bring them (the rows of a list) into random order"
    ]


def _is_sorted(labels: np.ndarray) -> bool:
    """Whether the examples of each class follow each other, and some class has several."""
    changes = np.count_nonzero(labels[1:] != labels[:-1])
    return bool(len(np.unique(labels)) == changes + 1 < len(labels))


def _count_examples(labels: Labels, classes: np.ndarray) -> int:
    """Examples with a label among some classes."""
    if isinstance(labels, LabelSets):
        places = np.flatnonzero(np.isin(labels.classes, classes))
        return len(np.unique(np.searchsorted(labels.ends, places, side="right")))
    return int(np.isin(labels, classes).sum())
