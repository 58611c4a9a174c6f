"""The benchmark's speed is the speed that training has: held against what `train` itself logs, in turn."""

import json
import statistics

import pytest

FIELDS = {"model.width_multiplier": 0.5, "data.image_size": 64, "batch_size": 32, "optimizer.bias_learning_rate": 1.0}


@pytest.mark.slow  # minutes, and a machine that does little else: the tolerance is the claim
def test_the_benchmark_and_the_log_of_train_agree_within_a_tenth(run_command, tmp_path):
    ratios = []
    for number in range(3):
        overrides = [f"--config.{name}={value}" for name, value in FIELDS.items()]
        json_file, workdir = tmp_path / f"{number}.json", tmp_path / f"run{number}"
        code, _, err = run_command(
            "benchmark", "--config=configs/digits.py", *overrides, "--config.data.name=synthetic:10:64",
            "--what=train", "--seconds=15", "--no_compile_times", f"--json={json_file}", optimize=True,
        )  # fmt: skip
        assert code == 0, err
        code, _, err = run_command(
            "train", "--config=configs/digits.py", *overrides, "--config.data.name=synthetic:10:64",
            "--config.data.eval_split=test[:32]", "--config.num_steps=60", "--config.evaluation.every_epochs=9.0",
            "--config.checkpoint.every_epochs=9.0", "--config.logging.pictures=False", f"--workdir={workdir}",
            optimize=True,
        )  # fmt: skip
        assert code == 0, err
        measured = json.loads(json_file.read_text())["train"]["images_per_second"]
        rows = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
        logged = statistics.median(row["images_per_second"] for row in rows[2:])
        ratios.append(measured / logged)
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.1), ratios
