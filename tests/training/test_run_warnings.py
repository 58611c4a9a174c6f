"""What a finished run says beside its accuracy."""

import json

import numpy as np
import pytest

import inception_jax
from inception_jax.metric_definitions import ClassMetrics
from inception_jax.training import run_warnings

NAMES = ["ant", "bee", "cow"]


@pytest.mark.parametrize(
    ("support", "predicted", "correct", "expected"),
    [
        (
            [5, 3, 2],
            [0, 10, 0],
            [0, 3, 0],
            "the prediction is 'bee' for every example: the network",
        ),
        (
            [5, 3, 2],
            [10, 0, 0],
            [5, 0, 0],
            "the prediction is 'ant' for every example: the network",
        ),
        ([5, 3, 2], [6, 3, 1], [3, 1, 0], "'ant' for every example would be right for 50.00 %"),
        ([50, 30, 20], [70, 30, 0], [40, 20, 0], ""),
        (
            [50, 30, 20],
            [80, 15, 5],
            [48, 3, 1],
            "'ant' for every example would be right for 50.00 %",
        ),  # 52: by chance
        ([2, 2, 0], [2, 2, 0], [2, 2, 0], ""),  # all of four
        ([90, 10, 0], [78, 22, 0], [77, 9, 0], ""),  # trained for the rare class
        ([5, 0, 0], [5, 0, 0], [5, 0, 0], ""),  # one class alone: nothing to compare with
    ],
)
def test_a_network_that_has_learned_nothing(support, predicted, correct, expected):
    lines = run_warnings.format_chance(ClassMetrics(*map(np.array, (support, predicted, correct))), NAMES)
    assert len(lines) == bool(expected) and (not lines or lines[0].startswith(expected))


def test_a_run_names_all_that_is_wrong_with_it(tmp_path):
    """Batch norm that averages over more steps than the run has, and evaluation on training examples."""
    fields = {
        "batch_size": 16,
        "num_steps": 2,
        "data.image_size": 32,
        "data.eval_split": "train[:16]",
        "logging.pictures": False,
        "logging.tensorboard": False,
        "model.name": "inception_v1_bn",
        "model.width_multiplier": 0.1,
        "parallel.devices": 1,
    }
    result = inception_jax.from_config("digits", fields).train(tmp_path)
    found = json.loads((tmp_path / "result.json").read_text())["warnings"]
    assert found == result["warnings"] and found[0].startswith("16 of the 16 evaluation examples (train[:16])")
    assert found[1].startswith("batch norm: ") and "bn_initial_fraction" in found[1]
    assert "- **warning**: 16 of the 16 evaluation examples" in (tmp_path / "report.md").read_text()
