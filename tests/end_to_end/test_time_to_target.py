"""What a run needed to reach its target: recorded once, kept by every later start."""

import json
import shutil

import pytest

from inception_jax import compare


@pytest.fixture(scope="module")
def arguments(own_recipe):
    """The first evaluation, after step 2 of 6, reaches the target; no checkpoint is due there."""
    fields = [
        "num_steps=6",
        "evaluation.every_epochs=0.25",
        "checkpoint.keep=9",
        "logging.every_steps=1",
        "logging.pictures=False",
        "data.threads=1",
        "stop.target_metric=loss",
    ]
    return [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def reached(run_command, arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("target") / "run"
    code, out, err = run_command("train", *arguments, "--config.stop.target=1e9", f"--workdir={workdir}")
    assert code == 0, err
    assert "target: loss of at most 1.00e+09; the run ends there" in err
    assert "target reached: loss <= 1.00e+09 at step 2 (epoch 0.25, 16 images):" in err
    assert "target reached: loss <= 1.00e+09 at step 2" in out
    return workdir


def read(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_the_run_ends_at_its_target_and_says_what_it_needed(reached):
    result = read(reached)
    assert (result["status"], result["steps"], result["starts"]) == ("finished", 2, 1)
    assert result["ended"].startswith("target reached: loss <= 1.00e+09 at step 2")
    target = result["target"]
    assert (target["metric"], target["value"], target["better"]) == ("loss", 1e9, "lower")
    needed = target["reached"]
    assert (needed["steps"], needed["epochs"], needed["images"], needed["starts"]) == (2, 0.25, 16, 1)
    assert needed["value"] == result["metrics"]["test"]["raw"]["loss"]
    phases = ("startup", "compile", "evaluation", "checkpoint", "plots")
    assert 0 < needed["training_seconds"] < needed["wall_seconds"] <= result["wall_seconds"]
    assert result["training_seconds"] == pytest.approx(
        result["wall_seconds"] - sum(result[f"{phase}_seconds"] for phase in phases)
    )
    assert 0 < result["goodput"] < 1 and result["startup_seconds"] > 0
    report = (reached / "report.md").read_text()
    assert "It ended at its target." in report and "- **target reached**: loss" in report
    assert "Goodput: " in report and "starting: reading data" in report


def test_a_run_that_goes_on_keeps_it_and_one_that_was_killed_counts_what_it_lost(
    reached, run_command, arguments, tmp_path
):
    went_on = shutil.copytree(reached, tmp_path / "went_on")
    more = [*arguments, "--config.stop.target=1e9", "--config.stop.at_target=False"]
    code, _, err = run_command("train", *more, f"--workdir={went_on}")
    assert code == 0 and "continued from step 2" in err and "the run goes on after it" in err, err
    result = read(went_on)
    assert (result["steps"], result["starts"], result["ended"]) == (6, 2, "all steps are done")
    assert result["target"] == read(reached)["target"] and result["lost_seconds"] == 0.0
    assert result["between_starts_seconds"] >= 0

    # Killed before its next checkpoint: the one at the target, which was not due, holds the record.
    killed = shutil.copytree(went_on, tmp_path / "killed")
    for step in (4, 6):
        shutil.rmtree(killed / "checkpoints" / str(step), ignore_errors=True)
    (killed / "result.json").unlink()
    rows = [json.loads(line) for line in (killed / "timing.jsonl").read_text().splitlines()]
    code, _, err = run_command("train", *more, f"--workdir={killed}")
    assert code == 0 and "continued from step 2" in err, err
    again = read(killed)
    assert again["target"] == result["target"] and again["fingerprint"] == result["fingerprint"]
    assert (killed / "metrics.jsonl").read_bytes() == (went_on / "metrics.jsonl").read_bytes()
    starts = json.loads((killed / "manifest.json").read_text())["starts"]
    first, *later = (start["wall_seconds_before"] for start in starts)
    assert first == 0 < starts[0]["startup_seconds"] < later[0] == later[1]  # both continued from the same checkpoint
    lost = starts[-1]["lost"]
    assert (lost["from_step"], lost["to_step"]) == (2, 6)
    assert 0 < again["lost_seconds"] == lost["seconds"] < rows[-1]["wall_seconds"] and again["starts"] == 3
    accounted = again["wall_seconds"] + again["lost_seconds"]
    assert again["goodput"] == pytest.approx((again["training_seconds"] - again["data_wait_seconds"]) / accounted)

    # Another target of the finished run, which no evaluation reached: its result is written anew.
    code, out, err = run_command("train", *arguments, "--config.stop.target=0", f"--workdir={killed}", "--json")
    assert code == 0, err
    changed = json.loads(out)
    assert changed["target"]["reached"] is None and changed["fingerprint"] == result["fingerprint"]
    assert compare.main([str(went_on), str(killed), f"--output={tmp_path / 'comparison'}"]) == 0
    text = (tmp_path / "comparison" / "comparison.md").read_text()
    assert "Time to target" in text and "| not reached |" in text and "goodput" in text
