"""The benchmark's speed is the speed that training has: held against what `train` itself logs, in turn."""

import json
import statistics

import pytest

FIELDS = {
    "model.width_multiplier": 0.5, "data.image_size": 64, "data.name": "synthetic:10:64",
    "data.eval_split": "test[:32]",
    "schedule.name": "constant", "evaluation.every_epochs": 9.0, "checkpoint.every_epochs": 9.0,
    "logging.pictures": False,
}  # fmt: skip
ROUNDS, STEPS = 4, 40


@pytest.mark.slow  # minutes, and a machine that does little else: the tolerance is the claim
def test_the_benchmark_and_the_log_of_train_agree_within_a_tenth(run_command, tmp_path):
    """benchmark, train, benchmark, train, …: a machine's speed drifts, so each is held against its neighbours."""
    overrides = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    workdir, file = tmp_path / "run", tmp_path / "measured.json"

    def measure():
        arguments = ["--what=train", "--seconds=6", "--no_compile_times", "--config.num_steps=1000", f"--json={file}"]
        code, _, err = run_command("benchmark", "--config=configs/digits.py", *overrides, *arguments, optimize=True)
        assert code == 0, err
        return json.loads(file.read_text())["train"]["images_per_second"]

    def train(steps):
        """The same run, continued."""
        known = len(rows()) if workdir.exists() else 0
        arguments = [f"--config.num_steps={steps}", f"--workdir={workdir}"]
        code, _, err = run_command("train", "--config=configs/digits.py", *overrides, *arguments, optimize=True)
        assert code == 0, err
        return statistics.median(row["images_per_second"] for row in rows()[known + 1 :])  # the first warms up

    def rows():
        return [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]

    ratios, before = [], measure()
    for number in range(1, ROUNDS + 1):
        logged, after = train(number * STEPS), measure()
        ratios.append((before + after) / 2 / logged)
        before = after
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.1), ratios
