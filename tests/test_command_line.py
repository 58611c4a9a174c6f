"""Recipes and overrides on the command line: every mistake is one line that names the nearest correct name."""

import argparse
import contextlib
import errno
import importlib
import json
import os
import subprocess
import sys

import pytest

from inception_jax import command_line, evaluate, recipe_files
from inception_jax.__main__ import VERBS
from inception_jax.config import Config
from inception_jax.errors import UserError

from .conftest import ROOT

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
    recipe_files.add_config(arguments)
    arguments.add_argument("--workdir", required=True)
    own, of_config = recipe_files.parse(arguments, list(flags))
    return own, *recipe_files.load_config(of_config)


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


def test_a_separate_argument_for_the_value_and_one_dash(recipe):
    _, config, _ = parse("--config", str(recipe), "--workdir", "w", "--config.seed", "3", "-config.batch_size", "8")
    assert (config.seed, config.batch_size) == (3, 8)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimzer.momentum=1"], r"config.optimzer.momentum: no field 'optimzer'; did you mean 'optimizer'"),
        (["--config.optimizer.momentun=1"], r"no field 'momentun'; did you mean 'momentum'\?"),
        (["--config.batch_size=many"], r"--config.batch_size=many: not a whole number$"),
        (["--config.stop.at_target=no"], r"--config.stop.at_target=no: it must be one of 'True', 'False'$"),
        (["--config.model.options.lrn=off"], r"--config.model.options.lrn=off: it must be one of 'True', 'False'$"),
        (["--config.stop.target=much"], r"--config.stop.target=much: not a number$"),
        (["--config.num_steps=1.5e0"], r"--config.num_steps=1.5e0: not a whole number; such as 1000 or 1e3"),
        (
            ["--config.optimizer.learning-rate=1"],
            r"config.optimizer.learning-rate: no field 'learning-rate'; did you me"
            r"an 'learning_rate'\?",
        ),
        (["--config.lr=1"], r"config.lr: no field 'lr'; did you mean --config.optimizer.learning_rate=…\?"),
        (["--config.qqqqq=1"], r"config.qqqqq: no field 'qqqqq' in the config$"),
        (["--config.optimizer=sgd"], r"--config.optimizer: a section, not a field; set one of its fields, such as"),
        (["--config.augmentation.flip", "--workdir=w"], r"--config.augmentation.flip: its value is missing"),
        (
            ["--config.data.data_dir="],
            r"--config.data.data_dir: its value is empty \(a shell variable that is not set\?",
        ),
        (["--wrkdir=x"], r"unknown argument '--wrkdir'; did you mean '--workdir'"),
        (["--epochs=3"], r"unknown argument '--epochs'; did you mean --config.num_epochs=…\?"),
        (["--batch-size=3"], r"unknown argument '--batch-size'; did you mean --config.batch_size=…\?"),
        (["--model", "x"], r"unknown argument '--model'; did you mean --config.model.name=…\?"),
        (["--learning_rate=3"], r"unknown argument '--learning_rate'; did you mean --config.optimizer.learning_rate=…"),
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
    with pytest.raises(UserError, match=r"--workdir: its value is empty .*; give a value$"):
        parse(f"--config={recipe}", "--workdir=")


def test_epochs_that_steps_stand_in_the_place_of(recipe):
    given = [f"--config={recipe}", "--config.num_steps=4"]
    with pytest.raises(UserError, match=r"config.num_steps = 4 counts in its place; add --config.num_steps=None"):
        recipe_files.load_config([*given, "--config.num_epochs=2"])
    config, _ = recipe_files.load_config([*given, "--config.num_epochs=2", "--config.num_steps=None"])
    assert config.num_epochs == 2.0 and config.num_steps is None


def test_the_config_of_the_run_in_the_workdir(recipe, tmp_path):
    """Where --config is left out; with overrides."""
    with pytest.raises(UserError, match=r"^--config is missing: name a recipe, such as .* has no config.json$"):
        recipe_files.of_run(["--config.seed=3"], tmp_path)
    _, config, _ = parse(f"--config={recipe}", "--workdir=w", "--config.num_steps=7")
    (tmp_path / "config.json").write_text(config.to_json_best_effort())
    loaded, overrides = recipe_files.load_config(recipe_files.of_run(["--config.seed=3"], tmp_path))
    assert (loaded.seed, loaded.num_steps, overrides) == (3, 7, {"seed": 3})
    given = [f"--config={recipe}", "--config.seed=3"]
    assert recipe_files.of_run(given, tmp_path) == given
    with pytest.raises(UserError, match=r"^--config.seed=3: needs --config; .*--config=w/config.json --checkpoint=w "):
        evaluate.main(["--workdir=w", "--config.seed=3"])


