"""Recipes and overrides on the command line: every mistake is one line that names the nearest correct name."""

import pytest

from inception_jax import command_line
from inception_jax.errors import UserError

RECIPE = """
import inception_jax.config

def get_config(kind="plain"):
    if kind not in ("plain", "fast"):
        raise ValueError(f"{kind}: the recipes are plain and fast")
    config = inception_jax.config.default()
    if kind == "fast":
        config.optimizer.learning_rate = 0.5
    return config
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE)
    return path


def parse(*flags):
    arguments = command_line.parser("train", "Trains.")
    command_line.add_config(arguments)
    arguments.add_argument("--workdir", required=True)
    return command_line.parse_with_config(arguments, list(flags))


def test_overrides_of_every_kind(recipe):
    flags, config, overrides = parse(
        f"--config={recipe}:fast",
        "--workdir=w",
        "--config.optimizer.momentum=0.5",
        "--config.num_steps=7",
        "--config.augmentation.area=(0.5, 1.0)",
        "--config.data.data_dir=/d",
        "--config.loss.aux_weights=(0.1, 0.2)",
        "--config.augmentation.flip=false",
    )
    assert flags.workdir == "w"
    assert config.optimizer.learning_rate == 0.5
    assert config.optimizer.momentum == 0.5
    assert config.num_steps == 7
    assert config.augmentation.area == (0.5, 1.0)
    assert config.augmentation.flip is False
    assert config.loss.aux_weights == (0.1, 0.2)
    assert overrides["optimizer.momentum"] == 0.5


def test_a_separate_argument_for_the_value(recipe):
    _, config, _ = parse("--config", str(recipe), "--workdir", "w", "--config.seed", "3")
    assert config.seed == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimzer.momentum=1"], r"config.optimzer.momentum: no field 'optimzer'; did you mean 'optimizer'"),
        (["--config.optimizer.momentun=1"], r"no field 'momentun'; did you mean 'momentum'\?"),
        (["--config.batch_size=many"], r"--config.batch_size=many: invalid literal for int"),
        (["--wrkdir=x"], r"unknown argument '--wrkdir'; did you mean '--workdir'"),
        (["stray"], r"unknown argument 'stray'"),
    ],
)
def test_mistakes_are_one_line(recipe, flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse(f"--config={recipe}", "--workdir=w", *flags)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_not_there_or_does_not_load(recipe):
    with pytest.raises(UserError, match=r"there is no file .*recip.py'; did you mean 'recipe.py'"):
        parse(f"--config={recipe.parent}/recip.py", "--workdir=w")
    with pytest.raises(UserError, match=r"slow: the recipes are plain and fast") as error:
        parse(f"--config={recipe}:slow", "--workdir=w")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--config is missing"):
        parse("--workdir=w")
    with pytest.raises(UserError, match="workdir"):
        parse(f"--config={recipe}")


@pytest.mark.parametrize(("raised", "code"), [(UserError("a clear line"), 2), (KeyboardInterrupt(), 130)])
def test_errors_leave_one_line_and_their_exit_code(monkeypatch, capsys, raised, code):
    def main(argv):
        raise raised

    monkeypatch.setattr("sys.argv", ["inception_jax"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise ValueError("a defect, not the user's mistake")

    monkeypatch.setattr("sys.argv", ["inception_jax"])
    with pytest.raises(ValueError, match="a defect"):
        command_line.run(main)


@pytest.mark.parametrize("name", ["configs/digits.py", "digits.py", "digits"])
def test_an_installed_recipe_is_found_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command_line._log_once.cache_clear()
    config, overrides = command_line.load_config([f"--config={name}", "--config.seed=3"])
    assert (config.data.name, config.seed, overrides["seed"]) == ("digits", 3, 3)
    assert capsys.readouterr().err == f"recipe {name}: {command_line.recipes_directory() / 'digits.py'}\n"


def test_an_installed_recipe_with_an_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = command_line.load_config(["--config", "inception_v1_imagenet:quick"])
    assert config.schedule.name == "polynomial"


def test_a_file_comes_before_an_installed_recipe(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    recipe.rename(recipe.parent / "digits.py")
    config, _ = command_line.load_config(["--config=digits.py:fast"])
    assert config.optimizer.learning_rate == 0.5


def test_an_unknown_recipe_lists_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no recipe 'digit'; did you mean 'digits'\?; recipes: digits, fashion_mnist, "
    ):
        command_line.load_config(["--config=digit"])
