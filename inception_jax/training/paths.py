"""Paths of a network's leaves, such as `inception_3a/conv_1x1/kernel`: finds them by patterns, and summarizes them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from inception_jax import patterns as regular_expressions
from inception_jax.errors import UserError, nearest

HEAD = "classifier"
"""The name of the last layer of every head (`models.heads.classifier`)."""

_MAX_NAMES = 12  # in a summary, which is part of a log line


def find(field: str, patterns: Sequence[str], paths: Collection[str]) -> dict[str, str]:
    """Finds the paths that match regular expressions.

    Args:
      field: the config field of the patterns, for messages.
      patterns: regular expressions, searched for anywhere in a path.
      paths: of the leaves.

    Returns:
      {path: the first pattern that matches}; paths without a match are absent.

    Raises:
      UserError: a pattern is not a regular expression or matches no path.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        compiled = regular_expressions.compile_pattern(pattern, f"config.{field}")
        hits = regular_expressions.search(compiled, paths, f"config.{field}")
        if not hits:
            modules = {
                "/".join(parts[:depth])
                for parts in (path.split("/") for path in paths)
                for depth in range(1, len(parts))
            }
            hint = nearest(re.sub(r"[^\w/]", "", pattern).strip("/"), sorted(modules))
            raise UserError(
                f"config.{field}: {pattern!r} matches no path{hint}; an example of a path: "
                f"{next(iter(paths), 'none')!r}"
            )
        for path in hits:
            found.setdefault(path, pattern)
    return found


def summarize(chosen: Iterable[str], universe: Collection[str]) -> str:
    """Summarizes a subset of a network's leaves: `conv1 … inception_5b, aux1/fc`.

    A module whose leaves are all chosen appears by its name; consecutive modules as first … last. Heads come last,
    since they lie between the modules of the trunk.

    Args:
      chosen: paths of the subset.
      universe: all paths, in the order of the network.
    """
    chosen = set(chosen)
    modules: dict[str, list[str]] = {}
    for path in universe:
        modules.setdefault(path.split("/")[0], []).append(path)
    order = sorted(modules, key=lambda name: any(HEAD in path.split("/") for path in modules[name]))
    parts: list[tuple[int, str]] = []  # (place of a whole module in the order, or -1; name)
    for place, name in enumerate(order):
        if chosen.issuperset(modules[name]):
            parts.append((place, name))
        else:
            parts += [(-1, prefix) for prefix in _prefixes(chosen, modules[name])]
    names: list[str] = []
    row: list[tuple[int, str]] = []
    for place, name in [*parts, (-1, "")]:
        if place >= 0 and (not row or row[-1][0] == place - 1):
            row.append((place, name))
            continue
        run = [name for _, name in row]
        names += [f"{run[0]} … {run[-1]}"] if len(run) > 2 else run
        row = [(place, name)] if place >= 0 else []
        names += [name] if place < 0 and name else []
    if len(names) > _MAX_NAMES:
        names[_MAX_NAMES - 1 :] = [f"and {len(names) - _MAX_NAMES + 1} more"]
    return ", ".join(names)


def _prefixes(chosen: set[str], paths: Sequence[str], depth: int = 2) -> list[str]:
    """The shortest prefixes of at least `depth` names whose paths are all chosen, in order."""
    found: list[str] = []
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault("/".join(path.split("/")[:depth]), []).append(path)
    for prefix, members in groups.items():
        if chosen.issuperset(members):
            found.append(prefix)
        elif chosen.intersection(members):
            found += _prefixes(chosen, members, depth + 1)
    return found
