"""Each fault of a long run has one answer: real signals, files, file systems and processes, never a mocked exception.

Kills and signals have their own file, and so have processes that lose each other (tests/multihost/test_processes.py).
Whole runs cost their starts: those whose fault is also tested on the part that answers it (tests/data, tests/training)
are slow.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import pytest

from inception_jax.data import digits
from inception_jax.runs.metric_files import read_rows

ROOT = Path(__file__).resolve().parents[2]


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    assert result["status"] == "finished"
    return result["fingerprint"], (workdir / "metrics.jsonl").read_bytes()


def wait_for(condition, *commands, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(command.poll() is None for command in commands), [command.communicate()[1] for command in commands]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def payload(step):
    """The largest file of a checkpoint: arrays."""
    return max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip(file):
    with open(file, "r+b") as content:
        content.seek(file.stat().st_size // 2)
        byte = content.read(1)[0]
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte ^ 1]))


def test_a_flipped_bit_costs_one_checkpoint_and_nothing_else(small_run, run_command, small_arguments, tmp_path):
    """So does a checkpoint that was copied under a higher number."""
    workdir = shutil.copytree(small_run, tmp_path / "run")
    (workdir / "result.json").unlink()
    *before, last = sorted((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    flip(payload(last))
    shutil.copytree(before[-1], workdir / "checkpoints" / "99")
    code, _, err = run_command("train", *small_arguments, "--config.logging.pictures=True", f"--workdir={workdir}")
    assert code == 0, err
    assert "foreign checkpoint moved to" in err and f"/99 holds the checkpoint of step {before[-1].name}: it" in err
    assert "damaged checkpoint moved to" in err and f"continued from step {before[-1].name}" in err
    assert (workdir / "checkpoints" / "damaged" / last.name).is_dir()
    assert outcome(workdir) == outcome(small_run)


def test_damaged_everywhere_is_refused(small_run, run_command, small_arguments, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "run")
    finished = (workdir / "result.json").rename(tmp_path / "result.json")  # with it, no checkpoint would be read
    steps = sorted(path for path in (workdir / "checkpoints").glob("[0-9]*"))
    for step in steps:
        os.truncate(payload(step), payload(step).stat().st_size // 2)
    code, out, err = run_command("train", *small_arguments, "--config.logging.pictures=True", f"--workdir={workdir}")
    assert (code, out) == (5, "")
    assert "error: no usable checkpoint" in err and "Traceback" not in err
    assert sorted(path for path in (workdir / "checkpoints").glob("[0-9]*")) == steps
    finished.rename(workdir / "result.json")
    assert outcome(workdir) == outcome(small_run)  # what was there before stands


def test_another_precision_is_refused(small_run, start_command, small_arguments, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "run")
    arguments = [*small_arguments, "--config.logging.pictures=True", f"--workdir={workdir}"]
    command = start_command("train", *arguments, environment={"JAX_ENABLE_X64": "1"})
    out, err = command.communicate(timeout=200)
    assert (command.returncode, out) == (2, ""), err
    assert "error: JAX_ENABLE_X64: JAX's setting is True" in err and "set JAX_ENABLE_X64=0, or choose another" in err
    assert "Traceback" not in err and outcome(workdir) == outcome(small_run)


@pytest.mark.slow
def test_a_full_disk(small_run, command_environment, small_arguments, tmp_path):
    """A file system with space for two checkpoints and no third; then it grows, and the same command continues."""
    namespace = ["unshare", "--map-root-user", "--mount"]
    probe = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no small file system")
    mounted, kept = tmp_path / "mounted", tmp_path / "kept"
    mounted.mkdir()
    script = f"""
        mount -t tmpfs -o size=22m none {mounted}
        "$@" --workdir={mounted}/run; echo "first: $?" >&2
        cat {mounted}/run/metrics.jsonl | wc -l >&2
        mount -o remount,size=200m {mounted}
        "$@" --workdir={mounted}/run; echo "second: $?" >&2
        cp -r {mounted}/run {kept}
    """
    command = [sys.executable, "-m", "inception_jax.train", *small_arguments, "--config.logging.pictures=True"]
    done = subprocess.run(
        [*namespace, "sh", "-c", script, "sh", *command],
        cwd=ROOT,
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "first: 6" in done.stderr and "second: 0" in done.stderr, done.stderr
    assert "error: the disk is full" in done.stderr and "Traceback" not in done.stderr
    assert "continued from step" in done.stderr
    assert outcome(kept) == outcome(small_run)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """Digits as PNG files in class folders: a data set that faults can be put into, for the small run's network."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 100), ("test", 40)):
        images, labels, _ = digits.load(split)
        for index in range(count):
            path = folder / split / str(labels[index]) / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), images[index])
    return folder


