"""What the programs of this package have in common: names must be the same on both sides, and versions are told."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable


def check_names(what: str, wanted: Iterable[str], given: Iterable[str]) -> None:
    """Stops unless the names are the same on both sides.

    Args:
      what: the network, for the message.
      wanted: names of the implementation's variables.
      given: names of the request's arrays.
    """
    missing, left = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or left:
        raise SystemExit(f"{what}: missing {missing[:5]}, unexpected {left[:5]}")


def versions(*names: str) -> str:
    """Such as "tf-slim 1.1.0, tensorflow 2.21.0", of installed distributions."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
