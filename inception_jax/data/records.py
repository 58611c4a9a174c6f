"""Record sources, read by index: arrays in memory, image files, synthetic images, and parts of other sources.

`example_records` has those of data sets that TFDS has prepared.

Each source has `len(source)`, `source[i] -> (image, label)`, `record_name(i)`, the record's name in messages, and
`digest()`, by which a run knows its data again. An image is either the bytes of an image file or uint8 [height, width,
C]. A label is the number of a class, or, where examples have several, uint8 [classes] of 0 and 1. All sources pickle,
and any thread may read from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import operator
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from inception_jax.data import label_index, pillow_images, storage
from inception_jax.data.label_sets import LabelSets, check_row, count_labels, digest_parts, label_of, select_labels
from inception_jax.data.names import PackedNames, encode, printable
from inception_jax.errors import UserError, shorten

_MANY = 10_000  # records whose labels take so long to read that a line says so


class RecordSource(Protocol):
    """The interface of a record source.

    A source that has all labels without reading an image has them as the attribute `labels` (`read_labels`); one whose
    labels are worth keeping once they are read has the paths of its files as `files`. One whose records hold the names
    of their original files has a method `file_name(index)`.

    Attributes:
      in_memory: whether reading is so cheap that worker processes would only add cost.
    """

    @property
    def in_memory(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, Any]: ...

    def record_name(self, index: int) -> str: ...

    def digest(self) -> str:
        """SHA-256 of the names, sizes and labels of the records, in order; never of their contents."""
        ...


def sha256(*parts: object) -> str:
    """SHA-256 of bytes, arrays, numbers and strings, each with its length."""
    digest = hashlib.sha256()
    for part in parts:
        content = np.ascontiguousarray(part).tobytes() if isinstance(part, np.ndarray) else part
        content = content if isinstance(content, bytes) else encode(str(content))
        digest.update(b"%d:" % len(content))
        digest.update(content)
    return digest.hexdigest()


def label_counts(source: RecordSource, num_classes: int) -> list[int] | None:
    """Examples of each class, where the labels are known without reading records; else None."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return None
    return count_labels(labels, num_classes).tolist()


def files_of(source: RecordSource, records: range | None = None) -> set[str]:
    """The paths of the files on this machine that records of a source lie in; None: all of its records."""
    if isinstance(source, ConcatenatedRecords):
        return set().union(*(files_of(part.source, range(part.start, part.stop)) for part in source.parts))
    if isinstance(source, FileRecords):
        wanted = range(len(source)) if records is None else records
        return set() if storage.is_remote(source.folder) else set(map(source.path, wanted))
    return {*getattr(getattr(source, "tables", source), "files", ())}


def file_name(source: RecordSource, index: int) -> str:
    """The file name by which lists of images name a record, where the source keeps one; else `record_name`.

    Of a prepared data set, whose records may hold the names of the original files, it reads the record.
    """
    if isinstance(source, ConcatenatedRecords):
        return file_name(*source.find(index))
    find = getattr(source, "file_name", None)
    return (find and find(index)) or source.record_name(index)


@dataclasses.dataclass(frozen=True)
class MemoryRecords:
    """Arrays in memory.

    Attributes:
      images: uint8 [n, height, width, C].
      labels: int [n], or sets.
    """

    images: np.ndarray
    labels: np.ndarray | LabelSets
    in_memory = True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int | np.ndarray]:
        return self.images[index], label_of(self.labels, index)

    def record_name(self, index: int) -> str:
        return f"record {index}"

    def digest(self) -> str:
        return sha256("arrays", self.images.shape, self.images.dtype, *digest_parts(self.labels))


@dataclasses.dataclass(frozen=True)
class FileRecords:
    """Image files, read on demand.

    Attributes:
      folder: that the keys are below, or its address.
      keys: paths of the files below `folder`.
      labels: int [n], of the images, or sets.
      sizes: int64 [n], bytes of the files when they were listed.
    """

    folder: str
    keys: PackedNames
    labels: np.ndarray | LabelSets
    sizes: np.ndarray
    in_memory = False

    def __len__(self) -> int:
        return len(self.labels)

    def path(self, index: int) -> str:
        """The path of a file."""
        return os.path.join(self.folder, self.keys[index])

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        path, label = self.path(index), label_of(self.labels, index)
        if storage.is_remote(self.folder):
            return storage.read_bytes(path), label
        try:
            with open(path, "rb") as file:
                return file.read(), label
        except OSError as error:
            raise UserError(f"{printable(path)}: {error.strerror or error}") from None

    def record_name(self, index: int) -> str:
        return printable(self.path(index))

    def digest(self) -> str:
        return sha256("files", self.keys.packed, self.sizes.astype("<i8"), *digest_parts(self.labels))


