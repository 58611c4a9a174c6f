"""Writes a config as a recipe: a Python file like those in configs/, ready for `train`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from inception_jax import config as configs
from inception_jax import schema
from inception_jax.metric_definitions import DEFAULT_METRIC
from inception_jax.runs.manifest import flatten, same_value

_WIDTH = 120


def format_recipe(config: Mapping[str, Any], docstring: str) -> str:
    """Formats a config as the source of a recipe file.

    Args:
      config: all fields, as config.json has them.
      docstring: of the file; its first line summarizes the recipe.

    Returns:
      Python source; its `get_config()` starts from the defaults and sets every field that differs from them.

    Raises:
      ConfigError: a field that this version does not have, or a value that it does not allow.
    """
    recipe = configs.from_dict(config)
    configs.check(recipe)
    defaults = dict(flatten(configs.default().to_dict()))
    defaults["checkpoint.best_metric"] = DEFAULT_METRIC[recipe.data.labels]
    differing = [(path, value) for path, value in flatten(recipe.to_dict()) if not same_value(value, defaults[path])]
    # Before anything else: they register the options of their networks.
    extensions = f"extensions={_literal(recipe.extensions)}" if recipe.extensions else ""
    text = docstring.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    lines = [
        f'"""{text}',
        '"""',
        "",
        "import inception_jax.config",
        "",
        "",
        "def get_config():",
        '    """The recipe, ready for overrides."""',
        f"    config = inception_jax.config.default({extensions})",
    ]
    lines += _assignments([field for field in differing if field[0] != "extensions"])
    return "\n".join([*lines, "    return config", ""])


def _assignments(fields: list[tuple[str, Any]]) -> Iterator[str]:
    """One assignment per field, in the schema's order, with an empty line before each section."""
    order = [path for path, _ in schema.fields()]
    sections: dict[str, list[str]] = {}
    # Model options, which the schema does not list, come last in their section.
    for path, value in sorted(fields, key=lambda field: order.index(field[0]) if field[0] in order else len(order)):
        section = path.partition(".")[0] if "." in path else ""
        sections.setdefault(section, []).append(f"    config.{path} = {_literal(value)}")
    for section, lines in sections.items():
        yield from [""] * bool(section) + lines


def _literal(value: Any) -> str:
    """A Python literal that evaluates to exactly this value; a long tuple gets one line per item."""
    value = configs.to_tuples(value)
    text = _quoted(value)
    if not isinstance(value, tuple) or len(text) < _WIDTH // 2:
        return text
    return "(\n" + "".join(f"        {_quoted(item)},\n" for item in value) + "    )"


def _quoted(value: Any) -> str:
    """`repr` with double quotes, as in the recipes, where the string has no quotes itself."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_quoted, value)) + ("," if len(value) == 1 else "") + ")"
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and re.fullmatch(r"'[^'\"]*'", text) else text
