"""Which parameters weight decay and learning-rate multipliers act on: regular expressions for their paths."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from inception_jax import patterns
from inception_jax.errors import UserError
from inception_jax.tree_paths import leaf_paths

Tree = Any
Multipliers = Sequence[tuple[str, float]]

KERNELS = r"(^|/)kernel$"
"""Paths of convolution and fully connected kernels: not biases, nor batch norm's scale and offset."""

BIASES = r"(^|/)bias$"
"""Paths of biases, on which `optimizer.bias_learning_rate` acts."""

_MULTIPLIERS = "config.optimizer.learning_rate_multipliers"


def compile_multipliers(multipliers: Multipliers) -> list[tuple[re.Pattern[str], float]]:
    """Compiles the patterns of `learning_rate_multipliers`; raises UserError."""
    return [(patterns.compile_pattern(pattern, _MULTIPLIERS), float(factor)) for pattern, factor in multipliers]


def decayed_parameters(params: Tree) -> Tree:
    """Tree of bool: the parameters that weight decay acts on, the kernels; raises UserError where there is none."""
    paths = leaf_paths(params)
    decayed = jax.tree.map(lambda path: re.search(KERNELS, path) is not None, paths)
    if not any(jax.tree.leaves(decayed)):
        raise _none_trained("weight_decay", "kernel", 0)
    return decayed


def factors(params: Tree, multipliers: list[tuple[re.Pattern[str], float]]) -> Tree:
    """Tree of float: each parameter's factor on the learning rate; raises UserError for a pattern without a match."""
    paths = leaf_paths(params)
    found: dict[str, float] = {}
    for pattern, factor in multipliers:
        others = [path for path in jax.tree.leaves(paths) if path not in found]
        matches = patterns.search(pattern, others, _MULTIPLIERS)
        if not matches and pattern.pattern == BIASES:
            raise _none_trained("bias_learning_rate", "bias", 1)
        if not matches:
            raise UserError(
                f"{_MULTIPLIERS}: {pattern.pattern!r} matches no path of a trained parameter (that no earlier pattern "
                f"matches); an example of a path: {jax.tree.leaves(paths)[0]!r}"
            )
        found |= dict.fromkeys(matches, factor)
    return jax.tree.map(lambda path: found.get(path, 1.0), paths)


def _none_trained(field: str, what: str, without: int) -> UserError:
    return UserError(
        f"config.optimizer.{field}: no {what} is trained that no earlier pattern matches (all are frozen, or the "
        f"network has none); set it to {without}"
    )
