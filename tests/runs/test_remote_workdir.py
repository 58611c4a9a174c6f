"""Workdirs at an address: the copy, what is uploaded in which order, and who is right after an interruption."""

import json
import os
import time

import fsspec
import pytest

from inception_jax.data import storage
from inception_jax.errors import UserError
from inception_jax.runs import lock, metric_files, remote_copy, remote_workdir, run_state
from inception_jax.runs.remote_workdir import display_name, local_copy, opened

RECORD = "host/metadata"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The address of a workdir in fsspec's store in memory; the copies are in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield "memory://bucket/runs/a"
    files.rm("/bucket", recursive=True) if files.exists("/bucket") else None


def objects():
    files = fsspec.filesystem("memory")
    return {name.removeprefix("/bucket/runs/a/"): files.cat_file(name) for name in files.find("/bucket/runs/a")}


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_step(folder, step):
    write(folder / "checkpoints" / str(step), host__metadata=f"record {step}", state__d__0=f"arrays {step}")


def test_a_run_is_uploaded_and_continued(bucket, capsys):
    with opened(bucket) as folder:
        assert folder.name == "a" and display_name(folder / "x.png") == f"{bucket}/x.png"
        write(folder, **{"metrics.jsonl": "1\n", "lock": "pid", ".config.json.7.new": "part"})
        write(folder, **{"checkpoints__9.orbax-checkpoint-tmp__x": "part", "checkpoints__deleted__1__x": "old"})
        write_step(folder, 4)
        with pytest.raises(lock.WorkdirLocked, match=f"workdir {bucket} is in use by process {os.getpid()}"):
            with opened(bucket):
                pass
    assert set(objects()) == {"metrics.jsonl", f"checkpoints/4/{RECORD}", "checkpoints/4/state/d/0"}
    assert f"workdir {bucket}: the run works in {folder}" in capsys.readouterr().err

    fsspec.filesystem("memory").pipe_file("/bucket/runs/a/metrics.jsonl", b"1\n2\n")  # another machine continued
    write(folder, **{"metrics.jsonl": "of before\n", "left_over": ""})
    with opened(bucket) as folder:
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n" and not (folder / "left_over").exists()
        assert (folder / f"checkpoints/4/{RECORD}").read_text() == "record 4"
        write_step(folder, 8)
        for file in (RECORD, "state/d/0"):
            (folder / "checkpoints" / "4" / file).unlink()
    assert set(objects()) == {"metrics.jsonl", f"checkpoints/8/{RECORD}", "checkpoints/8/state/d/0"}


def test_what_was_not_uploaded_counts_where_nobody_else_wrote(bucket):
    with opened(bucket) as folder:
        write(folder, **{"metrics.jsonl": "1\n"})
    write(folder, **{"metrics.jsonl": "1\n2\n3\n"})  # as a process that was killed
    with opened(bucket) as folder:
        assert (folder / "metrics.jsonl").read_text() == "1\n2\n3\n"
    assert objects() == {"metrics.jsonl": b"1\n2\n3\n"}


def test_the_order_of_an_upload(bucket, monkeypatch):
    """At any moment the remote workdir can be resumed: the rows first, a record last, nothing deleted before."""
    calls = []
    files = fsspec.filesystem("memory")
    with opened(bucket) as folder:
        write_step(folder, 4)
    for name in ("pipe_file", "put_file", "rm_file"):
        original = getattr(type(files), name)
        monkeypatch.setattr(
            type(files),
            name,
            lambda self, *paths, original=original, name=name, **options: (
                calls.append((name, paths[-1 if name == "put_file" else 0])),
                original(self, *paths, **options),
            )[1],
        )
    with opened(bucket) as folder:
        write_step(folder, 8)
        write(folder, **{"metrics.jsonl": "rows"})
        for file in (RECORD, "state/d/0"):
            (folder / "checkpoints" / "4" / file).unlink()
    names = [(name, path.removeprefix("/bucket/runs/a/")) for name, path in calls]
    order = [
        ("pipe_file", "metrics.jsonl"),
        ("put_file", "checkpoints/8/state/d/0"),
        ("put_file", f"checkpoints/8/{RECORD}"),
        ("rm_file", f"checkpoints/4/{RECORD}"),
        ("rm_file", "checkpoints/4/state/d/0"),
    ]
    assert [call for call in names if call in order] == order


