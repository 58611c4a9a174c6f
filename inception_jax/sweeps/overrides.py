"""Turns the values of a trial into `--config.FIELD=VALUE` arguments, as a user would type them, and checks them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from inception_jax import config, recipe_files
from inception_jax.errors import UserError


def config_arguments(argv: Sequence[str]) -> list[str]:
    """Extracts the recipe and its overrides from a command line.

    Args:
      argv: a command line that `recipe_files.parse_with_config` takes.

    Returns:
      The arguments `--config=…` and `--config.FIELD=…`, each as one string.
    """
    return recipe_files.split_arguments(argv)[0]


def override_arguments(values: Mapping[str, Any]) -> list[str]:
    """The arguments that set fields to values.

    Args:
      values: {field: value}; None unsets a field.
    """
    return [f"--config.{field}={value if isinstance(value, str) else repr(value)}" for field, value in values.items()]


def check(config_arguments: Sequence[str], values: Mapping[str, Any]) -> None:
    """Checks that a training process would get exactly these values, and that the schema allows them.

    Args:
      config_arguments: the arguments of the recipe and of its overrides.
      values: {field: value} of one trial, or of some of its parameters.

    Raises:
      UserError: a value that the field does not accept, or that a command line cannot express.
    """
    recipe, _ = recipe_files.load_config([*config_arguments, *override_arguments(values)])
    found = dict(leaves(recipe))
    for field, value in values.items():
        if not _same(found[field], value):
            raise UserError(f"config.{field} = {value!r}: the training process would read it as {found[field]!r}")
    config.check(recipe)


def leaves(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted path, value) of every field; the value is None where the field is unset."""
    for name in section:
        value = section[name]
        if isinstance(value, ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _same(found: Any, value: Any) -> bool:
    if isinstance(value, list | tuple):
        return isinstance(found, list | tuple) and len(found) == len(value) and all(map(_same, found, value))
    return isinstance(found, bool | str | None) == isinstance(value, bool | str | None) and found == value
