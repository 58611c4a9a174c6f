"""The commands as a user runs them: train, inspect the workdir, evaluate, predict."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from inception_jax import recipe_files
from inception_jax.data import datasets
from inception_jax.training import loop


def rows(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_what_a_run_leaves_behind(small_run):
    result = json.loads((small_run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["steps"] == 14
    assert re.fullmatch("[0-9a-f]{64}", result["fingerprint"])
    assert result["metrics"]["test[:40]"]["raw"]["count"] == 40
    assert set(result["metrics"]["test[:40]"]) == {"raw", "ema"}
    assert 0 < result["compile_seconds"] < result["wall_seconds"]
    assert result["data_wait_seconds"] < result["wall_seconds"]
    manifest = json.loads((small_run / "manifest.json").read_text())
    assert manifest["versions"]["jax"] and len(manifest["starts"]) == 1
    assert json.loads((small_run / "config.json").read_text())["batch_size"] == 16
    assert len(json.loads((small_run / "classes.json").read_text())["names"]) == 10
    assert list((small_run / "tensorboard").iterdir())
    assert "14/14" in (small_run / "train.log").read_text()
    assert (small_run / "report.md").exists()
    names = {path.name for path in small_run.rglob("*.png")}
    assert {"learning_curves.png", "confusion_matrix.png", "predictions.png"} <= names
    assert {"activations.png", "first_layer.png", "training_batch.png"} <= names
    assert "](training_batch.png)" in (small_run / "report.md").read_text()


def test_metric_rows(small_run):
    train = rows(small_run, "train")
    assert [row["step"] for row in train] == [3, 6, 9, 12, 14]
    for row in train:
        assert {
            "loss",
            "loss_main",
            "loss_aux1",
            "loss_aux2",
            "top1_main",
            "top1_aux1",
            "top1_aux2",
            "top5_main",
            "learning_rate",
            "gradient_norm",
            "epoch",
        } <= set(row)
        assert row["loss"] == pytest.approx(row["loss_main"] + 0.3 * (row["loss_aux1"] + row["loss_aux2"]), rel=1e-5)
    evaluations = rows(small_run, "evaluation")
    assert [(row["step"], row["weights"]) for row in evaluations] == [
        (step, weights) for step in (5, 10, 14) for weights in ("raw", "ema")
    ]
    assert all(row["count"] == 40 for row in evaluations)


def test_evaluate_says_what_the_run_said(small_run, run_command, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "copy")
    result = json.loads((workdir / "result.json").read_text())
    for weights in ("raw", "ema"):
        code, out, err = run_command("evaluate", f"--workdir={workdir}", f"--weights={weights}", "--json")
        assert code == 0, err
        said = json.loads(out)
        run = result["metrics"]["test[:40]"][weights]
        assert said["count"] == run["count"]
        assert said["top1"] == run["top1"]
        assert said["loss"] == pytest.approx(run["loss"], rel=1e-6)
        assert said["step"] == 14
        for name in ("balanced_accuracy", "macro_f1", "expected_calibration_error"):
            assert said[name] == pytest.approx(run[name], abs=1e-6), name
        assert said["tables"] == ["confusion_matrix.csv", "mistakes.csv", "per_class.csv"]
    for name in said["tables"]:
        assert len(list((workdir / "evaluations").rglob(name))) == 2
        shown = next((workdir / "evaluations").glob(f"*ema*/{name}")).read_text()
        written = (workdir / name).read_text()  # the run wrote those of the EMA weights
        if name == "mistakes.csv":  # whose probabilities may differ in the last digit
            shown, written = (sorted(line.rsplit(",", 2)[0] for line in one.splitlines()) for one in (shown, written))
        assert shown == written
    assert list((workdir / "evaluations").rglob("confusion_matrix.png"))


def test_predict_names_classes_of_files_of_any_size(small_run, run_command, tmp_path):
    digits = datasets.load("digits", "test[:40]")
    paths = []
    for index in range(3):
        image, _ = digits.record(index)
        paths.append(tmp_path / f"{index}.png")
        cv2.imwrite(str(paths[-1]), cv2.resize(np.asarray(image), (40 + 30 * index, 50))[..., ::-1])
    workdir = shutil.copytree(small_run, tmp_path / "copy")
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["name"] = "folder:/nowhere"  # who asks a network need not have the data that it was trained on
    (workdir / "config.json").write_text(json.dumps(config))
    outputs = [f"--csv={tmp_path / 'table.csv'}", f"--sheet={tmp_path / 'sheet.png'}", f"--explain={tmp_path / 'maps'}"]
    code, out, err = run_command("predict", f"--workdir={workdir}", "--json", "--top_k=3", *outputs, *paths)
    assert code == 0, err
    assert "sheet.png: 3 images" in err and len((tmp_path / "table.csv").read_text().splitlines()) == 4
    maps = [cv2.imread(str(path))[:, 228:] for path in sorted((tmp_path / "maps").iterdir())]
    assert len(maps) == 3 and all(one.std() > 5 for one in maps)
    found = [json.loads(line) for line in out.splitlines()]
    assert [row["picture"] for row in found] == list(map(str, paths))
    for row in found:
        probabilities = [one["probability"] for one in row["classes"]]
        assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
        assert {one["name"] for one in row["classes"]} <= set(digits.class_names)


def test_a_finished_run_is_not_run_again_and_its_state_not_restored(small_run, small_arguments, tmp_path, monkeypatch):
    """Tracing and restoring it took most of the seconds of such a start."""
    workdir = shutil.copytree(small_run, tmp_path / "copy")
    monkeypatch.setattr(loop.restore, "restore_or_start", None)
    recipe, _ = recipe_files.load_config([*small_arguments, "--config.logging.pictures=True"])
    recipe.parallel.devices = 1
    result, code = loop.train(recipe, workdir)
    assert code == 0 and result == json.loads((small_run / "result.json").read_text())
    assert (workdir / "metrics.jsonl").read_bytes() == (small_run / "metrics.jsonl").read_bytes()


@pytest.mark.slow  # tests/parallel shows it in float64
def test_pmap_trains_as_jit_does(small_run, run_command, small_arguments, tmp_path):
    arguments = [*small_arguments, "--config.parallel.mode=pmap", f"--workdir={tmp_path / 'run'}"]
    code, _, err = run_command("train", *arguments)
    assert code == 0, err
    for mine, other in zip(rows(tmp_path / "run", "train"), rows(small_run, "train"), strict=True):
        assert set(mine) == set(other)
        for name, value in other.items():
            assert mine[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4, abs=1e-6)), name
    assert not list((tmp_path / "run").glob("*.png"))  # logging.pictures is off


def test_a_loss_above_its_limit_ends_the_run_and_says_so(run_command, own_recipe, tmp_path):
    """One that is not finite: tests/resume/test_faults.py."""
    arguments = [f"--config={own_recipe}", "--config.faults.loss_limit=0.01", f"--workdir={tmp_path / 'run'}"]
    code, out, err = run_command("train", *arguments)
    assert code == 3
    assert out == ""
    assert re.search(r"error: step 1 has diverged: above config.faults.loss_limit = 0.01 \(loss .*gradient norm", err)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "diverged"
    assert "Traceback" not in err


def test_inception_v4_learns(run_command, tmp_path):
    """Narrow, at its smallest size: real steps on 32 real images, and the loss of either head falls."""
    overrides = {
        "model.name": "inception_v4", "model.width_multiplier": 0.125, "model.options.min_width": 8,
        "model.options.bn_momentum": 0.9, "data.image_size": 75, "batch_size": 32, "num_steps": 32,
        "data.train_split": "train[:32]", "data.eval_split": "test[:64]", "evaluation.every_epochs": 99.0,
        "checkpoint.every_epochs": 99.0, "logging.every_steps": 4, "logging.pictures": False,
        "data.normalization": "inception", "optimizer.name": "adamw", "optimizer.learning_rate": 0.002,
        "optimizer.bias_learning_rate": 1.0, "ema.decay": 0.0,
        "schedule.name": "constant", "schedule.warmup_epochs": 0.0,
    }  # fmt: skip
    flags = [f"--config.{name}={value}" for name, value in overrides.items()]
    code, out, err = run_command(
        "train", "--config=configs/digits.py", *flags, f"--workdir={tmp_path / 'run'}", "--json"
    )
    assert code == 0, err
    train = rows(tmp_path / "run", "train")
    for loss in ("loss_main", "loss_aux1"):
        first, last = (sum(row[loss] for row in part) / 2 for part in (train[:2], train[-2:]))
        assert last < 0.97 * first, loss
    assert set(json.loads(out)["metrics"]["test[:64]"]) == {"raw"}
