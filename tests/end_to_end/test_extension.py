"""A recipe outside the package: the one of configs/README.md, trained, resumed, evaluated, used without its file."""

import hashlib
import json
import shutil

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def arguments(own_recipe):
    fields = ["evaluation.every_epochs=0.5", "checkpoint.every_epochs=0.5", "logging.every_steps=2", "data.threads=1"]
    return [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def run(run_command, arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("own") / "run"
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0, err
    return workdir


def outcome(workdir):
    return json.loads((workdir / "result.json").read_text())["fingerprint"], (workdir / "metrics.jsonl").read_bytes()


def test_all_of_it_is_used_and_recorded(run, own_recipe):
    config = json.loads((run / "config.json").read_text())
    assert config["extensions"] == [str(own_recipe)] and config["optimizer"]["options"] == [["b1", 0.8]]
    assert (run / "extensions" / "mine.py").read_text() == own_recipe.read_text()
    result = json.loads((run / "result.json").read_text())
    assert result["model"] == "strider" and result["best"]["metric"] == "mean_confidence"
    assert result["metrics"]["test"]["raw"]["top5"] == 1  # of two classes
    assert 0.5 <= result["metrics"]["test"]["raw"]["mean_confidence"] <= 1
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["metrics"] == {"mean_confidence": {"title": "mean confidence", "better": "higher", "percent": True}}
    assert manifest["extensions"] == {"mine.py": hashlib.sha256(own_recipe.read_bytes()).hexdigest()}
    report = (run / "report.md").read_text()
    assert "Best mean confidence of all evaluations" in report and "| mean confidence |" in report


def test_it_resumes_to_the_same_bits_also_in_worker_processes(run, run_command, arguments, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "result.json").unlink()
    (workdir / "extensions" / "mine.py").write_text("# as if the run had begun with another file\n")
    code, _, err = run_command("train", *arguments, "--config.data.workers=1", f"--workdir={workdir}")
    assert code == 0 and "continued from step 8" in err, err
    assert outcome(workdir) == outcome(run)
    assert "note: mine.py has changed since the run began" in err


def test_it_resumes_by_its_workdir_alone_where_the_recipe_is_gone(run, run_command, own_recipe, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace(str(own_recipe), "/nowhere/mine.py"))
    shutil.rmtree(workdir / "checkpoints" / "12")
    (workdir / "result.json").unlink()
    code, _, err = run_command("train", "--config.data.threads=2", f"--workdir={workdir}")
    assert code == 0 and "continued from step 8" in err, err
    assert outcome(workdir)[1] == outcome(run)[1] and "has changed since" not in err
    assert json.loads((workdir / "config.json").read_text())["data"]["threads"] == 2


SINK = """
import json
from inception_jax.runs.sinks import Sink


class File(Sink):
    def __init__(self, run):
        self.run_id, self.fails = "first", run.run_id is None
        self.path = run.workdir / f"sink_{run.run_id}.jsonl"

    def write(self, step, values):
        if self.fails and step == 6 and "train/loss" in values:
            raise OSError("no network")
        with open(self.path, "a") as file:
            file.write(json.dumps([step, *values]) + "\\n")


inception_jax.register_sink("file", File)
"""


def test_a_sink_changes_no_bit_and_fails_alone(run, run_command, arguments, own_recipe, tmp_path):
    recipe, workdir = tmp_path / "mine.py", tmp_path / "run"
    recipe.write_text(own_recipe.read_text() + SINK)
    arguments = [f"--config={recipe}", *arguments[1:], "--config.logging.pictures=False"]
    arguments += ["--config.logging.sinks=('file',)", f"--workdir={workdir}"]
    code, out, err = run_command("train", *arguments, "--json")
    assert code == 0 and "warning: sink file failed at step 6: OSError: no network" in err, err
    assert outcome(workdir) == outcome(run)
    assert json.loads(out)["sinks"] == {"file": "failed at step 6: OSError: no network"}
    assert json.loads((workdir / "result.json").read_text())["sinks"] == json.loads(out)["sinks"]

    shutil.rmtree(workdir / "checkpoints" / "12")  # a start that continues writes what the sink has not got
    (workdir / "result.json").unlink()
    code, out, err = run_command("train", *arguments, "--json")
    assert code == 0 and json.loads(out)["sinks"] == {"file": "complete"}, err
    assert outcome(workdir) == outcome(run)
    files = [workdir / f"sink_{name}.jsonl" for name in ("None", "first")]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert sorted(row[0] for row in rows if "train/loss" in row) == [2, 4, 6, 8, 10, 12]
    assert sorted(row[0] for row in rows if "test_raw/top1" in row) == [4, 8, 12]
    code, _, err = run_command(
        "train", *arguments[:-2], "--config.logging.sinks=('fle',)", f"--workdir={tmp_path / 'a'}"
    )
    assert code == 2 and "config.logging.sinks = ('fle',): it must be one of 'tensorboard', " in err, err


def test_the_run_needs_no_recipe(run, run_command, own_recipe, tmp_path):
    """evaluate, predict and compare where the file is not: by the copy in the workdir."""
    workdir = shutil.copytree(run, tmp_path / "run")
    config = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(config.replace(str(own_recipe), "/nowhere/mine.py"))
    code, out, err = run_command("evaluate", f"--workdir={workdir}", "--json")
    assert code == 0, err
    found, expected = json.loads(out), json.loads((run / "result.json").read_text())["metrics"]["test"]["raw"]
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.full((20, 20, 3), 90, np.uint8))
    code, out, err = run_command("predict", f"--workdir={workdir}", "--json", image)
    assert code == 0 and {one["name"] for one in json.loads(out)["classes"]} == {"across", "down"}, err
    code, out, err = run_command("compare", "--metric=mean_confidence", f"--output={tmp_path / 'out'}", run, workdir)
    assert code == 0 and "best mean confidence" in out, err

    shutil.rmtree(workdir / "extensions")
    code, _, err = run_command("evaluate", f"--workdir={workdir}")
    assert code == 2 and "error: config.extensions: cannot read /nowhere/mine.py" in err and "Traceback" not in err


def test_a_recipe_that_does_not_name_its_file_is_refused(run_command, arguments, own_recipe, tmp_path):
    code, _, err = run_command("train", *arguments, "--config.extensions=()", f"--workdir={tmp_path / 'run'}")
    assert code == 2 and f"model 'strider' is registered in {own_recipe}, which config.extensions does not name" in err
    assert not (tmp_path / "run").exists()
    code, _, err = run_command(
        "train", *arguments, "--config.optimizer.options={'eps_rot': 1}", f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and "'optax.lamb' has no option 'eps_rot'; did you mean 'eps_root'" in err, err
