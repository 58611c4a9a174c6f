"""Other labels for a split, and examples to leave out: `evaluate --exclude=FILE` and `--labels=FILE`."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from inception_jax.errors import UserError, nearest, text_failure
from inception_jax.evaluation.split_predictions import SplitPredictions

# A file of ILSVRC's validation set: ILSVRC2012_val_00000001.JPEG to …50000.JPEG; its lists name images by this number.
_ILSVRC = re.compile(r"ILSVRC2012_val_(\d{8})\b")
# As Hugging Face's copy has it: ILSVRC2012_val_00000001_n01751748.JPEG.
_WITH_CLASS = re.compile(r"(?<=ILSVRC2012_val_\d{8})_n\d{8}\b")


def exclude(predictions: SplitPredictions, path: str) -> SplitPredictions:
    """Leaves out the examples that a file lists, such as ILSVRC's list of 2014 (`…_validation_blacklist.txt`).

    Args:
      predictions: of a split.
      path: of a text file with one image a line: its name, or the end of its path, with or without suffix; of ILSVRC's
        validation set also its number. Empty lines and lines that begin with # are skipped.

    Raises:
      UserError: the file cannot be read, or a line names no example, or several.
    """
    finder, keep = _Finder(predictions), np.ones(len(predictions.index), bool)
    for number, line in enumerate(_read(path, "--exclude").splitlines(), 1):
        if (text := line.strip()) and not text.startswith("#"):
            keep[finder.find(text, f"--exclude={path}, line {number}")] = False
    if not keep.any():
        raise UserError(f"--exclude={path}: it lists all {len(keep):,} examples")
    return predictions.select(keep)


def relabel(predictions: SplitPredictions, path: str) -> SplitPredictions:
    """Replaces the labels by those of a file; of several right classes the most probable one becomes the label.

    An example is right if its prediction is one of its classes, as in "Are we done with ImageNet?" (arXiv:2006.07159).

    Args:
      predictions: of a split.
      path: of a JSON file: a list with an entry for every example of the split, in its order (of ILSVRC's validation
        set: in the order of its numbers, as real.json has it), or an object {name: entry}, whose other examples are
        left out. An entry is a class or a list of classes, by number or name; [] leaves the example out. Or an object
        with "labels", one of these two, and "classes": the only classes that may be predicted, as for sets with a part
        of ImageNet's classes.

    Raises:
      UserError: the file cannot be read, or names an example or a class that is not there.
    """
    where = f"--labels={path}"
    if predictions.label_kind == "multi":
        raise UserError(
            f"{where}: it replaces the one right label of each example, and config.data.labels = 'multi'; evaluate on "
            "data with the other labels instead"
        )
    try:
        content = json.loads(_read(path, "--labels"))
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    allowed = None
    if isinstance(content, dict) and "labels" in content and set(content) <= {"labels", "classes"}:
        if "classes" in content:
            allowed = _classes(content["classes"], predictions.class_names, f"{where}, classes")
            if not allowed:
                raise UserError(f"{where}: 'classes' is empty; leave it out to allow all")
        content = content["labels"]
    entries = _entries(content, predictions, where)
    logs = predictions.log_probabilities
    if allowed is not None:
        logs = _restrict(logs, allowed)
    keep, labels = np.zeros(len(entries), bool), predictions.labels.copy()
    for row, entry in enumerate(entries):
        right = _classes(entry, predictions.class_names, f"{where}, {predictions.names[row]}")
        if allowed is not None and not set(right) <= set(allowed):
            raise UserError(f"{where}, {predictions.names[row]}: a class that is not one of 'classes'")
        if right:
            keep[row], labels[row] = True, right[int(np.argmax(logs[row, right]))]
    if not keep.any():
        raise UserError(f"{where}: no example has a label")
    found = SplitPredictions(
        predictions.about, predictions.class_names, predictions.names, predictions.index, labels, logs
    )
    return found.select(keep)


def _restrict(logs: np.ndarray, allowed: Sequence[int]) -> np.ndarray:
    """Probability zero for all other classes; those of the allowed ones are divided by their sum."""
    inside = logs[:, allowed].astype(np.float64)
    largest = inside.max(1, keepdims=True)
    restricted = np.full(logs.shape, -np.inf)
    restricted[:, allowed] = inside - largest - np.log(np.exp(inside - largest).sum(1, keepdims=True))
    return restricted


def _entries(content: Any, predictions: SplitPredictions, where: str) -> list[Any]:
    """The entry of each example; [] of one that the file does not name."""
    finder, count = _Finder(predictions), len(predictions.index)
    entries: list[Any] = [[] for _ in range(count)]
    if isinstance(content, Mapping):
        for name, entry in content.items():
            entries[finder.find(str(name), where)] = entry
        return entries
    if not isinstance(content, list):
        raise UserError(f"{where}: a {type(content).__name__}; a list or an object of labels is needed")
    if finder.numbers:
        if len(content) < max(finder.numbers):
            most = max(finder.numbers)
            raise UserError(f"{where}: {len(content):,} entries; the images are numbered up to {most:,}")
        for number, row in finder.numbers.items():
            entries[row] = content[number - 1]
        return entries
    if len(content) <= int(predictions.index[-1]):
        raise UserError(f"{where}: {len(content):,} entries; the split has {int(predictions.index[-1]) + 1:,} examples")
    if int(predictions.index[-1]) + 1 == count and len(content) != count:
        raise UserError(f"{where}: {len(content):,} entries; the split has {count:,} examples")
    return [content[int(position)] for position in predictions.index]


def _classes(entry: Any, class_names: Sequence[str], where: str) -> list[int]:
    """The numbers of the classes of an entry."""
    found = []
    for one in entry if isinstance(entry, list) else [entry]:
        if isinstance(one, str):
            if one not in class_names:
                raise UserError(f"{where}: unknown class {one!r}{nearest(one, class_names)}")
            found.append(class_names.index(one))
        elif isinstance(one, int) and not isinstance(one, bool) and 0 <= one < len(class_names):
            found.append(one)
        else:
            raise UserError(f"{where}: class {one!r}; the classes are 0 to {len(class_names) - 1}, or their names")
    return found


class _Finder:
    """Finds examples by their names.

    Attributes:
      numbers: {ILSVRC's number of an image: its row}; empty where not all names have one.
    """

    def __init__(self, predictions: SplitPredictions) -> None:
        self._names = [_WITH_CLASS.sub("", str(name).replace("\\", "/")) for name in predictions.names]
        self._about = predictions.about
        self._rows: dict[str, list[int]] = collections.defaultdict(list)
        for row, name in enumerate(self._names):
            path = PurePosixPath(name)
            for key in {path.name, path.stem}:
                self._rows[key].append(row)
        numbers = [_ILSVRC.search(name) for name in self._names]
        self.numbers = {int(found[1]): row for row, found in enumerate(numbers) if found} if all(numbers) else {}

    def find(self, text: str, where: str) -> int:
        """The row of an example.

        Raises:
          UserError: none has this name, or several have.
        """
        if text.isascii() and text.isdigit():
            if not self.numbers:
                raise UserError(
                    f"{where}: number {text}: the files of {self._about['dataset']} [{self._about['split']}] have no "
                    f"numbers of ILSVRC; give names, such as {self._names[0]!r}"
                )
            if int(text) not in self.numbers:
                raise UserError(f"{where}: no image has the number {text}")
            return self.numbers[int(text)]
        wanted = text.replace("\\", "/")
        exact = [row for row in self._rows.get(PurePosixPath(wanted).name, ()) if self._matches(row, wanted)]
        if len(exact) != 1:
            what = "no example has" if not exact else f"{len(exact)} examples have"
            raise UserError(
                f"{where}: {what} the name {text!r}; names are such as {self._names[0]!r}"
                + ("; give more of the path" if exact else "")
            )
        return exact[0]

    def _matches(self, row: int, wanted: str) -> bool:
        name = self._names[row]
        return any(
            end == wanted or end.endswith(f"/{wanted}") for end in (name, str(PurePosixPath(name).with_suffix("")))
        )


def _read(path: str, flag: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{flag}={path}: cannot be read: {text_failure(error)}") from None