def test_none_unsets_a_field(recipe):
    """Of any type; one that needs a value keeps the text, or refuses it. The last value of a field counts."""
    given = ["--config.initialize.checkpoint=None", "--config.num_steps=None", "--config.model.options.bn_epsilon=None"]
    _, config, overrides = parse(f"--config={recipe}", "--workdir=w", "--config.num_steps=7", *given)
    assert config.initialize.checkpoint is config.num_steps is config.model.options.bn_epsilon is None
    assert overrides == {"initialize.checkpoint": None, "num_steps": None, "model.options.bn_epsilon": None}
    _, config, overrides = parse(f"--config={recipe}", "--workdir=w", *given, "--config.num_steps=7")
    assert config.num_steps == overrides["num_steps"] == 7
    with pytest.raises(UserError, match=r"--config.batch_size=None: it needs a value"):
        parse(f"--config={recipe}", "--workdir=w", "--config.batch_size=None")


def test_whole_numbers_may_be_written_as_floats(recipe):
    _, config, overrides = parse(f"--config={recipe}", "--workdir=w", "--config.num_steps=1e3", "--config.seed=2.0")
    assert (config.num_steps, config.seed, overrides["num_steps"]) == (1000, 2, 1000)
    assert isinstance(config.num_steps, int)


def test_a_run_begins_with_the_config_that_another_left(recipe, tmp_path):
    _, before, _ = parse(f"--config={recipe}:fast", "--workdir=w", "--config.model.options.module=naive")
    left = json.loads(Config(before).to_json())
    del left["faults"]["max_corrupt"]  # as an earlier version, which did not have the field
    (tmp_path / "config.json").write_text(json.dumps(left))
    _, config, overrides = parse(f"--config={tmp_path}/config.json", "--workdir=w", "--config.num_steps=7")
    assert overrides == {"num_steps": 7} and config.num_steps == 7
    config.num_steps = None
    assert Config(config).to_json() == Config(before).to_json()
    with pytest.raises(UserError, match=r"a run's workdir; name its config, --config=.*/config.json"):
        parse(f"--config={tmp_path}", "--workdir=w")
    for content, message in {"{": "not the config.json of a run", "{}": "it has no 'model'"}.items():
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=message) as error:
            parse(f"--config={tmp_path}/config.json", "--workdir=w")
        assert "\n" not in str(error.value)


def parser_of(verb, module):
    """The parser that a verb's `main` makes."""
    made = []

    class Made(Exception):
        pass

    def stop(parser, args=None, namespace=None):
        made.append(parser)
        raise Made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with contextlib.suppress(Made):
            importlib.import_module(module).main([])
    return made[0]


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_takes_an_empty_value(verb):
    """`--workdir=$RUN` of a variable that is not set once trained into the current directory."""
    module = VERBS[verb][0]
    parser = parser_of(verb, module)
    required = [f"{a.option_strings[-1]}=x" if a.option_strings else "x" for a in parser._actions if a.required]
    texts = [a for a in parser._actions if a.nargs is None and a.type is None and not a.choices and a.dest != "_"]
    assert texts
    for action in texts:
        words = [f"{action.option_strings[-1]}="] if action.option_strings else [" "]
        with pytest.raises(UserError, match=r"its value is empty|--config is missing"):
            parser.parse_args([*(required if action.option_strings else required[:-1]), *words])


def test_flags_that_an_action_does_not_read(recipe):
    """Also one that is given with its default value; a program cannot know whether that was meant."""
    parser = command_line.parser("train", "Trains.")
    recipe_files.add_config(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true")
    recipe_files.parse(parser, ["--report", "--seed=0"])
    with pytest.raises(UserError, match=r"^--seed: has no effect with --report; leave it out$"):
        parser.refuse_unread({"report"}, "has no effect with --report")
    recipe_files.parse(parser, ["--report", f"--config={recipe}"])
    with pytest.raises(UserError, match=r"^--config: has no effect"):
        parser.refuse_unread({"report"}, "has no effect with --report")
    recipe_files.parse(parser, ["--report", "--seed=1", f"--config={recipe}"])
    with pytest.raises(UserError, match=r"^--config, --seed: have no effect with --report; leave them out$"):
        parser.refuse_unread({"report"}, "has no effect with --report")
    with pytest.raises(UserError, match=r"^--config, --seed: an import does not read them; leave them out$"):
        parser.refuse_unread({"report"}, "an import does not read it")


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_platform_that_is_not_there_is_one_line(platform):
    code = (
        "import sys; from inception_jax import command_line; sys.argv = ['x']\n"
        "def main(argv):\n  import jax\n  jax.process_count()\n"
        "command_line.run(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"JAX_PLATFORMS": platform},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"error: JAX_PLATFORMS={platform}: no device can be used on this machine: " in done.stderr


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (UserError("a clear line"), 2),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "table.csv"), 6),
        (RuntimeError("RESOURCE_EXHAUSTED: tempfile; No space left on device"), 6),  # of the compiler for GPUs
    ],
)
def test_errors_leave_one_line_and_their_exit_code(monkeypatch, capsys, raised, code):
    def main(argv):
        raise raised

    monkeypatch.setattr("sys.argv", ["inception_jax"])
    with pytest.raises(SystemExit) as stop:
        command_line.run(main)
    assert stop.value.code == code
    assert capsys.readouterr().err.count("\n") == 1


