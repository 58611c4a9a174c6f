"""The training process: the real one, without Optuna, tied to its driver; its exit codes, metrics and record."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest

from inception_jax.errors import ExitCode, UserError
from inception_jax.sweeps import trial_process, trials
from inception_jax.sweeps.study_config import StudyConfig

from .conftest import ROOT, wait_for

REPORTER = """
import atexit, json, os, sys
def report():
    json.dump({"modules": [name for name in sys.modules if name.split(".")[0] in ("optuna", "sqlalchemy")],
               "argv": sys.orig_argv, "cores": sorted(os.sched_getaffinity(0)), "session": os.getsid(0),
               "stdin": sys.stdin.read()}, open(os.environ["REPORT"], "w"))
atexit.register(report)
import inception_jax.config
def get_config():
    return inception_jax.config.default()
"""


def test_the_real_process(tmp_path, monkeypatch):
    """By its own mistake it ends before it trains; on the way it says what it is."""
    (tmp_path / "recipe.py").write_text(REPORTER)
    monkeypatch.setenv("REPORT", str(tmp_path / "report.json"))
    cores = sorted(os.sched_getaffinity(0))[:1]
    arguments = [
        f"--config={tmp_path / 'recipe.py'}",
        "--config.model.name=inception_v9",
        f"--workdir={tmp_path / 'w'}",
    ]
    training = trial_process.TrainingProcess(
        trial_process.train_command(arguments, cores), tmp_path, {"JAX_PLATFORMS": "cpu"}
    )
    assert wait_for(lambda: training.poll() is not None, 60) and training.poll() == ExitCode.USER_ERROR
    assert trials.error_line(tmp_path).startswith("config.model.name: unknown model 'inception_v9'; did you mean")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["modules"] == []
    assert report["argv"] == [sys.executable, "-m", "inception_jax.train", *arguments]
    assert report["cores"] == cores and report["stdin"] == ""
    assert report["session"] == training.pid, "Ctrl-C in the terminal does not reach it"


def child(tmp_path, parent, text):
    """`trial_process` with a module of this text in the place of train."""
    (tmp_path / "trainer.py").write_text(text)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from inception_jax.sweeps import trial_process\n"
        f"trial_process.MODULE = 'trainer'\ntrial_process.main(['--parent={parent}', '--', 'x'])"
    )
    return [sys.executable, "-c", code]


def test_it_ends_with_its_driver(tmp_path):
    text = (
        "import os, signal, sys, time\n"
        "def saved(*_):\n    open('saved', 'w'); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, saved)\nopen('pid.new', 'w').write(str(os.getpid()))\n"
        "os.rename('pid.new', 'pid')\ntime.sleep(60)"
    )
    starter = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([word.replace('PARENT', str(os.getpid())) for word in sys.argv[1:]])\ntime.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-c", starter, *child(tmp_path, "PARENT", text)], cwd=tmp_path, env=environment
    )
    wait_for((tmp_path / "pid").exists)
    assert not (tmp_path / "saved").exists()
    driver.kill()
    driver.wait()
    wait_for((tmp_path / "saved").exists)


def test_it_leaves_where_its_driver_has_gone_already(tmp_path):
    done = subprocess.run(
        child(tmp_path, 1, "open('ran', 'w')"), cwd=tmp_path, timeout=60, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 143 and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (0, "finished"),
        (2, "failed"),
        (3, "diverged"),
        (4, "locked"),
        (5, "failed"),
        (6, "disk full"),
        (7, "died"),
        (8, "died"),
        (1, "died"),
        (130, "died"),
        (143, "died"),
        (-9, "died"),
        (-15, "died"),
        (-11, "died"),
    ],
)
def test_exit_codes_are_classified(code, meaning):
    assert trial_process.classify_exit(code) == meaning
    assert set(map(int, ExitCode)) <= {0, 2, 3, 4, 5, 6, 7, 8}, "a new code needs a meaning here"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-9, "signal SIGKILL"),
        (143, "signal SIGTERM"),
        (7, "exit code 7"),
        (-99, "exit code -99"),
        (255, "exit code 255"),
    ],
)
def test_format_of_an_exit_code(code, text):
    assert trial_process.format_exit_code(code) == text


def row(step, value, weights="ema", kind="evaluation"):
    return json.dumps({"kind": kind, "step": step, "epoch": step / 10, "weights": weights, "top1": value}) + "\n"


def test_metrics_are_read_as_they_grow(tmp_path):
    evaluations = trials.EvaluationReader(tmp_path, "ema", "top1")
    path = tmp_path / "metrics.jsonl"
    assert evaluations.read() == []
    path.write_text(row(5, 0.1, kind="train") + row(10, 0.2) + row(10, 0.9, "raw") + row(20, 0.3)[:20])
    assert evaluations.read() == [{"index": 1, "epoch": 1.0, "step": 10, "value": 0.2}]
    with open(path, "a") as file:
        file.write(row(20, 0.3)[20:] + row(30, "NaN"))
    assert [found["value"] for found in evaluations.read()[:2]] == [0.2, 0.3]
    assert str(evaluations.read()[2]["value"]) == "nan"


@pytest.mark.parametrize(
    ("metric", "written", "message"),
    [
        (
            "macro_f1",
            row(10, 0.2),
            "evaluation at step 10 has no 'macro_f1', which the study needs; it has kind, .*top1",
        ),
        ("top1", row(10, None), "the evaluation at step 10 has a value that is no number"),
    ],
)
def test_an_evaluation_without_its_metric_is_an_error(tmp_path, metric, written, message):
    (tmp_path / "metrics.jsonl").write_text(written)
    with pytest.raises(UserError, match=message):
        trials.EvaluationReader(tmp_path, "ema", metric).read()


def test_the_evaluation_that_early_stopping_ends_at_is_marked(tmp_path):
    stop = {"patience": 2, "min_improvement": 0.0, "target": 0.25, "target_metric": None, "at_target": False}
    study = types.SimpleNamespace(config={"checkpoint": {"best_metric": "top1"}, "stop": stop})
    start = functools.partial(StudyConfig.follow_end, study)
    evaluations = trials.EvaluationReader(tmp_path, "ema", "top1", lambda: start({}))
    (tmp_path / "metrics.jsonl").write_text("".join(row(10 * n, value) for n, value in enumerate((0.3, 0.2, 0.1), 1)))
    assert ["last" in found for found in evaluations.read()] == [False, False, True]
    at_target = trials.EvaluationReader(tmp_path, "ema", "top1", lambda: start({"stop.at_target": True}))
    assert ["last" in found for found in at_target.read()] == [True, False, True]


def test_metrics_that_were_cut_back_are_read_anew(tmp_path):
    evaluations = trials.EvaluationReader(tmp_path, "raw", "top1")
    path, new = tmp_path / "metrics.jsonl", tmp_path / "new"
    path.write_text(row(10, 0.1, "raw") + row(20, 0.2, "raw"))
    assert len(evaluations.read()) == 2
    new.write_text(row(10, 0.1, "raw") + row(20, 0.25, "raw") + row(30, 0.3, "raw"))
    os.replace(new, path)
    assert [found["value"] for found in evaluations.read()] == [0.1, 0.25, 0.3]
    path.write_text(row(10, 0.4, "raw"))
    assert [found["value"] for found in evaluations.read()] == [0.4]
    path.unlink()
    assert evaluations.read() == []


def test_the_record_of_a_trial(tmp_path):
    record = trials.TrialRecord(
        3, params={"a": 1}, evaluations=[{"index": 1, "epoch": 1, "step": 1, "value": float("nan")}]
    )
    record.record_start(77, "gpu 0")
    record.record_exit(-9, time.time() + 5)
    record.record_exit(0)
    record.save(tmp_path)
    assert '"NaN"' in (tmp_path / trials.FILE).read_text()
    back = trials.load_record(tmp_path)
    assert back.starts[0]["exit"] == -9 and back.seconds == pytest.approx(5, abs=0.5) and back.params == {"a": 1}
    assert str(back.evaluations[0]["value"]) == "nan"
    (tmp_path / trials.FILE).write_text("[]")
    assert trials.load_record(tmp_path) is None


def test_a_process_is_killed_with_what_it_started(tmp_path):
    code = "import subprocess, time; subprocess.Popen(['sleep', '60']); print('started', flush=True); time.sleep(60)"
    training = trial_process.TrainingProcess([sys.executable, "-c", code], tmp_path, {})
    wait_for(lambda: "started" in (tmp_path / trials.OUTPUT).read_text())
    training.kill()
    assert training.poll() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        wait_for(lambda: os.killpg(training.pid, 0))
