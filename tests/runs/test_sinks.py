"""Sinks: they get every row once, continue their run, fail alone, hold up nobody; W&B's and MLflow's calls."""

import json
import sys
import time
import types

import numpy as np
import pytest

from inception_jax import extensions
from inception_jax.errors import UserError
from inception_jax.runs import metric_files, mlflow_sink, sinks
from inception_jax.runs.sinks import Sink, Sinks

pytestmark = pytest.mark.usefixtures("registrations")
CONFIG = {"batch_size": 8, "model": {"name": "inception_v1", "dtype": None}}


class Recorder(Sink):
    """Keeps what it gets; fails at a step, or takes its time."""

    def __init__(self, run, calls, fail_at=None, seconds=0.0):
        self.run_id, self.address = run.run_id or "r1", "there"
        self.calls, self.fail_at, self.seconds = calls, fail_at, seconds
        calls.append(("open", run.name, run.run_id, run.config))

    def write(self, step, values):
        time.sleep(self.seconds)
        if step == self.fail_at:
            raise ConnectionError("the network\nis gone")
        self.calls.append((step, *values))

    def write_images(self, step, images):
        self.calls.append(("images", step, *images))

    def finish(self, result, files):
        self.calls.append(("finish", result["status"], [file.name for file in files]))


def register(**options):
    calls: list = []
    extensions.SINKS["recorder"] = lambda run: Recorder(run, calls, **options)
    return calls


def train(workdir, steps, restored=0, names=("recorder",), status="finished", end=True):
    """What the training loop does with its files and sinks; returns (statuses, news)."""
    workdir.mkdir(exist_ok=True)
    with Sinks(names, workdir, CONFIG) as opened:
        metric_files.truncate(workdir, restored)
        with metric_files.MetricWriter(workdir, tensorboard=False, notify=opened.notify) as writer:
            opened.start()
            for step in steps:
                writer.write({"kind": "train", "step": step, "loss": 1 / step})
                writer.write_timing({"step": step, "images_per_second": 9.0})
                if step % 20 == 0:
                    writer.write({"kind": "evaluation", "split": "test", "weights": "ema", "step": step, "top1": 0.5})
            result = {"status": status, "steps": step}
            (workdir / "result.json").write_text(json.dumps(result))
            statuses = opened.finish(step, result, [workdir / "result.json"]) if end else {}
    return statuses, opened.pop_news()


def rows(calls):
    return [call for call in calls if isinstance(call[0], int)]


def test_every_row_once_also_where_a_run_continues(tmp_path):
    calls = register()
    workdir = tmp_path / "run"
    assert train(workdir, [10, 20, 30], status="interrupted") == ({"recorder": "complete"}, ["recorder: there"])
    assert calls[0] == ("open", "run", None, CONFIG) and calls[-1] == ("finish", "interrupted", ["result.json"])
    assert set(rows(calls)) == {
        *((step, "train/loss") for step in (10, 20, 30)),
        *((step, "timing/images_per_second") for step in (10, 20, 30)),
        (20, "test_ema/top1"),
    }
    calls = register()
    statuses, _ = train(workdir, [20, 30, 40], restored=10)
    assert statuses == {"recorder": "complete"} and calls[0][2] == "r1"
    assert set(rows(calls)) == {(40, "train/loss"), (40, "timing/images_per_second"), (40, "test_ema/top1")}
    assert len(rows(calls)) == 3


def test_a_sink_that_was_away_gets_what_it_missed(tmp_path):
    calls = register(fail_at=20)
    statuses, news = train(tmp_path, [10, 20, 30])
    assert statuses == {"recorder": "failed at step 20: ConnectionError: the network is gone"}
    assert news[1:] == [f"warning: sink recorder {statuses['recorder']}; the run continues without it"]
    assert {call[0] for call in rows(calls)} == {10} and "finish" not in [call[0] for call in calls]
    assert [row["step"] for row in metric_files.read_rows(tmp_path / "metrics.jsonl")] == [10, 20, 20, 30]
    calls = register()
    train(tmp_path, [40], restored=30)
    assert sorted({call[0] for call in rows(calls)}) == [20, 30, 40] and len(rows(calls)) == 8


def test_a_slow_sink_holds_up_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "FINISH_SECONDS", 0.6)
    register(seconds=0.5)
    begun = time.monotonic()
    with Sinks(("recorder",), tmp_path, CONFIG) as opened:
        opened.start()
        with metric_files.MetricWriter(tmp_path, tensorboard=False, notify=opened.notify) as writer:
            for step in range(1, 201):  # 100 s of the sink
                writer.write({"kind": "train", "step": step, "loss": 1.0})
            assert time.monotonic() - begun < 0.4
            statuses = opened.finish(200, {"status": "finished"}, [])
    assert time.monotonic() - begun < 1.5
    assert statuses["recorder"].startswith("not finished within 0.6 s: rows after step ")


@pytest.mark.parametrize("opens", [lambda run: 1 / 0, lambda run: sys.exit(3), lambda run: object()])
def test_a_sink_that_cannot_be_opened_or_is_none(tmp_path, opens):
    extensions.SINKS["recorder"] = opens
    statuses, news = train(tmp_path, [10])
    assert statuses["recorder"].startswith("failed ") and len(news) == 1


def test_an_end_without_a_result_ends_the_sink(tmp_path):
    calls = register()
    train(tmp_path, [10], end=False)
    assert calls[-1] == ("finish", "failed", [])


