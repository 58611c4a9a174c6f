"""A run that early stopping ends: finished, with the same bits however often it was interrupted."""

import json
import re
import shutil

import pytest


@pytest.fixture(scope="module")
def arguments(own_recipe):
    """With a learning rate of 0 no evaluation is better than the first: at steps 2, 4, 6, … of 14."""
    fields = [
        "num_steps=14",
        "optimizer.learning_rate=0.0",
        "ema.decay=0.9",
        "evaluation.every_epochs=0.25",
        "checkpoint.every_epochs=0.5",
        "checkpoint.best_metric=macro_f1",
        "logging.every_steps=4",
        "logging.pictures=False",
        "data.threads=1",
        "data.sampling=balanced",
        "loss.class_weights={'down': 2.0, 'across': 0.5}",
        "stop.patience=2",
    ]
    return [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def stopped(run_command, arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stop") / "run"
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0, err
    assert "class weights from 0.5 (across) to 2 (down)" in err and "every class is sampled equally often" in err
    assert "early stopping: 2 evaluations without a better macro F1 than" in err
    assert re.search(r"ema: loss [\d.]+, top-1 [\d.]+ % \(\d+/20\), macro F1 [\d.]+ %", err)
    return workdir


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    measured = ("goodput", "starts")
    timeless = {name: value for name, value in result.items() if not name.endswith("_seconds") and name not in measured}
    return timeless, (workdir / "metrics.jsonl").read_bytes()


def test_it_is_finished_and_says_why(stopped):
    result, rows = outcome(stopped)
    assert (result["status"], result["steps"]) == ("finished", 6)
    assert result["ended"].startswith("early stopping: 2 evaluations without a better macro F1 than")
    assert result["best"]["metric"] == "macro_f1" and result["best"]["step"] == 6, "of equal ones the latest"
    assert result["class_weights"] == {"across": 0.5, "down": 2.0}
    assert result["tables"] == ["confusion_matrix.csv", "mistakes.csv", "per_class.csv"]
    assert all((stopped / name).exists() for name in result["tables"])
    metrics = result["metrics"]["test"]["ema"]
    assert result["best"]["value"] == metrics["macro_f1"]
    assert {"balanced_accuracy", "expected_calibration_error"} <= set(metrics)
    assert [json.loads(line)["step"] for line in rows.splitlines() if b'"train"' in line] == [4, 6]
    assert (stopped / "checkpoints" / "6").is_dir()
    report = (stopped / "report.md").read_text()
    assert "It ended by early stopping: 2 evaluations" in report and "## Classes" in report
    assert (
        "Best macro F1 of all evaluations" in report
        and "| balanced |" in report
        and "| predictions | weight |" in report
    )


def test_it_ends_alike_after_an_interruption(stopped, run_command, arguments, tmp_path):
    # Killed between the evaluation and its checkpoint: from the checkpoint before it.
    workdir = shutil.copytree(stopped, tmp_path / "killed")
    shutil.rmtree(workdir / "checkpoints" / "6")
    (workdir / "result.json").unlink()
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0 and "continued from step 4" in err, err
    assert outcome(workdir) == outcome(stopped)
    # Killed between the checkpoint and result.json.
    (workdir / "result.json").unlink()
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0 and "continued from step 6" in err, err
    assert outcome(workdir) == outcome(stopped)


def test_more_patience_continues_it(stopped, run_command, arguments, tmp_path):
    workdir = shutil.copytree(stopped, tmp_path / "run")
    code, _, err = run_command("train", *arguments, "--config.stop.patience=4", f"--workdir={workdir}")
    assert code == 0, err
    result, _ = outcome(workdir)
    assert result["steps"] == 10 and result["ended"].startswith("early stopping: 4 evaluations")
