"""Formats what the scan of a folder found: images per class and split, imbalance, and what was left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from inception_jax.data.folder_files import UNDECODED
from inception_jax.data.folders import FolderScan
from inception_jax.data.names import printable
from inception_jax.errors import counted

_MAX_ROWS = 20  # of the table of classes; more classes are told as a range
_IMBALANCE = 2.0
_MAX_NAMES = 4


def format_account(found: FolderScan) -> list[str]:
    """Formats the account of a scan, line by line."""
    counts = {
        name: np.bincount(split.labels, minlength=len(found.class_names))
        for name, split in found.splits.items()
        if not split.problem
    }
    lines: list[str] = []
    if counts:
        lines += (_table if len(found.class_names) <= _MAX_ROWS else _ranges)(found.class_names, counts)
    for name, values in counts.items():
        largest, smallest = int(values.argmax()), int(values.argmin())
        if values[largest] >= _IMBALANCE * values[smallest] and values[smallest]:
            lines.append(
                f"{name} is imbalanced: {values[largest]:,} images of {found.class_names[largest]!r}, "
                f"{values[smallest]:,} of {found.class_names[smallest]!r}"
            )
        elif not values[smallest]:
            missing = [found.class_names[label] for label in np.flatnonzero(values == 0)]
            lines.append(f"{name} has no images of {_names([repr(label) for label in missing])}")
    lines += [
        f"split {name!r} cannot be used: {split.problem}" for name, split in found.splits.items() if split.problem
    ]
    return [*lines, *found.notes, *_left_out(found)]


def _table(class_names: Sequence[str], counts: dict[str, np.ndarray]) -> Iterator[str]:
    width = max(len(name) for name in ["class", *class_names])
    columns = {name: max(len(name), len(f"{values.max(initial=0):,}")) for name, values in counts.items()}
    yield f"  {'class':{width}}" + "".join(f"  {name:>{size}}" for name, size in columns.items())
    for label, class_name in enumerate(class_names):
        numbers = "".join(f"  {counts[name][label]:>{size},}" for name, size in columns.items())
        yield f"  {class_name:{width}}{numbers}"


def _ranges(class_names: Sequence[str], counts: dict[str, np.ndarray]) -> Iterator[str]:
    for name, values in counts.items():
        smallest, largest = int(values.argmin()), int(values.argmax())
        yield (
            f"{name}: {values.sum():,} images of {len(values):,} classes, {values[smallest]:,} "
            f"({class_names[smallest]}) to {values[largest]:,} ({class_names[largest]}) each"
        )


def _left_out(found: FolderScan) -> Iterator[str]:
    left = found.left_out
    undecoded = {suffix: count for suffix, count in left.suffixes.items() if suffix in UNDECODED}
    others = {suffix: count for suffix, count in left.suffixes.items() if suffix not in UNDECODED}
    if undecoded:
        yield f"left out: {_counts(undecoded)}: images that cannot be decoded here; convert them to PNG or JPEG"
    if others:
        yield f"left out: {_counts(others)}: no image"
    if left.hidden:
        yield f"left out: {_counts(left.hidden)}: hidden or of the system"
    if left.links:
        yield f"left out: {_names(left.links)}: {counted(len(left.links), 'link')} to what counts already"
    if left.others:
        yield f"left out: {_names(left.others)}: beside the split folders, or empty"


def _counts(counts: dict[str, int]) -> str:
    return _names([f"{count:,} {name or 'without a suffix'}" for name, count in Counter(counts).most_common()])


def _names(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(map(printable, names[:_MAX_NAMES])) + (f" and {more:,} more" if more > 0 else "")
