"""report.md and the plots, of finished runs and of runs that were stopped anywhere."""

import json
import re

import cv2
import numpy as np
import pytest

from inception_jax.data import datasets, images
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError
from inception_jax.metrics import Accumulator, wilson_interval
from inception_jax.runs import curves, manifest, metric_files, plots, report, result

CONFIG = {
    "seed": 0,
    "batch_size": 32,
    "num_epochs": 12.0,
    "num_steps": None,
    "model": {"name": "inception_v1"},
    "data": {"name": "digits", "image_size": 64},
    "optimizer": {"name": "sgd", "learning_rate": 0.01},
    "loss": {"aux_weights": [0.3, 0.3]},
}
RESULT = {
    "status": "finished", "model": "inception_v1", "dataset": "digits", "steps": 540, "epochs": 12.02,
    "metrics": {"train": {"step": 540, "loss": 0.05},
                "test": {"raw": {"loss": 0.06, "top1": 352 / 360, "top5": 1.0, "count": 360},
                         "ema": {"loss": 0.05, "top1": 355 / 360, "top5": 1.0, "count": 360}}},
    "wall_seconds": 3800.0, "compile_seconds": 950.0, "data_wait_seconds": 76.0, "evaluation_seconds": 228.0,
    "checkpoint_seconds": 59.94, "fingerprint": "ab" * 32,
}  # fmt: skip


def train_row(step):
    return {
        "kind": "train",
        "step": step,
        "epoch": step / 45,
        "learning_rate": 0.01,
        "loss": 40 / step,
        "loss_aux1": 20 / step,
        "loss_main": 30 / step,
        "top1_aux1": 0.5,
        "top1_main": 1 - 9 / step,
    }


def evaluation_row(step, weights, top1):
    return {
        "kind": "evaluation",
        "step": step,
        "epoch": step / 45,
        "split": "test",
        "weights": weights,
        "loss": 0.5,
        "top1": top1,
        "top5": 1.0,
        "count": 360,
    }


def make_run(workdir, *, finished=True):
    workdir.mkdir()
    command = ["/usr/bin/python3", "-m", "inception_jax.train", "--config=configs/digits.py", "--workdir=a b"]
    manifest.write(workdir, json.dumps(CONFIG), devices=["2 CPU cores"], command=command)
    with metric_files.MetricWriter(workdir) as writer:
        for step in (10, 100, 200):
            writer.write(train_row(step))
            writer.write_timing(
                {
                    "step": step,
                    "images_per_second": 100.0 + step,
                    "data_wait_fraction": 0.02,
                    "wall_seconds": float(step),
                }
            )
        writer.write(evaluation_row(100, "raw", 358 / 360))
        writer.write(evaluation_row(200, "raw", 350 / 360))
    if finished:
        result.write_result(workdir, RESULT)
    return workdir


