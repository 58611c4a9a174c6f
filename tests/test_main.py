"""The console command: it lists its verbs, and each is the same as `python -m inception_jax.VERB`."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax import __main__ as console

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, cwd=None, **variables):
    """Runs the console command as its installed script does, in a process of its own."""
    script = "import sys; sys.argv[0] = 'inception-jax'; from inception_jax.__main__ import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=cwd,
        env=environment,
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("help",)])
def test_the_verbs_are_listed(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["inception-jax", *arguments])
    assert console.main() == 0
    printed = capsys.readouterr().out
    assert [match[1] for match in re.finditer(r"^  (\w+) +\w", printed, re.MULTILINE)] == list(console.VERBS)


def test_every_verb_is_a_module_and_every_command_a_verb():
    assert all(importlib.util.find_spec(module) for module, _ in console.VERBS.values())
    commands = {
        path.stem for path in (ROOT / "inception_jax").glob("*.py") if "command_line.run(main)" in path.read_text()
    }
    assert commands | {"prepare", "show"} == set(console.VERBS)


def test_the_list_needs_no_jax():
    script = "import sys; from inception_jax.__main__ import main; main(); sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0


def test_help_and_a_list_of_runs_import_neither_jax_nor_optuna(tmp_path):
    """`summary --help` and `sweep --help` took 1.5 seconds, of which argparse needs none."""
    script = f"""if True:
        import contextlib, importlib, sys
        from inception_jax.__main__ import VERBS
        for verb, (module, _) in VERBS.items():
            with contextlib.suppress(SystemExit):
                importlib.import_module(module).main(["--help"])
            heavy = {{"jax", "flax", "optuna", "cv2", "grain", "matplotlib"}} & set(sys.modules)
            assert not heavy, (verb, heavy)
        from inception_jax import compare
        compare.main(["--list", {str(tmp_path)!r}])
        assert "jax" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_verb_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["inception-jax", "trian", "--workdir=x"])
    assert console.main() == 2
    assert capsys.readouterr().err.startswith("error: unknown verb 'trian'; did you mean 'train'?; verbs: train, ")


def test_a_verb_becomes_python_m_with_its_arguments(tmp_path):
    """The process that runs the verb has the `sys.argv` and `sys.orig_argv` of `python -m`."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '-m' in sys.orig_argv: sys.exit(print(*sys.orig_argv[1:], sep='\\n'))\n"
    )
    done = run("train", "--config=a b.py", "--workdir=w", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.stdout.splitlines() == ["-m", "inception_jax.train", "--config=a b.py", "--workdir=w"]


def test_exit_codes_and_messages_are_the_verbs():
    done = run("summary", "inception_v5")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "did you mean" in done.stderr
