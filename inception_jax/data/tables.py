"""Rows of Parquet and Arrow files: values of one column in any order, and whole columns.

Bytes that lie in a Parquet file as they are can be found (`parquet_values`). Any other row can only be read with its
whole row group, so the last groups are kept, up to 256 MB in each process. An Arrow file is mapped into memory, and
each row is read by itself.
"""

from __future__ import annotations

import abc
import collections
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from inception_jax.data import parquet_values
from inception_jax.data.imports import import_module
from inception_jax.data.names import printable
from inception_jax.data.open_files import OpenFiles
from inception_jax.errors import UserError

KEPT_BYTES = 256 << 20
"""Of the row groups that a source keeps, per process."""
_LFS = b"version https://git-lfs"
_FOOTER_MAGIC = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


class Tables(abc.ABC):
    """The base of both formats: files whose rows follow one another.

    Attributes:
      files: their paths.
      counts: rows of each file.
    """

    counts: Sequence[int]

    def __init__(self, files: Sequence[str]):
        """Opens the files to read how many rows they have.

        Raises:
          UserError: one is missing, truncated or damaged.
        """
        self.files = tuple(files)
        self._make_cache()

    def find(self, index: int) -> tuple[int, int]:
        """The number of the file that a row of all is in, and its number there."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, index, side="right"))
        return file, index - (int(ends[file - 1]) if file else 0)

    def row_name(self, index: int) -> str:
        """The name of a row of all, for messages."""
        file, row = self.find(index)
        return f"row {row:,} of {printable(self.files[file])}"

    @abc.abstractmethod
    def schema(self, file: int) -> Any:
        """The `pyarrow.Schema` of a file."""

    @abc.abstractmethod
    def read(self, file: int, row: int, column: str) -> Any:
        """The value of a column in a row, as Python has it; of a struct a dict, of bytes a copy."""

    def read_column(self, file: int, column: str, field: str | None = None) -> Any:
        """Reads a whole column of a file, or a field of its structs, and checks all of its values.

        Returns:
          A `pyarrow.Array` with a value for each row.

        Raises:
          UserError: it cannot be read, or has another number of rows than the file.
        """
        where = f"{printable(self.files[file])}: column {column!r}"
        try:
            found = self._read_column(file, column if field is None else f"{column}.{field}")
            if field is not None:
                found = import_module("pyarrow.compute").struct_field(found, field)
            found.validate(full=True)
        except Exception as error:  # of pyarrow, or of the file system: they have no common base
            raise UserError(f"{where} cannot be read ({_one_line(error)}); copy the file again") from None
        if len(found) != self.counts[file]:
            raise UserError(
                f"{where} has {len(found):,} rows, and the file {self.counts[file]:,}: damaged; copy it again"
            )
        return found

    @abc.abstractmethod
    def _read_column(self, file: int, path: str) -> Any:
        """A column as a `pyarrow.Array`; of "a.b" structs that have at least the field `b`."""

    @abc.abstractmethod
    def _make_cache(self) -> None:
        """Makes what a process does not hand on to others."""

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_cached")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._make_cache()


class ParquetTables(Tables):
    """Parquet files, by row groups."""

    def __init__(self, files: Sequence[str]):
        """As `Tables`; reads the footer of each file."""
        super().__init__(files)
        self._metadata = [self._read_metadata(file) for file in files]
        self.counts = [metadata.num_rows for metadata in self._metadata]
        self._group_ends = [
            np.cumsum([metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)])
            for metadata in self._metadata
        ]
        for file, count, ends in zip(files, self.counts, self._group_ends, strict=True):
            if count != (ends[-1] if len(ends) else 0):
                raise UserError(f"{printable(file)}: {count:,} rows, and others in its row groups; copy it again")
        self._values: dict[str, list[np.ndarray | None]] = {}
        self._open_files = OpenFiles()

    def find_bytes(self, column: str, field: str | None) -> list[bool]:
        """Finds the values of a column of bytes, or of structs whose field they are, for `read`.

        Returns:
          For each file whether they can be found: whether they are neither compressed nor in a dictionary.
        """
        path = column if field is None else f"{column}.{field}"
        self._values[column] = parquet_values.load(self.files, self._metadata, path)
        return [found is not None for found in self._values[column]]

    @staticmethod
    def _read_metadata(file: str) -> Any:
        parquet = import_module("pyarrow.parquet")
        try:
            return parquet.read_metadata(file)
        except FileNotFoundError:
            raise UserError(f"{printable(file)}: no such file") from None
        except Exception as error:  # what pyarrow raises for a damaged file has no common base
            raise UserError(f"{printable(file)}: cannot be read as Parquet ({_reason(file, error)})") from None

    def _make_cache(self) -> None:
        self._cached_groups: collections.OrderedDict[tuple[int, int, str], Any] = collections.OrderedDict()
        self._cached_lock = threading.Lock()
        self._cached_locks: dict[tuple[int, int, str], threading.Lock] = {}  # so that one thread reads a group

    def schema(self, file: int) -> Any:
        return self._metadata[file].schema.to_arrow_schema()

    def largest_group(self) -> tuple[int, int]:
        """The rows and the bytes, before compression, of the largest row group; (0, 0) without rows."""
        groups = [data.row_group(number) for data in self._metadata for number in range(data.num_row_groups)]
        return max(((group.num_rows, group.total_byte_size) for group in groups), key=lambda it: it[1], default=(0, 0))

    def read(self, file: int, row: int, column: str) -> Any:
        """As `Tables`; after `find_bytes`, where they were found, the bytes alone."""
        found = self._values[column][file] if column in self._values else None
        if found is not None:
            return self._read_bytes(self.files[file], *found[:, row].tolist())
        ends = self._group_ends[file]
        group = int(np.searchsorted(ends, row, side="right"))
        return self._read_group(file, group, column)[row - (int(ends[group - 1]) if group else 0)].as_py()

    def _read_bytes(self, file: str, start: int, size: int) -> bytes:
        start -= parquet_values.LENGTH.size
        content = self._open_files.read(file, start, parquet_values.LENGTH.size + size)
        if content[: parquet_values.LENGTH.size] != parquet_values.LENGTH.pack(size):
            raise UserError(f"{printable(file)}: it has changed since its images were found; start again")
        return content[parquet_values.LENGTH.size :]

    def _read_column(self, file: int, path: str) -> Any:
        with self._open(file) as opened:
            return opened.read(columns=[path], use_threads=False).column(0).combine_chunks()

    def _read_group(self, file: int, group: int, column: str) -> Any:
        key = file, group, column
        with self._cached_lock:
            reading = self._cached_locks.setdefault(key, threading.Lock())
        with reading:
            with self._cached_lock:
                if key in self._cached_groups:
                    self._cached_groups.move_to_end(key)
                    return self._cached_groups[key]
            with self._open(file) as opened:
                found = opened.read_row_group(group, columns=[column], use_threads=False).column(0)
            if len(found) != (rows := self._metadata[file].row_group(group).num_rows):
                where = f"{printable(self.files[file])}: row group {group}"
                raise UserError(f"{where}: {len(found)} values for {rows} rows: damaged; copy the file again")
            with self._cached_lock:
                self._cached_groups[key] = found
                kept = self._cached_groups.values()
                while len(kept) > 1 and sum(one.nbytes for one in kept) > KEPT_BYTES:
                    self._cached_groups.popitem(last=False)
            return found

    def _open(self, file: int) -> Any:
        return import_module("pyarrow.parquet").ParquetFile(self.files[file], metadata=self._metadata[file])


class ArrowTables(Tables):
    """Arrow files, streams or with a footer, mapped into memory."""

    def __init__(self, files: Sequence[str]):
        """As `Tables`; reads the headers of the record batches."""
        super().__init__(files)
        self._stamps: list[tuple[int, int]] = []  # size and time of each file
        found = [[batch.num_rows for batch in self._open(file)[1]] for file in range(len(files))]
        self.counts = [sum(rows) for rows in found]
        self._group_ends = [np.cumsum(rows, dtype=np.int64) for rows in found]

    def _make_cache(self) -> None:
        self._cached_files: dict[int, tuple[Any, list[Any]]] = {}

    def _open(self, file: int) -> tuple[Any, list[Any]]:
        """The schema and the record batches of a file."""
        if file not in self._cached_files:
            self._cached_files[file] = _read_batches(self.files[file])
            status = os.stat(self.files[file])
            stamp = status.st_size, status.st_mtime_ns
            if file >= len(self._stamps):
                self._stamps.append(stamp)
            elif stamp != self._stamps[file]:  # in another process
                raise UserError(f"{printable(self.files[file])}: it has changed since the start; start again")
        return self._cached_files[file]

    def schema(self, file: int) -> Any:
        return self._open(file)[0]

    def read(self, file: int, row: int, column: str) -> Any:
        ends = self._group_ends[file]
        group = int(np.searchsorted(ends, row, side="right"))
        return self._open(file)[1][group].column(column)[row - (int(ends[group - 1]) if group else 0)].as_py()

    def _read_column(self, file: int, path: str) -> Any:
        schema, batches = self._open(file)
        table = import_module("pyarrow").Table.from_batches(batches, schema)
        return table.column(path.partition(".")[0]).combine_chunks()


def _read_batches(file: str) -> tuple[Any, list[Any]]:
    """The schema and the record batches of an Arrow file; their arrays are views of the file."""
    pyarrow, ipc = import_module("pyarrow"), import_module("pyarrow.ipc")
    try:
        mapped = pyarrow.memory_map(file)
        if mapped.read(len(_FOOTER_MAGIC)) == _FOOTER_MAGIC:
            with_footer = ipc.open_file(mapped)
            schema = with_footer.schema
            batches = [with_footer.get_batch(number) for number in range(with_footer.num_record_batches)]
        else:
            mapped.seek(0)
            reader = ipc.open_stream(mapped)
            schema, batches = reader.schema, list(reader)
            # A stream that ends before its mark has lost rows; one that goes on behind it is several.
            end = mapped.tell()
            mapped.seek(max(0, end - len(_STREAM_END)))
            if end != mapped.size() or mapped.read(len(_STREAM_END)) != _STREAM_END:
                raise ValueError(f"it ends at byte {end:,} of {mapped.size():,}, or without the mark of an end")
        for batch in batches:
            batch.validate(full=True)
        mapped.seek(0)
        content = mapped.read_buffer(mapped.size())
        in_file = range(content.address, content.address + content.size)
        parts = [part for column in (batches[0].columns if batches else []) for part in column.buffers()]
        if any(part is not None and part.size and part.address not in in_file for part in parts):
            raise UserError(
                f"{printable(file)}: compressed, so that no row can be read by itself; write it without compression"
            )
        return schema, batches
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{printable(file)}: no such file") from None
    except Exception as error:  # what pyarrow raises for a damaged file has no common base
        raise UserError(f"{printable(file)}: cannot be read as Arrow ({_reason(file, error)})") from None


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split()) or type(error).__name__


def _reason(file: str, error: Exception) -> str:
    """Why a file cannot be read, and what to do."""
    if isinstance(error, PermissionError):
        return f"{error.strerror}: chmod u+r"
    try:
        with open(file, "rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                return "a pointer of Git LFS: run git lfs pull"
    except OSError:
        pass
    return f"{_one_line(error)}; truncated or damaged: copy it again"


def open_tables(files: Sequence[str]) -> Tables:
    """Opens files of one kind, `.parquet` or else `.arrow`; raises as `Tables`."""
    kind = ParquetTables if files and os.path.splitext(files[0])[1].lower() == ".parquet" else ArrowTables
    return kind(files)


def holds_bytes(type_: Any) -> bool:
    """Whether a column has bytes, or structs with a field of them."""
    types = import_module("pyarrow.types")
    if types.is_struct(type_):
        place = type_.get_field_index("bytes")
        return place >= 0 and not types.is_struct(type_.field(place).type) and holds_bytes(type_.field(place).type)
    return types.is_binary(type_) or types.is_large_binary(type_) or types.is_binary_view(type_)
