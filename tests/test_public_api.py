"""The public face of the package: its names, their examples, and the version."""

import doctest
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import inception_jax

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = [
    "InceptionOutput", "TrainedNetwork", "__version__", "create_model", "from_config", "get_spec", "import_weights",
    "inception_loss", "init_variables", "load_pretrained", "load_run", "model_names", "register_augmentation",
    "register_dataset", "register_metric", "register_model", "register_optimizer", "register_sink", "variant_options",
]  # fmt: skip


def test_the_public_names():
    assert inception_jax.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(inception_jax))
    for name in PUBLIC:
        assert getattr(inception_jax, name) is not None
    with pytest.raises(AttributeError, match="module 'inception_jax' has no attribute 'creat_model'"):
        inception_jax.creat_model  # noqa: B018


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "__version__"])
def test_the_example_in_the_docstring_runs(name, registrations, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/digits").symlink_to(small_run)  # the run that some examples load
    value = getattr(inception_jax, name)
    assert "\nExample:\n" in inspect.cleandoc(value.__doc__)
    [test] = [test for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}) if test.examples]
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.failed == 0, "".join(report)
    assert result.attempted >= 2


def test_the_version_is_read_without_importing_jax_and_has_one_source():
    code = "import sys, inception_jax; print(inception_jax.__version__); assert 'jax' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert shown.strip() == inception_jax.__version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "inception_jax.__version__"}


def test_the_package_is_marked_as_typed():
    assert (Path(inception_jax.__file__).parent / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["inception_jax"]


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "inception_jax").rglob("__init__.py")}
    assert set(listed) == folders | {"inception_jax.configs"}
