"""Common code of the commands: `--config` with overrides, the flags of several processes, errors as one line."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Runs a command on `sys.argv` and exits the process; an error is one line on stderr and its own exit code.

    Args:
      main: takes the arguments after the program's name and returns an exit code; None is 0.
    """
    try:
        code = main(sys.argv[1:]) or 0
        sys.stdout.flush()
    except UserError as error:
        code = _print_error(error, error.exit_code)
    except BrokenPipeError:
        # The reader (`| head`) has closed the pipe; without this, Python would report that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        code = _print_error("interrupted", 130)
    except ValueError as error:
        if not _is_model_error(error):
            raise
        code = _print_error(error, UserError.exit_code)
    sys.exit(code)


def parser(module: str, purpose: str) -> argparse.ArgumentParser:
    """The argument parser of `python -m inception_jax.<module>`; an unknown flag is an error of one line."""
    return _Parser(prog=f"python -m inception_jax.{module}", description=purpose, allow_abbrev=False)


def add_config(arguments: argparse.ArgumentParser) -> None:
    """Adds `--config` to the help text; `parse_with_config` reads it."""
    arguments.add_argument(
        "--config",
        metavar="RECIPE[:ARGUMENT]",
        help="a recipe: a Python file, or the name of one that is installed, such as configs/digits.py or digits",
    )
    arguments.add_argument("--config.FIELD", metavar="VALUE", dest="_", help="overrides a field of the config")


def add_processes(arguments: argparse.ArgumentParser) -> None:
    """Adds the flags with which several processes join one run (`multihost.processes.find_launch` reads them).

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
        help="auto: join the others if a launcher started several; on: call jax.distributed; off: one process",
    )


def report(line: str) -> None:
    """Prints a line on stderr that says what a command does: its result alone goes to stdout."""
    print(line, file=sys.stderr, flush=True)


def step(text: str | None) -> int | str | None:
    """Converts the value of `--step`: the step of a checkpoint as a number, or a name such as "best"."""
    return int(text) if text and text.isdecimal() else text


def option(text: str) -> tuple[str, Any]:
    """The argparse type of OPTION=VALUE: (name, value); the value is a Python literal, or else a string."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not OPTION=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def parse_with_config(
    arguments: argparse.ArgumentParser, argv: list[str]
) -> tuple[argparse.Namespace, ConfigDict, dict[str, Any]]:
    """Parses a command line that has a `--config`.

    Args:
      arguments: a parser with the command's own flags, made by `parser`.
      argv: arguments after the program's name.

    Returns:
      (namespace of the command's own flags, the config, {overridden field: value}).

    Raises:
      UserError: no recipe, a recipe that does not load, an unknown field, or a value of the wrong type.
    """
    own, of_config = [], []
    rest = iter(argv)
    for argument in rest:
        if re.match(r"--?config[.=]|--?config$", argument):
            of_config.append(argument)
            if "=" not in argument:
                of_config.append(next(rest, ""))
        else:
            own.append(argument)
    namespace = arguments.parse_args(own)
    config, overrides = load_config(of_config)
    return namespace, config, overrides


def load_config(arguments: list[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """Loads `--config=RECIPE[:ARGUMENT]` and its overrides `--config.FIELD=VALUE`.

    RECIPE is a Python file. Where there is no such file, NAME, NAME.py and configs/NAME.py are the recipe NAME that is
    installed with the package.

    Args:
      arguments: the arguments of a command line that begin with `--config`, and their values.

    Returns:
      (config, {overridden field: value}).

    Raises:
      UserError: as `parse_with_config`.
    """
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    arguments = list(arguments)
    place = next((i for i, argument in enumerate(arguments) if re.match(r"--?config(=|$)", argument)), None)
    if place is not None and "=" not in arguments[place]:  # `--config RECIPE`, in two arguments
        arguments[place : place + 2] = ["=".join(arguments[place : place + 2])]
    given = "" if place is None else arguments[place].partition("=")[2]
    if place is None or not given:
        raise UserError("--config is missing: name a recipe, such as --config=configs/digits.py")
    arguments[place] = f"--config={_find_recipe(given)}"
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(["inception_jax", *arguments])
        config = holder.value
        overrides = config_flags.get_override_values(values["config"])
    except flags.Error as error:
        raise UserError(_last_line(error, given)) from error
    except (AttributeError, KeyError) as error:
        raise UserError(_unknown_field(error, arguments, given)) from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={given}: get_config() returned {type(config).__name__}, not a ConfigDict")
    return config, overrides


def recipes_directory() -> Path:
    """The directory of the recipes that belong to this package: configs/ of a wheel, or of a clone."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find_recipe(given: str) -> str:
    """PATH[:ARGUMENT] of a recipe file, from the value of `--config`.

    Raises:
      UserError: there is neither such a file nor such an installed recipe; lists those.
    """
    text, colon, argument = given.partition(":")
    file = Path(text)
    if file.is_file():
        return given
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
    near = nearest(file.name, [other.name for other in file.parent.glob("*.py")]) if file.parent.is_dir() else ""
    raise UserError(f"--config={given}: there is no file {text!r}{near}; recipes by name: {', '.join(names)}")


@functools.cache
def _log_once(line: str) -> None:
    print(line, file=sys.stderr)


def _unknown_field(error: BaseException, arguments: list[str], recipe: str) -> str:
    """`config.optimzer.x: no field 'optimzer'; did you mean …` from an error of ml_collections, which has two lines."""
    text: Any = error
    while isinstance(text, BaseException) and text.args:  # an AttributeError of a KeyError of a text
        text = text.args[0]
    first, _, second = str(text).partition("\n")
    name = first.strip("'")
    near = re.search(r'Did you mean "([^"]+)"', second)
    overrides = (argument for argument in arguments if argument.startswith(("--config.", "-config.")))
    field = next((argument for argument in overrides if name in argument), name).lstrip("-").partition("=")[0]
    return f"{field}: no field {name!r}" + (f"; did you mean {near[1]!r}?" if near else f" in {recipe}")


def _last_line(error: Exception, recipe: str) -> str:
    """The last line of an error whose message holds a traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"--config={recipe}: {lines[-1]}"


def _is_model_error(error: ValueError) -> bool:
    registry = sys.modules.get("inception_jax.models.registry")
    return registry is not None and isinstance(error, registry.ModelError)


def _print_error(error: object, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {error}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, but errors are raised as a `UserError` of one line that names the nearest flag."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError; argparse would print the usage and exit."""
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown:
            flag = unknown[1].partition("=")[0]
            flags = [name for action in self._actions for name in action.option_strings]
            message = f"unknown argument {flag!r}{nearest(flag, flags)}; --help lists them"
        raise UserError(message)
