"""Formats what the scan of a folder found: images per class and split, imbalance, and what was left out and why."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from inception_jax.data import split_names
from inception_jax.data.folder_files import UNDECODED
from inception_jax.data.folders import FolderScan
from inception_jax.data.label_sets import LabelSets, count_labels, select_labels
from inception_jax.data.names import one_line, printable
from inception_jax.errors import counted, look_alike

_MAX_ROWS = 20  # of the table of classes; more classes are told as a range
_IMBALANCE = 2.0
_MAX_NAMES = 4
_FEW = 2  # images of a class that may be a typing error; the class that is meant has at least _TIMES as many
_TIMES = 5
_MAX_FEW = 20  # classes with so few images; more of them are no typing errors
_MAX_LETTERS = 255  # comparing takes time that grows with the length
_GUARD = "; a wrong name becomes a class: data.class_names=FILE names those that are allowed"
_MAX_MISNAMED = 20  # folders beside one another; more are no splits
_LOOKED_AT = 100  # images of a class, for whether they are in folders below it


def format_account(
    found: FolderScan,
    labelled: bool = True,
    parts: Mapping[str, Sequence[tuple[str, int, int]]] = MappingProxyType({}),
) -> list[str]:
    """Formats the account of a scan, line by line.

    Args:
      found: by the scan.
      labelled: whether labels are read; False: the classes are not in the account.
      parts: {name: (split, start, stop) of its images} of parts of splits, such as "train[:80%]", which are in the
        account in the place of these splits.
    """
    labels = {name: split.labels for name, split in found.splits.items() if labelled and not split.problem}
    counts = {name: count_labels(own, len(found.class_names)) for name, own in labels.items()}
    totals = {name: len(own) for name, own in labels.items()}
    in_parts = {split for ranges in parts.values() for split, _, _ in ranges}
    shown = {name: values for name, values in counts.items() if name not in in_parts}
    for name, ranges in parts.items() if labelled else ():
        own = [select_labels(labels[split], start, stop) for split, start, stop in ranges]
        shown[name] = sum((count_labels(one, len(found.class_names)) for one in own), np.zeros((), np.int64))
        totals[name] = sum(map(len, own))
    lines: list[str] = []
    train = split_names.training(counts) if found.open_classes else None
    if shown:
        if len(found.class_names) <= _MAX_ROWS:
            lines += _table(found.class_names, shown)
        else:
            lines += _ranges(found.class_names, shown, totals)
    for name, values in shown.items():
        largest, smallest = int(values.argmax()), int(values.argmin())
        if values[largest] >= _IMBALANCE * values[smallest] and values[smallest]:
            lines.append(
                f"{name} is imbalanced: {values[largest]:,} images of {found.class_names[largest]!r}, "
                f"{values[smallest]:,} of {found.class_names[smallest]!r}"
            )
        elif not values[smallest]:
            missing = np.flatnonzero(values == 0)
            guard = _GUARD if train and counts[train][missing].min() <= _FEW else ""
            lines.append(f"{name} has no images of {_names([repr(found.class_names[k]) for k in missing])}{guard}")
    if train:
        lines += _look_alikes(found.class_names)
        lines += _typing_errors(found.class_names, counts[train])
    lines += [
        f"split {name!r} cannot be used: {split.problem}" for name, split in found.splits.items() if split.problem
    ]
    for name, how, kind in _misnamed_splits(found):
        lines.append(f"{name!r} {how}: is it the split {kind!r}? Then rename it")
    return [*lines, *found.notes, *_left_out(found)]


def misnamed_splits(found: FolderScan) -> str:
    """The end of the error for an unknown split: the folders that may be meant as splits; or ""."""
    folders = list(_misnamed_splits(found))
    if not folders:
        return ""
    names, splits = (", ".join(map(repr, column)) for column in ([f[0] for f in folders], [f[2] for f in folders]))
    if len(folders) == 1:
        return f"; is the folder {names} the split {splits}? Then rename it"
    return f"; are the folders {names} the splits {splits}? Then rename them"


def _misnamed_splits(found: FolderScan) -> Iterator[tuple[str, str, str]]:
    """Yields (a folder, what it was taken for, the split that its name may mean)."""
    for name in found.left_out.others[:_MAX_MISNAMED]:
        if kind := split_names.kind_of(name):
            yield printable(name), "is left out", kind
    split = next((part for part in found.splits.values() if part.folder == found.root), None)
    if split is None or len(found.class_names) > _MAX_MISNAMED or isinstance(split.labels, LabelSets):
        return
    for label, name in enumerate(found.class_names):
        if kind := split_names.kind_of(name):
            images = np.flatnonzero(split.labels == label)[:_LOOKED_AT]
            folders = [split.keys[int(index)].split("/") for index in images]
            if folders and all(parts[0] == name and len(parts) > 2 for parts in folders):
                yield name, "is a class, and its images are in folders", kind


def _look_alikes(class_names: Sequence[str]) -> Iterator[str]:
    """Names the classes whose names look the same."""
    seen: dict[str, str] = {}
    for name in class_names:
        other = seen.setdefault(look_alike(name), name)
        if other != name:
            yield f"classes {other!a} and {name!a} look the same (spaces, Unicode), and are two classes{_GUARD}"


def _typing_errors(class_names: Sequence[str], counts: np.ndarray) -> Iterator[str]:
    """Names the classes with very few images whose name differs by one or two letters from a class with many."""
    number = dict(zip(class_names, counts.tolist(), strict=True))
    few = [name for name, count in number.items() if name and 0 < count <= _FEW]
    if len(few) > _MAX_FEW or max(map(len, few), default=0) > _MAX_LETTERS:
        return
    many = {name.casefold(): name for name, count in number.items() if count >= _TIMES}
    digits = {folded: re.sub(r"\D", "", folded) for folded in [*map(str.casefold, few), *many]}
    for name in few:
        folded = name.casefold()
        near = [
            other
            for other in many
            if abs(len(other) - len(folded)) <= 2
            and number[many[other]] >= _TIMES * number[name]
            and digits[other] == digits[folded]  # not "class 1" and "class 2"
        ]
        for other in difflib.get_close_matches(folded, near, n=1, cutoff=max(0.65, 1 - 2 / len(folded))):
            yield (
                f"class {name!r} has {counted(number[name], 'image')}, and its name is near to that of "
                f"{many[other]!r} with {number[many[other]]:,}{_GUARD}"
            )


def _table(class_names: Sequence[str], counts: dict[str, np.ndarray]) -> Iterator[str]:
    class_names = [*map(one_line, class_names)]
    width = max(len(name) for name in ["class", *class_names])
    columns = {name: max(len(name), len(f"{values.max(initial=0):,}")) for name, values in counts.items()}
    yield f"  {'class':{width}}" + "".join(f"  {name:>{size}}" for name, size in columns.items())
    for label, class_name in enumerate(class_names):
        numbers = "".join(f"  {counts[name][label]:>{size},}" for name, size in columns.items())
        yield f"  {class_name:{width}}{numbers}"


def _ranges(class_names: Sequence[str], counts: dict[str, np.ndarray], totals: dict[str, int]) -> Iterator[str]:
    for name, values in counts.items():
        smallest, largest = int(values.argmin()), int(values.argmax())
        yield (
            f"{name}: {totals[name]:,} images of {len(values):,} classes, {values[smallest]:,} "
            f"({one_line(class_names[smallest])}) to {values[largest]:,} ({one_line(class_names[largest])}) each"
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
