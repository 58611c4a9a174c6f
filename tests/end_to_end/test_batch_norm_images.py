"""A run in bfloat16 that evaluates with batch-norm statistics of training images, as a person starts and resumes it."""

import json
import shutil

# Most of the network is frozen and there are no auxiliary heads, so that the programs are small and compile quickly.
FIELDS = {
    "model.name": "inception_v1_bn",
    "model.width_multiplier": 0.1,
    "model.aux_heads": False,
    "model.dtype": "bfloat16",
    "model.param_dtype": "bfloat16",  # and the EMA in float32
    "model.options.bn_momentum": 0.99,
    "optimizer.freeze": "('^conv', '^inception_[34]')",
    "optimizer.frozen_batch_norm": "running",
    "batch_size": 8,
    "num_steps": 4,
    "data.image_size": 32,
    "data.normalization": "inception",
    "data.train_split": "train[:60]",
    "data.eval_split": "test[:20]",
    "data.threads": 1,
    "evaluation.every_epochs": 0.25,
    "evaluation.batch_norm_images": 20,
    "checkpoint.every_epochs": 0.25,
    "logging.every_steps": 1,
    "logging.tensorboard": False,
    "logging.pictures": False,
}


def test_training_evaluates_with_them_and_evaluate_and_a_resumed_run_give_the_same_bits(run_command, tmp_path):
    workdir = tmp_path / "run"
    arguments = ["--config=configs/digits.py", *(f"--config.{path}={value}" for path, value in FIELDS.items())]
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0, err
    assert "estimates the batch norm statistics from 24 training images (3 batches)" in err
    result = json.loads((workdir / "result.json").read_text())
    assert "Evaluated with batch-norm statistics of 20 training images" in (workdir / "report.md").read_text()

    code, out, err = run_command("evaluate", f"--workdir={workdir}", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["batch_norm_images"] == 20
    means = result["metrics"]["test[:20]"]["ema"]
    assert {name: found[name] for name in means} == means
    assert (workdir / "evaluations" / "test[:20]_ema_4_single_batch_norm_20" / "result.json").exists()
    code, out, err = run_command("evaluate", f"--workdir={workdir}", "--batch_norm_images=0", "--json")
    assert code == 0, err
    running = json.loads(out)
    assert "batch_norm_images" not in running and abs(running["loss"] - found["loss"]) > 1e-3

    again = shutil.copytree(workdir, tmp_path / "again")
    (again / "result.json").unlink()
    shutil.rmtree(again / "checkpoints" / "4")
    code, _, err = run_command("train", *arguments, f"--workdir={again}")
    assert code == 0, err
    assert "continued from step 2" in err
    assert (again / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    assert json.loads((again / "result.json").read_text())["fingerprint"] == result["fingerprint"]
