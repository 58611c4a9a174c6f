"""`python -m inception_jax.compare`: what a person sees, and the mistakes that a person makes."""

import json
import os
import subprocess
import sys

import pytest

from inception_jax import compare
from inception_jax.errors import UserError

from .conftest import ROOT
from .runs.made_runs import make_run


def printed(capsys, *arguments):
    assert compare.main([str(word) for word in arguments]) == 0
    return capsys.readouterr().out


def test_two_runs(tmp_path, capsys):
    paths = [make_run(tmp_path / name / "run", seed=seed) for seed, name in enumerate(("a", "b"))]
    out = printed(capsys, *paths)
    assert out.startswith("Result\nrun  status ")
    assert "\nseed   0  1\n" in out
    folder = tmp_path / "comparison"
    assert out.endswith(f"\nwritten: {folder}/comparison.md, {folder}/comparison.html, {folder}/comparison.png\n")
    assert "![Loss and accuracy of each run](comparison.png)" in (folder / "comparison.md").read_text()
    assert printed(capsys, *paths) == out  # again, over the first one


def test_a_glob_after_a_comparison(tmp_path, capsys):
    for name in ("a", "b"):
        make_run(tmp_path / name)
    printed(capsys, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "comparison"}
    assert printed(capsys, *sorted(tmp_path.iterdir())).startswith("Result")


def test_flags(tmp_path, capsys):
    paths = [make_run(tmp_path / name, ema=(1, 2, 3, 4)) for name in ("a", "b")]
    out = printed(capsys, *paths, f"--output={tmp_path / 'deep' / 'out'}", "--metric=loss", "--weights=raw", "--x=step")
    assert "best loss" in out and "  raw  " in out
    assert (tmp_path / "deep" / "out" / "comparison.png").exists() and not (tmp_path / "comparison").exists()


def test_where_nothing_can_be_written_the_text_is_still_printed(tmp_path, capsys):
    paths = [make_run(tmp_path / name) for name in ("a", "b")]
    (tmp_path / "comparison").write_text("in the way")
    assert compare.main([str(path) for path in paths]) == 0
    said = capsys.readouterr()
    assert "Result" in said.out and "written" not in said.out
    assert said.err.startswith("note: curves and Markdown were not written: cannot write ")
    with pytest.raises(UserError, match="cannot write"):
        compare.main([*map(str, paths), f"--output={tmp_path / 'comparison'}"])


def test_list(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "b" / "run")
    make_run(tmp_path / "a", status=None, right=(90,))
    out = printed(capsys, "--list", tmp_path).splitlines()
    assert [line.split()[:2] for line in out[1:3]] == [["a", "preempted"], ["b/run", "finished"]]
    assert out[-1] == "2 runs: 1 preempted, 1 finished"
    found = json.loads(printed(capsys, "--list", "--json", tmp_path))
    assert [(one["path"], one["status"], one["step"]) for one in found] == [
        (f"{tmp_path}/a", "preempted", 45),
        (f"{tmp_path}/b/run", "finished", 180),
    ]
    monkeypatch.chdir(tmp_path / "b")
    assert printed(capsys, "--list").splitlines()[1].startswith("run  finished")
    monkeypatch.chdir(tmp_path / "a" / "..")
    os.mkdir("empty")
    assert printed(capsys, "--list", "empty") == "no runs under empty\n"
    assert json.loads(printed(capsys, "--list", "empty", "--json")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the runs to compare, or --list and a folder"),
        (["absent"], "absent: there is no such directory"),
        (["--list", "absent"], "absent: there is no such directory"),
        (["--list", ".", "."], "--list takes one folder, not 2"),
        (["--list", "--metric=top1"], "--metric: has no effect with --list"),
        (["a", "--json"], "--json: has an effect only with --list"),
        (["a", "--metrics=top1"], "unknown argument '--metrics'; did you mean '--metric'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        compare.main(arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_real_run(small_run, tmp_path, capsys):
    out = printed(capsys, small_run, f"--output={tmp_path}")
    result = json.loads((small_run / "result.json").read_text())
    assert f"{100 * result['metrics']['test[:40]']['ema']['top1']:.2f} %" in out
    assert " finished " in out and "  710,238 " in out and result["fingerprint"][:8] in out
    assert (tmp_path / "comparison.png").exists()
    (found,) = json.loads(printed(capsys, "--list", "--json", small_run))
    assert (found["status"], found["step"], found["total_steps"]) == ("finished", 14, 14)


def test_the_command_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "inception_jax.compare", str(tmp_path / "absent")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path}/absent: there is no such directory\n"