@pytest.fixture
def arguments(image_folder, small_arguments, tmp_path):
    """Of a small run on a copy of the images; the last is the workdir."""
    folder = shutil.copytree(image_folder, tmp_path / "images")
    return [
        *small_arguments,
        f"--config.data.name=folder:{folder}",
        "--config.data.train_split=train",
        "--config.data.eval_split=test",
        f"--workdir={tmp_path / 'run'}",
    ]


@pytest.mark.slow
def test_a_stalled_input(arguments, start_command, run_command, tmp_path):
    """Opening a FIFO hangs, as a dead file server does. The log says where, SIGTERM is obeyed, the limit ends it."""
    image, workdir = next((tmp_path / "images" / "train").glob("*/005.png")), tmp_path / "run"
    aside = tmp_path / "aside.png"
    code, _, err = run_command("train", *arguments[:-1], f"--workdir={tmp_path / 'whole'}")
    assert code == 0, err

    slow = ["--config.logging.every_steps=1", "--config.faults.stall_warning_seconds=0.5"]
    run = start_command("train", *arguments, *slow, "--json")
    wait_for(lambda: (workdir / "metrics.jsonl").exists() and (workdir / "metrics.jsonl").stat().st_size, run)
    image.rename(aside)
    os.mkfifo(image)
    wait_for(lambda: "005.png" in (workdir / "train.log").read_text(), run)
    assert "the input has stalled" in (workdir / "train.log").read_text()

    code, _, err = run_command("train", *arguments)  # meanwhile: the workdir is in use
    assert code == 4 and f"is in use by process {run.pid}" in err

    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 143, err
    stopped = json.loads(out)["steps"]

    limit = ["--config.faults.stall_limit_seconds=3.0"]
    code, out, err = run_command("train", *arguments, *slow, *limit)
    assert (code, out) == (7, "") and "005.png" in err and "Traceback" not in err
    assert f"continued from step {stopped}" in err

    image.unlink()
    aside.rename(image)
    code, _, err = run_command("train", *arguments)
    assert code == 0, err
    result, whole = (json.loads((path / "result.json").read_text()) for path in (workdir, tmp_path / "whole"))
    assert result["fingerprint"] == whole["fingerprint"]


@pytest.mark.slow
def test_a_corrupt_image(arguments, run_command, tmp_path):
    image = next((tmp_path / "images" / "train").glob("*/005.png"))
    os.truncate(image, image.stat().st_size // 2)
    code, _, err = run_command("train", *arguments)
    assert code == 2 and "005.png" in err and "Traceback" not in err

    code, _, err = run_command("train", *arguments, "--config.faults.max_corrupt=5")
    assert code == 0, err
    assert err.count("005.png") >= 1
    train = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert sum(row["corrupt"] for row in train) in (2, 3)  # 14 steps of 16: every image twice, and 24 once more
    shutil.rmtree(tmp_path / "run")

    code, _, err = run_command("train", *arguments, "--config.faults.max_corrupt=1")
    assert code == 2 and "config.faults.max_corrupt = 1" in err
    assert (
        "1 file so far: " in err and "005.png; replace or remove them, or --config.faults.max_corrupt=3 would do" in err
    )


@pytest.mark.slow
def test_a_worker_that_is_killed(small_run, start_command, small_arguments, tmp_path):
    workdir = tmp_path / "run"
    run = start_command("train", *small_arguments, "--config.data.workers=1", f"--workdir={workdir}")
    log = workdir / "metrics.jsonl"
    wait_for(lambda: log.exists() and log.stat().st_size, run)
    workers = [pid for pid in children(run.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    _, err = run.communicate(timeout=200)
    assert run.returncode == 0, err
    assert json.loads((workdir / "result.json").read_text())["fingerprint"] == outcome(small_run)[0]
    assert log.read_bytes() == outcome(small_run)[1]


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.slow
def test_steps_that_are_not_finite_are_skipped_up_to_the_limit(run_command, small_arguments, tmp_path):
    workdir = tmp_path / "run"
    wild = ["--config.optimizer.learning_rate=1e12", "--config.faults.max_skipped_steps=3", f"--workdir={workdir}"]
    code, out, err = run_command("train", *small_arguments, *wild)
    assert (code, out) == (3, "") and "Traceback" not in err
    assert "were skipped" in err and "config.faults.max_skipped_steps = 3 in a row" in err
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("diverged", 3)
    assert "skipped" in (workdir / "report.md").read_text()
