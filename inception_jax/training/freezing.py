"""Which parameters a run leaves as they are, and what becomes of the batch norms that they belong to.

A frozen parameter is no variable of the loss: the step differentiates the others only, so that nothing of the backward
pass before the first of them is computed, and neither gradient norm, clipping, decay nor the optimizer's state knows
of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import optax

from inception_jax import tree_paths
from inception_jax.errors import UserError
from inception_jax.training import paths

Tree = Any
FIELD = "optimizer.freeze"


@dataclasses.dataclass(frozen=True)
class Freezing:
    """What stays as it is.

    Attributes:
      params: paths of the frozen parameters.
      batch_norms: paths of the batch norm layers all of whose parameters are frozen.
      frozen_statistics: those of `batch_norms` that normalise by their running statistics and do not move them.
    """

    params: frozenset[str] = frozenset()
    batch_norms: tuple[str, ...] = ()
    frozen_statistics: tuple[str, ...] = ()

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """(parameters that are trained, parameters that are frozen): two trees without each other's leaves."""
        return _split(params, self.params.__contains__) if self.params else (params, {})

    def split_statistics(self, batch_stats: Tree) -> tuple[Tree, Tree]:
        """(running statistics that move, those that rest): two trees without each other's leaves."""
        resting = set(self.frozen_statistics)
        return _split(batch_stats, lambda path: path.rpartition("/")[0] in resting) if resting else (batch_stats, {})

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """As `optimizer`, with no state for what is frozen; its `update` gets the trained part of each tree."""
        return optax.GradientTransformation(lambda params: optimizer.init(self.split(params)[0]), optimizer.update)


def find_frozen(patterns: Sequence[str], variables: Tree, frozen_batch_norm: str) -> Freezing:
    """What a recipe freezes.

    Args:
      patterns: regular expressions, searched for in a parameter's path.
      variables: {"params": …, "batch_stats": …} of the network, or their shapes.
      frozen_batch_norm: "running": a batch norm layer all of whose parameters are frozen rests; "batch": it goes on
        taking the batch's statistics in training.

    Raises:
      UserError: a pattern that is found in no path, or nothing is left to train.
    """
    params = tree_paths.flatten(variables["params"])
    frozen = frozenset(paths.find(FIELD, patterns, params))
    if len(frozen) == len(params):
        raise UserError(f"config.{FIELD} = {tuple(patterns)!r}: every parameter is frozen; nothing is left to train")
    layers: dict[str, list[str]] = {}
    normalised = {path.rpartition("/")[0] for path in tree_paths.flatten(variables.get("batch_stats", {}))}
    for path in params:
        layer = path.rpartition("/")[0]
        if layer in normalised:
            layers.setdefault(layer, []).append(path)
    whole = tuple(layer for layer, members in layers.items() if frozen.issuperset(members))
    return Freezing(frozen, whole, whole if frozen_batch_norm == "running" else ())


def merge(one: Tree, other: Tree) -> Tree:
    """The tree that `Freezing.split` or `split_statistics` took apart."""
    return tree_paths.nest(tree_paths.flatten(one) | tree_paths.flatten(other)) if other else one


def format_lines(freezing: Freezing, params: Tree, multipliers: Sequence[tuple[str, float]]) -> list[str]:
    """Lines for a log: how many parameters train, and at which part of the learning rate; none where all train alike.

    Args:
      freezing: what is frozen.
      params: the whole tree.
      multipliers: (pattern, factor) pairs of the recipe.
    """
    sizes = {path: leaf.size for path, leaf in tree_paths.flatten(params).items()}
    trained = {path: size for path, size in sizes.items() if path not in freezing.params}
    lines = []
    if freezing.params:
        lines.append(
            f"{sum(trained.values()):,} of {sum(sizes.values()):,} parameters train; frozen: "
            f"{paths.summarise(freezing.params, sizes)}"
        )
    if freezing.batch_norms:
        rule = "running statistics" if freezing.frozen_statistics else "the batch's statistics"
        lines.append(f"{len(freezing.batch_norms)} frozen batch norm layer(s) normalise by {rule}")
    found = paths.find("optimizer.learning_rate_multipliers", [pattern for pattern, _ in multipliers], trained)
    for pattern, factor in multipliers:
        members = [path for path, first in found.items() if first == pattern]
        count = sum(trained[path] for path in members)
        lines.append(f"learning rate × {factor:g} for {count:,} parameters ({pattern!r})")
    return lines


def _split(tree: Tree, is_apart: Any) -> tuple[Tree, Tree]:
    leaves = tree_paths.flatten(tree)
    apart = {path: leaf for path, leaf in leaves.items() if is_apart(path)}
    return tree_paths.nest({path: leaf for path, leaf in leaves.items() if path not in apart}), tree_paths.nest(apart)
