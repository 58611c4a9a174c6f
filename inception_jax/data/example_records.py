"""Records of prepared TFDS data sets: `tf.train.Example` messages in ArrayRecord, TFRecord or Parquet files.

The three formats hold the same messages in the same order, and give the same labels and the same bytes of images. What
serves without TensorFlow is used: TFDS's builders for metadata and splits, its protobuf message, array_record's reader.
`tfds.data_source` decodes images itself (a grey one to two axes), reads all of a Parquet set into memory and refuses
TFRecord; so `tfrecords` and `ParquetRecords` are written here.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from inception_jax.data import tfrecords
from inception_jax.data.imports import import_module
from inception_jax.data.label_sets import check_row
from inception_jax.data.names import printable
from inception_jax.data.open_files import OpenFiles
from inception_jax.data.records import sha256
from inception_jax.data.tables import ParquetTables
from inception_jax.errors import UserError

# The features in which TFDS's builders keep the name of the original file: ImageNet and its relatives, others, COCO.
_FILE_NAMES = ("file_name", "filename", "image/file_name", "image/filename")


@dataclasses.dataclass(frozen=True)
class FileInstruction:
    """Records `skip … skip + take - 1` of one file, with the field names that array_record's reader asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True)
class LabelForm:
    """How records hold several labels.

    Attributes:
      num_classes: of the data set.
      is_table: a value 0 or 1 for each class (a Tensor); False: the numbers of the classes (a Sequence of ClassLabel).
      keys: the feature of each class, where it has one of its own.
    """

    num_classes: int
    is_table: bool
    keys: tuple[str, ...] = ()

    def read(self, features: Any, key: str) -> np.ndarray:
        """The labels in the features of a `tf.train.Example` as uint8 [num_classes] of 0 and 1.

        Args:
          features: of the record.
          key: of the feature with all labels; not used where each class has one.

        Raises:
          ValueError: a class that the data set does not have, a value that is neither 0 nor 1, or a feature that is not
            there.
        """
        if self.keys:
            return np.array([_read_flag(features, one) for one in self.keys], np.uint8)
        feature = _existing(features, key)
        values = np.asarray(feature.float_list.value or feature.int64_list.value)
        if self.is_table:
            return check_row(values, self.num_classes)
        if len(values) and not 0 <= values.min() <= values.max() < self.num_classes:
            raise ValueError(f"classes {values.tolist()[:10]}; they are 0 to {self.num_classes - 1}")
        found = np.zeros(self.num_classes, np.uint8)
        found[values.astype(np.int64)] = 1
        return found

    def digest_parts(self) -> tuple[object, ...]:
        """What a digest of the records is made from."""
        return "multi", self.num_classes, self.is_table, *self.keys


def _existing(features: Any, key: str) -> Any:
    """A feature of a record, which the access to one that is not there would make."""
    if key not in features:
        raise ValueError(f"no feature {key!r}")
    return features[key]


def _read_flag(features: Any, key: str) -> int:
    values = _existing(features, key).int64_list.value
    if len(values) != 1 or values[0] not in (0, 1):
        raise ValueError(f"{key!r} is {', '.join(map(str, values))}; a class of several has 0 or 1")
    return values[0]


