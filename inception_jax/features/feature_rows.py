"""Checks features, and reads them block by block in float64: they may be larger than the memory, mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inception_jax.errors import UserError, counted

BLOCK = 1024
"""Rows that are converted to float64 at once."""


def check_pair(real: np.ndarray, fake: np.ndarray, least: int, metric: str) -> None:
    """Checks the features of two sets of images.

    Args:
      real: [n, C].
      fake: [m, C].
      least: rows that each needs.
      metric: its name, for the message.

    Raises:
      UserError: another shape, another number of features, too few rows.
    """
    for name, rows in (("real", real), ("fake", fake)):
        check(rows, least, metric, name)
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"{metric}: {real.shape[1]} features of the real images and {fake.shape[1]} of the fake ones; both sets "
            "must be features of the same endpoint"
        )


def check(rows: np.ndarray, least: int, metric: str, name: str) -> None:
    """Checks the features of one set, as `check_pair`; `name` is the set's."""
    if rows.ndim != 2 or rows.dtype.kind != "f" or not rows.shape[1]:
        raise UserError(f"{metric}: the {name} features are {rows.dtype}{list(rows.shape)}; floating [n, C] is needed")
    if len(rows) < least:
        raise UserError(f"{metric}: {counted(len(rows), f'{name} image')}; at least {least:,} are needed")


def blocks(rows: np.ndarray, *, order: np.ndarray | None = None, name: str = "") -> Iterator[np.ndarray]:
    """Yields the rows in order, float64 [<= BLOCK, C].

    Args:
      rows: [n, C].
      order: int64 [m], positions of the rows that are wanted; None: all.
      name: of the set, for messages.

    Raises:
      UserError: a value that is not finite.
    """
    for start in range(0, len(rows if order is None else order), BLOCK):
        part = slice(start, start + BLOCK)
        yield finite(rows[part], start, name) if order is None else finite(rows[order[part]], name=name)


def finite(rows: np.ndarray, first: int = 0, name: str = "") -> np.ndarray:
    """Converts rows to float64, the first of which has the position `first` in messages, after the set's name.

    Raises:
      UserError: a value that is not finite.
    """
    wide = np.asarray(rows, np.float64)
    good = np.isfinite(wide).all(axis=1)
    if not good.all():
        position = first + int(np.flatnonzero(~good)[0])
        label = f"{name}: " if name else ""
        raise UserError(f"{label}the features of image {position} are not finite: no metric of them exists")
    return wide
