"""Loads `--config=RECIPE`, a recipe file or a run's config.json, with its overrides `--config.FIELD=VALUE`."""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax.errors import ArgumentParser, UserError, nearest, refuse_empty, shorten

if TYPE_CHECKING:
    from ml_collections import ConfigDict

_OF_CONFIG = re.compile(r"--?config(?=[.=]|$)")
_SECTION = None  # the type of a section in `_types`
_BOOLEANS = ("true", "t", "1", "false", "f", "0")  # what ml_collections takes

# Names of other programs' flags, for fields that have another name here.
_OTHER_NAMES = {
    "bs": "batch_size", "data_path": "data.name", "dataset": "data.name", "epoch": "num_epochs", "epochs": "num_epochs",
    "arch": "model.name", "lr": "optimizer.learning_rate", "max_epochs": "num_epochs", "max_steps": "num_steps",
    "opt": "optimizer.name", "precision": "model.dtype", "resume": "initialize.checkpoint",
    "smoothing": "loss.label_smoothing", "steps": "num_steps", "val_split": "data.eval_split",
    "warmup": "schedule.warmup_epochs", "wd": "optimizer.weight_decay",
}  # fmt: skip


def add_config(arguments: ArgumentParser) -> None:
    """Adds `--config` to the help text; `parse` reads it."""
    arguments.add_argument(
        "--config",
        metavar="RECIPE[:ARGUMENT]",
        help="a recipe: a Python file, the name of one that is installed, such as configs/digits.py or digits, or the "
        "config.json of a run",
    )
    arguments.add_argument("--config.FIELD", metavar="VALUE", dest="_", help="overrides a field of the config")
    arguments.suggest = suggest_field


