"""What a run leaves behind about itself."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from inception_jax.errors import UserError
from inception_jax.runs import manifest
from inception_jax.runs.manifest import ABSENT, config_differences


def test_a_start_is_described(tmp_path):
    config = {"seed": 0, "model": {"name": "inception_v1", "widths": [1, 2]}}
    written = manifest.write(tmp_path, json.dumps(config), devices=["cpu x 2"], command=["python", "-m", "train"])
    assert manifest.read_config(tmp_path) == config
    assert manifest.read(tmp_path) == written
    assert written["command"] == ["python", "-m", "train"] and written["devices"] == ["cpu x 2"]
    assert written["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert written["versions"]["jax"] == jax.__version__
    assert {"flax", "optax", "orbax-checkpoint", "numpy", "inception_jax"} <= written["versions"].keys()
    (start,) = written["starts"]
    assert start["pid"] == os.getpid() and start["changes"] == {} and start["time"].endswith("+00:00")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "manifest.json"]


def test_this_command_line_is_the_default(tmp_path):
    assert manifest.write(tmp_path, "{}")["command"] == sys.orig_argv


def test_each_start_tells_what_it_changed(tmp_path):
    manifest.write(tmp_path, json.dumps({"a": 1, "b": {"c": 2}}), devices=["cpu"])
    manifest.write(tmp_path, json.dumps({"a": 1, "b": {"c": 2}}), devices=["cpu"], command=["another"])
    manifest.write(tmp_path, json.dumps({"a": 1, "b": {"c": 3}, "d": []}), devices=["cpu", "cpu"])
    now = manifest.read(tmp_path)
    changes = [start["changes"] for start in now["starts"]]
    assert changes == [{}, {}, {"config.b.c": [2, 3], "config.d": [ABSENT, []], "devices": [["cpu"], ["cpu", "cpu"]]}]
    assert now["starts"][1]["command"] == ["another"]
    assert manifest.read_config(tmp_path) == {"a": 1, "b": {"c": 3}, "d": []}


def test_nothing_there(tmp_path):
    assert manifest.read(tmp_path) is None and manifest.read_config(tmp_path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        manifest.write(tmp_path, "{}")
    assert not (tmp_path / "config.json").exists()


def test_differences():
    old = {"a": 1, "m": {"x": (1, 2), "y": float("nan"), "z": {}}, "gone": None, "t": True, "deep": {"er": {"est": ""}}}
    new = {"a": 1.0, "m": {"x": [1, 2], "y": float("nan"), "z": {"k": 0}}, "new": {"n": 1}, "t": 1, "deep": 4}
    assert config_differences(old, new) == [
        ("deep", ABSENT, 4),
        ("deep.er.est", "", ABSENT),
        ("gone", None, ABSENT),
        ("m.z", {}, ABSENT),
        ("m.z.k", ABSENT, 0),
        ("new.n", ABSENT, 1),
        ("t", True, 1),
    ]
    assert config_differences(old, old) == []
    assert config_differences({"a": [1, (2, float("nan"))]}, {"a": [1, [2, float("nan")]]}) == []
    assert config_differences({"a": [1]}, {"a": [1, 2]}) == [("a", [1], [1, 2])]


class TestGit:
    """The revision of the code that runs, and never of something else."""

    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        if shutil.which("git") is None:
            pytest.skip("no git on this machine")
        for name in ("HOME", "XDG_CONFIG_HOME"):
            monkeypatch.setenv(name, str(tmp_path))
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_NAME", "a")
            monkeypatch.setenv(f"GIT_{role}_EMAIL", "a@example.org")
        root = tmp_path / "checkout"
        (root / "package").mkdir(parents=True)
        (root / "package" / "module.py").write_text("1")
        (root / ".gitignore").write_text("")
        self.git(root, "init", "-q")
        return root

    @staticmethod
    def git(root, *arguments):
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def test_revision_and_dirty(self, checkout):
        source = checkout / "package" / "module.py"
        assert manifest.git_revision(source) is None  # not tracked
        self.git(checkout, "add", ".")
        assert manifest.git_revision(source) is None  # no commit yet
        self.git(checkout, "commit", "-qm", "a")
        revision = self.git(checkout, "rev-parse", "HEAD")
        assert manifest.git_revision(source) == {"revision": revision, "dirty": False}
        (checkout / "runs").mkdir()
        (checkout / "runs" / "config.json").write_text("")
        assert not manifest.git_revision(source)["dirty"]  # results are not code
        source.write_text("2")
        assert manifest.git_revision(source) == {"revision": revision, "dirty": True}

    def test_an_installed_copy_inside_another_checkout(self, checkout):
        self.git(checkout, "add", ".gitignore")
        self.git(checkout, "commit", "-qm", "a")
        assert manifest.git_revision(checkout / "package" / "module.py") is None

    def test_no_git(self, checkout, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert manifest.git_revision(checkout / "package" / "module.py") is None


class TestReplaceText:
    """The old content or the new, never a part."""

    def test_it_replaces(self, tmp_path):
        for text in ("first", "second é"):
            manifest.replace_text(tmp_path / "file", text)
            assert (tmp_path / "file").read_text(encoding="utf-8") == text
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_directory_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*/no/file: No such file or directory"):
            manifest.replace_text(tmp_path / "no" / "file", "text")

    def test_a_folder_with_those_above_it(self, tmp_path):
        for _ in range(2):
            manifest.make_folder(tmp_path / "new" / "folder")
        assert (tmp_path / "new" / "folder").is_dir()
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"cannot write .*/file/folder: Not a directory"):
            manifest.make_folder(tmp_path / "file" / "folder")

    def test_a_target_that_cannot_be_replaced(self, tmp_path):
        (tmp_path / "file").mkdir()
        with pytest.raises(UserError, match="cannot write"):
            manifest.replace_text(tmp_path / "file", "text")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_kill_in_the_middle(self, tmp_path):
        body = """if True:
            import sys
            from inception_jax.runs.manifest import replace_text
            for i in range(10**9):
                replace_text(sys.argv[1], str(i % 10) * 2_000_000)
                print(i, flush=True)
            """
        root = str(Path(manifest.__file__).parents[2])
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-c", body, str(tmp_path / "file")],
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": root},
            )
            process.stdout.readline()
            end = time.monotonic() + random.uniform(0.1, 0.3)
            while time.monotonic() < end:  # a reader at any moment
                text = (tmp_path / "file").read_text()
                assert len(text) == 2_000_000 and len(set(text)) == 1
            process.send_signal(signal.SIGKILL)
            process.communicate()
            text = (tmp_path / "file").read_text()
            assert len(text) == 2_000_000 and len(set(text)) == 1
