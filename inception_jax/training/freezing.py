"""Freezes parameters by regular expressions, and the running statistics of frozen batch norm layers.

The loss is differentiated by the other parameters only: the backward pass ends at the first of them, and the gradient
norm, clipping, weight decay and the optimizer state do not include frozen parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax

from inception_jax import tree_paths
from inception_jax.errors import UserError, counted
from inception_jax.training import paths

Tree = Any
FIELD = "optimizer.freeze"


@dataclasses.dataclass(frozen=True)
class Freezing:
    """The frozen parameters and batch statistics of a network.

    Attributes:
      params: paths of the frozen parameters.
      batch_norms: paths of the batch norm layers all of whose parameters are frozen.
      frozen_statistics: those of `batch_norms` that normalize with their running statistics, without updating them.
    """

    params: frozenset[str] = frozenset()
    batch_norms: tuple[str, ...] = ()
    frozen_statistics: tuple[str, ...] = ()

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """Splits parameters into (trained, frozen): two trees without each other's leaves."""
        return _split(params, self.params.__contains__) if self.params else (params, {})

    def split_statistics(self, batch_stats: Tree) -> tuple[Tree, Tree]:
        """Splits running statistics into (updated, frozen): two trees without each other's leaves."""
        frozen = set(self.frozen_statistics)
        return _split(batch_stats, lambda path: path.rpartition("/")[0] in frozen) if frozen else (batch_stats, {})

    def optimizer(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """Wraps an optimizer: no state for frozen parameters; its `update` takes trees of the trained ones only."""
        return optax.GradientTransformation(lambda params: optimizer.init(self.split(params)[0]), optimizer.update)


def find_frozen(patterns: Sequence[str], variables: Tree, frozen_batch_norm: str) -> Freezing:
    """Finds the parameters and batch norm layers that patterns freeze.

    Args:
      patterns: regular expressions, searched for in the path of each parameter.
      variables: {"params": …, "batch_stats": …} of the network, or their shapes.
      frozen_batch_norm: of a layer all of whose parameters are frozen; "running": it normalizes with its running
        statistics, which are frozen too; "batch": with the batch's statistics, as in training.

    Raises:
      UserError: a pattern matches no path, or nothing is left to train.
    """
    params = tree_paths.flatten(variables["params"])
    frozen = frozenset(paths.find(FIELD, patterns, params))
    if len(frozen) == len(params):
        raise UserError(f"config.{FIELD} = {tuple(patterns)!r}: every parameter is frozen; nothing is left to train")
    layers: dict[str, list[str]] = {}
    normalized = {path.rpartition("/")[0] for path in tree_paths.flatten(variables.get("batch_stats", {}))}
    for path in params:
        layer = path.rpartition("/")[0]
        if layer in normalized:
            layers.setdefault(layer, []).append(path)
    whole = tuple(layer for layer, members in layers.items() if frozen.issuperset(members))
    return Freezing(frozen, whole, whole if frozen_batch_norm == "running" else ())


def merge(one: Tree, other: Tree) -> Tree:
    """Merges the two trees of `Freezing.split` or `split_statistics`."""
    return tree_paths.nest(tree_paths.flatten(one) | tree_paths.flatten(other)) if other else one


def format_lines(freezing: Freezing, params: Tree, multipliers: Sequence[tuple[str, float]]) -> list[str]:
    """Formats log lines: the number of frozen parameters, and learning-rate multipliers; [] where there are none.

    Args:
      freezing: what is frozen.
      params: the whole tree.
      multipliers: (pattern, multiplier) pairs of the config.
    """
    sizes = {path: leaf.size for path, leaf in tree_paths.flatten(params).items()}
    trained = {path: size for path, size in sizes.items() if path not in freezing.params}
    lines = []
    if freezing.params:
        lines.append(
            f"{sum(trained.values()):,} of {sum(sizes.values()):,} parameters train; frozen: "
            f"{paths.summarize(freezing.params, sizes)}"
        )
    if freezing.batch_norms:
        rule = "running statistics" if freezing.frozen_statistics else "the batch's statistics"
        lines.append(f"{counted(len(freezing.batch_norms), 'frozen batch norm layer')}, normalized with {rule}")
    found = paths.find("optimizer.learning_rate_multipliers", [pattern for pattern, _ in multipliers], trained)
    for pattern, factor in multipliers:
        members = [path for path, first in found.items() if first == pattern]
        count = sum(trained[path] for path in members)
        lines.append(f"learning rate × {factor:g} for {count:,} parameters ({pattern!r})")
    return lines


def _split(tree: Tree, in_second: Callable[[str], bool]) -> tuple[Tree, Tree]:
    leaves = tree_paths.flatten(tree)
    second = {path: leaf for path, leaf in leaves.items() if in_second(path)}
    return tree_paths.nest({path: leaf for path, leaf in leaves.items() if path not in second}), tree_paths.nest(second)