def test_a_damaged_record_leaves_the_sinks_out(tmp_path):
    calls = register()
    (tmp_path / sinks.FILE).write_text("[1")
    statuses, news = train(tmp_path, [10])
    assert "sinks.json is damaged" in statuses["recorder"] and "sinks.json is damaged" in news[0] and not calls


def test_tensorboard_that_fails_ends_alone(tmp_path):
    with metric_files.MetricWriter(tmp_path) as writer:
        writer.write({"kind": "train", "step": 1, "loss": 1.0})
        writer._events.close()
        writer._events._file = metric_files.AppendedFile("/dev/full")
        for step in (2, 3):
            writer.write({"kind": "train", "step": step, "loss": 1.0})
        assert writer.tensorboard_error.startswith("failed at step 2: cannot write ")
    assert len(metric_files.read_rows(tmp_path / "metrics.jsonl")) == 3


def test_what_is_not_installed_or_not_set_up_is_refused(monkeypatch):
    sinks.check(("tensorboard",))
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"{name} is not installed: pip install 'inception_jax\[{name}\]'"):
            sinks.check((name,))
    broken = types.ModuleType("wandb")
    broken.setup = lambda: types.SimpleNamespace(settings=types.SimpleNamespace(mode="online"))
    broken.login = lambda prompt, verify: False
    monkeypatch.setitem(sys.modules, "wandb", broken)
    with pytest.raises(UserError, match=r"wandb: there is no API key; .* WANDB_MODE=offline"):
        sinks.check(("wandb",))


class FakeWandbRun:
    id, offline = "w1", True

    def __init__(self, log, folder):
        self.dir = str(folder)
        self.log, self.summary = log.append, types.SimpleNamespace(update=log.append)
        for name in ("define_metric", "mark_preempting", "finish"):
            setattr(self, name, lambda *values, name=name, **options: log.append((name, *values, options)))


def test_wandb_gets_rows_with_their_steps(tmp_path, monkeypatch):
    log: list = []
    fake = types.ModuleType("wandb")
    fake.Settings, fake.Image = dict, str
    fake.init = lambda **options: log.append(options) or FakeWandbRun(log, tmp_path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    statuses, news = train(tmp_path / "run", [10], names=("wandb",), status="interrupted")
    assert statuses == {"wandb": "complete"} and news == [f"wandb: offline, in {tmp_path}"]
    assert (tmp_path / "result.json").read_bytes() == (tmp_path / "run" / "result.json").read_bytes()
    assert log[0]["config"] == CONFIG and (log[0]["id"], log[0]["name"], log[0]["project"]) == (
        None, "run", "inception_jax"
    )  # fmt: skip
    assert log[1] == ("define_metric", "*", {"step_metric": "step"})
    assert {"train/loss": 0.1, "step": 10} in log and {"timing/images_per_second": 9.0, "step": 10} in log
    assert log[-2:] == [("mark_preempting", {}), ("finish", {"exit_code": 1})]
    log.clear()
    train(tmp_path / "run", [20], restored=10, names=("wandb",))
    assert (log[0]["id"], log[0]["resume"], log[0]["config"]) == ("w1", "allow", None)
    assert not any(isinstance(call, dict) and call.get("step") == 10 for call in log)
    assert log[-1] == ("finish", {"exit_code": 0})


def write_png(path):
    import cv2

    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    return path


def test_wandb_offline(tmp_path, monkeypatch):
    """The real package, without a network."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    sinks.check(("wandb",))
    statuses, news = train(tmp_path / "run", [10, 20], names=("wandb",))
    assert statuses == {"wandb": "complete"} and "wandb: offline, in " in news[0]
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    record = json.loads((tmp_path / "run" / sinks.FILE).read_text())["wandb"]
    assert record["run_id"] in file.name and record["steps"]["train"] == 20
    assert b"test_ema/top1" in file.read_bytes()


def test_mlflow_store(tmp_path, monkeypatch):
    """The real package and its store of files, read back by its client."""
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    sinks.check(("mlflow",))
    train(tmp_path / "run", [10, 20, 30], names=("mlflow",), status="interrupted")
    client = MlflowClient()
    run_id = json.loads((tmp_path / "run" / sinks.FILE).read_text())["mlflow"]["run_id"]
    assert client.get_run(run_id).info.status == "KILLED"
    statuses, _ = train(tmp_path / "run", [20, 30, 40], restored=10, names=("mlflow",))
    assert statuses == {"mlflow": "complete"}
    run = client.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params == {"batch_size": "8", "model.name": "inception_v1"}
    history = client.get_metric_history(run_id, "train/loss")
    assert [(metric.step, metric.value) for metric in history] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert [metric.step for metric in client.get_metric_history(run_id, "test_ema/top1")] == [20, 40]
    sink = mlflow_sink.open_sink(sinks.SinkRun(tmp_path / "run", CONFIG, run_id))
    sink.write(50, {"test[:40]_raw/top1": float("nan")})
    sink.write_images(50, {"curves": write_png(tmp_path / "curves.png")})
    assert np.isnan(client.get_run(run_id).data.metrics["test_:40__raw/top1"])
    assert sorted(file.path for file in client.list_artifacts(run_id)) == ["pictures", "result.json"]


def test_no_mlflow_store_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing://here")
    with pytest.raises(UserError, match=r"mlflow: [^\n]*nothing://here"):
        sinks.check(("mlflow",))