def test_it_is_uploaded_while_it_runs(bucket, monkeypatch):
    monkeypatch.setattr(remote_workdir, "UPLOAD_SECONDS", 0.02)
    with opened(bucket) as folder:
        write(folder, **{"metrics.jsonl": "1\n"})
        deadline = time.monotonic() + 10
        while "metrics.jsonl" not in objects() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert objects() == {"metrics.jsonl": b"1\n"}


def test_a_checkpoint_that_is_not_complete_is_not_there(bucket):
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/runs/a/checkpoints/4/state/d/0", b"arrays")
    files.pipe_file("/bucket/runs/a/config.json", b"{}")
    copy = local_copy(bucket)
    assert [path.name for path in copy.iterdir()] == ["config.json"]
    files.pipe_file(f"/bucket/runs/a/checkpoints/4/{RECORD}", b"record")
    assert not (local_copy(bucket, checkpoints=False) / "checkpoints").exists()
    assert (local_copy(bucket) / "checkpoints/4/state/d/0").read_bytes() == b"arrays"
    files.pipe_file("/bucket/runs/a/config.json", b"{ }")
    copy = local_copy(bucket, checkpoints=False)  # another command, which needs none, leaves them there
    assert (copy / "config.json").read_text() == "{ }" and (copy / "checkpoints/4/state/d/0").exists()


def test_a_storage_that_fails_stops_no_run_and_loses_nothing(bucket, monkeypatch, capsys):
    monkeypatch.setattr(remote_workdir, "UPLOAD_SECONDS", 0.01)
    monkeypatch.setattr(remote_copy, "_ATTEMPTS", (0.0, 0.0))
    files = type(fsspec.filesystem("memory"))

    def refuse(self, *paths, **options):
        raise PermissionError("no\nway")

    with monkeypatch.context() as patch:
        patch.setattr(files, "pipe_file", refuse)
        with pytest.raises(UserError, match=rf"cannot write {bucket}: PermissionError: no way; the run is in .*"):
            with opened(bucket) as folder:
                write(folder, **{"metrics.jsonl": "1\n"})
                time.sleep(0.2)
        assert capsys.readouterr().err.count("the run continues, and this is tried again") == 1
        with pytest.raises(KeyError):  # what ended the run is what is raised
            with opened(bucket) as folder:
                raise KeyError
        patch.setattr(files, "find", refuse)
        with pytest.raises(UserError, match=f"cannot read {bucket}: PermissionError"):
            local_copy(bucket)
    with opened(bucket):
        pass
    assert objects() == {"metrics.jsonl": b"1\n"}


def test_what_cannot_be_opened_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for address, message in (
        ("nope://b/x", "^nope://b/x: Protocol not known: nope; schemes are gs, s3, az"),
        ("s3://b/x", "^s3://b/x: Install s3fs to access S3$"),
        ("memory://", "^memory://: name a folder in a bucket"),
    ):
        with pytest.raises(UserError, match=message):
            local_copy(address)
    with pytest.raises(UserError, match="--study=gs://b/x: an address, where a local path is needed; why"):
        remote_workdir.refuse_address("--study", "gs://b/x", "why")
    assert local_copy("runs/a").name == "a" and not storage.is_remote("C:/x") and display_name("x") == "x"


def test_the_status_of_a_remote_run_follows_from_its_age(bucket):
    with opened(bucket) as folder:
        with metric_files.MetricWriter(folder, tensorboard=False) as writer:
            writer.write({"kind": "train", "step": 3, "loss": 1.0})
    state = run_state.read(local_copy(bucket, checkpoints=False))
    assert state.status == run_state.RunStatus.RUNNING and bucket in state.notes[0] and state.step == 3
    path = local_copy(bucket) / "metrics.jsonl"
    os.utime(path, (time.time() - 5000,) * 2)
    assert run_state.read(path.parent).status == run_state.RunStatus.PREEMPTED


def test_what_is_no_run_is_not_downloaded(bucket):
    fsspec.filesystem("memory").pipe_file("/bucket/runs/a/photographs/1.jpg", b"x")
    for use in (local_copy, lambda address: opened(address).__enter__()):
        with pytest.raises(UserError, match=f"{bucket}: 1 objects, but no run; name the address of a run"):
            use(bucket)


def test_a_damaged_state_file_counts_as_none(bucket):
    with opened(bucket) as folder:
        write(folder, **{"config.json": "{}"})
    (folder.parent / "state.json").write_text("{")
    with opened(bucket) as folder:
        assert json.loads((folder / "config.json").read_text()) == {}
