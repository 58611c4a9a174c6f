"""What the commands share: `--config` with overrides, and a user's mistake shown as one line."""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from inception_jax.errors import UserError, nearest


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on `sys.argv` and exits: 0, or the error's own code after one line on stderr.

    Args:
      main: takes the arguments after the program's name, returns an exit code (None is 0).
    """
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        code = _complain(error, error.exit_code)
    except BrokenPipeError:
        # The reader (`| head`) has gone; without this, Python would complain once more while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = _complain("interrupted", 130)
    except ValueError as error:
        if not _is_model_error(error):
            raise
        code = _complain(error, UserError.exit_code)
    sys.exit(code)


def parser(module: str, purpose: str) -> argparse.ArgumentParser:
    """The argument parser of `python -m inception_jax.<module>`; a wrong flag is one line with the nearest name."""
    return _Parser(prog=f"python -m inception_jax.{module}", description=purpose, allow_abbrev=False)


def add_config(arguments: argparse.ArgumentParser) -> None:
    """Adds `--config` to the help text; `parse_config` reads it."""
    arguments.add_argument("--config", metavar="FILE.py[:ARGUMENT]", help="a recipe, such as configs/digits.py")
    arguments.add_argument("--config.FIELD", metavar="VALUE", dest="_", help="overrides a field of the recipe")


def add_processes(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags by which several processes become one run (`multihost.processes.find_launch` reads them).

    Their names are those of `jax.distributed.initialize`.
    """
    group = arguments.add_argument_group("several processes (SLURM, Open MPI and TPU slices need no flags)")
    group.add_argument("--coordinator_address", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many processes the run has")
    group.add_argument("--process_id", type=int, metavar="I", help="which of them this is, from 0")
    group.add_argument(
        "--heartbeat_timeout_seconds",
        type=int,
        metavar="S",
        default=100,
        help="a process without a heartbeat for so long counts as lost (100)",
    )
    group.add_argument(
        "--distributed",
        choices=("auto", "on", "off"),
        default="auto",
        help="auto: join the others if a launcher started several; on: ask jax.distributed; off: alone",
    )


def step(text: str | None) -> int | str | None:
    """The value of a flag --step: the number of a checkpoint, or the word that was given ("best")."""
    return int(text) if text and text.isdecimal() else text


def option(text: str) -> tuple[str, Any]:
    """The type of a flag OPTION=VALUE: the value is a Python literal where it reads as one, and otherwise a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def parse_with_config(arguments: argparse.ArgumentParser, argv: list[str]):
    """Parses a command line that holds a recipe.

    Args:
      arguments: a parser with the command's own flags, made by `parser`.
      argv: arguments after the program's name.

    Returns:
      (namespace of the command's own flags, the recipe as a `ConfigDict`, {overridden field: value}).

    Raises:
      UserError: no recipe, a recipe that does not load, an unknown field, or a value of the wrong type.
    """
    own, of_config = [], []
    words = iter(argv)
    for word in words:
        if re.match(r"--?config[.=]|--?config$", word):
            of_config.append(word)
            if "=" not in word:
                of_config.append(next(words, ""))
        else:
            own.append(word)
    namespace = arguments.parse_args(own)
    recipe, overrides = load_config(of_config)
    return namespace, recipe, overrides


def load_config(words: list[str]):
    """Loads `--config=FILE[:ARGUMENT]` and its overrides `--config.FIELD=VALUE`.

    Returns:
      (recipe, {overridden field: value}).

    Raises:
      UserError: as `parse_with_config`.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    path = next((word.split("=", 1)[1] for word in words if re.match(r"--?config=", word)), None)
    if path is None and "--config" in words:
        path = words[words.index("--config") + 1]
    if not path:
        raise UserError("--config is missing: name a recipe, such as --config=configs/digits.py")
    file = Path(path.partition(":")[0])
    if not file.is_file():
        near = nearest(file.name, [other.name for other in file.parent.glob("*.py")]) if file.parent.is_dir() else ""
        raise UserError(f"--config={path}: there is no file {str(file)!r}{near}")
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=words)
    try:
        values(["inception_jax", *words])
        recipe = holder.value
        overrides = config_flags.get_override_values(values["config"])
    except flags.Error as error:
        raise UserError(_summary(error, path)) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(error, words, path)) from error
    if not isinstance(recipe, ConfigDict):
        raise UserError(f"--config={path}: get_config() returned {type(recipe).__name__}, not a ConfigDict")
    return recipe, overrides


def _unknown_field(error: BaseException, words: list[str], path: str) -> str:
    """`config.optimzer.x: no field 'optimzer'; did you mean …` from what ml_collections says in two lines."""
    text = error
    while isinstance(text, BaseException) and text.args:  # an AttributeError of a KeyError of a text
        text = text.args[0]
    first, _, second = str(text).partition("\n")
    name = first.strip("'")
    near = re.search(r'Did you mean "([^"]+)"', second)
    word = next((word for word in words if word.startswith(("--config.", "-config.")) and name in word), name)
    field = word.lstrip("-").partition("=")[0]
    return f"{field}: no field {name!r}" + (f"; did you mean {near[1]!r}?" if near else f" in {path}")


def _summary(error: Exception, path: str) -> str:
    """The last line of an error that carries a traceback in its message."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"--config={path}: {lines[-1]}"


def _is_model_error(error: ValueError) -> bool:
    registry = sys.modules.get("inception_jax.models.registry")
    return registry is not None and isinstance(error, registry.ModelError)


def _complain(error: object, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, but an error is one line with the nearest flag, raised rather than printed with the usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown[1].partition("=")[0]
            flags = [name for action in self._actions for name in action.option_strings]
            message = f"unknown argument {flag!r}{nearest(flag, flags)}; --help lists them"
        raise UserError(message)
