"""Which parameters weight decay and learning-rate multipliers act on: regular expressions for their paths."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from inception_jax import patterns
from inception_jax.errors import UserError
from inception_jax.tree_paths import leaf_paths

Tree = Any
Multipliers = Mapping[str, float] | Sequence[tuple[str, float]]

KERNELS = r"(^|/)kernel$"
"""Paths of convolution and fully connected kernels: not biases, nor batch norm's scale and offset."""

BIASES = r"(^|/)bias$"
"""Paths of biases, on which `optimizer.bias_learning_rate` acts."""

# {pattern that no field holds: (the field that stands for it, what it acts on, the value without it)}
_OWN_PATTERNS = {BIASES: ("bias_learning_rate", "bias", 1), KERNELS: ("weight_decay", "kernel", 0)}


def check_value(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raises UserError where a value of the field `optimizer.<field>` is not allowed."""
    if not holds:  # `not (NaN >= 0)` is true: NaN is refused too.
        raise UserError(f"config.optimizer.{field} = {value!r}; allowed: {allowed}")


def compile_field(pattern: str, field: str) -> re.Pattern[str]:
    """Compiles a regular expression of the field `optimizer.<field>`; raises UserError."""
    return patterns.compile_pattern(pattern, f"config.optimizer.{field}")


def compile_multipliers(multipliers: Multipliers) -> list[tuple[re.Pattern[str], float]]:
    """The patterns and factors of `learning_rate_multipliers`, checked; raises UserError."""
    pairs = multipliers.items() if isinstance(multipliers, Mapping) else multipliers
    for _, factor in pairs:
        check_value(0 <= factor < math.inf, "learning_rate_multipliers", factor, "factors of 0 or more")
    return [(compile_field(pattern, "learning_rate_multipliers"), float(factor)) for pattern, factor in pairs]


def decayed_parameters(params: Tree, mask: re.Pattern[str]) -> Tree:
    """Tree of bool: the parameters that weight decay acts on."""
    paths = leaf_paths(params)
    found = set(patterns.search(mask, jax.tree.leaves(paths), "config.optimizer.weight_decay_mask"))
    decayed = jax.tree.map(lambda path: path in found, paths)
    if not any(jax.tree.leaves(decayed)):
        raise _no_match("weight_decay_mask", mask, paths)
    return decayed


def factors(params: Tree, multipliers: list[tuple[re.Pattern[str], float]]) -> Tree:
    """Tree of float: each parameter's factor on the learning rate."""
    paths = leaf_paths(params)
    found: dict[str, float] = {}
    for pattern, factor in multipliers:
        others = [path for path in jax.tree.leaves(paths) if path not in found]
        matches = patterns.search(pattern, others, "config.optimizer.learning_rate_multipliers")
        if not matches:
            raise _no_match("learning_rate_multipliers", pattern, paths)
        found |= dict.fromkeys(matches, factor)
    return jax.tree.map(lambda path: found.get(path, 1.0), paths)


def _no_match(field: str, pattern: re.Pattern[str], paths: Tree) -> UserError:
    if pattern.pattern in _OWN_PATTERNS:
        field, what, without = _OWN_PATTERNS[pattern.pattern]
        return UserError(
            f"config.optimizer.{field}: no {what} is trained that no earlier pattern matches (all are frozen, or the "
            f"network has none); set it to {without}"
        )
    return UserError(
        f"config.optimizer.{field}: {pattern.pattern!r} matches no path of a trained parameter (that no earlier "
        f"pattern matches); an example of a path: {jax.tree.leaves(paths)[0]!r}"
    )
