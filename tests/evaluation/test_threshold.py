"""What `predict` writes of a network for several labels per image: the classes from the threshold on."""

import json

import numpy as np

from inception_jax.evaluation.prediction import Prediction
from inception_jax.evaluation.prediction_writer import PredictionWriter


def test_only_classes_from_the_threshold_on_are_written(tmp_path, capsys):
    numbers = np.array([2, 0, 1], np.int32)
    two = Prediction("a.png", ("c", "a", "b"), numbers, np.array([0.9, 0.5, 0.1], np.float32))
    none = Prediction("b.png", ("c", "a", "b"), numbers, np.array([0.4, 0.2, 0.1], np.float32))
    files = {"json_file": tmp_path / "p.json", "csv_file": tmp_path / "p.csv"}
    with PredictionWriter(3, threshold=0.5, **files) as writer:
        writer.add(two), writer.add(none)
    found = [json.loads(line)["classes"] for line in files["json_file"].read_text().splitlines()]
    assert [[one["name"] for one in each] for each in found] == [["c", "a"], []]
    assert files["csv_file"].read_text().splitlines()[1:] == ["a.png,c,0.9,a,0.5,,,", "b.png,,,,,,,"]
    assert "b.png\n  no class of at least 50 %" in capsys.readouterr().out


def test_the_table_has_a_column_for_each_class(tmp_path):
    """A row of ranks would have two columns per class, and none to sort by."""
    two = Prediction("a.png", ("c", "a", "b"), np.array([2, 0, 1], np.int32), np.array([0.9, 0.5, 0.1], np.float32))
    broken = Prediction("b.png", (), np.zeros(0, np.int32), np.zeros(0, np.float32), error="empty")
    with PredictionWriter(3, threshold=0.5, csv_file=tmp_path / "p.csv", csv_classes=["a", "b", "c"]) as writer:
        writer.add(two), writer.add(broken)
    assert (tmp_path / "p.csv").read_text().splitlines() == [
        "file,labels,probability_a,probability_b,probability_c,error", "a.png,c|a,0.5,0.1,0.9,", "b.png,,,,,empty",
    ]  # fmt: skip