def parse(arguments: ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command's own flags, and splits off its recipe.

    Args:
      arguments: a parser with the command's own flags, made by `command_line.parser`.
      argv: arguments after the program's name.

    Returns:
      (namespace of the command's own flags; `--config=…` and its overrides, which `load_config` takes).
    """
    of_config, own = split_arguments(argv)
    namespace = arguments.parse_args(own)
    arguments.given |= {"config"} if of_config else set()
    return namespace, of_config


def parse_with_config(arguments: ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, ConfigDict | None]:
    """Parses a command line that may have a `--config`.

    Args:
      arguments: as for `parse`.
      argv: as for `parse`.

    Returns:
      (namespace of the command's own flags; the config, None without `--config` and overrides).

    Raises:
      UserError: as `load_config`.
    """
    namespace, of_config = parse(arguments, argv)
    return namespace, load_config(of_config)[0] if of_config else None


def recipe_of(of_config: Sequence[str]) -> str | None:
    """The value of the first `--config=…` among arguments that `split_arguments` returns; None: it is left out."""
    return next((argument.partition("=")[2] for argument in of_config if argument.startswith("--config=")), None)


def of_run(of_config: Sequence[str], workdir: str | os.PathLike) -> list[str]:
    """The arguments of a config, with that of the run in the workdir where `--config` is left out.

    Args:
      of_config: as `parse` returns it.
      workdir: on this machine, or the copy of one at an address; it may be missing.

    Returns:
      The arguments, of which the first is a `--config`.

    Raises:
      UserError: neither `--config` nor a run in the workdir.
    """
    file = Path(workdir) / "config.json"
    if recipe_of(of_config) is not None:
        return [*of_config]
    if not file.is_file():
        from inception_jax.runs import remote_workdir

        where = remote_workdir.display_name(workdir)
        raise UserError(f"{_missing()}; without it the workdir needs to hold a run, and {where} has no config.json")
    return [f"--config={file}", *of_config]


def check_model(name: str) -> None:
    """Checks the name of a network on a command line without a recipe.

    Raises:
      ModelError: there is none of that name; the message says how one that a recipe registers is given.
    """
    from inception_jax.models.registry import ModelError, get_spec

    try:
        get_spec(name)
    except ModelError as error:
        raise ModelError(f"{error}; a network that a recipe registers needs the recipe: --config=RECIPE.py") from None


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line.

    Args:
      argv: arguments after the program's name.

    Returns:
      (the recipe and its overrides, each as one argument `--config=…` or `--config.FIELD=…`; all other arguments).

    Raises:
      UserError: a value is missing.
    """
    of_config, others = [], []
    rest = iter(argv)
    for argument in rest:
        if not _OF_CONFIG.match(argument):
            others.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise UserError(f"{name}: its value is missing; give {name}=VALUE")
        if name.endswith("config") and not value.strip():
            raise _missing()
        of_config.append(f"--{name.lstrip('-')}={value}")
    return of_config, others


def load_config(arguments: Sequence[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """Loads `--config=RECIPE[:ARGUMENT]` and its overrides `--config.FIELD=VALUE`.

    RECIPE is a Python file, or the config.json of a run. Where there is no such file, NAME, NAME.py and configs/NAME.py
    are the recipe NAME that is installed with the package. VALUE None unsets a field that may be unset.

    Args:
      arguments: the arguments of a command line that begin with `--config`, and their values.

    Returns:
      (config, {overridden field: value}).

    Raises:
      UserError: no recipe, a recipe that does not load, an unknown field, a value of the wrong type, or num_epochs
        where num_steps is set.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    arguments, _ = split_arguments(arguments)
    given = recipe_of(arguments)
    if given is None:
        raise _missing()
    types = _types()
    overrides = [_override(argument, types) for argument in arguments if argument.startswith("--config.")]
    _note_repeated(overrides, types)
    overrides, unset = _split_unset(overrides, types)
    found = _find_recipe(given)
    values = flags.FlagValues()
    try:
        if found.endswith(".json"):
            config = _read_json(Path(found))
            holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=overrides)
            values(["inception_jax", *overrides])
        else:
            words = [f"--config={found}", *overrides]
            holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
            values(["inception_jax", *words])
        config = holder.value
        overridden = config_flags.get_override_values(values["config"])
        for path in unset:
            section, _, name = path.rpartition(".")
            holder_of = functools.reduce(getattr, filter(None, section.split(".")), config)
            holder_of[name] = overridden[path] = None
    except flags.Error as error:
        raise UserError(_last_line(error, given)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        for path in (_path(argument) for argument in overrides):
            if path not in types:
                raise _unknown_field(path, types) from error
        raise
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={given}: get_config() returned {type(config).__name__}, not a ConfigDict")
    if overridden.get("num_epochs") is not None and config.get("num_steps"):
        raise UserError(
            f"--config.num_epochs: config.num_steps = {config.num_steps} counts in its place; add "
            "--config.num_steps=None, or leave it out"
        )
    return config, overridden


def _note_repeated(overrides: Sequence[str], types: Mapping[str, type | None]) -> None:
    """Logs which fields are given several values: a shell makes several of one with braces that is not quoted.

    Those of a tuple are not: ml_collections takes all of its values.
    """
    values: dict[str, list[str]] = collections.defaultdict(list)
    for override in overrides:
        if types.get(_path(override)) is not tuple:
            name, _, value = override.partition("=")
            values[name].append(value)
    for name, given in values.items():
        if len({*given}) > 1:
            _log_once(
                f"{name}: given {len(given)} times; the last one counts, {given[-1]!r} (quote a value with braces)"
            )


def _split_unset(overrides: Sequence[str], types: Mapping[str, type | None]) -> tuple[list[str], list[str]]:
    """Splits overrides: those with a value, and the paths of fields that None unsets, which ml_collections cannot.

    Raises:
      UserError: None for a number, a boolean or a tuple that cannot be unset.
    """
    if not any(override.endswith("=None") for override in overrides):
        return [*overrides], []
    from inception_jax import config as configs

    optional = configs.optional_fields()
    last = {_path(override): override.partition("=")[2] for override in overrides}
    for path, value in last.items():
        if value == "None" and path not in optional and types.get(path) in (int, float, bool, tuple):
            raise UserError(f"--config.{path}=None: it needs a value, and cannot be unset")
    unset = [path for path, value in last.items() if value == "None" and path in optional]
    given = [one for one in overrides if _path(one) not in unset]
    return [one for one in given if _path(one) not in optional or one.partition("=")[2] != "None"], unset


def find_workdir(argv: Sequence[str]) -> Path | None:
    """Returns the workdir of the run whose config.json is the `--config` of a command line; None: it is none's."""
    given = recipe_of(split_arguments(argv)[0])
    file = Path(given) if given is not None else None
    return file.parent if file is not None and file.name == "config.json" and file.is_file() else None


def suggest_field(name: str) -> str:
    """Returns a hint for a flag that is the name of a config field: "; did you mean --config.num_epochs=…?"

    Args:
      name: of the unknown flag, without dashes.
    """
    name = name.replace("-", "_")
    paths = [path for path, kind in _types().items() if kind is not _SECTION]
    path = name if name in paths else f"{name}.name" if f"{name}.name" in paths else _OTHER_NAMES.get(name)
    path = path or next((path for path in paths if path.rpartition(".")[2] == name), None)
    return f"; did you mean --config.{path}=…?" if path else ""


def recipes_directory() -> Path:
    """The directory of the recipes that belong to this package: configs/ of a wheel, or of a clone."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _missing() -> UserError:
    return UserError("--config is missing: name a recipe, such as --config=configs/digits.py")


def _types() -> dict[str, type | None]:
    """{dotted path: type} of all fields, and of the sections, whose type is `_SECTION`."""
    from inception_jax import config as configs  # with jax: not before a command line has a config

    fields = configs.field_types()
    sections = {path[:end] for path in fields for end, letter in enumerate(path) if letter == "."}
    return dict.fromkeys(sections, _SECTION) | fields


def _override(argument: str, types: Mapping[str, type | None]) -> str:
    """Checks an override, and writes the value of a whole number as digits ("1e3" is 1000).

    Raises:
      UserError: a name that no field can have, a section, an empty value, or a value of another type.
    """
    flag, _, value = argument.partition("=")
    path = _path(argument)
    if not value.strip():
        refuse_empty(flag)
    if path not in types:
        if all(name.isidentifier() for name in path.split(".")):
            return argument  # the recipe may have fields of its own
        raise _unknown_field(path, types)
    if types[path] is _SECTION:
        inside = [name for name in types if name.startswith(f"{path}.")]
        raise UserError(f"{flag}: a section, not a field; set one of its fields, such as --config.{inside[0]}=…")
    given = f"{flag}={shorten(value)}"
    if value == "None":
        return argument  # `_split_unset` refuses it where it does not unset the field
    if types[path] is int:
        value = _whole_number(given, value)
    elif types[path] is float:
        _check_number(given, value)
    elif types[path] is bool and value.lower() not in _BOOLEANS:
        raise UserError(f"{given}: it must be one of 'True', 'False'")
    return f"{flag}={value}"


def _check_number(given: str, value: str) -> None:
    try:
        float(value)
    except ValueError:
        raise UserError(f"{given}: not a number") from None


def _whole_number(given: str, value: str) -> str:
    try:
        return str(int(value))
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        raise UserError(f"{given}: not a whole number") from None
    if not number.is_integer():
        raise UserError(f"{given}: not a whole number; such as 1000 or 1e3")
    return str(int(number))


def _path(argument: str) -> str:
    """The dotted path of an override `--config.PATH=VALUE`."""
    return argument.partition("=")[0].removeprefix("--config.")


def _unknown_field(path: str, types: Mapping[str, type | None]) -> UserError:
    """The error for an override without a field; names the first part of its path that is wrong."""
    parent = ""
    for name in path.split("."):
        if f"{parent}{name}" not in types:
            break
        parent += f"{name}."
    siblings = [other.removeprefix(parent) for other in types if other.startswith(parent)]
    near = nearest(name, [sibling for sibling in siblings if "." not in sibling])
    near = near or suggest_field(name) or f" in {'the config' if not parent else f'config.{parent[:-1]}'}"
    return UserError(f"config.{path}: no field {name!r}{near}")


def _find_recipe(given: str) -> str:
    """PATH[:ARGUMENT] of a recipe file, from the value of `--config`.

    Raises:
      UserError: there is neither such a file nor such an installed recipe; lists those.
    """
    text, colon, argument = given.partition(":")
    file = Path(text)
    if len(file.name) > 255:  # the longest name that a file can have
        raise UserError(f"--config={given}: there is no such file: its name has {len(file.name):,} characters")
    if file.is_file():
        return given
    if (file / "config.json").is_file():
        raise UserError(f"--config={given}: a run's workdir; name its config, --config={file / 'config.json'}")
    directory = recipes_directory()
    names = sorted(path.stem for path in directory.glob("*.py"))
    stem = file.stem if file.suffix in ("", ".py") else file.name
    if file in (Path(stem), Path(f"{stem}.py"), Path("configs", f"{stem}.py")):
        if stem in names:
            shipped = directory / f"{stem}.py"
            _log_once(f"recipe {text}: {shipped}")
            return f"{shipped}{colon}{argument}"
        raise UserError(
            f"--config={given}: there is no file {text!r} and no recipe {stem!r}{nearest(stem, names)}; "
            f"recipes: {', '.join(names)}"
        )
    others = [*file.parent.glob("*.py"), *file.parent.glob("*.json")] if file.parent.is_dir() else []
    near = nearest(file.name, [other.name for other in others])
    raise UserError(f"--config={given}: there is no file {text!r}{near}; recipes by name: {', '.join(names)}")


def _read_json(path: Path) -> ConfigDict:
    """Reads the config.json of a run.

    Raises:
      UserError: the file is not a config.
    """
    from inception_jax import config as configs
    from inception_jax.extension_files import DIRECTORY

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--config={path}: not the config.json of a run: {error}") from None
    if not isinstance(content, dict) or "model" not in content:
        raise UserError(f"--config={path}: not the config.json of a run: it has no 'model'")
    try:
        return configs.from_dict(content, copies=path.parent / DIRECTORY)
    except (TypeError, ValueError) as error:
        raise UserError(f"--config={path}: {_first_line(error)}") from None


@functools.cache
def _log_once(line: str) -> None:
    print(line, file=sys.stderr)


def _first_line(error: BaseException) -> str:
    """The first line of an error's text; ml_collections raises errors of errors of a text."""
    text: Any = error
    while isinstance(text, BaseException) and text.args:
        text = text.args[0]
    return str(text).partition("\n")[0]


def _last_line(error: Exception, recipe: str) -> str:
    """The last line of an error whose message holds a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"--config={recipe}: {lines[-1]}"
