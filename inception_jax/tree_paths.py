"""The paths of the leaves of a tree, such as `params/conv1/kernel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util


def leaf_paths(tree: Any) -> Any:
    """Returns the tree with each leaf replaced by its path."""
    return jax.tree.map_with_path(lambda path, _: _format_path(path), tree)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf}, in the order of `jax.tree.leaves`.

    Raises:
      ValueError: two leaves would have the same name (a key that contains a slash).
    """
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {_format_path(path): leaf for path, leaf in pairs}
    if len(leaves) != len(pairs):
        raise ValueError("two leaves of the tree have the same path: a key contains '/'")
    return leaves


def flatten(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of nested dictionaries, in the order in which they were filled (`named_leaves` sorts)."""
    return traverse_util.flatten_dict(tree, sep="/")


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dictionaries from {path: leaf}: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def _format_path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
