"""Lists of images with their labels: CSV, TSV or Parquet files of (path, label) and, if there is one, the split.

With several labels per image (`data.labels=multi`) a cell has them with a bar between: `cat|dog`, or nothing; in
Parquet it may also be a list. Or each class has a column of 0 and 1: `data.label_key=*`.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inception_jax.data import split_names, storage
from inception_jax.data.class_files import integer_classes, is_integer, read_class_file
from inception_jax.data.folder_files import LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit
from inception_jax.data.label_sets import COLUMNS, LabelSets, Wanted, is_set
from inception_jax.data.names import PackedNames, nearest_entry, printable
from inception_jax.data.tables import holds_bytes
from inception_jax.errors import UserError, nearest, text_failure

_SPLIT = "split"
_NEAR_SPLIT = 0.75  # "splits", "Split" and "spilt"; but "site" and "slide" are columns of their own
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MAX_LABELS = 1_000_000
_THREADS = 16  # that ask the file system for sizes: it may be a network's
_PIECE = 4096

BETWEEN = "|"
"""Between several labels in a cell."""

# (where: "line 7", path, labels, split); there is one label, or with `several` any number
Row = tuple[str, str, tuple[Any, ...], str]


def scan(file: str, classes_file: str | None, wanted: Wanted) -> FolderScan:
    """Reads a list, and asks the file system for the size of each image.

    Args:
      file: path of a `.csv`, `.tsv` or `.parquet` file whose columns have names.
      classes_file: the classes in the order of the labels, see `class_files.read_class_file` and, of integer labels,
        `class_files.integer_classes`; None: integers are the classes 0, 1, … up to the largest of training; names are
        in alphabetical order.
      wanted: `image_key` is the column of the paths, absolute or relative to the list's folder; None: "path".
        `label_key` is that of the labels, all integers or all names; None: "label". With several labels also `COLUMNS`.

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
    label_key = (wanted.label_key or "label") if wanted.labelled else None
    rows, unused, columns = _read_rows(file, name, wanted.image_key or "path", label_key, wanted.several)
    if not rows:
        raise UserError(f"{name}: no rows; a row per image is needed")
    chosen: Mapping[str, str] | None = read_class_file(classes_file) if classes_file else None
    if not classes_file and columns:
        chosen = {column: column for column in columns}
    if wanted.several and chosen is None:
        _refuse_other_separators(rows, name)
    train = split_names.training({row[3] for row in rows})
    class_names: list[str] = []
    labels_of: dict[str, int] = {}
    if wanted.labelled:
        class_names, labels_of = _classes([row for row in rows if row[3] == (train or row[3])], chosen, name)
    folder = os.path.dirname(os.path.abspath(file))
    known = str(classes_file) if classes_file else f"{name} [{train or 'all splits'}]"
    num_classes = len(class_names) if wanted.several or not wanted.labelled else None
    splits = {}
    for split in split_names.ordered({row[3] for row in rows}):
        found = [(row, [labels_of.get(str(label)) for label in row[2]]) for row in rows if row[3] == split]
        splits[split] = _split(name, folder, found, list(labels_of), known, num_classes)
    notes = [f"columns not used: {', '.join(map(repr, unused))}"] if unused and wanted.labelled else []
    open_classes = chosen is None and not all(map(is_integer, labels_of))
    return FolderScan(folder, class_names, splits, LeftOut(), notes, open_classes)


def _read_rows(
    file: str, name: str, path_key: str, label_key: str | None, several: bool
) -> tuple[list[Row], list[str], list[str] | None]:
    """Reads the rows of a list, the names of the columns that are not used, and with `COLUMNS` those of the classes."""
    suffix = os.path.splitext(file)[1].lower()
    try:
        if suffix == ".parquet":
            return _read_parquet(file, name, path_key, label_key, several)
        if suffix in (".csv", ".tsv"):
            return _read_csv(file, name, path_key, label_key, "\t" if suffix == ".tsv" else ",", several)
        raise UserError(f"{name}: a list has the suffix .csv, .tsv or .parquet")
    except FileNotFoundError:
        raise UserError(f"{name}: no such file{nearest_entry(file)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: {text_failure(error)}") from None
    except csv.Error as error:
        raise UserError(f"{name}: cannot be read as text with columns: {error}; correct it, or save it anew") from None


