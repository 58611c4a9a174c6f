"""The leaves of a network's variables by their paths, `inception_3a/conv_1x1/kernel`: found, and told in few words."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from inception_jax.errors import UserError, nearest

HEAD = "classifier"
"""The name of the last layer of every head (`models.heads.classifier`)."""

_MOST_WORDS = 12  # names in a summary; a log line, not a list


def find(field: str, patterns: Sequence[str], paths: Collection[str]) -> dict[str, str]:
    """Which paths some pattern is found in.

    Args:
      field: the config field that the patterns are from, for the messages.
      patterns: regular expressions, searched for anywhere in a path.
      paths: of the leaves.

    Returns:
      {path: the first pattern that is found in it}, without the paths that none is found in.

    Raises:
      UserError: no regular expression, or a pattern that is found in no path.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            raise UserError(f"config.{field}: {pattern!r} is not a regular expression: {error}") from None
        hits = [path for path in paths if compiled.search(path)]
        if not hits:
            modules = {
                "/".join(parts[:depth])
                for parts in (path.split("/") for path in paths)
                for depth in range(1, len(parts))
            }
            hint = nearest(re.sub(r"[^\w/]", "", pattern).strip("/"), sorted(modules))
            raise UserError(
                f"config.{field}: {pattern!r} is found in no path{hint}; the paths are such as "
                f"{next(iter(paths), 'none')!r}"
            )
        for path in hits:
            found.setdefault(path, pattern)
    return found


def summarise(chosen: Iterable[str], universe: Collection[str]) -> str:
    """Some of a network's leaves in few words: `conv1 … inception_5b, aux1/fc`.

    A module stands for its leaves where all of them are chosen; a row of neighbours by its first and its last. Heads
    come last, since they lie between the modules of the trunk.

    Args:
      chosen: paths.
      universe: all paths, in the order of the network.
    """
    chosen, modules = set(chosen), {}
    for path in universe:
        modules.setdefault(path.split("/")[0], []).append(path)
    order = sorted(modules, key=lambda name: any(HEAD in path.split("/") for path in modules[name]))
    parts: list[tuple[int, str]] = []  # (place of a whole module in the order, or -1; name)
    for place, name in enumerate(order):
        if chosen.issuperset(modules[name]):
            parts.append((place, name))
        else:
            parts += [(-1, prefix) for prefix in _prefixes(chosen, modules[name])]
    words, row = [], []
    for place, name in [*parts, (-1, "")]:
        if place >= 0 and (not row or row[-1][0] == place - 1):
            row.append((place, name))
            continue
        names = [name for _, name in row]
        words += [f"{names[0]} … {names[-1]}"] if len(names) > 2 else names
        row = [(place, name)] if place >= 0 else []
        words += [name] if place < 0 and name else []
    if len(words) > _MOST_WORDS:
        words[_MOST_WORDS - 1 :] = [f"and {len(words) - _MOST_WORDS + 1} more"]
    return ", ".join(words)


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
