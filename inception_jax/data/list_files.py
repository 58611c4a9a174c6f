"""Lists of images with their labels: CSV, TSV or Parquet files of (path, label) and, if there is one, the split."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inception_jax.data import split_names, storage
from inception_jax.data.class_files import integer_classes, is_integer, read_class_file
from inception_jax.data.folder_files import LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit
from inception_jax.data.names import PackedNames, nearest_entry, printable
from inception_jax.errors import UserError, nearest

_SPLIT = "split"
_NEAR_SPLIT = 0.75  # "splits", "Split" and "spilt"; but "site" and "slide" are columns of their own
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MAX_LABELS = 1_000_000
_THREADS = 16  # that ask the file system for sizes: it may be a network's
_PIECE = 4096

# (where: "line 7", path, label, split)
Row = tuple[str, str, Any, str]


def scan(
    file: str, classes_file: str | None = None, path_key: str | None = None, label_key: str | None = None
) -> FolderScan:
    """Reads a list, and asks the file system for the size of each image.

    Args:
      file: path of a `.csv`, `.tsv` or `.parquet` file whose columns have names.
      classes_file: the classes in the order of the labels, see `class_files.read_class_file` and, of integer labels,
        `class_files.integer_classes`; None: integers are the classes 0, 1, … up to the largest of training; names are
        in alphabetical order.
      path_key: column of the paths, absolute or relative to the list's folder; None: "path".
      label_key: column of the labels, all integers or all names; None: "label".

    Returns:
      The class names and the splits, each in the order of the list. Without a column "split" all is "train". A split
      whose files are missing, with a label that training does not have, or with an image of two labels has a problem.
      A note names the columns that are not used.

    Raises:
      UserError: the list cannot be read, or a column or a value is missing or misspelled.
    """
    if storage.is_remote(file):
        raise UserError(f"list:{file}: a list is read from a file system; mount the storage as one, or copy the list")
    name = printable(file)
    file = os.path.expanduser(file)
    rows, unused = _read_rows(file, name, path_key or "path", label_key or "label")
    if not rows:
        raise UserError(f"{name}: no rows; a row per image is needed")
    chosen = read_class_file(classes_file) if classes_file else None
    train = split_names.training({row[3] for row in rows})
    class_names, labels_of = _classes([row for row in rows if row[3] == (train or row[3])], chosen, name)
    folder = os.path.dirname(os.path.abspath(file))
    known = str(classes_file) if classes_file else f"{name} [{train or 'all splits'}]"
    splits = {}
    for split in split_names.ordered({row[3] for row in rows}):
        found = [(row, labels_of.get(str(row[2]))) for row in rows if row[3] == split]
        splits[split] = _split(name, folder, found, list(labels_of), known)
    notes = [f"columns not used: {', '.join(map(repr, unused))}"] if unused else []
    open_classes = chosen is None and not all(map(is_integer, labels_of))
    return FolderScan(folder, class_names, splits, LeftOut(), notes, open_classes)


def _read_rows(file: str, name: str, path_key: str, label_key: str) -> tuple[list[Row], list[str]]:
    """Reads the rows of a list, and the names of the columns that are not used."""
    suffix = os.path.splitext(file)[1].lower()
    try:
        if suffix == ".parquet":
            return _read_parquet(file, name, path_key, label_key)
        if suffix in (".csv", ".tsv"):
            return _read_csv(file, name, path_key, label_key, "\t" if suffix == ".tsv" else ",")
        raise UserError(f"{name}: a list has the suffix .csv, .tsv or .parquet")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file{nearest_entry(file)}") from None
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name}: cannot be read as UTF-8 text with columns: {error}") from None


def _columns(name: str, header: Sequence[str], path_key: str, label_key: str) -> tuple[int, int, int | None]:
    """The positions of the path, the label and the split."""
    found = []
    for key, field in ((path_key, "image_key"), (label_key, "label_key")):
        if header.count(key) != 1:
            problem = f"no column {key!r}{nearest(key, header)}" if key not in header else f"{key!r} twice"
            raise UserError(
                f"{name}: {problem}; its columns are {', '.join(map(repr, header))}; name one: --config.data.{field}=…"
            )
        found.append(header.index(key))
    if _SPLIT in header:
        return found[0], found[1], header.index(_SPLIT)
    for column in _unused(header, found):
        if near := nearest(column.casefold(), [_SPLIT], _NEAR_SPLIT):
            raise UserError(
                f"{name}: column {column!r}{near} Without 'split' all rows are train; correct the name, or remove it"
            )
    return found[0], found[1], None


def _unused(header: Sequence[str], positions: Sequence[int | None]) -> list[str]:
    """The names of the other columns."""
    return [column for position, column in enumerate(header) if column and position not in positions]


def _check_separator(name: str, first_line: str, delimiter: str) -> None:
    """Refuses a header that has other separators, and none that the suffix of the file stands for."""
    other = max(_SEPARATORS, key=first_line.count)
    if delimiter not in first_line and other in first_line:
        raise UserError(
            f"{name}: its header has {_SEPARATORS[other]} ({other!r}) between the columns; "
            f"{_SEPARATORS[delimiter]} are needed (.csv: commas, .tsv: tabs)"
        )


def _read_csv(file: str, name: str, path_key: str, label_key: str, delimiter: str) -> tuple[list[Row], list[str]]:
    rows = []
    with open(file, encoding="utf-8-sig", newline="") as stream:
        _check_separator(name, stream.readline(), delimiter)
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = [column.strip() for column in next(reader, [])]
        path, label, split = positions = _columns(name, header, path_key, label_key)
        for values in reader:
            if not values:
                continue
            where = f"line {reader.line_num:,}"
            if len(values) != len(header):
                raise UserError(f"{name}, {where}: {len(values)} values; the header has {len(header)} columns")
            rows.append(_row(name, where, values[path], values[label], "train" if split is None else values[split]))
    return rows, _unused(header, positions)


def _read_parquet(file: str, name: str, path_key: str, label_key: str) -> tuple[list[Row], list[str]]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            header = table.schema_arrow.names
            positions = _columns(name, header, path_key, label_key)
            names = [header[position] for position in positions if position is not None]
            columns = [column.to_pylist() for column in table.read(columns=names).select(names).columns]
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    rows = [
        _row(name, f"row {number:,}", values[0], values[1], values[2] if len(values) > 2 else "train")
        for number, values in enumerate(zip(*columns, strict=True))
    ]
    return rows, _unused(header, positions)


def _row(name: str, where: str, path: Any, label: Any, split: Any) -> Row:
    label, split = (value.strip() if isinstance(value, str) else value for value in (label, split))
    values = {"path": path, "label": label, "split": split}
    for column, value in values.items():
        if value is None or value == "" or not isinstance(value, (str, int) if column == "label" else str):
            raise UserError(
                f"{name}, {where}: {column} {value!r}; a {'name or an integer' if column == 'label' else 'text'}"
            )
    if "\0" in path:
        raise UserError(f"{name}, {where}: a path with a zero byte")
    return where, path, label, split


def _classes(rows: Sequence[Row], chosen: Mapping[str, str] | None, name: str) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and {a label of the list, as text: label}; from the rows that decide them."""
    labels = {str(label) for _, _, label, _ in rows}
    if not all(is_integer(label) for label in labels):
        if chosen is not None:
            return list(chosen.values()), {key: label for label, key in enumerate(chosen)}
        return sorted(labels), {key: label for label, key in enumerate(sorted(labels))}
    for where, _, label, _ in rows:
        if not 0 <= int(label) < _MAX_LABELS:
            raise UserError(f"{name}, {where}: label {label}; integer labels are 0 to {_MAX_LABELS - 1:,}")
    if chosen is not None:
        return list(chosen.values()), {str(key): label for key, label in integer_classes(chosen).items()}
    return [str(number) for number in range(max(map(int, labels)) + 1)], {label: int(label) for label in labels}