def _columns(
    name: str, header: Sequence[str], path_key: str, label_key: str | None
) -> tuple[int, list[int], int | None]:
    """The positions of the path, the label (with `COLUMNS` of each class, with None of none) and the split."""
    found = []
    wanted = {"image_key": path_key}
    if label_key is not None and label_key != COLUMNS:
        wanted["label_key"] = label_key
    for field, key in wanted.items():
        if header.count(key) != 1:
            problem = f"no column {key!r}{nearest(key, header)}" if key not in header else f"{key!r} twice"
            raise UserError(
                f"{name}: {problem}; its columns are {', '.join(map(repr, header))}; name one: --config.data.{field}=…"
            )
        found.append(header.index(key))
    if label_key == COLUMNS:
        classes = [place for place, column in enumerate(header) if place != found[0] and column != _SPLIT]
        if len({header[place] for place in classes}) < len(classes) or not all(header):
            raise UserError(f"{name}: a column without a name, or two of one name; each column is a class")
        return found[0], classes, header.index(_SPLIT) if _SPLIT in header else None
    if _SPLIT in header:
        return found[0], found[1:], header.index(_SPLIT)
    for column in _unused(header, found):
        if near := nearest(column.casefold(), [_SPLIT], _NEAR_SPLIT):
            raise UserError(
                f"{name}: column {column!r}{near} Without 'split' all rows are train; correct the name, or remove it"
            )
    return found[0], found[1:], None


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


def _read_csv(
    file: str, name: str, path_key: str, label_key: str | None, delimiter: str, several: bool
) -> tuple[list[Row], list[str], list[str] | None]:
    rows = []
    with open(file, encoding="utf-8-sig", newline="") as stream:
        _check_separator(name, stream.readline(), delimiter)
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        header = [column.strip() for column in next(reader, [])]
        path, labels, split = _columns(name, header, path_key, label_key)
        classes = [header[place] for place in labels] if label_key in (None, COLUMNS) else None
        for values in reader:
            if not values:
                continue
            where = f"line {reader.line_num:,}"
            if len(values) != len(header):
                raise UserError(f"{name}, {where}: {len(values)} values; the header has {len(header)} columns")
            cells = [values[place] for place in labels]
            rows.append(
                _row(name, where, values[path], cells, "train" if split is None else values[split], several, classes)
            )
    return rows, _unused(header, [path, *labels, split]), classes


def _read_parquet(
    file: str, name: str, path_key: str, label_key: str | None, several: bool
) -> tuple[list[Row], list[str], list[str] | None]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            header = table.schema_arrow.names
            if path_key not in header and any(holds_bytes(field.type) for field in table.schema_arrow):
                raise UserError(
                    f"{name}: no column {path_key!r} of paths, but one with images: read it as "
                    f"--config.data.name=huggingface:{name}"
                )
            path, labels, split = _columns(name, header, path_key, label_key)
            positions = [path, *labels, *([] if split is None else [split])]
            names = [header[position] for position in positions]
            content = table.read(columns=names).select(names)
            content.validate(full=True)
            if content.num_rows != table.metadata.num_rows:
                raise UserError(
                    f"{name}: {content.num_rows:,} rows of {table.metadata.num_rows:,} can be read: damaged; copy it"
                )
            columns = [column.to_pylist() for column in content.columns]
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: cannot be read as Parquet: {' '.join(str(error).split())}") from None
    classes = names[1 : 1 + len(labels)] if label_key in (None, COLUMNS) else None
    rows = []
    for number, (first, *values) in enumerate(zip(*columns, strict=True)):
        of_split = "train" if split is None else values[-1]
        rows.append(_row(name, f"row {number:,}", first, values[: len(labels)], of_split, several, classes))
    return rows, _unused(header, positions), classes


def _row(
    name: str, where: str, path: Any, cells: list[Any], split: Any, several: bool, classes: Sequence[str] | None
) -> Row:
    """Checks the values of a row; `classes` are those of the cells, where each class has a column."""
    split = split.strip() if isinstance(split, str) else split
    labels: tuple[Any, ...]
    if classes is not None:
        labels = tuple(one for one, cell in zip(classes, cells, strict=True) if is_set(cell, one, f"{name}, {where}"))
    elif several:
        labels = _several(cells[0])
    else:
        labels = (cells[0].strip() if isinstance(cells[0], str) else cells[0],)
    for column, value in (("path", path), *(("label", label) for label in labels), ("split", split)):
        if value is None or value == "" or not isinstance(value, (str, int) if column == "label" else str):
            raise UserError(
                f"{name}, {where}: {column} {value!r}; a {'name or an integer' if column == 'label' else 'text'}"
            )
    if "\0" in path:
        raise UserError(f"{name}, {where}: a path with a zero byte")
    return where, path, labels, split


