"""Lists of images with their labels: CSV, TSV or Parquet files of (path, label) and, if there is one, the split."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inception_jax.data import storage
from inception_jax.data.folder_files import LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit, read_class_file
from inception_jax.data.names import PackedNames, printable
from inception_jax.errors import UserError, nearest

_SPLIT = "split"
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
      classes_file: the classes in the order of the labels, see `folders.read_class_file`; None: integer labels are the
        classes 0, 1, …; names are in alphabetical order.
      path_key: column of the paths, absolute or relative to the list's folder; None: "path".
      label_key: column of the labels, all integers or all names; None: "label".

    Returns:
      The class names and the splits, each in the order of the list. Without a column "split" all is "train".

    Raises:
      UserError: the list cannot be read, a column, a value or a file is missing, a label is of no class, or an image is
        listed with two labels in one split.
    """
    if storage.is_remote(file):
        raise UserError(f"list:{file}: a list is read from a file system; mount the storage as one, or copy the list")
    name = printable(file)
    file = os.path.expanduser(file)
    rows = list(_read_rows(file, name, path_key or "path", label_key or "label"))
    if not rows:
        raise UserError(f"{name}: no rows; a row per image is needed")
    numbers = _read_numbers(name, rows)
    chosen = read_class_file(classes_file) if classes_file else None
    class_names, labels_of = _classes(rows, numbers, chosen)
    folder = os.path.dirname(os.path.abspath(file))
    splits = {}
    for split in sorted({row[3] for row in rows}, key=lambda split: (split != "train", split)):
        of_split = [index for index, row in enumerate(rows) if row[3] == split]
        found = [
            (rows[index], labels_of.get(rows[index][2] if numbers is None else numbers[index])) for index in of_split
        ]
        splits[split] = _split(name, folder, found, class_names, str(classes_file or f"{name} [train]"))
    return FolderScan(folder, class_names, splits, LeftOut(), [])


def _read_rows(file: str, name: str, path_key: str, label_key: str) -> Iterator[Row]:
    """Yields the rows of a list."""
    suffix = os.path.splitext(file)[1].lower()
    try:
        if suffix == ".parquet":
            yield from _read_parquet(file, name, path_key, label_key)
        elif suffix in (".csv", ".tsv"):
            yield from _read_csv(file, name, path_key, label_key, "\t" if suffix == ".tsv" else ",")
        else:
            raise UserError(f"{name}: a list has the suffix .csv, .tsv or .parquet")
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
    return found[0], found[1], header.index(_SPLIT) if _SPLIT in header else None


def _read_csv(file: str, name: str, path_key: str, label_key: str, delimiter: str) -> Iterator[Row]:
    with open(file, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = [column.strip() for column in next(reader, [])]
        path, label, split = _columns(name, header, path_key, label_key)
        for values in reader:
            if not values:
                continue
            where = f"line {reader.line_num:,}"
            if len(values) != len(header):
                raise UserError(f"{name}, {where}: {len(values)} values; the header has {len(header)} columns")
            yield _row(name, where, values[path], values[label], None if split is None else values[split])


def _read_parquet(file: str, name: str, path_key: str, label_key: str) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            header = table.schema_arrow.names
            positions = _columns(name, header, path_key, label_key)
            names = [header[position] for position in positions if position is not None]
            columns = [column.to_pylist() for column in table.read(columns=names).select(names).columns]
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    for number, values in enumerate(zip(*columns, strict=True)):
        yield _row(name, f"row {number:,}", values[0], values[1], values[2] if len(values) > 2 else None)


def _row(name: str, where: str, path: Any, label: Any, split: Any) -> Row:
    values = {"path": path, "label": label, "split": "train" if split is None else split}
    for column, value in values.items():
        if value is None or value == "" or not isinstance(value, (str, int) if column == "label" else str):
            raise UserError(
                f"{name}, {where}: {column} {value!r}; a {'name or an integer' if column == 'label' else 'text'}"
            )
    if "\0" in path:
        raise UserError(f"{name}, {where}: a path with a zero byte")
    return where, path, label, values["split"]


def _read_numbers(name: str, rows: Sequence[Row]) -> list[int] | None:
    """The labels as integers, where all are; None where they are names."""
    numbers = []
    for where, _, label, _ in rows:
        try:
            numbers.append(int(label) if isinstance(label, int) or label.isascii() else int("name"))
        except ValueError:
            return None
        if not 0 <= numbers[-1] < 1_000_000:
            raise UserError(f"{name}, {where}: label {numbers[-1]}; the classes are numbered from 0")
    return numbers


def _classes(
    rows: Sequence[Row], numbers: Sequence[int] | None, chosen: Mapping[str, str] | None
) -> tuple[list[str], Mapping[Any, int]]:
    """The names of the classes, and {what the list has as a label: label}."""
    if numbers is not None and chosen is None:
        names = [str(number) for number in range(max(numbers) + 1)]
        return names, {number: number for number in range(len(names))}
    if chosen is not None:
        names = list(chosen.values())
        keys = range(len(names)) if numbers is not None else chosen
        return names, {key: label for label, key in enumerate(keys)}
    train = {row[2] for row in rows if row[3] == "train"}
    names = sorted(str(label) for label in train or {row[2] for row in rows})
    return names, {key: label for label, key in enumerate(names)}


def _split(
    name: str, folder: str, rows: Sequence[tuple[Row, int | None]], class_names: Sequence[str], known: str
) -> FolderSplit:
    """A split, with the problem that keeps it from being used, if there is one."""
    seen: dict[str, tuple[str, int | None]] = {}
    problem = ""
    for (where, path, label, _), number in rows:
        before = seen.setdefault(path, (where, number))
        if number is None:
            near = nearest(str(label), class_names)
            problem = (
                problem or f"{name}, {where}: label {label!r} is not among the {len(class_names)} of {known}{near}"
            )
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
    labels = np.array([-1 if number is None else number for _, number in rows], np.int32)
    return FolderSplit(folder, PackedNames.pack(paths), labels, np.array(sizes, np.int64), problem, False)


def _size(folder: str, path: str) -> int:
    try:
        return os.stat(os.path.join(folder, path)).st_size
    except OSError:
        return -1
