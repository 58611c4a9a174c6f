"""What is read of an example (`Wanted`), and its classes where it has several, one or none (`LabelSets`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from inception_jax.data.names import printable
from inception_jax.errors import UserError

KINDS = ("single", "multi")
"""The values of `config.data.labels`: one class per example, or any number."""

NO_LABELS = "none"
"""Instead of one of `KINDS`, where only the images are read: labels need not be there."""

COLUMNS = "*"
"""`data.label_key`: each class has a column of a list, a bool of a prepared data set or of a `.json` of its own."""

NEEDED = (
    "several labels per example have lists (list:FILE), tars with .json (webdataset:PATTERN), columns of "
    "lists (huggingface:PATH), data sets that TFDS has "
    "prepared with a Sequence of ClassLabel, a Tensor of 0 and 1 or a dict of bools, and arrays that a recipe registers"
)
"""The end of an error for data that has one label per example."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is read of each example; what the keys name depends on the kind of data set.

    Attributes:
      image_key: `data.image_key`, or None.
      label_key: `data.label_key`, or None.
      several: whether an example has any number of labels.
      labelled: whether labels are read; False: there are no classes, and the examples have none.
    """

    image_key: str | None = None
    label_key: str | None = None
    several: bool = False
    labelled: bool = True

    def refuse_keys(self, name: str) -> None:
        """Raises `UserError` where a key is chosen: the data set `name` has no features."""
        for field, key in (("image_key", self.image_key), ("label_key", self.label_key)):
            if key is not None:
                raise UserError(
                    f"data.{field} = {key!r}: {name} has one image and one label per example; only data sets "
                    "that TFDS has prepared, lists and tars take it; leave it out"
                )

    def refuse_several(self, name: str) -> None:
        """Raises `UserError` where several labels are wanted: an example of the data set `name` has one."""
        if self.several:
            raise UserError(f"config.data.labels = 'multi': {printable(name)} has one label per example; {NEEDED}")


@dataclasses.dataclass(frozen=True)
class LabelSets:
    """The classes of n examples, without an array of n x classes.

    Attributes:
      ends: int64 [n], where the classes of each example end in `classes`.
      classes: int32, those of all examples one after another; of each ascending, without repetition.
      num_classes: classes are below it.
    """

    ends: np.ndarray
    classes: np.ndarray
    num_classes: int

    @classmethod
    def pack(cls, sets: Iterable[Iterable[int]], num_classes: int) -> LabelSets:
        """Packs the classes of each example; a class that is there twice counts once."""
        rows = [sorted({*one}) for one in sets]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(ends, np.array([label for row in rows for label in row], np.int32), num_classes)

    @classmethod
    def from_table(cls, table: np.ndarray) -> LabelSets:
        """Packs a table [n, num_classes] of 0 and 1."""
        rows, classes = np.nonzero(table)
        ends = np.searchsorted(rows, np.arange(len(table)), side="right").astype(np.int64)
        return cls(ends, classes.astype(np.int32), table.shape[1])

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> np.ndarray:
        """The labels of an example as 0 and 1: uint8 [num_classes]."""
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) if index else 0
        found = np.zeros(self.num_classes, np.uint8)
        found[self.classes[start : int(self.ends[index])]] = 1
        return found

    def select(self, start: int, stop: int) -> LabelSets:
        """The examples `start … stop - 1`."""
        first = int(self.ends[start - 1]) if start else 0
        ends = self.ends[start:stop] - first
        return LabelSets(
            ends, self.classes[first : first + int(ends[-1])] if len(ends) else self.classes[:0], self.num_classes
        )

    @classmethod
    def join(cls, parts: Sequence[LabelSets]) -> LabelSets:
        """The examples of several, one part after the other; at least one part."""
        starts = np.cumsum([0, *(len(part.classes) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate(ends), np.concatenate([part.classes for part in parts]), parts[0].num_classes)

    def counts(self) -> np.ndarray:
        """Examples of each class: int64 [num_classes]."""
        return np.bincount(self.classes, minlength=self.num_classes)


Labels = np.ndarray | LabelSets
"""Of the examples of a source: int [n], or sets."""


def label_of(labels: Labels, index: int) -> int | np.ndarray:
    """The label of an example: its class, or uint8 [num_classes] of 0 and 1."""
    return labels.row(index) if isinstance(labels, LabelSets) else int(labels[index])


def select_labels(labels: Labels, start: int, stop: int) -> Labels:
    """The labels of the examples `start … stop - 1`."""
    if isinstance(labels, LabelSets):
        return labels.select(start, max(start, stop))
    return np.asarray(labels)[start:stop]


def count_labels(labels: Labels, num_classes: int) -> np.ndarray:
    """Examples of each class: int64 [num_classes]."""
    if isinstance(labels, LabelSets):
        return labels.counts()
    return np.bincount(np.asarray(labels, np.int64), minlength=num_classes)


def digest_parts(labels: Labels) -> tuple[object, ...]:
    """What a digest of labels is made from; of sets also their form, so that no list of single labels equals it."""
    if isinstance(labels, LabelSets):
        return "multi", labels.num_classes, labels.ends.astype("<i8"), labels.classes.astype("<i8")
    return (np.asarray(labels, "<i8"),)


def is_set(value: Any, class_name: str, where: str) -> bool:
    """Whether the value of a class, in a cell of a list or a field of a `.json`, says that the image has it."""
    plain = value.strip().lower() if isinstance(value, str) else value
    if plain in (1, "1", "1.0", "true"):
        return True
    if plain in (0, "0", "0.0", "false"):
        return False
    raise UserError(f"{where}: {value!r} of the class {class_name!r}; 0 or 1 is needed")


def check_row(label: object, num_classes: int) -> np.ndarray:
    """The labels of an example as uint8 [num_classes].

    Args:
      label: num_classes values, each 0 or 1 (or False and True).
      num_classes: of the data set.

    Raises:
      ValueError: they are others.
    """
    values = np.asarray(label)
    if values.shape != (num_classes,) or not (values.dtype == bool or np.issubdtype(values.dtype, np.number)):
        raise ValueError(f"labels {values.dtype}{list(values.shape)}; [{num_classes}] of 0 and 1 are needed")
    if not ((values == 0) | (values == 1)).all():
        wrong = values[(values != 0) & (values != 1)][0]
        raise ValueError(f"label {wrong}; with several labels per example each is 0 or 1, for one class")
    return values.astype(np.uint8)