def run_in_shell(redirection, body, **options):
    """Runs a command whose main has this body, under bash's redirections; returns the finished process."""
    code = f"import sys\nfrom inception_jax import command_line\ndef main(argv):\n  {body}\ncommand_line.run(main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "CODE": code}
    shell = ["bash", "-c", f'"$PYTHON" -c "$CODE" {redirection}']
    return subprocess.run(shell, env=environment, capture_output=True, text=True, **options)


FULL = "error: cannot write standard output: No space left on device; free some space and run the same command again\n"


@pytest.mark.attack
@pytest.mark.parametrize(
    ("redirection", "body", "code", "out", "err"),
    [
        (">&-", "print('result')", 0, "", ""),
        (">/dev/full", "print('result')", 6, "", FULL),
        (">/dev/full", "print('result' * 9999)", 6, "", FULL),
        (">/dev/full", "print('result'); return 143", 143, "", ""),
        (
            ">/dev/full",
            "print('x'); raise command_line.UserError('wrong')",
            2,
            "",
            "error: wrong\n",
        ),
        ("| true", "import time; time.sleep(0.2); print('x' * 99999); return 143", 143, "", ""),
        ("| true", "import time; time.sleep(0.2); print(1, flush=True); print(2, flush=True); return 7", 7, "", ""),
        (">/dev/full", "print(1, flush=True); command_line.report('written')", 6, "", f"written\n{FULL}"),
        ("2>&-", "print('result'); command_line.report('a note')", 0, "result\n", ""),
        (">&2", "sys.stdout.reconfigure(encoding='ascii'); print('IMAGE \u2026')", 0, "", "IMAGE ?\n"),
        ("2>/dev/full", "print('result'); command_line.report('a note'); print('more')", 0, "result\nmore\n", ""),
        ("2>&-", "open('/proc/self/comm', 'w').fileno() == 2 and print('taken')", 0, "", ""),
        ("<&- >&- 2>&-", "import os; sys.exit(os.open('/', os.O_RDONLY) - 3)", 0, "", ""),
        (">&- 2>&-", "raise OSError(5, 'ours')", 1, "", ""),
    ],
)
def test_streams_that_are_closed_or_full(redirection, body, code, out, err):
    done = run_in_shell(f"{redirection}; exit ${{PIPESTATUS[0]}}", body)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def main(argv):
        raise ValueError("a defect, not the user's mistake")

    monkeypatch.setattr("sys.argv", ["inception_jax"])
    with pytest.raises(ValueError, match="a defect"):
        command_line.run(main)


@pytest.mark.parametrize("name", ["configs/digits.py", "digits.py", "digits"])
def test_an_installed_recipe_is_found_by_its_name(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe_files._log_once.cache_clear()
    config, overrides = recipe_files.load_config([f"--config={name}", "--config.seed=3"])
    assert (config.data.name, config.seed, overrides["seed"]) == ("digits", 3, 3)
    assert capsys.readouterr().err == f"recipe {name}: {recipe_files.recipes_directory() / 'digits.py'}\n"


def test_an_installed_recipe_with_an_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, _ = recipe_files.load_config(["--config", "inception_v1_imagenet:quick"])
    assert config.schedule.name == "polynomial"


def test_a_file_comes_before_an_installed_recipe(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    recipe.rename(recipe.parent / "digits.py")
    config, _ = recipe_files.load_config(["--config=digits.py:fast"])
    assert config.optimizer.learning_rate == 0.5


def test_an_unknown_recipe_lists_those_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=r"no recipe 'digit'; did you mean 'digits'\?; recipes: digits, fashion_mnist, "
    ):
        recipe_files.load_config(["--config=digit"])
