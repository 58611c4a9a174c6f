"""The benchmark's speed is that of a real training run: compared with each row of its log."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow  # needs a quiet machine, because of the tolerance
def test_the_benchmark_and_the_log_of_train_agree_within_a_tenth(command_environment, tmp_path):
    environment = command_environment | {"XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("train_beside_benchmark.py"), tmp_path / "run"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    pairs = json.loads(done.stdout.splitlines()[-1])
    logged = [json.loads(line) for line in (tmp_path / "run" / "timing.jsonl").read_text().splitlines()]
    assert [pair[0] for pair in pairs] == [row["images_per_second"] for row in logged]
    assert len(pairs) >= 10
    ratios = [measured / of_train for of_train, measured in pairs[1:]]  # the first row warms up
    assert statistics.median(ratios) == pytest.approx(1.0, abs=0.1), ratios
