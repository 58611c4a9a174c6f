"""`evaluate --all` in several processes: all go on together, or none does. The other process is simulated."""

import csv
import json
from types import SimpleNamespace

import jax
import pytest
from ml_collections import ConfigDict

from inception_jax.errors import UserError
from inception_jax.evaluation import results_table, split_evaluation
from inception_jax.evaluation.split_evaluation import NamedWeights, Request
from inception_jax.multihost import processes


class Pair:
    """This process is process 0 of two.

    Attributes:
      failing: which calls of `fail_together`, from 1, the other process fails in.
      differing: of what the other process has another value.
      calls: of `fail_together`, up to now.
    """

    def __init__(self, monkeypatch):
        self.failing, self.differing, self.calls = (), "", 0
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(processes, "_gather_ints", self._gather_ints)
        real = processes.check_equal

        def check_equal(what, value, *remedy):
            self._other = "another" if self.differing and self.differing in what else value
            real(what, value, *remedy)

        monkeypatch.setattr(
            processes, "gather_bytes", lambda content: [content, json.dumps(self._other, sort_keys=True).encode()]
        )
        monkeypatch.setattr(processes, "check_equal", check_equal)

    def _gather_ints(self, number):
        self.calls += 1
        return [number, 2 if self.calls in self.failing else 0]


@pytest.fixture
def pair(monkeypatch):
    return Pair(monkeypatch)


@pytest.fixture
def evaluate_all(monkeypatch, tmp_path):
    """Evaluates entries that are weights; returns the rows and the entries that a network was run for."""

    def evaluate(*entries, fails=None):
        ran = []

        def evaluate_weights(weights, request):
            ran.append(weights.name)
            if weights.name == fails:
                raise UserError("a read failed on this process")
            return {"top1": 0.5, "top5": 0.9, "parameters": 1e6, "image_size": 8, "model": "m", "protocol": "single",
                    "weights": "raw", "step": 0, "dataset": "d", "split": "s", "count": 1}  # fmt: skip

        def open_weights(entry):
            if entry == "broken":
                raise ValueError("a damaged file")
            fields = {"crop_fraction": 1.0, "resize": None, "interpolation": "area", "batch_size": 1}
            recipe = ConfigDict({"evaluation": fields, "batch_size": 1, "parallel": {"devices": None}})
            return NamedWeights(entry, "", recipe, {}, [], False)

        monkeypatch.setattr(split_evaluation, "evaluate_weights", evaluate_weights)
        monkeypatch.setattr(results_table.conclusion, "format_evaluation", lambda *_: "a line")
        table = results_table.TableRequest(Request(), lambda recipe: None, open_weights, lambda line: None)
        output = tmp_path / "table.csv"
        try:
            results_table.evaluate_all(entries, str(output), table)
            error = ""
        except UserError as raised:
            error = str(raised)
        rows = csv.DictReader(output.read_text().splitlines()) if output.exists() else ()
        return {row["workdir"]: row["error"] for row in rows}, ran, error

    return evaluate


def test_an_entry_that_another_process_cannot_open_is_run_on_none(pair, evaluate_all):
    pair.failing = (2,)  # process 0 opens it first, then the others
    rows, ran, error = evaluate_all("a", "broken", "b")
    assert rows["a"] == "process 1 failed; its own message says why" and rows["b"] == "" and ran == ["b"]
    assert rows["broken"] == "ValueError: a damaged file" and error.startswith("2 of 3 could not be evaluated")
    assert pair.calls == 5  # two for each, but one where the first process fails


def test_another_file_of_the_same_path_is_run_on_none(pair, evaluate_all):
    pair.differing = "a: the config"
    rows, ran, _ = evaluate_all("a", "b")
    assert rows == {"b": "", "a": "a: the config of process 1 differs from that of process 0: all processes need the "
                    "same files"} and ran == ["b"]  # fmt: skip
    pair.differing = "the weights"
    network = SimpleNamespace(step=0, variables={"params": {"w": jax.numpy.ones(3)}})
    with pytest.raises(UserError, match="the weights of process 1 differs from that of process 0") as raised:
        split_evaluation._check_equal(network, None)
    assert raised.value.on_all_processes


def test_an_error_of_one_process_alone_ends_the_command(pair, evaluate_all):
    rows, ran, error = evaluate_all("a", "b", "c", fails="b")
    assert rows == {"a": ""} and ran == ["a", "b"] and error == "a read failed on this process"