def _several(cell: Any) -> tuple[Any, ...]:
    """The labels of a cell: of a text those between bars, of a list its elements; of an empty cell none."""
    if isinstance(cell, str):
        return tuple(part.strip() for part in cell.split(BETWEEN)) if cell.strip() else ()
    if isinstance(cell, list):
        return tuple(part.strip() if isinstance(part, str) else part for part in cell)
    return () if cell is None else (cell,)


def _refuse_other_separators(rows: Sequence[Row], name: str) -> None:
    """Refuses labels such as "0;2" or "cat, dog", where their parts are integers or other labels of the list.

    Where a cell has a bar, the others are names: "maillot, tank suit" is a class of ImageNet, and "maillot" another.
    """
    if any(len(row[2]) > 1 for row in rows):
        return
    labels = {str(label) for row in rows for label in row[2]}
    for label in sorted(labels):
        parts = [part.strip() for part in re.split("[;,]", label)]
        if len(parts) > 1 and (all(map(is_integer, parts)) or not labels.isdisjoint(parts)):
            where = next(where for where, _, several, _ in rows if label in map(str, several))
            raise UserError(
                f"{name}, {where}: label {label!r}: the labels of an image stand in one cell with {BETWEEN!r} between "
                f"them, {BETWEEN.join(parts)!r}, with config.data.labels = 'multi'"
            )


def _classes(rows: Sequence[Row], chosen: Mapping[str, str] | None, name: str) -> tuple[list[str], dict[str, int]]:
    """The names of the classes, and {a label of the list, as text: label}; from the rows that decide them."""
    labels = {str(label) for _, _, several, _ in rows for label in several}
    if not labels and chosen is None:
        raise UserError(f"{name}: no image has a label; data.class_names=FILE names the classes")
    if not all(is_integer(label) for label in labels or chosen or ()):
        if chosen is not None:
            return list(chosen.values()), {key: label for label, key in enumerate(chosen)}
        return sorted(labels), {key: label for label, key in enumerate(sorted(labels))}
    for where, label in ((where, label) for where, _, several, _ in rows for label in several):
        if not 0 <= int(label) < _MAX_LABELS:
            raise UserError(f"{name}, {where}: label {label}; integer labels are 0 to {_MAX_LABELS - 1:,}")
    if chosen is not None:
        return list(chosen.values()), {str(key): label for key, label in integer_classes(chosen).items()}
    return [str(number) for number in range(max(map(int, labels)) + 1)], {label: int(label) for label in labels}


def _split(
    name: str,
    folder: str,
    rows: Sequence[tuple[Row, list[int | None]]],
    labels: Sequence[str],
    known: str,
    num_classes: int | None,
) -> FolderSplit:
    """A split, with the problem that keeps it from being used, if there is one.

    Args:
      name: of the list.
      folder: that the paths begin at.
      rows: with the class of each label; None: there is no such class.
      labels: that are known.
      known: where from.
      num_classes: of images with several labels; None: each has one.
    """
    seen: dict[str, tuple[str, list[int | None]]] = {}
    problem = ""
    hint = "" if num_classes is None else f"; the labels of an image stand in one cell, with {BETWEEN!r} between them"
    for (where, path, given, _), numbers in rows:
        before = seen.setdefault(os.path.normpath(os.path.join(folder, path)), (where, numbers))
        if None in numbers:
            label = given[numbers.index(None)]
            near = nearest(str(label), labels) if not problem else ""
            problem = problem or (f"{name}, {where}: label {label!r} is not among the {len(labels)} of {known}{near}")
        elif before[1] is not numbers and {*before[1]} != {*numbers}:
            problem = problem or f"{name}, {where}: {path!r} has another label in {before[0]}{hint}"
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
    known_numbers = [[-1 if number is None else number for number in numbers] for _, numbers in rows]
    found: np.ndarray | LabelSets
    if num_classes is None:
        found = np.array([number for (number,) in known_numbers], np.int32)
    else:
        found = LabelSets.pack([] if problem else known_numbers, num_classes)
    return FolderSplit(folder, PackedNames.pack(paths), found, np.array(sizes, np.int64), problem, False)


def _size(folder: str, path: str) -> int:
    try:
        return os.stat(os.path.join(folder, path)).st_size
    except OSError:
        return -1
