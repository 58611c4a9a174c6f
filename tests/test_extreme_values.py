"""Extreme values in every field of the config and every flag: each is accepted, or refused in one line.

Accepted means: everything before the first step is built, with a finite learning rate and, where it is small, a batch.
Nothing may end in a traceback, take seconds, or take memory that the system limits here.
"""

import contextlib
import functools
import importlib
import itertools
import math
import random
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from inception_jax import command_line, patterns, recipe_files, schema
from inception_jax import config as configs
from inception_jax.config import Config
from inception_jax.errors import UserError, shorten
from inception_jax.models.checks import ModelError
from inception_jax.models.initialization import variable_shapes
from inception_jax.ranges import Range
from inception_jax.training import memory_check
from inception_jax.training import setup as setups

from .limits import limited

NAN, INF = math.nan, math.inf
VALUES = (0, -1, 1, 1e-320, 1e-4, 1e308, NAN, INF, -INF, 2**31, 2**63, 10**20, 10**400, "", "x" * 300, (), ("(",), None)
SECONDS, MEMORY = 4.0, 1024  # of processor time, and MB of address space, for one value

# Every field is read with these settings: the schedule, the optimizer, … that does so.
READ_WITH = {
    "schedule.decay": {"schedule.name": "exponential", "schedule.staircase": False},
    "schedule.power": {"schedule.name": "polynomial"},
    "schedule.end_learning_rate": {"schedule.name": "cosine"},
    "schedule.warmup_start": {"schedule.warmup_epochs": 1.0},
    "optimizer.decay": {"optimizer.name": "rmsprop"},
    "optimizer.epsilon": {"optimizer.name": "rmsprop"},
    "optimizer.b": {"optimizer.name": "adamw"},
    "augmentation.resize": {"augmentation.rule": "random_crop"},
    "evaluation.resize": {"evaluation.crop": "squash"},
    "stop.min_improvement": {"stop.patience": 3},
    "stop.target_metric": {"stop.target": 0.5},
    "num_epochs": {"num_steps": None},
}


def base() -> dict:
    return {
        "batch_size": 8, "num_steps": 5, "data.image_size": 32, "model.width_multiplier": 0.25, "parallel.devices": 1,
        "data.train_split": "train[:40]", "data.eval_split": "test[:40]", "data.threads": 1,
    }  # fmt: skip


def make_config(values: dict) -> configs.ConfigDict:
    recipe = configs.default()
    with recipe.unlocked(), recipe.ignore_type():
        for path, value in values.items():
            section, _, name = path.rpartition(".")
            target = recipe
            for part in filter(None, section.split(".")):
                target = target[part]
            with contextlib.suppress(OverflowError):  # a ConfigDict holds no float of 400 digits
                target[name] = value
    return recipe


def refusal(values: dict) -> str | None:
    """The line that refuses a config; None where everything before the first step could be built."""
    try:
        with limited(MEMORY, SECONDS):
            config = Config(make_config(values))
            setup = setups.build(config)
            config.refuse_unread()
    except (UserError, ModelError) as error:
        assert "\n" not in str(error) and 0 < len(str(error)) < 2100, values
        return str(error)
    for step in (0, 1, setup.length.total - 1):
        assert math.isfinite(setup.schedule(step)), values
    if setup.config.batch_size * setup.input.image_size**2 < 1 << 22 and setup.data.train.threads < 9:
        assert setup.data.train.batch(0)["image"].any()
    return None


def numeric_fields() -> list[str]:
    options = {path: kind for path, kind in configs.field_types().items() if path.startswith("model.options.")}
    kinds = {path: field.kind for path, field in schema.fields()} | options
    return [path for path, kind in kinds.items() if kind in (int, float, tuple, object)]


def check_field(path: str, value: object) -> bool:
    """Returns whether the value is refused."""
    values = base() | next((more for start, more in READ_WITH.items() if path.startswith(start)), {})
    message = refusal(values | {path: value})
    if isinstance(value, str) or value in (INF, -INF, 1e308) or value is NAN:
        assert message, (path, value)
    if message:
        # The field, its option, or what does not go together with it.
        assert path.rpartition(".")[2].split("_")[0] in message, (path, value, message)
    return bool(message)


CASES = [(path, value) for path, value in itertools.product(numeric_fields(), VALUES) if path != "extensions"]


