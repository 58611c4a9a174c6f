"""Writing shards: whole whatever happens on the way, and never two at once."""

import argparse
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inception_jax.data import builders, shards
from inception_jax.data.datasets import load
from inception_jax.errors import UserError
from inception_jax.progress_line import ProgressLine


@pytest.mark.parametrize("publish", [1, 5, 7, 8])
def test_killed_anywhere_the_same_command_makes_it_whole(publish, small, tmp_path, capsys, run, records):
    """SIGKILL at the n-th time that something whole gets its name: plan, checked plan, shards, data set."""
    folder, _ = small
    arguments = ["fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path / 'killed'}", "--num_shards=2"]
    code = (
        "import os, signal, sys\n"
        "from inception_jax.data import builders, raw_files, prepare, shards\n"
        "kind = builders.FashionMnist\n"
        "kind.EXPECTED = {'train': 60, 'test': 10}\n"
        f"kind.SHA256 = {builders.FashionMnist.SHA256!r}\n"
        "calls, publish = [], shards.rename_durably\n"
        "def kill(*arguments):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {publish}: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    publish(*arguments)\n"
        "shards.rename_durably = kill\n"
        f"sys.exit(prepare.main({arguments!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if publish == 8:  # the seventh was the last: this run was not killed at all
        assert done.returncode == 0, done.stderr
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
        with pytest.raises(UserError, match="not prepared"):
            load("fashion_mnist", "train", str(tmp_path / "killed"))
    assert run(*arguments) == 0
    said = capsys.readouterr().err
    assert ("continuing where" in said) == (1 < publish < 8)
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path / 'whole'}", "--num_shards=2") == 0
    killed, whole = (sorted(os.listdir(tmp_path / name / "fashion_mnist" / "3.0.1")) for name in ("killed", "whole"))
    assert killed == whole and len(whole) == 7
    assert os.listdir(tmp_path / "killed" / "fashion_mnist") == ["3.0.1"]
    for split in ("train", "test"):
        killed, whole = (records("fashion_mnist", split, tmp_path / name) for name in ("killed", "whole"))
        for (image, label), (expected, expected_label) in zip(killed, whole, strict=True):
            assert np.array_equal(image, expected) and label == expected_label


def test_a_torn_shard_is_written_again(small, tmp_path, monkeypatch, run, records):
    folder, _ = small
    arguments = ["fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}", "--num_shards=2"]
    monkeypatch.setattr(shards, "_write_info", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(*arguments) == 130
    torn = tmp_path / "fashion_mnist" / "incomplete.3.0.1" / "fashion_mnist-train.array_record-00001-of-00002"
    torn.write_bytes(torn.read_bytes()[:1000])
    monkeypatch.undo()
    monkeypatch.setattr(builders.FashionMnist, "EXPECTED", {"train": 60, "test": 10})
    assert run(*arguments, "--check=counts") == 0
    assert len(records("fashion_mnist", "train", tmp_path)) == 60


def test_other_files_start_afresh(small, tmp_path, monkeypatch, capsys, run):
    folder, _ = small
    arguments = ["fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_info", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments) == 130
    os.utime(folder / "t10k-labels-idx1-ubyte.gz", (1, 1))
    assert run(*arguments) == 0
    assert "continuing where" not in capsys.readouterr().err


def test_two_processes_do_not_prepare_the_same(small, tmp_path, capsys, run):
    folder, _ = small
    builder = builders.FashionMnist(source=folder, data_dir=tmp_path, file_format="array_record")
    with shards.locked(Path(builder.data_dir)):
        assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}") == 2
    assert "another process is preparing" in capsys.readouterr().err


def test_a_full_disk_is_reported_before_anything_is_written(small, tmp_path, monkeypatch, capsys, run):
    folder, _ = small
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda _: argparse.Namespace(free=1000))
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}") == 2
    assert "GB are needed" in capsys.readouterr().err


def test_missing_shard_is_named(small, tmp_path, run):
    folder, _ = small
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}") == 0
    data = load("fashion_mnist", "test", str(tmp_path))
    (tmp_path / "fashion_mnist" / "3.0.1" / "fashion_mnist-test.array_record-00000-of-00001").unlink()
    with pytest.raises(UserError, match=r"fashion_mnist-test.array_record-00000-of-00001: this file .* is missing"):
        data.record(0)


def test_progress_rewrites_its_line_in_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((Terminal(), "\rx: 1 of 2 (50%)\033[K\rx: 2 of 2 (100%)\033[K\n"), (io.StringIO(), None)):
        progress = ProgressLine(stream)
        progress("x", 1, 2)
        progress("x", 2, 2)
        assert stream.getvalue() == (expected or "x: 1 of 2 (50%)\nx: 2 of 2 (100%)\n")
        with pytest.raises(UserError), ProgressLine(stream) as progress:
            progress("y", 1, 2)
            raise UserError("it begins a line of its own")
        assert stream.getvalue().endswith("y: 1 of 2 (50%)\033[K\n" if expected else "\ny: 1 of 2 (50%)\n")


def test_damaged_record_is_named(small, tmp_path, run):
    folder, _ = small
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}") == 0
    path = tmp_path / "fashion_mnist" / "3.0.1" / "fashion_mnist-train.array_record-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[2000:12_000] = bytes(10_000)
    path.write_bytes(content)
    data = load("fashion_mnist", "train", str(tmp_path))
    with pytest.raises(UserError, match=r"record \d+ of .*fashion_mnist-train.array_record-00000-of-00001: damaged"):
        for i in range(60):
            data.record(i)


def test_a_full_check_does_not_trust_shards_that_were_only_counted(small, tmp_path, monkeypatch, capsys, run):
    folder, _ = small
    arguments = ["fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write_info", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run(*arguments, "--check=counts") == 130
        assert run(*arguments, "--check=counts") == 130
        assert "continuing where" in capsys.readouterr().err
    assert run(*arguments) == 0
    said = capsys.readouterr().err
    assert "continuing where" not in said and "checksums" in said
