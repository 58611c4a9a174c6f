"""What stands beside the accuracy of a finished run, because the number alone would mislead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inception_jax.metric_definitions import ClassMetrics
from inception_jax.metrics import Accumulator
from inception_jax.training import log_header, split_checks
from inception_jax.training.setup import Setup
from inception_jax.training.state import TrainState

PAGE = "inception_jax/training/README.md, 'When the accuracy is bad'"


def find_warnings(setup: Setup, state: TrainState, evaluation: Accumulator) -> list[str]:
    """Says what is wrong with a run: its splits, its batch-norm statistics and EMA, or that it has learned nothing.

    Args:
      setup: of the run.
      state: after its last step.
      evaluation: of that state.
    """
    mark = "warning: "
    header = [line for line in log_header.format_batch_norm(setup, state) if line.startswith(mark)]
    return [
        *split_checks.compare_splits(setup.data.train.dataset, setup.data.eval.dataset),
        *(line.removeprefix(mark) for line in header),
        *(format_chance(evaluation.class_metrics(), setup.data.class_names) if evaluation.labels == "single" else []),
    ]


def format_chance(found: ClassMetrics, class_names: Sequence[str]) -> list[str]:
    """Formats a warning where a network is not better than one answer for every example; [] otherwise.

    Args:
      found: of an evaluation with one label per example.
      class_names: one per class.
    """
    count, most = int(found.support.sum()), int(found.support.argmax())
    if np.count_nonzero(found.support) < 2 or int(found.correct.sum()) > found.support[most]:
        return []
    share = f"{100 * found.support[most] / count:.2f} %"
    if np.count_nonzero(found.predicted) == 1:
        only = class_names[int(found.predicted.argmax())]
        return [f"the prediction is {only!r} for every example: the network has learned nothing; see {PAGE}"]
    return [
        f"{class_names[most]!r} for every example would be right for {share}, so the network has learned nothing that "
        f"helps here; see {PAGE}"
    ]