@pytest.mark.parametrize("part", range(3))
def test_some_fields(part):
    for path, value in random.Random(part).sample(CASES, 60):
        check_field(path, value)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("path", sorted({path for path, _ in CASES}))
def test_every_field(path):
    refused = sum(check_field(path, value) for value in VALUES)
    print(f"{path}: {len(VALUES)} values, {refused} refused")


def test_every_field_of_a_number_has_a_finite_range():
    for path, field in schema.fields():
        if field.kind in (int, float):
            assert isinstance(field.allowed, Range), path
            assert math.isfinite(field.allowed.low) and math.isfinite(field.allowed.high), path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"evaluation.crop_fraction": 1e-4}, r"config\.evaluation\.crop_fraction = 0\.0001: .* at least 0\.002 is"),
        (
            {"evaluation.crop_fraction": 1e-320},
            r"config\.evaluation\.crop_fraction = 1e-320: .*more than 16,384 pixels",
        ),
        ({"batch_size": 2**31}, r"config\.batch_size = 2147483648: it must be greater than 0 and at most 16,777,216"),
        ({"evaluation.batch_size": 2**31}, r"config\.evaluation\.batch_size = 2147483648: it must be"),
        ({"data.image_size": 1_000_000}, r"config\.data\.image_size = 1000000: it must be greater .* at most 16,384"),
        ({"data.image_size": 8192, "batch_size": 4096}, r"need at least [\d,]+ MB of memory, and there are"),
        ({"data.threads": 2**31}, r"config\.data\.threads = 2147483648: it must be .* at most 1,024"),
        ({"data.cache_mb": 20_000}, r"config\.data\.cache_mb = 20,000: the memory has 17,179 MB; lower it"),
        ({"data.cache_mb": 5}, r"config\.data\.cache_mb = 5: .* is in memory already; leave it 0"),
        ({"num_steps": 10**20}, r"config\.num_steps = 1\d+: it must be .* at most 2,147,483,647"),
        ({"num_steps": None, "num_epochs": 1e9}, r"config\.num_epochs = 1e\+09: 5,000,000,000 steps"),
        ({"model.width_multiplier": 1e308}, r"config\.model\.width_multiplier = 1e\+308: it must be"),
        ({"model.width_multiplier": 900.0}, r"config\.model\.width_multiplier = 900: 2 copies of [\d,]+ parameters"),
        ({"loss.aux_weights": ("(",)}, r"config\.loss\.aux_weights = \('\(',\): it must be numbers"),
        ({"model.options.lrn_beta": NAN}, r"lrn_beta: nan is not a finite float32"),
        ({"optimizer.freeze": ("(.|.)*!",)}, r"config\.optimizer\.freeze: .* does not end its search within"),
        ({"optimizer.freeze": ("(" * 500,)}, r"config\.optimizer\.freeze = .*: it must be regular expressions"),
        ({"optimizer.freeze": ("a" * 1001,)}, r"config\.optimizer\.freeze = .*\(1,006 characters\): it must be"),
    ],
)
def test_what_is_known_before_the_first_step_is_refused(values, message, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    # The same on every machine; the network has less than a tenth of it.
    monkeypatch.setattr(memory_check, "machine_memory", lambda: 16 << 30)
    with pytest.raises((UserError, ModelError), match=message):
        setups.build(Config(make_config(base() | values)))


def test_endpoints_count_where_images_are_large(monkeypatch):
    monkeypatch.setattr(memory_check, "machine_memory", lambda: 1 << 30)
    with pytest.raises(UserError, match="the batch and the network's endpoints"):
        setups.build(Config(make_config(base() | {"data.image_size": 512, "batch_size": 64, "data.prefetch": 1})))


def test_a_batch_of_an_accelerator_is_compared_with_its_memory(monkeypatch):
    monkeypatch.setattr(memory_check, "_device_memory", lambda devices: 1 << 20)
    with pytest.raises(UserError, match=r"config\.batch_size = 128 .* per device need at least 2 MB"):
        setups.build(Config(make_config(base() | {"batch_size": 128})))


@pytest.mark.parametrize(("steps", "channels", "threads"), [(1, 3, 1), (8, 3, 1), (8, 1, 3), (1024, 3, 1)])
def test_the_batches_of_an_execution_are_counted_with_what_else_waits(steps, channels, threads, monkeypatch):
    """Those of a call, their copies in one array, those being made and transferred; to the byte."""
    config = Config(make_config(base() | {"parallel.steps_per_execution": 1024, "data.threads": threads}))
    network_input = SimpleNamespace(image_size=32, channels=channels)
    need = (threads + 2 + 2 * (steps - 1)) * 8 * 32 * 32 * channels
    for memory in (need, need - 1):
        monkeypatch.setattr(memory_check, "machine_memory", lambda memory=memory: memory)
        refuse = functools.partial(
            memory_check.refuse_long_executions, config, steps, network_input, SimpleNamespace(process_count=1)
        )
        if memory == need:
            refuse()
    with pytest.raises(memory_check.TooLarge, match=rf"per_execution = 1,024 \(at most {steps:,} in this run\): "):
        refuse()


def test_steps_that_no_execution_takes_need_no_memory(monkeypatch):
    """1,024 steps would need 202 MB of batches; a log row after each step leaves one."""
    monkeypatch.setattr(memory_check, "machine_memory", lambda: 150 << 20)
    values = base() | {"parallel.steps_per_execution": 1024, "num_steps": 2000, "batch_size": 32}
    rare = {"evaluation.every_epochs": 1e3, "checkpoint.every_epochs": 1e3, "logging.every_steps": 2000}
    for every in ("logging.every_steps", "num_steps"):
        setups.build(Config(make_config(values | rare | {every: 5})))
    for every in ("evaluation.every_epochs", "checkpoint.every_epochs"):
        setups.build(Config(make_config(values | rare | {every: 2.0})))
    with pytest.raises(
        memory_check.TooLarge, match=r"1,024 \(at most 1,024 in this run\): 2,049 batches of uint8 need"
    ):
        setups.build(Config(make_config(values | rare)))


def test_a_multiplier_for_frozen_biases_blames_the_field_that_was_set():
    """Freezes all biases, and the recipe has a learning rate of their own."""
    values = base() | {"optimizer.freeze": ("(a|a)*b",), "optimizer.bias_learning_rate": 2.0}
    setup = setups.build(Config(make_config(values)))
    shapes = variable_shapes(setup.model, 32)["params"]
    with pytest.raises(UserError, match=r"config\.optimizer\.bias_learning_rate: no bias is trained"):
        jax.eval_shape(setup.optimizer.init, shapes)
    decay = make_config(base() | {"optimizer.freeze": ("kernel",), "optimizer.weight_decay": 1e-4})
    with pytest.raises(UserError, match=r"config\.optimizer\.weight_decay: no kernel is trained"):
        jax.eval_shape(setups.build(Config(decay)).optimizer.init, shapes)


def test_errors_cut_what_they_quote():
    assert shorten("a" * 200) == "a" * 200
    assert shorten("a" * 1000) == "a" * 133 + " … " + "a" * 50 + " (1,000 characters)"
    assert str(UserError("x: " + "a" * 300)) == "x: " + shorten("a" * 300)
    assert len(str(UserError("b " * 10_000_000))) < 2100
    path = "/".join(["folder" * 20] * 10)
    assert str(UserError(f"{path}: no such file")) == f"{path}: no such file"


# A command line that ends in an error by itself, without reading or computing much: so every value ends in one.
VERBS = {
    "train": ["--config=digits", "--workdir=/proc/none"],
    "evaluate": ["--workdir=/proc/none"],
    "predict": ["--workdir=/proc/none", "none.jpg"],
    "summary": ["none"],
    "benchmark": ["--model=none"],
    "sweep": ["--config=digits", "--space=/proc/none.py", "--study=/proc/none"],
    "compare": ["/proc/none", "/proc/none2"],
    "convert": ["--weights=/proc/none", "--output=/proc/none"],
    "extract": ["--workdir=/proc/none", "--output=/proc/none.npz"],
    "score": ["/proc/none", "/proc/none2"],
    "export": ["--workdir=/proc/none", "--output=/proc/none"],
    "data.prepare": ["none"],
    "data.show": ["--config=digits", "--output=/proc/none/sheet.png"],
}
TEXTS = (
    "0",
    "-1",
    "1e-320",
    "1e308",
    "nan",
    "inf",
    str(2**31),
    str(2**63),
    str(10**20),
    "9" * 5000,
    "",
    "x" * 300,
    "(",
)


def check_override(path: str, text: str) -> bool:
    """Returns whether the text is refused."""
    try:
        with limited(MEMORY, SECONDS):
            Config(recipe_files.load_config(["--config=digits", f"--config.{path}={text}"])[0])
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2100, (path, text)
        assert "config" in str(error), (path, text, str(error))
        return True
    return False


OVERRIDES = [*itertools.product(sorted(configs.field_types()), (*TEXTS, "(" * 5000, "None", "()", "[1,", "'"))]


def test_some_overrides():
    for path, text in random.Random(0).sample(OVERRIDES, 80):
        check_override(path, text)


@pytest.mark.slow
@pytest.mark.attack
def test_every_override():
    refused = [check_override(path, text) for path, text in OVERRIDES if path != "extensions"]
    print(f"{len(refused)} overrides, {sum(refused)} refused")


def find_arguments(name: str, capsys, monkeypatch) -> list[str]:
    """Every flag of a verb that takes a value, with each value: those of numbers, and of texts, which may be paths."""
    found: list[str] = []

    def parse_args(parser, *_):
        found.extend(
            f"{action.option_strings[-1]}={text}"
            for action in parser._actions
            if action.option_strings and action.nargs is None and action.dest not in ("help", "_")
            for text in (TEXTS if action.type else ("", "x" * 300))
        )
        raise UserError("enough")

    with monkeypatch.context() as patch, contextlib.suppress(UserError):
        patch.setattr("inception_jax.errors.ArgumentParser.parse_args", parse_args)
        importlib.import_module(f"inception_jax.{name}").main([])
    capsys.readouterr()
    assert found
    return found


def check_flag(name: str, argument: str, capsys, monkeypatch) -> None:
    module = importlib.import_module(f"inception_jax.{name}")
    monkeypatch.setattr("sys.argv", [name, *VERBS[name], argument])
    with pytest.raises(SystemExit) as ended, limited(MEMORY, SECONDS):
        command_line.run(module.main)
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2, (name, argument, lines)
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], (name, argument, lines)
    assert all(len(line) < 2100 and not line.startswith("Traceback") for line in lines), (name, argument, lines)


