"""How the values of a trial reach its training process: as the `--config.FIELD=VALUE` that a person would type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from inception_jax import command_line, config
from inception_jax.errors import UserError


def config_arguments(argv: Sequence[str]) -> list[str]:
    """The recipe and its overrides out of a command line, each as one word `--config…=…`.

    Args:
      argv: a command line that `command_line.parse_with_config` takes.
    """
    words, kept = iter(argv), []
    for word in words:
        if re.match(r"--?config[.=]|--?config$", word):
            name, equals, value = word.partition("=")
            kept.append(f"--{name.lstrip('-')}={value if equals else next(words, '')}")
    return kept


def override_arguments(values: Mapping[str, Any]) -> list[str]:
    """The overrides that set fields to values.

    Args:
      values: {field: value}. None stands for a field that the recipe leaves unset, and needs no word.
    """
    return [
        f"--config.{field}={value if isinstance(value, str) else repr(value)}"
        for field, value in values.items()
        if value is not None
    ]


def check(config_arguments: Sequence[str], values: Mapping[str, Any]) -> None:
    """Makes sure that a training process would see these very values, and that the schema allows them.

    Args:
      config_arguments: the words of the recipe and of its overrides.
      values: {field: value} of one trial, or of some of its parameters.

    Raises:
      UserError: a value that the field does not take, or that a command line cannot give it.
    """
    recipe, _ = command_line.load_config([*config_arguments, *override_arguments(values)])
    found = dict(leaves(recipe))
    for field, value in values.items():
        if not _same(found[field], value):
            why = (
                "the recipe sets it, and nothing on a command line unsets it"
                if value is None
                else f"it would come back as {found[field]!r}"
            )
            raise UserError(f"config.{field} = {value!r}: {why}")
    config.check(recipe)


def leaves(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field; None where nothing set it."""
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
