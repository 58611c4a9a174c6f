"""Record sources, read by index: prepared ArrayRecord files, arrays in memory, image files, synthetic images.

Each source has `len(source)`, `source[i] -> (image, label)` and `record_name(i)`, the record's name in messages. An
image is either the bytes of an image file or uint8 [height, width, 3]. All sources pickle, and any thread may read from
them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from inception_jax.errors import UserError

_MANY = 10_000  # records whose labels take so long to read that a line says so


class RecordSource(Protocol):
    """The interface of a record source.

    A source that has all labels without reading an image has them as the attribute `labels` (`read_labels`).

    Attributes:
      in_memory: whether reading is so cheap that worker processes would only add cost.
    """

    @property
    def in_memory(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]: ...

    def record_name(self, index: int) -> str: ...


@dataclasses.dataclass(frozen=True)
class MemoryRecords:
    """Arrays in memory.

    Attributes:
      images: uint8 [n, height, width, 3].
      labels: int [n].
    """

    images: np.ndarray
    labels: np.ndarray
    in_memory = True

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])

    def record_name(self, index: int) -> str:
        return f"record {index}"


@dataclasses.dataclass(frozen=True)
class FileRecords:
    """Image files, read on demand.

    Attributes:
      paths: of the files.
      labels: of the images.
    """

    paths: Sequence[str]
    labels: Sequence[int]
    in_memory = False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        try:
            with open(self.paths[index], "rb") as file:
                return file.read(), int(self.labels[index])
        except OSError as error:
            raise UserError(f"{self.paths[index]}: {error.strerror or error}") from None

    def record_name(self, index: int) -> str:
        return os.fspath(self.paths[index])


@dataclasses.dataclass(frozen=True)
class OwnRecords:
    """A user's own object with a length and items; what it raises or returns wrong becomes an error of one line.

    Attributes:
      name: of the data set and split.
      items: item i is (image, label).
    """

    name: str
    items: Any
    in_memory = False

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        try:
            image, label = self.items[index]
            label = operator.index(label)
        except Exception as error:  # whatever a user's object raises
            raise UserError(f"{self.name}, item {index}: {type(error).__name__}: {error}") from error
        if not isinstance(image, bytes):
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise UserError(
                    f"{self.name}, item {index}: an image {image.dtype}{list(image.shape)}; uint8 [height, width, 3], "
                    "or the bytes of an image file, is needed"
                )
        return image, label

    def record_name(self, index: int) -> str:
        return f"item {index}"


@dataclasses.dataclass(frozen=True)
class SyntheticRecords:
    """Noise with labels 0, 1, 2, … in turn, to time a pipeline or a step without data.

    Every image is a window of one block of random bytes, so that making one costs no more than a memory access.

    Attributes:
      num_examples: length of the source.
      num_classes: labels are below it.
      side: height and width of the images, in pixels.
    """

    num_examples: int
    num_classes: int
    side: int
    in_memory = True

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        size = self.side * self.side * 3
        block = _noise(2 * size)
        start = index * 7919 % size  # a prime stride: successive images differ
        return block[start : start + size].reshape(self.side, self.side, 3), index % self.num_classes

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.num_examples) % self.num_classes

    def record_name(self, index: int) -> str:
        return f"record {index}"


def read_labels(source: RecordSource) -> np.ndarray:
    """The label of every record: int64 [n]; -1 where a record cannot be read.

    Sources that hold their labels give them at once; of the others every record is read.
    """
    if isinstance(source, ConcatenatedRecords):
        parts = [read_labels(part.source)[part.start : part.stop] for part in source.parts]
        return np.concatenate([*parts, np.empty(0, np.int64)])
    labels = getattr(source, "labels", None)
    if labels is not None:
        return np.asarray(labels, np.int64)
    if len(source) >= _MANY:
        print(f"reading the labels of {len(source):,} records", file=sys.stderr)
    found = np.full(len(source), -1, np.int64)
    for index in range(len(source)):
        with contextlib.suppress(UserError):
            found[index] = source[index][1]
    return found


@functools.lru_cache(maxsize=1)
def _noise(size: int) -> np.ndarray:
    return np.frombuffer(np.random.Philox(0).random_raw(-(-size // 8)).tobytes(), np.uint8)[:size]


@dataclasses.dataclass(frozen=True)
class FileInstruction:
    """Records `skip … skip + take - 1` of one ArrayRecord file, with the field names that its reader asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class ArrayRecords:
    """Records of a prepared TFDS data set: `tf.train.Example` messages in ArrayRecord files.

    The files are opened at the first read, in each process.
    """

    in_memory = False

    def __init__(self, parts: Sequence[FileInstruction], image_key: str, label_key: str):
        """Makes a source; opens nothing.

        Args:
          parts: the ranges of the files, in order.
          image_key: the feature that holds the bytes of the image.
          label_key: the feature that holds the label.
        """
        self.parts = tuple(parts)
        self.image_key, self.label_key = image_key, label_key

    def __len__(self) -> int:
        return sum(part.take for part in self.parts)

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": self.parts, "image_key": self.image_key, "label_key": self.label_key}

    @functools.cached_property
    def _reader(self) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        for part in self.parts:
            if not os.path.exists(part.filename):
                raise UserError(f"{part.filename}: this file of the prepared data set is missing; prepare it again")
        return ArrayRecordDataSource(self.parts)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        reader, message = self._reader, _example_message()
        try:
            features = message.FromString(reader[int(index)]).features.feature
            return features[self.image_key].bytes_list.value[0], features[self.label_key].int64_list.value[0]
        except Exception as error:  # the reader's and the message's own types, which have no common base
            raise UserError(
                f"{self.record_name(index)}: damaged ({type(error).__name__}: {error}); prepare it again"
            ) from None

    def record_name(self, index: int) -> str:
        for part in self.parts:
            if index < part.take:
                return f"record {part.skip + index} of {part.filename}"
            index -= part.take
        raise IndexError(index)


@functools.cache
def _example_message() -> Any:
    """The protobuf message of TFDS records; importing it takes a third of a second, so not before the first read."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


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

    def _find(self, index: int) -> tuple[RecordSource, int]:
        for part in self.parts:
            if index < part.stop - part.start:
                return part.source, part.start + index
            index -= max(0, part.stop - part.start)
        raise IndexError(index)

    def __getitem__(self, index: int) -> tuple[bytes | np.ndarray, int]:
        source, index = self._find(int(index))
        return source[index]

    def record_name(self, index: int) -> str:
        source, index = self._find(int(index))
        return source.record_name(index)
