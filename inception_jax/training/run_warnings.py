"""What stands beside the accuracy of a finished run, because the number alone would mislead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
        *log_header.find_statistics_problems(setup, state, int(state.step)),
        *(format_chance(evaluation.class_metrics(), setup.data.class_names) if evaluation.labels == "single" else []),
    ]


def format_chance(found: ClassMetrics, class_names: Sequence[str]) -> list[str]:
    """Formats a warning where a network is not better than one answer for every example.

    Args:
      found: of an evaluation with one label per example.
      class_names: one per class.

    Returns:
      A line; [] where top-1, or the mean recall of the classes, is above that of the largest class for every example.
    """
    has_examples, most = found.support > 0, int(found.support.argmax())
    classes = np.count_nonzero(has_examples)
    recall = found.recall[has_examples].mean() if classes else 0.0
    if classes < 2 or found.correct.sum() > found.support[most] or recall > 1 / classes:
        return []
    if np.count_nonzero(found.predicted) == 1:
        only = class_names[int(found.predicted.argmax())]
        return [f"the prediction is {only!r} for every example: the network has learned nothing; see {PAGE}"]
    share = f"{100 * found.support[most] / found.support.sum():.2f} %"
    return [
        f"{class_names[most]!r} for every example would be right for {share}, so the network has learned nothing that "
        f"helps here; see {PAGE}"
    ]
