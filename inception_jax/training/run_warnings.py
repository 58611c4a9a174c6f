"""What stands beside the accuracy of a finished run, because the number alone would mislead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inception_jax.data.datasets import Dataset
from inception_jax.metric_definitions import ClassMetrics
from inception_jax.metrics import Accumulator
from inception_jax.training import log_header
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState

PAGE = "inception_jax/training/README.md, 'When the accuracy is bad'"


def find_warnings(setup: Setup, state: TrainState, evaluation: Accumulator) -> list[str]:
    """Says what is wrong with a run: its splits, its batch-norm statistics and EMA, or that it has learned nothing.

    Args:
      setup: of the run.
      state: after its last step.
      evaluation: of that state.

    Returns:
      A line for each fault; [] where none is seen.
    """
    return [
        *setup.data.problems,
        *_format_left_out(evaluation.count, setup.data.eval.dataset),
        *log_header.find_statistics_problems(setup, state, int(state.step)),
        *(format_chance(evaluation.class_metrics(), setup.data.class_names) if evaluation.labels == "single" else []),
    ]


def format_chance(found: ClassMetrics, class_names: Sequence[str]) -> list[str]:
    """Formats a warning where a network is not better than one answer for every example.

    Args:
      found: of an evaluation with one label per example.
      class_names: one per class.

    Returns:
      A line; [] where top-1, or the mean recall of the classes, is above that of one answer by a standard error.
    """
    support, most = found.support[found.support > 0], int(found.support.argmax())
    count, classes = int(support.sum()), len(support)
    if classes < 2:
        return []
    share, chance = found.support[most] / count, 1 / classes
    recall = found.recall[found.support > 0].mean()
    # One standard error: of the examples of the largest class, and of the mean recall of a guess.
    top1_error = np.sqrt(count * share * (1 - share))
    recall_error = np.sqrt((chance * (1 - chance) / support).sum()) / classes
    if found.correct.sum() > found.support[most] + top1_error or recall > chance + recall_error:
        return []
    if np.count_nonzero(found.predicted) == 1:
        only = class_names[int(found.predicted.argmax())]
        return [f"the prediction is {only!r} for every example: the network has learned nothing; see {PAGE}"]
    return [
        f"{class_names[most]!r} for every example would be right for {100 * share:.2f} %, and top-1 is not above that "
        f"by more than chance: the network has learned nothing that shows here; see {PAGE}"
    ]


def _format_left_out(count: int, dataset: Dataset) -> list[str]:
    missing = dataset.num_examples - count
    if missing <= 0:
        return []
    return [
        f"{missing:,} of the {dataset.num_examples:,} evaluation examples could not be decoded; the metrics are of the "
        "others"
    ]