def _split(
    name: str, folder: str, rows: Sequence[tuple[Row, int | None]], labels: Sequence[str], known: str
) -> FolderSplit:
    """A split, with the problem that keeps it from being used, if there is one."""
    seen: dict[str, tuple[str, int | None]] = {}
    problem = ""
    for (where, path, label, _), number in rows:
        before = seen.setdefault(path, (where, number))
        if number is None and not problem:
            near = nearest(str(label), labels)
            problem = f"{name}, {where}: label {label!r} is not among the {len(labels)} of {known}{near}"
        elif before[1] != number:
            problem = problem or f"{name}, {where}: {path!r} has another label in {before[0]}"
    paths = [path for (_, path, _, _), _ in rows]
    with ThreadPoolExecutor(_THREADS) as pool:
        pieces = [paths[start : start + _PIECE] for start in range(0, len(paths), _PIECE)]
        sizes = [
            size for piece in pool.map(lambda piece: [_size(folder, path) for path in piece], pieces) for size in piece
        ]
    missing = [index for index, size in enumerate(sizes) if size < 0]
    if missing and not problem:
        where, path = rows[missing[0]][0][:2]
        others = f" ({len(missing):,} of {len(rows):,} files are missing)" if len(missing) > 1 else ""
        problem = f"{name}, {where}: {printable(os.path.join(folder, path))}: no such file{others}"
    numbers = np.array([-1 if number is None else number for _, number in rows], np.int32)
    return FolderSplit(folder, PackedNames.pack(paths), numbers, np.array(sizes, np.int64), problem, False)


def _size(folder: str, path: str) -> int:
    try:
        return os.stat(os.path.join(folder, path)).st_size
    except OSError:
        return -1