def table(text, title):
    """The cells of a section's table, line by line."""
    section = text.split(f"## {title}\n\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in (*rows[:1], *rows[2:])]


def test_a_finished_run_says_what_came_out(tmp_path):
    workdir = make_run(tmp_path / "run")
    (workdir / "learning_curves.png").write_bytes(b"")
    text = report.write(workdir).read_text()
    assert text.startswith("# inception_v1 on digits\n\nFinished at step 540 (12.02 epochs).\n")
    low, high = wilson_interval(355, 360)
    assert table(text, "Result")[1:] == [
        ["test", "raw", "97.78 %", "95.68–98.87 %", "100.00 %", "0.0600", "360"],
        ["test", "ema", "98.61 %", f"{100 * low:.2f}–{100 * high:.2f} %", "100.00 %", "0.0500", "360"],
    ]
    assert "Best top-1 of all evaluations: 99.44 % (test, raw) at step 100, epoch 2.222." in text
    assert "- **1:03:20 h** wall clock: 25 % compiling, 6 % evaluating, 2 % waiting for data\n" in text
    assert f"`{'ab' * 32}`" in text
    assert table(text, "Training") == [
        ["head", "loss, step 10", "loss, step 200", "top-1, step 10", "top-1, step 200"],
        ["all, weighted", "4.0000", "0.2000", "", ""],
        ["main", "3.0000", "0.1500", "10.0 %", "95.5 %"],
        ["aux1", "2.0000", "0.1000", "50.0 %", "50.0 %"],
    ]
    assert table(text, "Time")[1:] == [
        ["wall clock, all starts together", "1:03:20.0", "100 %"],
        ["compiling", "0:15:50.0", "25 %"],
        ["waiting for data", "0:01:16.0", "2 %"],
        ["evaluating", "0:03:48.0", "6 %"],
        ["saving checkpoints", "0:00:59.9", "2 %"],
        ["training steps and everything else", "0:41:26.1", "65 %"],
    ]
    assert "Median of 3 rows: 200.0 images/s" in text
    assert ["`optimizer.learning_rate`", "0.01"] in table(text, "Config")
    assert ["`loss.aux_weights`", "[0.3, 0.3]"] in table(text, "Config")
    assert not any("num_steps" in row[0] for row in table(text, "Config"))  # unset: nothing to tell
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["learning_curves.png"]  # only what is there
    assert ["devices", "2 CPU cores"] in table(text, "Versions")


def test_equal_evaluations_and_one_rule_for_their_weights(tmp_path):
    workdir = make_run(tmp_path / "run")
    best = {"metric": "top1", "value": 0.9, "step": 300}
    result.write_result(workdir, RESULT | {"best": best, "wall_seconds": 165.075})
    with metric_files.MetricWriter(workdir) as writer:
        for step in (300, 400):
            writer.write(evaluation_row(step, "raw", 0.9))
            writer.write(evaluation_row(step, "ema", 0.9))
    text = report.write(workdir).read_text()
    assert "- **step 300** has the best top-1 accuracy: 90.00 %, EMA weights\n" in text
    # Raw weights were better at step 100; the best checkpoint is that of the EMA.
    line = "of all evaluations: 90.00 % (test, ema) at step 300, epoch 6.667; 1 other evaluation is equal."
    assert line in text
    assert "- **2:45 min** wall clock" in text and "| 0:02:45.1 |" in text


@pytest.mark.parametrize("parts", [(1, 1, 1), (0.4, 0.4, 0.4), (33.35, 33.35, 33.2), (0, 0, 0), (14.5, 24.5, 60.96)])
def test_the_parts_of_the_time_add_up(tmp_path, parts):
    names = ("compile_seconds", "data_wait_seconds", "plots_seconds")
    result.write_result(tmp_path, {"status": "finished", "wall_seconds": 100.0} | dict(zip(names, parts, strict=True)))
    rows = table(report.write(tmp_path).read_text(), "Time")[2:]
    assert [row[0] for row in rows[2:]] == ["drawing plots", "training steps and everything else"]
    assert sum(int(row[2].removesuffix(" %")) for row in rows) == 100
    assert sum(round(10 * float(row[1].split(":")[2])) + 600 * int(row[1].split(":")[1]) for row in rows) == 1000


def test_the_length_that_is_not_used_is_left_out(tmp_path):
    workdir = make_run(tmp_path / "run")
    manifest.replace_text(workdir / manifest.CONFIG, json.dumps(CONFIG | {"num_steps": 30}))
    fields = [row[0] for row in table(report.write(workdir).read_text(), "Config")]
    assert "`num_steps`" in fields and "`num_epochs`" not in fields


def test_the_commands_can_be_pasted(tmp_path):
    workdir = make_run(tmp_path / "my run")
    block = report.write(workdir).read_text().split("```")[1].strip().splitlines()
    assert block == [
        "# shows the result again: the run has finished",
        "python -m inception_jax.train --config=configs/digits.py '--workdir=a b'",
        f"python -m inception_jax.evaluate --workdir='{workdir}'",
        f"python -m inception_jax.predict --workdir='{workdir}' image.jpg",
        "# with TensorBoard, the extra: pip install 'inception_jax[tensorboard]'",
        f"tensorboard --logdir='{workdir}'",
    ]


def test_a_run_that_was_killed_is_told_from_its_rows(tmp_path):
    text = report.write(make_run(tmp_path / "run", finished=False)).read_text()
    assert "Not finished; the newest row of its metrics is of step 200." in text
    assert [row[:3] for row in table(text, "Result")[1:]] == [["test", "raw", "97.22 %"]]  # the last evaluation
    assert table(text, "Time")[1:] == [["wall clock, all starts together", "0:03:20.0", "100 %"]]
    assert "# continues the run\n" in text


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        (
            {"status": "interrupted", "signal": "SIGTERM", "steps": 150},
            "Stopped by SIGTERM at step 150; the same command continues.",
        ),
        (
            {"status": "diverged", "message": "the loss became nan", "metrics": {"train": {"loss": float("nan")}}},
            "Ended at step 200: the loss became nan",
        ),
    ],
)
def test_a_run_that_did_not_finish_says_why(tmp_path, outcome, message):
    workdir = make_run(tmp_path / "run", finished=False)
    result.write_result(workdir, outcome)
    assert message in report.write(workdir).read_text()


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_a_run_that_diverged_names_commands_that_work(tmp_path, has_checkpoint):
    workdir = make_run(tmp_path / "run", finished=False)
    if has_checkpoint:
        (workdir / "checkpoints" / "100").mkdir(parents=True)
    result.write_result(workdir, {"status": "diverged", "message": "the loss became nan"})
    assert ("inception_jax.evaluate" in report.write(workdir).read_text()) is has_checkpoint


