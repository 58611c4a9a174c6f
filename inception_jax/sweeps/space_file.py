"""Loads the Python file that `--space` names, and checks it against the recipe before the first trial begins."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from inception_jax import config
from inception_jax.errors import UserError, nearest, shorten
from inception_jax.sweeps import overrides
from inception_jax.sweeps.parameters import Choice, Interval
from inception_jax.sweeps.space import Space

Trials = tuple[dict[str, Any], ...]


def load(path: str, recipe: ConfigDict, config_arguments: Sequence[str]) -> tuple[Space | None, Trials]:
    """Runs the file, and checks what its `get_space()` and `get_trials()` return; one of them may be missing.

    Args:
      path: of the file.
      recipe: the config whose fields are set.
      config_arguments: the arguments of the recipe and of its overrides.

    Returns:
      (the space of `get_space()`, None where the file does not define it; the trials of `get_trials()`, configs that
      are tried first: {field: value} each, also of fields outside the space).

    Raises:
      UserError: the file is missing or has an error, a field does not exist, or a field does not accept a value.
    """
    namespace = _run(path)
    get_space, get_trials = namespace.get("get_space"), namespace.get("get_trials")
    if not callable(get_space) and not callable(get_trials):
        near = nearest("get_space", [name for name in namespace if not name.startswith("__")])
        raise UserError(f"--space={path}: it defines neither get_space() nor get_trials(){near}")
    try:
        fields = dict(config.leaves(recipe))
        space = _space(_call(path, get_space), fields, config_arguments) if callable(get_space) else None
        trials = _trials(_call(path, get_trials), space, fields, config_arguments) if callable(get_trials) else ()
    except UserError as error:
        if str(error).startswith("--space="):
            raise
        raise UserError(f"--space={path}: {error}") from None
    return space, trials


def _run(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = Path(path).parent
        near = nearest(Path(path).name, [file.name for file in folder.glob("*.py")]) if folder.is_dir() else ""
        raise UserError(f"--space={path}: the file does not exist{near}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"--space={path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    namespace: dict[str, Any] = {"__name__": "sweep_space", "__file__": path}
    _call(path, lambda: exec(compile(text, path, "exec"), namespace))
    return namespace


def _call(path: str, call: Any) -> Any:
    """Returns the result of the file's code; turns any exception into one line with the line number."""
    try:
        return call()
    except SyntaxError as error:
        raise UserError(f"--space={path}, line {error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        where = f", line {lines[-1]}" if lines else ""
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"--space={path}{where}: {kind}{' '.join(str(error).split())}") from None


def _space(given: Any, fields: Mapping[str, Any], config_arguments: Sequence[str]) -> Space:
    if not isinstance(given, Mapping) or not given:
        raise UserError(
            f"get_space() returned {shorten(repr(given))}; it must return {{field: real(…), integer(…) or choice(…)}}"
        )
    for field, parameter in given.items():
        _check_field(field, fields)
        if not isinstance(parameter, Interval | Choice):
            raise UserError(f"{field} = {shorten(repr(parameter))}: it must be real(…), integer(…) or choice(…)")
    space = Space(given)
    for field, parameter in space.parameters.items():
        for value in parameter.values_to_check():
            overrides.check(config_arguments, {field: value})
    return space


def _trials(given: Any, space: Space | None, fields: Mapping[str, Any], config_arguments: Sequence[str]) -> Trials:
    if not isinstance(given, list | tuple):
        raise UserError(f"get_trials() returned {shorten(repr(given))}; it must return a list of {{field: value}}")
    if space is None and not given:
        raise UserError("get_trials() returned no trial, and the file has no get_space()")
    return tuple(_trial(index, trial, space, fields, config_arguments) for index, trial in enumerate(given))


def _trial(
    index: int, given: Any, space: Space | None, fields: Mapping[str, Any], config_arguments: Sequence[str]
) -> dict[str, Any]:
    """Checks one entry of `get_trials()`, and turns its lists into tuples; {} stands for the unchanged recipe."""
    if not isinstance(given, Mapping):
        raise UserError(f"get_trials()[{index}] is {shorten(repr(given))}; it must be {{field: value}}")
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in given.items()}
    try:
        for field, value in values.items():
            _check_field(field, fields)
            parameter = space.parameters.get(field) if space else None
            if parameter is not None and parameter.encode(value) is None:
                raise UserError(f"{field} = {value!r} is outside the space: {parameter.summary()}")
        overrides.check(config_arguments, values)
    except UserError as error:
        raise UserError(f"get_trials()[{index}]: {error}") from None
    return values


def _check_field(field: Any, fields: Mapping[str, Any]) -> None:
    if field not in fields:
        near = nearest(field, fields)
        if isinstance(field, str) and field.startswith("config.") and field.removeprefix("config.") in fields:
            near = f"; did you mean {field.removeprefix('config.')!r}?"
        raise UserError(f"{field}: the config has no such field{near}")
