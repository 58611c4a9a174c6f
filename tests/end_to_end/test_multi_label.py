"""A run with several labels per image, by the commands: trained, interrupted, evaluated, used, exported."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from inception_jax import load_run
from inception_jax.data import digits
from inception_jax.pretrained import hub

from ..multihost.test_processes import DOUBLE, assert_equal_runs, environment, free_port

CLASSES = ("even", "above four", "has a loop")  # of the recipe, which registers its network where it is imported
RECIPE = Path(__file__).with_name("multi_label_digits.py")
FIELDS = {
    "batch_size": 16, "num_steps": 12, "data.image_size": 32, "data.train_split": "train[:120]", "data.threads": 1,
    "data.eval_split": "test[:43]", "model.width_multiplier": 0.25, "model.options.min_width": 4,
    "logging.every_steps": 4, "logging.tensorboard": False, "evaluation.every_epochs": 0.8,
    "checkpoint.every_epochs": 0.8, "ema.decay": 0.9, "augmentation.mixup_alpha": 0.4, "augmentation.cutmix_alpha": 1.0,
    "augmentation.mix_probability": 0.5, "loss.label_smoothing": 0.1, "stop.target": 0.2, "stop.at_target": False,
    "loss.class_weights": "{'even': 2.0}",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(run_command):
    def once(name, *arguments, code=0):
        found, out, err = run_command(name, *map(str, arguments))
        assert found == code, (name, out, err)
        return out + err

    return once


@pytest.fixture(scope="module")
def arguments():
    return [f"--config={RECIPE}", *(f"--config.{path}={value}" for path, value in FIELDS.items())]


@pytest.fixture(scope="module")
def trained(run, arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("multi_label") / "run"
    text = run("train", *arguments, f"--workdir={workdir}")
    assert "ema: loss 0." in text and " mAP " in text and "top-1" not in text
    return workdir


def bits(workdir):
    result = json.loads((workdir / "result.json").read_text())
    return result["fingerprint"], result["metrics"], (workdir / "metrics.jsonl").read_bytes()


def test_files_of_the_run(trained):
    result = json.loads((trained / "result.json").read_text())
    assert result["best"]["metric"] == "mean_average_precision" == result["target"]["metric"]
    assert json.loads((trained / "config.json").read_text())["checkpoint"]["best_metric"] == "mean_average_precision"
    values = result["metrics"]["test[:43]"]["ema"]
    assert {*values} == {"loss", "macro_f1", "mean_average_precision", "micro_f1", "exact_match", "count"}
    assert values["count"] == 43 and 0.3 < values["mean_average_precision"] <= 1
    assert result["target"]["reached"]["value"] >= 0.2
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    heads = {name for name in rows[0] if name.startswith(("loss", "top"))}
    assert heads == {"loss", "loss_main", "loss_aux1"}
    plots = {"training_batch.png", "learning_curves.png", "activations.png", "first_layer.png"}
    assert plots == {path.name for path in trained.glob("*.png")}  # no confusion matrix
    assert result["tables"] == ["per_class.csv"]
    with open(trained / "per_class.csv", newline="") as file:
        table = list(csv.DictReader(file))
    mean = np.mean([float(row["average_precision"]) for row in table])
    assert mean == pytest.approx(values["mean_average_precision"]) and [row["class"] for row in table] == [*CLASSES]
    report = (trained / "report.md").read_text()
    assert "mean average precision** on test" in report and "| average precision | weight |" in report
    assert "top-1" not in report and "confusion" not in report.lower()
    identity = json.loads((trained / "data.json").read_text())
    labels = digits.load("train")[1][:120]
    assert identity["train_split"]["class_counts"][0] == int((labels % 2 == 0).sum())


def test_killed_and_continued_it_has_the_same_bits(run, arguments, trained, tmp_path):
    # Killed between the evaluation and its checkpoint: from the checkpoint before it.
    workdir = shutil.copytree(trained, tmp_path / "killed")
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "result.json").unlink()
    text = run("train", *arguments, f"--workdir={workdir}")
    assert "continued from step 6" in text
    assert bits(workdir) == bits(trained)
    wrong = run("train", *arguments, "--config.data.labels=single", f"--workdir={workdir}", code=2)
    assert "several per example are for config.data.labels = 'multi'" in wrong


def test_evaluations(run, trained, tmp_path):
    weights = json.loads((trained / "result.json").read_text())["metrics"]["test[:43]"]["ema"]
    saved = tmp_path / "saved.npz"
    text = run("evaluate", f"--workdir={trained}", f"--save_predictions={saved}", "--batch_size=10")
    average = f"mAP {100 * weights['mean_average_precision']:.2f} %"
    assert f"{average} (micro F1" in text and "43 examples)" in text and "top-" not in text
    folder = trained / "evaluations" / "test[:43]_ema_12_single"
    again = json.loads((folder / "result.json").read_text())
    assert {name: again[name] for name in weights} == pytest.approx(weights, rel=1e-5)
    assert [path.name for path in folder.glob("*.png")] == [] and "top1_interval_95" not in again

    from_file = json.loads(run("evaluate", f"--from={saved}", "--json"))
    assert {name: from_file[name] for name in weights} == pytest.approx({name: again[name] for name in weights})
    member = json.loads(run("evaluate", f"--ensemble={trained}", "--weights=raw", "--protocol=10-crop", "--json"))
    assert member["mean_average_precision"] > 0.3 and "top1" not in member["members"][0]
    labels = tmp_path / "labels.json"
    labels.write_text("[]")
    refused = run("evaluate", f"--from={saved}", f"--labels={labels}", code=2)
    assert "it replaces the one right label of each example" in refused
    compared = run("compare", trained)
    assert (
        "top-1" not in compared
        and "best mAP" in compared
        and f"{100 * weights['mean_average_precision']:.2f} %" in compared
    )
    assert f"{100 * weights['mean_average_precision']:.2f} % mAP" in run("compare", "--list", trained)
    table = tmp_path / "table.csv"
    run("evaluate", "--all", trained, f"--output={table}")
    with open(table, newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["mean_average_precision"]) == pytest.approx(100 * weights["mean_average_precision"], abs=1e-3)
    assert row["top1"] == ""


def test_predictions_and_exports(run, trained, tmp_path, registrations):
    image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), image[..., ::-1])
    network = load_run(trained)
    found = network.predict(str(file))
    logits = network.features(str(file), ["logits"])["logits"][0]
    order = found["classes"][0]
    assert {*found} == {"classes", "probabilities"} and sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(found["probabilities"][0], 1 / (1 + np.exp(-logits[order])), rtol=1e-5)

    threshold = float(found["probabilities"][0][1])  # of three classes two are above it
    blank, table = tmp_path / "b.json", tmp_path / "t.csv"
    flags = [f"--workdir={trained}", f"--threshold={threshold - 1e-4}", f"--json={blank}", f"--csv={table}"]
    text = run("predict", *flags, f"--sheet={tmp_path / 's.png'}", file)
    assert [each["index"] for each in json.loads(blank.read_text())["classes"]] == order[:2].tolist()
    head, row = csv.reader(table.read_text().splitlines())
    assert head == ["file", "labels", *(f"probability_{name}" for name in CLASSES), "error"]
    assert row[1] == "|".join(CLASSES[label] for label in order[:2]) and text.count(" %  ") == 2
    by_rank = dict(zip(order.tolist(), found["probabilities"][0], strict=True))
    np.testing.assert_allclose([float(cell) for cell in row[2:5]], [by_rank[k] for k in range(3)], rtol=1e-5)
    assert "a probability from 0 to 1" in run("predict", f"--workdir={trained}", "--threshold=1.5", file, code=2)
    features = tmp_path / "f.npz"
    run("extract", f"--workdir={trained}", f"--output={features}", "--endpoints=logits", "--split=test[:5]")
    with np.load(features) as arrays:
        assert arrays["label"].shape == (5, 3) and arrays["logits"].shape == (5, 3)

    plain = tmp_path / "plain.safetensors"
    text = run("export", f"--workdir={trained}", "--to=safetensors", f"--output={plain}")
    assert (
        "outputs: logits; the probabilities are their sigmoid" in text
        and b'"activation":"sigmoid"' in plain.read_bytes()[:4000]
    )
    about, card = hub._describe(network), hub._card(network, trained)
    assert (about["problem_type"], about["activation"]) == ("multi_label_classification", "sigmoid")
    assert about["config"]["data"]["labels"] == "multi"
    assert "any number of them in an image, each with the sigmoid of its own logit: even, above four" in card
    assert "metrics: [{type: mean_average_precision, value: 0." in card and "if p >= 0.5]" in card


def test_a_run_is_not_evaluated_with_the_other_kind_of_labels(run, trained, arguments, small_run, tmp_path):
    flags = [f"--config={RECIPE}", f"--workdir={tmp_path}"]
    refused = run("evaluate", *flags, f"--checkpoint={small_run}", code=2)
    assert (
        "config.data.labels = 'multi': the run in" in refused and "was trained with 'single', one label per" in refused
    )
    refused = run("evaluate", "--config=configs/digits.py", f"--workdir={tmp_path}", f"--checkpoint={trained}", code=2)
    assert "was trained with 'multi', several labels per image (sigmoid); evaluate it on data of that kind" in refused
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert "--threshold=0.5: the network is for one label" in run(
        "predict", f"--workdir={small_run}", "--threshold=0.5", tmp_path / "a.png", code=2
    )
    for fields, message in (
        (["loss.class_weights=balanced"], "'balanced': it is defined for one label per example"),
        (
            ["checkpoint.best_metric=top1"],
            "'top1': with config.data.labels = 'multi' the metrics are loss, macro_f1, mean",
        ),
        (["data.name=digits"], "digits has one label per example; several labels per example have lists"),
    ):
        overrides = [f"--config.{field}" for field in fields]
        assert message in run("train", *arguments, *overrides, f"--workdir={tmp_path / 'new'}", code=2)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(start_command, arguments, tmp_path):
    """Two devices in one process or in two, in float64: float32 may differ in the last bit, as with one label."""

    def train(workdir, processes):
        variables = environment(2 // processes)
        shared = [f"--coordinator_address=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
        commands = [
            start_command(
                "train", *arguments, *DOUBLE, f"--workdir={workdir}",
                *([*shared, f"--process_id={k}"] if processes > 1 else ()), environment=variables,
            )
            for k in range(processes)
        ]  # fmt: skip
        ends = [command.communicate(timeout=300) for command in commands]
        assert [command.returncode for command in commands] == [0] * processes, ends
        return workdir

    assert_equal_runs(train(tmp_path / "one", 1), train(tmp_path / "two", 2))
