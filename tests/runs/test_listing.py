"""The list of runs: which directories are runs, and how each of them stands, by its files and by real locks."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inception_jax import file_locks
from inception_jax.errors import UserError
from inception_jax.runs import listing, lock, manifest, metric_files, result, run_state

from .made_runs import make_run, make_trial

ROOT = Path(lock.__file__).parents[2]


def status(workdir):
    return str(listing.read_entry(workdir).status)


def start_again(workdir):
    """What a start that continues a run writes first; its time is later than that of what lies there."""
    old = time.time() - 60
    for file in workdir.iterdir():
        os.utime(file, (old, old))
    manifest.write(workdir, (workdir / "config.json").read_text(), command=["python", "train"])


@pytest.fixture
def holder():
    """Starts processes that hold a workdir until they are killed."""
    processes = []

    def start(workdir):
        code = (
            "import sys, time\nfrom inception_jax.runs import lock\nwith lock.lock_workdir(sys.argv[1]):\n"
            "    print('holding', flush=True)\n    time.sleep(60)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(workdir)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        processes.append(process)
        assert process.stdout.readline() == "holding\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("said", "expected", "why"),
    [
        ({}, "finished", ""),
        (
            {"status": "diverged", "outcome": {"message": "step 9: the loss is nan"}},
            "diverged",
            "step 9: the loss is nan",
        ),
        ({"status": "failed", "outcome": {"message": "no batch came"}}, "failed", "no batch came"),
        ({"status": "interrupted", "outcome": {"signal": "SIGTERM"}}, "preempted", "SIGTERM"),
        ({"status": None}, "preempted", "killed"),
        ({"status": None, "right": (), "losses": ()}, "new", ""),
    ],
)
def test_a_status_per_end(tmp_path, said, expected, why):
    found = listing.read_entry(make_run(tmp_path / "run", **said))
    assert (found.status, found.why) == (expected, why)


def test_running_is_who_holds_the_lock(tmp_path, holder):
    workdir = make_run(tmp_path / "run", status=None)
    process = holder(workdir)
    assert status(workdir) == "running"
    process.kill()
    process.wait()
    assert lock.read_holder(workdir)  # its name stands there still
    assert status(workdir) == "preempted"


def test_a_run_that_goes_on_is_not_finished_by_its_old_result(tmp_path, holder):
    workdir = make_run(tmp_path / "run", status="finished")
    process = holder(workdir)
    assert status(workdir) == "running"
    start_again(workdir)
    process.kill()
    process.wait()
    assert status(workdir) == "preempted"  # killed before its first row
    assert listing.make_entry(run_state.read(workdir)).total_steps == 180


def test_rows_after_a_result_make_it_old_whatever_the_times_say(tmp_path):
    workdir = make_run(tmp_path / "run")
    assert status(workdir) == "finished"
    with metric_files.MetricWriter(workdir, tensorboard=False) as writer:
        writer.write({"kind": "train", "step": 181, "epoch": 181 / 45, "loss": 0.5})
    now = time.time() + 100
    os.utime(workdir / "result.json", (now, now))
    assert status(workdir) == "preempted"


def test_a_copy_that_mixed_up_the_times_is_still_finished(tmp_path):
    workdir = make_run(tmp_path / "run")
    later = time.time() + 5  # `cp -r`: the manifest was copied after the result, both long after the start
    os.utime(workdir / "result.json", (later, later))
    os.utime(workdir / "manifest.json", (later + 1, later + 1))
    assert status(workdir) == "finished"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("pruned", "pruned"),
        ("diverged", "diverged"),
        ("failed", "failed"),
        ("finished", "finished"),
        ("interrupted", "preempted"),
        ("running", "preempted"),  # nobody holds it: its driver has died, too
    ],
)
def test_trials_have_the_status_that_their_sweep_gave_them(tmp_path, said, expected):
    workdir = make_run(tmp_path / "0003", status="interrupted", outcome={"signal": "SIGTERM"})
    assert status(make_trial(workdir, status=said, value=0.5)) == expected
    assert listing.read_entry(workdir).value == 0.5


def test_looking_does_not_keep_a_run_from_starting(tmp_path, holder):
    """A thousand looks at a workdir whose holder was killed, while runs take it and let it go."""
    workdir = make_run(tmp_path / "run")
    process = holder(workdir)
    process.kill()
    process.wait()
    code = (
        "import sys\nfrom inception_jax.runs import lock\n"
        "print('looking', flush=True)\nwhile True: lock.is_locked(sys.argv[1])"
    )
    looker = subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        looker.stdout.readline()
        for _ in range(200):
            with lock.lock_workdir(workdir):
                assert lock.is_locked(workdir)
            (workdir / "lock").write_text('{"pid": 1}\n')  # as if it had been killed
    finally:
        looker.kill()
        looker.communicate()


def test_an_empty_lock_file_is_not_touched(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run")
    monkeypatch.setattr(file_locks.fcntl, "flock", lambda *_: pytest.fail("the lock was taken"))
    assert lock.is_locked(workdir) is False and lock.is_locked(tmp_path / "absent") is False


def test_without_locks_the_process_or_the_age_tells(tmp_path, monkeypatch):
    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(file_locks.fcntl, "flock", no_locks)
    workdir = make_run(tmp_path / "run", status=None)
    here = lock.socket.gethostname()
    (workdir / "lock").write_text(json.dumps({"pid": os.getpid(), "host": here}))
    assert status(workdir) == "running"
    (workdir / "lock").write_text(json.dumps({"pid": 2**22 + 1, "host": here}))
    assert status(workdir) == "preempted"
    (workdir / "lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    found = listing.read_entry(workdir)
    assert found.status == "running" and "has no locks" in found.notes[0]
    for name in ("metrics.jsonl", "timing.jsonl"):
        os.utime(workdir / name, (time.time() - 3600,) * 2)
    assert status(workdir) == "preempted"


def test_a_line_says_where_a_run_is(tmp_path):
    workdir = make_run(tmp_path / "run", right=(100, 200), ema=(90, 210), status=None)
    os.utime(workdir / "timing.jsonl", (time.time() - 100,) * 2)
    os.utime(workdir / "metrics.jsonl", (time.time() - 70,) * 2)
    found = listing.read_entry(workdir)
    assert (found.step, found.total_steps, found.epoch) == (90, 180, 2.0)
    assert (found.loss, found.top1, found.weights, found.split) == (0.25, 210 / 360, "ema", "test")
    assert found.images_per_second == 94.0 and 70 <= found.age_seconds < 100
    assert (found.model, found.data, found.device) == ("inception_v1", "digits", "1 cpu device")
    line = listing.format_text([found], tmp_path).splitlines()[1]
    assert line.startswith("run  preempted (killed)  90/180      2  0.2500  58.33 %  ema ")


def test_a_stopped_run_has_its_whole_length_before_it(tmp_path):
    found = listing.read_entry(make_run(tmp_path / "run", right=(100, 200), status="interrupted"))
    assert (found.step, found.total_steps) == (90, 180)


def test_steps_count_before_epochs(tmp_path):
    assert listing.read_entry(make_run(tmp_path / "a", status=None, num_steps=1000)).total_steps == 1000
    assert listing.read_entry(make_run(tmp_path / "b", status=None, right=(), losses=())).total_steps is None


def test_the_end_of_a_long_file_is_enough(tmp_path, monkeypatch):
    workdir = make_run(tmp_path / "run", right=(100,) * 3 + (320,), status=None)
    whole = listing.make_entry(run_state.read(workdir))
    for size in (150, 900):  # less than a row, and less than the file
        monkeypatch.setattr(run_state, "_TAIL_BYTES", size)
        found = run_state.read(workdir, all_rows=False)
        assert 0 < len(found.rows) < len(run_state.read(workdir).rows) and not found.notes
        short = listing.make_entry(found)
        assert short.top1 == whole.top1 == 320 / 360
        assert (short.step, short.total_steps, short.loss) == (whole.step, whole.total_steps, whole.loss)


def test_torn_and_damaged_files_become_notes(tmp_path):
    workdir = make_run(tmp_path / "run")
    with open(workdir / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind":"train","step":18')  # killed while it wrote: nothing to tell
    assert listing.read_entry(workdir).notes == ()
    lines = (workdir / "metrics.jsonl").read_bytes().split(b"\n")
    (workdir / "metrics.jsonl").write_bytes(b"\n".join([*lines[:3], b"\x00\x00", *lines[3:]]))
    for name in ("config.json", "manifest.json", "result.json"):
        (workdir / name).write_text("{")
    found = listing.read_entry(workdir)
    assert found.status == "preempted" and found.step == 180 and found.model is None
    assert [note.split("/")[-1].split(" ")[0].rstrip(":") for note in found.notes] == [
        "config.json",
        "manifest.json",
        "result.json",
        "metrics.jsonl",
    ]
    assert "note: " in listing.format_text([found], tmp_path)


def test_runs_are_found_at_any_depth_but_not_inside_runs(tmp_path):
    make_run(tmp_path / "b" / "run 10")
    make_run(tmp_path / "b" / "run 9")
    make_run(tmp_path / "a")
    make_run(tmp_path / "a" / "evaluations" / "another")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.json").write_text("{}")
    (tmp_path / "sweep" / "lock").write_text("held")
    make_trial(make_run(tmp_path / "sweep" / "trials" / "0000"), status="pruned")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in listing.find_runs(tmp_path)]
    assert names == ["a", "b/run 9", "b/run 10", "sweep/trials/0000"]
    assert list(listing.find_runs(tmp_path / "a")) == [tmp_path / "a"]
    assert list(listing.find_runs(tmp_path / "absent")) == []


def test_folders_and_sweeps_stand_for_their_runs(tmp_path):
    for name in ("x/run 2", "x/run 10", "sweep/trials/0001", "deep/er/run"):
        make_run(tmp_path / name)
    (tmp_path / "sweep" / "study.json").write_text("{}")
    (tmp_path / "x" / "comparison").mkdir()
    (tmp_path / "x" / "comparison" / "comparison.md").write_text("")

    def names(*paths):
        return [str(path.relative_to(tmp_path)) for path in listing.expand_paths([tmp_path / path for path in paths])]

    assert names("x") == ["x/run 2", "x/run 10"]
    assert names("sweep", "x/run 2", "x/../x") == ["sweep/trials/0001", "x/run 2", "x/../x/run 10"]  # each once
    assert names("x/comparison", "x/run 2") == ["x/run 2"]  # what `x/*` gives after a comparison
    with pytest.raises(UserError, match="holds a comparison, but no runs"):
        names("x/comparison")


def test_a_path_that_is_no_run_names_the_nearest(tmp_path):
    make_run(tmp_path / "runs" / "digits")
    make_run(tmp_path / "runs" / "imagenet")
    (tmp_path / "runs" / "digits" / "tensorboard").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    for path, message in {
        "runs/digit": "runs/digit: there is no such directory; did you mean 'digits'?",
        "runs/zzz": "no such directory; runs there: digits, imagenet",
        "runs/digits/tensorboard": f": not a run, but inside one: {tmp_path}/runs/digits",
        "notes.txt": ": a file; a run is a directory",
        "empty": "empty: holds no runs",
        ".": f"one level below; further down: {tmp_path}/runs/digits, {tmp_path}/runs/imagenet",
    }.items():
        with pytest.raises(UserError) as caught:
            listing.expand_paths([tmp_path / path])
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_runs_have_in_common(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.json").write_text("{}")
    assert listing.common_folder([tmp_path / "a" / "x", tmp_path / "b" / "x"]) == tmp_path
    assert listing.common_folder([tmp_path / "a"]) == tmp_path
    assert listing.common_folder([tmp_path / "sweep" / "trials" / name for name in ("0", "1")]) == tmp_path / "sweep"
    assert listing.common_folder([Path("/a/x"), Path("/b/x")]) == Path()


def test_json_has_no_nan(tmp_path):
    workdir = make_run(tmp_path / "run", losses=[1.0, float("nan")], right=(), status="diverged")
    content = json.loads(json.dumps(listing.to_json([listing.read_entry(workdir)]), allow_nan=False))
    assert content[0]["loss"] == "NaN" and content[0]["status"] == "diverged"
    assert result.read_result(workdir)["status"] == "diverged"