class ExampleRecords(abc.ABC):
    """The base of the three formats. Files are opened at the first read, in each process.

    Attributes:
      FORMAT: the format's name in TFDS, the suffix of its files.
    """

    FORMAT: ClassVar[str]
    in_memory = False

    def __init__(
        self,
        parts: Sequence[FileInstruction],
        image_key: str,
        label_key: str | None,
        label_form: LabelForm | None = None,
    ):
        """Makes a source.

        Args:
          parts: the ranges of the files, in order.
          image_key: the feature that holds the bytes of the image.
          label_key: the feature that holds the label; None: labels are not read, and each is -1.
          label_form: how it holds several labels; None: it holds one.

        Raises:
          UserError: as `_index`.
        """
        self.parts = tuple(parts)
        self.image_key, self.label_key, self.label_form = image_key, label_key, label_form
        self._ends = np.cumsum([part.take for part in self.parts], dtype=np.int64)
        self._index()

    @abc.abstractmethod
    def _index(self) -> None:
        """Finds where the records lie.

        Raises:
          UserError: a file is missing, truncated or damaged, or has another number of records or other columns.
        """

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def files(self) -> list[str]:
        """The paths of the files."""
        return [part.filename for part in self.parts]

    @abc.abstractmethod
    def _read(self, index: int) -> bytes:
        """Reads a serialized `tf.train.Example`; raises whatever the format's reader raises for a damaged file."""

    def read_message(self, index: int) -> bytes:
        """Reads a serialized `tf.train.Example`.

        Raises:
          UserError: it is damaged, or cannot be read.
        """
        with self._named(index):
            return self._read(index)

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        index, message = int(index), _example_message()
        with self._named(index):
            features = message.FromString(self._read(index)).features.feature
            image = features[self.image_key].bytes_list.value[0]
            if self.label_key is None:
                return image, -1
            if self.label_form is not None:
                return image, self.label_form.read(features, self.label_key)
            return image, features[self.label_key].int64_list.value[0]

    def file_name(self, index: int) -> str | None:
        """The name of a record's original file, where the data set keeps it as a text; None: it does not.

        Raises:
          UserError: the record is damaged, or cannot be read.
        """
        index, message = int(index), _example_message()
        with self._named(index):
            features = message.FromString(self._read(index)).features.feature
            for key in _FILE_NAMES:
                if key in features and features[key].bytes_list.value:
                    return printable(features[key].bytes_list.value[0].decode(errors="surrogateescape")) or None
        return None

    @contextlib.contextmanager
    def _named(self, index: int) -> Iterator[None]:
        """Turns an exception into a `UserError` that names the record."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the readers' and the message's own types, which have no common base
            raise UserError(
                f"{self.record_name(index)}: damaged ({type(error).__name__}: {error}); prepare it again"
            ) from None

    def _find(self, index: int) -> tuple[int, int]:
        """The number of a record's part, and the record's number in the file."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[part]) - self.parts[part].take
        return part, self.parts[part].skip + index - first

    def record_name(self, index: int) -> str:
        part, number = self._find(int(index))
        return f"record {number} of {printable(self.parts[part].filename)}"

    def digest(self) -> str:
        """SHA-256 of the files' names and sizes and the ranges of records: they may be moved, but not made anew.

        Raises:
          UserError: a file is missing.
        """
        found: list[object] = [self.FORMAT, self.image_key, self.label_key]
        if self.label_form is not None:
            found += self.label_form.digest_parts()
        for part in self.parts:
            try:
                size = os.path.getsize(part.filename)
            except OSError:
                raise UserError(
                    f"{printable(part.filename)}: this file of the prepared data set is missing; prepare it again"
                ) from None
            found += [os.path.basename(part.filename), size, part.skip, part.take, part.examples_in_shard]
        return sha256(*found)

    def _check_counts(self, counts: Sequence[int]) -> None:
        """Compares the records of each file with what the data set's own description says."""
        for part, count in zip(self.parts, counts, strict=True):
            if count != part.examples_in_shard:
                raise UserError(
                    f"{printable(part.filename)}: {count:,} records; dataset_info.json says "
                    f"{part.examples_in_shard:,}: truncated, or another file; copy it again, or prepare the data set "
                    "again"
                )


class ArrayRecords(ExampleRecords):
    """Records of ArrayRecord files, through array_record's reader."""

    FORMAT = "array_record"

    def _index(self) -> None:
        """Does nothing: array_record's reader has the index, and is made at the first read."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_reader"}

    @functools.cached_property
    def _reader(self) -> Any:
        self.digest()  # raises for a file that is missing
        return import_module("array_record.python.array_record_data_source").ArrayRecordDataSource(self.parts)

    def _read(self, index: int) -> bytes:
        return self._reader[index]


class TFRecords(ExampleRecords):
    """Records of TFRecord files, by their offsets (`tfrecords`), which are found or read when the source is made."""

    FORMAT = "tfrecord"

    def _index(self) -> None:
        self.digest()  # raises for a file that is missing
        self._offsets = tfrecords.load_offsets(self.files)
        self._check_counts([len(offsets) - 1 for offsets in self._offsets])
        self._open = OpenFiles()

    def _read(self, index: int) -> bytes:
        part, number = self._find(index)
        start, stop = self._offsets[part][number : number + 2].tolist()
        return tfrecords.parse_record(self._open.read(self.parts[part].filename, start, stop - start), stop - start)


class ParquetRecords(ExampleRecords):
    """Records of Parquet files as TFDS writes them: one column, `data`, of messages, in row groups of 100."""

    FORMAT = "parquet"

    def _index(self) -> None:
        self.digest()  # raises for a file that is missing
        self._tables = ParquetTables(self.files)
        for number, file in enumerate(self.files):
            if (names := self._tables.schema(number).names) != ["data"]:
                raise UserError(f"{printable(file)}: columns {names}; TFDS writes one, 'data'")
        self._check_counts(self._tables.counts)

    def _read(self, index: int) -> bytes:
        part, number = self._find(index)
        return self._tables.read(part, number, "data")


FORMATS: dict[str, type[ExampleRecords]] = {
    source.FORMAT: source for source in (ArrayRecords, TFRecords, ParquetRecords)
}
"""{name of a file format in TFDS: its source}."""


@functools.cache
def _example_message() -> Any:
    """The protobuf message of TFDS records; importing it takes a third of a second, so not before the first read."""
    return import_module("tensorflow_datasets.proto").tf_example_pb2.Example
