"""Shared by the programs of this package: a strict check of array names, and versions of distributions."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def check_names(what: str, expected: Iterable[str], given: Iterable[str]) -> None:
    """Exits with a message unless the names are the same on both sides.

    Args:
      what: the network, for the message.
      expected: names of the implementation's variables.
      given: names of the request's arrays.
    """
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unexpected:
        raise SystemExit(f"{what}: missing {missing[:5]}, unexpected {unexpected[:5]}")


def versions(*names: str) -> str:
    """Formats versions of installed distributions, such as "tf-slim 1.1.0, tensorflow 2.21.0".

    Args:
      *names: of the distributions.
    """
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