@dataclasses.dataclass(frozen=True)
class OwnRecords:
    """A user's own object with a length and items; what it raises or returns wrong becomes an error of one line.

    Attributes:
      name: of the data set and split.
      items: item i is (image, label), or a dict of both under these names.
      label_columns: classes of labels of 0 and 1, where items have several; None: one class number each.
      labelled: whether labels are read; False: an item may also be the image alone, or have none or any label.
    """

    name: str
    items: Any
    label_columns: int | None = None
    labelled: bool = True
    in_memory = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int | np.ndarray]:
        where = f"{self.name}, item {index}"
        try:
            item = self.items[index]
            needed = ("image", "label")[: 1 + self.labelled]
            if isinstance(item, Mapping) and not item.keys() >= {*needed}:
                has = ", ".join(map(repr, item))
                raise UserError(f"{where}: a dict that has {has}; it needs {' and '.join(map(repr, needed))}")
            if self.labelled:
                image, label = (item["image"], item["label"]) if isinstance(item, Mapping) else item
                if self.label_columns is not None:
                    label = check_row(label, self.label_columns)
                elif np.ndim(label) or not hasattr(label, "__index__"):
                    raise UserError(
                        f"{where}: label {shorten(repr(label))}; an integer, its place in class_names, is needed"
                    )
                else:
                    label = operator.index(label)
            else:
                if isinstance(item, Mapping):
                    item = item["image"]
                has_label = isinstance(item, tuple | list) and len(item) <= 2
                image, label = item[0] if has_label else item, -1
            if isinstance(image, Image.Image):
                image = pillow_images.read(image, where, alpha=image.mode == "RGBA")
            elif not isinstance(image, bytes):
                image = np.asarray(image)
                image = image[..., None] if image.ndim == 2 else image
        except UserError:
            raise
        except Exception as error:  # whatever a user's object raises
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        if not isinstance(image, bytes):
            if image.dtype != np.uint8 or image.ndim != 3 or not image.shape[2]:
                raise UserError(
                    f"{where}: an image {image.dtype}{list(image.shape)}; uint8 [height, width, "
                    "channels], or the bytes of an image file, is needed"
                )
        return image, label

    def record_name(self, index: int) -> str:
        return f"item {index}"

    def digest(self) -> str:
        """SHA-256 of the number of items: they have no names."""
        several = () if self.label_columns is None else ("multi", self.label_columns)
        return sha256("items", len(self), *several)


@dataclasses.dataclass(frozen=True)
class SyntheticRecords:
    """Noise with labels 0, 1, 2, … in turn, to time a pipeline or a step without data.

    Every image is a window of one block of random bytes, so that making one costs no more than a memory access.

    Attributes:
      num_examples: length of the source.
      num_classes: labels are below it.
      side: height and width of the images, in pixels.
      channels: of the images.
    """

    num_examples: int
    num_classes: int
    side: int
    channels: int = 3
    in_memory = True

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        size = self.side * self.side * self.channels
        block = _noise(2 * size)
        start = index * 7919 % size  # a prime stride: successive images differ
        return block[start : start + size].reshape(self.side, self.side, self.channels), index % self.num_classes

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.num_examples) % self.num_classes

    def record_name(self, index: int) -> str:
        return f"record {index}"

    def digest(self) -> str:
        channels = () if self.channels == 3 else (self.channels,)
        return sha256("synthetic", self.num_examples, self.num_classes, self.side, *channels)


def read_labels(source: RecordSource) -> np.ndarray:
    """The label of every record of a source with one label each: int64 [n]; -1 where a record cannot be read.

    Sources that hold their labels give them at once; of the others every record is read. Those of a large prepared set
    are kept in the user's cache (`label_index`).
    """
    if isinstance(source, ConcatenatedRecords):
        parts = [read_labels(part.source)[part.start : part.stop] for part in source.parts]
        return np.concatenate([*parts, np.empty(0, np.int64)])
    labels = getattr(source, "labels", None)
    if labels is not None:
        return np.asarray(labels, np.int64)
    kept = None
    if len(source) >= _MANY:
        if (files := getattr(source, "files", None)) is not None:
            kept = label_index.path(source.digest(), files)
        if kept is not None and (known := label_index.read(kept, len(source))) is not None:
            return known
        print(f"reading the labels of {len(source):,} records", file=sys.stderr)
    found = np.full(len(source), -1, np.int64)
    for index in range(len(source)):
        with contextlib.suppress(UserError):
            found[index] = source[index][1]
    if kept is not None:
        label_index.write(kept, found)
    return found


@functools.lru_cache(maxsize=1)
def _noise(size: int) -> np.ndarray:
    return np.frombuffer(np.random.Philox(0).random_raw(-(-size // 8)).tobytes(), np.uint8)[:size]


@dataclasses.dataclass(frozen=True)
class RecordRange:
    """Records `start … stop - 1` of another source."""

    source: RecordSource
    start: int
    stop: int


class ConcatenatedRecords:
    """Ranges of other sources, one after the other: `train[:90%]`, `train+test`."""

    def __init__(self, parts: Sequence[RecordRange]):
        """Makes a source.

        Args:
          parts: the ranges; an empty one is allowed.
        """
        self.parts = tuple(parts)
        self.in_memory = all(part.source.in_memory for part in parts)

    def __len__(self) -> int:
        return sum(max(0, part.stop - part.start) for part in self.parts)

    def find(self, index: int) -> tuple[RecordSource, int]:
        """The source that record `index` is from, and its position there."""
        for part in self.parts:
            if index < part.stop - part.start:
                return part.source, part.start + index
            index -= max(0, part.stop - part.start)
        raise IndexError(index)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, Any]:
        source, index = self.find(int(index))
        return source[index]

    def record_name(self, index: int) -> str:
        source, index = self.find(int(index))
        return source.record_name(index)

    @property
    def labels(self) -> np.ndarray | LabelSets | None:
        """The labels of all records, where every part has its own at hand."""
        found = []
        for part in self.parts:
            labels = getattr(part.source, "labels", None)
            if labels is None:
                return None
            found.append(select_labels(labels, part.start, part.stop))
        sets = [labels for labels in found if isinstance(labels, LabelSets)]
        return LabelSets.join(sets) if sets else np.concatenate([np.empty(0, np.int64), *found])

    def digest(self) -> str:
        digests = {id(part.source): "" for part in self.parts}
        for part in self.parts:
            digests[id(part.source)] = digests[id(part.source)] or part.source.digest()
        ranges = [(digests[id(part.source)], part.start, part.stop) for part in self.parts]
        return sha256("ranges", *(value for each in ranges for value in each))
