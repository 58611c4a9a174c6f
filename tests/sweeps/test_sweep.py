"""A sweep with real training, from the command to its report."""

import json
import subprocess
import sys

import pytest

from inception_jax import config as configs
from inception_jax import recipe_files
from inception_jax.sweeps import overrides

from .conftest import ROOT

# A tuple, a boolean, and a field that depends on it.
SPACE = """
from inception_jax.sweeps.space import choice, real
def get_space():
    return {
        "optimizer.freeze": choice((), ("^conv1/",)),
        "logging.tensorboard": choice(False, True),
        "optimizer.learning_rate": choice(0.01, 0.02, when={"logging.tensorboard": True}),
    }
def get_trials():
    return [{"logging.tensorboard": True, "optimizer.freeze": ("^conv1/",)}, {"optimizer.b2": 0.5},
            {"logging.tensorboard": False}]
"""


@pytest.fixture(scope="module")
def recipe(own_recipe):
    """The arguments of a recipe whose network compiles in a moment, with three evaluations."""
    fields = ["evaluation.every_epochs=0.5", "logging.pictures=False", "data.threads=1"]
    return [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory, command_environment, recipe):
    """(directory, stderr) of a study of three trials, the second of them a mistake."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "space.py").write_text(SPACE)
    arguments = [
        *recipe,
        f"--space={folder / 'space.py'}",
        f"--study={folder / 'study'}",
        "--trials=3",
        "--workers=2",
        "--metric=top1",
        "--pruner=none",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "inception_jax.sweep", *arguments],
        cwd=ROOT,
        env=command_environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder / "study", done.stderr


def test_a_sweep_of_real_runs(swept, recipe, registrations):
    study, stderr = swept
    records = [json.loads((study / "trials" / f"{number:04d}" / "trial.json").read_text()) for number in range(3)]
    assert [record["status"] for record in records] == ["finished", "failed", "finished"]
    assert "config.optimizer.b2 = 0.5: nothing reads it" in records[1]["message"]
    for record in records[::2]:
        workdir = study / "trials" / f"{record['number']:04d}"
        result = json.loads((workdir / "result.json").read_text())
        assert record["value"] == result["metrics"]["test"]["raw"]["top1"]
        assert [evaluation["step"] for evaluation in record["evaluations"]] == [4, 8, 12]
        config = json.loads((workdir / "config.json").read_text())
        loaded, _ = recipe_files.load_config([*recipe, *overrides.override_arguments(record["params"])])
        configs.check(loaded)  # as `train` does: mappings become pairs
        wanted = {field: json.loads(json.dumps(value)) for field, value in configs.leaves(loaded)}
        wanted["model.convolution"] = "fast"  # what a new run chooses where the recipe leaves it unset
        assert wanted == {field: value for field, value in flat(config)}
        command = json.loads((workdir / "manifest.json").read_text())["command"]
        assert command[1:4] == ["-m", "inception_jax.train", recipe[0]]
        assert command[-1] == f"--workdir={workdir}"
        assert (workdir / "data.json").read_text() == (study / "data.json").read_text()
    assert "3/3 begun, 2 finished, 1 failed, best" in stderr
    assert {"report.md", "best.py"} <= {path.name for path in study.iterdir()}
    report = (study / "report.md").read_text()
    assert "| field | recipe | trial" in report and "model.convolution" not in report  # no trial differs by it
    assert f"report: {study / 'report.md'}" in stderr


def test_a_trial_can_be_continued_without_the_sweep(swept, run_command):
    """Its manifest shows the command; typed by a person, it finds the run finished."""
    study, _ = swept
    command = json.loads((study / "trials" / "0000" / "manifest.json").read_text())["command"]
    code, out, err = run_command("train", *command[3:], "--json")
    assert code == 0, err
    assert json.loads(out) == json.loads((study / "trials" / "0000" / "result.json").read_text())


def flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@pytest.mark.slow  # the counted compilation is shown in a second by tests/training/test_step_numbers.py
def test_the_trials_of_a_study_compile_once(tmp_path, command_environment, small_arguments):
    (tmp_path / "space.py").write_text(
        "from inception_jax.sweeps.space import choice\n"
        "def get_space():\n"
        "    return {'optimizer.learning_rate': choice(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)}\n"
    )
    flags = [f"--space={tmp_path / 'space.py'}", f"--study={tmp_path / 'study'}", "--sampler=grid", "--workers=1"]
    done = subprocess.run(
        [sys.executable, "-m", "inception_jax.sweep", *small_arguments, *flags, "--metric=top1", "--pruner=none"],
        cwd=ROOT,
        env=command_environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "study" / "trials").glob("*/result.json")]
    assert len({result["fingerprint"] for result in results}) == 8
    # Of the training and the evaluation step, one executable each, and one file that finds it.
    assert len(list((tmp_path / "cache" / "executables").iterdir())) == 4
    first, *others = sorted(result["compile_seconds"] for result in results)[::-1]
    assert max(others) < first / 3