@pytest.mark.parametrize("name", VERBS)
def test_some_flags(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = find_arguments(name, capsys, monkeypatch)
    for argument in random.Random(name).sample(arguments, min(12, len(arguments))):
        check_flag(name, argument, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("name", VERBS)
def test_every_flag(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments = find_arguments(name, capsys, monkeypatch)
    for argument in arguments:
        check_flag(name, argument, capsys, monkeypatch)
    with capsys.disabled():
        print(f"\n{name}: {len(arguments)} flags, all refused")


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("sweep", f"--seed={10**14}", "--seed=100000000000000: it must be at least 0 and at most 4,294,967,295"),
        ("train", "--config=" + "x" * 300, "there is no such file: its name has 300 characters"),
        ("extract", f"--batch_size={2**31}", "--batch_size=2147483648: it must be at least 1 and at most 16,777,216"),
        ("summary", "--image_size=1e3", "--image_size=1e3: not a whole number"),
        ("sweep", "--hours=nan", "--hours=nan: not a number"),
    ],
)
def test_flags_name_their_range(name, argument, message, capsys, monkeypatch):
    arguments = [given for given in VERBS[name] if given.partition("=")[0] != argument.partition("=")[0]]
    monkeypatch.setattr("sys.argv", [name, *arguments, argument])
    with pytest.raises(SystemExit):
        command_line.run(importlib.import_module(f"inception_jax.{name}").main)
    assert message in capsys.readouterr().err


def test_an_image_that_declares_too_many_pixels():
    from inception_jax.data import images

    from .weight_files.hostile import png_of_zeros

    with pytest.raises(UserError, match=r"bomb\.png: an image of 14,000 x 14,000 pixels in [\d,]+ bytes, above"):
        images.decode(png_of_zeros(14_000), "bomb.png")
    assert images.decode(png_of_zeros(64), max_pixels=4096).shape == (64, 64, 3)
    with pytest.raises(
        UserError, match=r"above the limit of 4,095 pixels \(config\.data\.max_pixels, or --max_pixels\)"
    ):
        images.decode(png_of_zeros(64), max_pixels=4095)
    with pytest.raises(UserError, match="30,000 x 1 pixels would have 7,680,000 x 256"):
        images.center_crop(np.zeros((1, 30_000, 3), np.uint8), 224, images.EvalCrop(resize=256))