def test_an_empty_workdir_and_a_damaged_one_still_get_a_report(tmp_path):
    assert report.write(tmp_path).read_text().startswith("# A run\n\nNot finished.\n")
    workdir = make_run(tmp_path / "run")
    for name in ("config.json", "manifest.json", "result.json"):
        (workdir / name).write_text("{")
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    (workdir / "metrics.jsonl").write_text("\n".join([lines[0], "rubbish", lines[1]]))
    (workdir / "timing.jsonl").unlink()
    text = report.write(workdir).read_text()
    notes = [line for line in text.splitlines() if line.startswith("> ")]
    assert [re.search(r"(\w+\.jsonl?)", note)[1] for note in notes] == [
        "config.json",
        "manifest.json",
        "result.json",
        "metrics.jsonl",
    ]


def digits_evaluation(batch_size=100):
    """An evaluation of the embedded digits by a network that takes every third example for the next class."""
    data = EvalPipeline(
        datasets.load("digits", "test"),
        batch_size=batch_size,
        image_size=16,
        crop=images.EvalCrop(fraction=1.0),
        threads=1,
    )
    evaluation, seen = Accumulator(10), 0
    for k in range(data.num_batches):
        batch = data.batch(k)
        classes = (batch["label"] + (np.arange(seen, seen + batch_size) % 3 == 0)) % 10
        seen += batch_size
        mask = batch["mask"]
        right = (classes == batch["label"])[mask].sum()
        evaluation.add(
            {"loss": 1.0, "top1": right, "top5": mask.sum(), "count": mask.sum()},
            classes=classes[:, None],
            probabilities=np.linspace(1.0, 0.5, batch_size)[:, None],
            labels=batch["label"],
            mask=mask,
        )
    return data, evaluation


def test_images_are_of_the_evaluated_split_as_the_network_saw_it(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run")
    data, evaluation = digits_evaluation()
    calls = {}
    monkeypatch.setattr(plots, "prediction_sheet", lambda *arguments: calls.update(sheet=arguments))
    monkeypatch.setattr(curves, "learning_curves", lambda rows, path, title: calls.update(rows=rows, title=title))
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 8))
    names = data.dataset.class_names
    shown = []
    blocks = lambda image: shown.append(image) or {"conv1": np.ones((4, 4, 2))}  # noqa: E731
    paths = report.draw_plots(workdir, evaluation, data, names, first_layer=kernel, blocks=blocks)
    np.testing.assert_array_equal(shown, data.batch(0)["image"][1:2])  # the first right one: every third is wrong
    # The first batch is drawn when the run begins.
    assert paths == {name: workdir / f"{name}.png" for name in report.PLOTS if name != "training_batch"}
    read_image, labels, predictions, probabilities, class_names, path = calls["sheet"]
    assert class_names == names and path == paths["predictions"]
    assert len(labels) == len(probabilities) == 360 and ((labels != predictions) == (np.arange(360) % 3 == 0)).all()
    for row in (0, 123, 359):
        batch = data.batch(row // 100)
        np.testing.assert_array_equal(read_image(row), batch["image"][row % 100])
        assert labels[row] == batch["label"][row % 100]
    assert (
        calls["rows"] == metric_files.read_rows(workdir / "metrics.jsonl")
        and calls["title"] == "inception_v1 on digits"
    )
    for name in ("confusion_matrix", "activations", "first_layer"):
        assert cv2.imread(str(paths[name])) is not None


def test_an_evaluation_without_a_run_has_no_curves_and_many_classes_no_matrix(tmp_path):
    data, evaluation = digits_evaluation()
    evaluation._confusion = None  # as with thousands of classes
    paths = report.draw_plots(tmp_path, evaluation, data, data.dataset.class_names)
    assert list(paths) == ["predictions"] and [path.name for path in tmp_path.iterdir()] == ["predictions.png"]
    with pytest.raises(UserError, match=r"cannot write .*predictions\.png"):
        report.draw_plots(tmp_path / "absent", evaluation, data, data.dataset.class_names)
