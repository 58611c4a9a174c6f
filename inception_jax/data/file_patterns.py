"""Finds the files of a pattern such as `/data/{split}-{0000..1023}.tar`, split by split."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import itertools
import math
import os
import re
from collections.abc import Collection, Sequence

from inception_jax.data import split_names, storage
from inception_jax.data.names import nearest_entry, printable
from inception_jax.errors import UserError, counted

_SPLIT = "{split}"
_PIECES = re.compile(r"(\{split\}|\{\d+\.\.\d+\}|\*|\?|\[[^\]/]+\])")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 1_000_000


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of a split.

    Attributes:
      files: in the order of their names.
      problem: why the split cannot be used, or "".
      note: how many of a range are there, where not all are; or "".
    """

    files: list[str]
    problem: str = ""
    note: str = ""


def find(pattern: str, kind: str, noun: str) -> dict[str, Shards]:
    """Finds files.

    Args:
      pattern: as in `webdatasets.scan`.
      kind: of data sets, in messages: "webdataset".
      noun: of a file, in messages: "tar".

    Returns:
      {split: its files}, the training split first. Where the pattern leaves open which files there are (`{split}`, `*`,
      `?`, `[…]`), a split may end before a range does; one that misses a file below its last has a problem.

    Raises:
      UserError: the pattern cannot be read, or there are no such files.
    """
    name = f"{kind}:{printable(pattern)}"
    if storage.is_remote(pattern):
        raise UserError(f"{name}: {noun}s are read from a file system; mount the storage as one")
    if not pattern or pattern.count(_SPLIT) > 1:
        raise UserError(f"{name}: {kind}:PATTERN is needed, a path with at most one {_SPLIT}")
    pieces = _PIECES.split(os.path.abspath(os.path.expanduser(pattern)))
    numbers = _read_ranges(pieces, name)
    if all(_RANGE.fullmatch(piece) for piece in pieces[1::2]):
        files = [_fill(pieces, "", chosen) for chosen in itertools.product(*numbers)]
        for file in files:
            if not os.path.isfile(file):
                raise UserError(f"{name}: {printable(file)}: no such file")
        return {"train": Shards(sorted(set(files)))}
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    expression, known = re.compile(_expression(pieces)), [set(texts) for texts in numbers]
    for file in glob.iglob(_glob(pieces)):
        match = expression.fullmatch(file)
        if match and os.path.isfile(file):
            chosen = tuple(match[f"range{index}"] for index in range(len(numbers)))
            if all(text in texts for text, texts in zip(chosen, known, strict=True)):
                found.setdefault(match["split"] if _SPLIT in pieces else "train", {})[file] = chosen
    if not found:
        folder = os.path.dirname(pieces[0])
        near = "" if os.path.isdir(folder) else nearest_entry(folder)
        raise UserError(f"{name}: no such files{near}; *, ?, [a-z], {{000..127}} and {_SPLIT} are allowed in the path")
    return {split: _shards(pieces, numbers, split, found[split], noun) for split in split_names.ordered(found)}


def _read_ranges(pieces: Sequence[str], name: str) -> list[list[str]]:
    """The numbers of each range, as they are written."""
    ends = [match.groups() for piece in pieces if (match := _RANGE.fullmatch(piece))]
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in ends)
    if not 0 < count <= _MAX_FILES:
        raise UserError(f"{name}: a range of {count:,} files; 1 to {_MAX_FILES:,} are allowed")
    return [[f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ends]


def _glob(pieces: Sequence[str]) -> str:
    """A pattern for `glob` that finds at least the files."""
    wide = ["*" if piece == _SPLIT or _RANGE.fullmatch(piece) else piece for piece in pieces]
    return "".join(glob.escape(piece) if index % 2 == 0 else piece for index, piece in enumerate(wide))


def _expression(pieces: Sequence[str]) -> str:
    """A regular expression with the groups `split` and `range0`, `range1`, …; only brackets may match a slash."""
    found, ranges = [], 0
    known = {"*": "[^/]*?", "?": "[^/]", _SPLIT: "(?P<split>[A-Za-z0-9_]+)"}
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            found.append(re.escape(piece))
        elif match := _RANGE.fullmatch(piece):
            found.append(rf"(?P<range{ranges}>\d{{{len(match[1])},{max(map(len, match.groups()))}}})")
            ranges += 1
        else:  # a bracket as fnmatch reads it: [!a], and [z-a], which matches nothing
            found.append(known.get(piece) or fnmatch.translate(piece)[:-2])
    return "".join(found)


def _fill(pieces: Sequence[str], split: str, chosen: Sequence[str]) -> str:
    """The path with the name of a split and numbers in it."""
    numbers = iter(chosen)
    return "".join(
        split if piece == _SPLIT else next(numbers) if index % 2 and _RANGE.fullmatch(piece) else piece
        for index, piece in enumerate(pieces)
    )


def _shards(
    pieces: Sequence[str], numbers: Sequence[Collection[str]], split: str, found: dict[str, tuple[str, ...]], noun: str
) -> Shards:
    """The files of a split: {file: its numbers in the ranges}; compares them with the ranges."""
    there = set(found.values())
    missing: list[tuple[str, ...]] = []
    behind: list[tuple[str, ...]] = []  # those after the last that is there
    last: tuple[str, ...] = ()
    for chosen in itertools.product(*numbers):
        if chosen in there:
            missing += behind
            behind, last = [], chosen
        else:
            behind.append(chosen)
    problem = note = ""
    if missing:
        problem = (
            f"{printable(_fill(pieces, split, missing[0]))}: no such file, but there is "
            f"{printable(_fill(pieces, split, last))} ({counted(len(missing), noun)} of the range missing before it); "
            "copy what is missing, or write * for the range"
        )
    elif behind:
        note = (
            f"{split}: {len(there):,} of {counted(len(there) + len(behind), noun)} of the range, up to "
            f"{printable(_fill(pieces, split, last))}"
        )
    return Shards(sorted(found), problem, note)
