"""Compares the training with the evaluation split: examples that are in both, classes that training never sees."""

from __future__ import annotations

import numpy as np

from inception_jax.data.datasets import Dataset
from inception_jax.data.records import files_of, label_counts

_MAX_NAMES = 4


def compare_splits(train: Dataset, evaluation: Dataset) -> list[str]:
    """Says why the accuracy on an evaluation split is not that of a network on new images of what it was trained on.

    Args:
      train: the training split.
      evaluation: the evaluation split, of the same data set.

    Returns:
      A line for each reason; [] where there is none, or it cannot be known without reading records.
    """
    return [*_format_shared(train, evaluation), *_format_unseen_classes(train, evaluation)]


def count_shared(train: Dataset, evaluation: Dataset) -> int:
    """The examples of an evaluation split that are training examples, too; of lists also images that are there twice.

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
    if shared or not train.name.startswith("list:"):
        return shared
    return len(files_of(train.source) & files_of(evaluation.source))


def _format_shared(train: Dataset, evaluation: Dataset) -> list[str]:
    shared = count_shared(train, evaluation)
    if not shared:
        return []
    return [
        f"{shared:,} of the {evaluation.num_examples:,} evaluation examples ({evaluation.split}) are training examples "
        f"({train.split}), too, so the evaluation does not tell what the network does with new images; "
        "config.data.train_split = 'train[:90%]' with config.data.eval_split = 'train[90%:]' holds out a part of train"
    ]


def _format_unseen_classes(train: Dataset, evaluation: Dataset) -> list[str]:
    counts = [label_counts(split.source, split.num_classes) for split in (train, evaluation)]
    if counts[0] is None or counts[1] is None:
        return []
    unseen = [label for label, (known, asked) in enumerate(zip(*counts, strict=True)) if asked and not known]
    if not unseen:
        return []
    asked = sum(counts[1][label] for label in unseen)
    names = ", ".join(repr(train.class_names[label]) for label in unseen[:_MAX_NAMES])
    more = f" and {len(unseen) - _MAX_NAMES:,} more" if len(unseen) > _MAX_NAMES else ""
    remedy = (
        "are they sorted by class? Then bring them (the rows of a list) into random order"
        if {split for split, _, _ in train.ranges} & {split for split, _, _ in evaluation.ranges}
        else "choose a training split that has them"
    )
    return [
        f"{train.split} has no examples of {names}{more}, but {asked:,} of the {evaluation.num_examples:,} of "
        f"{evaluation.split} are of these classes, which the network cannot learn; {remedy}"
    ]
