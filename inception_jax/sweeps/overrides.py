"""Turns the values of a trial into `--config.FIELD=VALUE` arguments, as a user would type them, and checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inception_jax import config, recipe_files
from inception_jax.errors import UserError
from inception_jax.runs.manifest import same_value


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
    found = dict(config.leaves(recipe))
    for field, value in values.items():
        if not same_value(found[field], value):
            raise UserError(f"config.{field} = {value!r}: the training process would read it as {found[field]!r}")
    config.check(recipe)
