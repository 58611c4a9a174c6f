"""A run that an earlier revision began continues: the golden workdir is one that revision f31d39a left at step 6 of 14.

Started as below by that revision's `train`, it got SIGTERM after step 6; paths and the host name were replaced.
"""

import json
import tarfile
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("goldens") / "run_of_f31d39a.tar.gz"
ARGUMENTS = [
    "--config=configs/digits.py",
    *(
        f"--config.{field}"
        for field in (
            "batch_size=16",
            "num_steps=14",
            "data.image_size=32",
            "model.width_multiplier=0.03125",
            "model.options.min_width=2",
            "data.train_split=train[:100]",
            "data.eval_split=test[:40]",
            "logging.every_steps=3",
            "evaluation.every_epochs=0.8",
            "checkpoint.every_epochs=0.7",
            "logging.pictures=False",
            "data.threads=2",
        )
    ),
]
# What that revision's own uninterrupted run gave on two x86-64 cores, jax 0.10.2.
LOSS = {"raw": 2.3227540969848635, "ema": 2.32541971206665}
LAST_ROW = {"step": 14, "loss": 3.7616472244262695, "gradient_norm": 1.385290801525116, "top1_main": 0.125}


SAFELY = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on


def test_a_run_of_an_earlier_revision_continues(run_command, tmp_path):
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path / "run", **SAFELY)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    code, out, err = run_command("train", *ARGUMENTS, f"--workdir={tmp_path / 'run'}", "--json")
    assert code == 0, err
    assert "continued from step 6" in err
    assert err.count("this run began with a version that did not record its data; recorded from now on") == 1
    assert json.loads((tmp_path / "run" / "data.json").read_text())["train_split"]["examples"] == 100
    result = json.loads(out)
    assert (result["status"], result["steps"]) == ("finished", 14)
    for weights, loss in LOSS.items():
        assert result["metrics"]["test[:40]"][weights]["loss"] == pytest.approx(loss, rel=1e-5)
    assert {name: result["metrics"]["train"][name] for name in LAST_ROW} == pytest.approx(LAST_ROW, rel=1e-4)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().startswith(before)
    # Its convolutions stay those of that revision, whose config had no such field.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["convolution"] == "exact"


def test_another_config_is_still_refused(run_command, tmp_path):
    with tarfile.open(GOLDEN) as archive:
        archive.extractall(tmp_path / "run", **SAFELY)
    code, _, err = run_command("train", *ARGUMENTS, "--config.batch_size=20", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and "batch_size" in err and "Traceback" not in err
