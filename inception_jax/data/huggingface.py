"""Hugging Face data sets on this machine: Parquet and Arrow files with a column of images and one of labels.

The package `datasets` writes its features, with the names of the classes, into the metadata of the files' schema. Files
without them, as other programs write them, are read by the types of their columns.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from inception_jax.data import huggingface_features, huggingface_files, split_names
from inception_jax.data.class_files import integer_classes, read_class_file
from inception_jax.data.folder_files import LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit
from inception_jax.data.imports import import_module
from inception_jax.data.label_sets import LabelSets, Wanted, digest_parts, label_of
from inception_jax.data.names import PackedNames, printable
from inception_jax.data.records import sha256
from inception_jax.data.tables import KEPT_BYTES, ParquetTables, Tables, holds_bytes, open_tables
from inception_jax.errors import UserError, nearest

_MAX_LABELS = 1_000_000
_LABELS = ("label", "labels")  # what a column of labels without named classes is called
_NO_LABELS = np.zeros(0, np.int64)
_NO_LABEL = -1  # the mark of the package datasets


@dataclasses.dataclass(frozen=True)
class TableRecords:
    """Images in the rows of Parquet or Arrow files.

    Attributes:
      tables: the files.
      image_key: the column of the images: bytes, or structs with a field `bytes`.
      labels: int64 [n], or sets.
      names: of the images' original files; empty where the data set keeps none.
    """

    tables: Tables
    image_key: str
    labels: np.ndarray | LabelSets
    names: PackedNames
    in_memory = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        index = range(len(self))[int(index)]
        try:
            content = self.tables.read(*self.tables.find(index), self.image_key)
        except UserError:
            raise
        except Exception as error:  # of pyarrow, or of the file system: they have no common base
            advice = "copy the file again"
            if isinstance(error, NotImplementedError):  # pyarrow's, for a row group of more than 2 GB
                advice = "write the set anew, with smaller row groups"
            reason = " ".join(str(error).split())
            raise UserError(f"{self.record_name(index)}: cannot be read ({reason}); {advice}") from None
        if isinstance(content, dict):
            content = content["bytes"]
        if not content:
            raise UserError(
                f"{self.record_name(index)}: no bytes of an image; `save_to_disk` and `to_parquet` of the package "
                "datasets write them, also of images that are in files of their own"
            )
        return content, label_of(self.labels, index)

    def record_name(self, index: int) -> str:
        name = self.file_name(index)
        return self.tables.row_name(index) if name is None else f"{name!r}, {self.tables.row_name(index)}"

    def file_name(self, index: int) -> str | None:
        """The name of the image's original file; None: the data set keeps none."""
        return (printable(self.names[index]) or None) if len(self.names) else None

    def digest(self) -> str:
        """SHA-256 of the files' sizes and the images' names and labels, in order: files may be moved and renamed."""
        try:
            sizes = [os.path.getsize(file) for file in self.tables.files]
        except OSError as error:
            raise UserError(f"{printable(str(error.filename))}: {error.strerror}") from None
        return sha256("huggingface", self.image_key, *sizes, self.names.packed, *digest_parts(self.labels))


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What is read of the files.

    Attributes:
      image: the column of the images.
      label: the column of the labels; None: they are not read.
      class_names: in the order of the labels, as the data set names them; None: it does not.
    """

    image: str
    label: str | None
    class_names: list[str] | None


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What is asked of a data set.

    Attributes:
      name: of the data set, for messages.
      wanted: as in `scan`.
      class_names: {column: its classes}, where they are named beside the files.
    """

    name: str
    wanted: Wanted
    class_names: Mapping[str, list[str]]


@dataclasses.dataclass(frozen=True)
class _Labels:
    """The labels of a split before they are classes.

    Attributes:
      values: those that are there, integers or texts.
      codes: int64, the place in `values` of each label, row by row; -1: a row has none.
      ends: int64 [n], where the labels of each row end in `codes`; None: each row has one.
    """

    values: list[Any]
    codes: np.ndarray
    ends: np.ndarray | None


def scan(
    name: str,
    classes_file: str | None,
    wanted: Wanted,
    splits: Sequence[str] | None = None,
) -> tuple[FolderScan, dict[str, TableRecords]]:
    """Finds the files of a data set and reads its labels.

    Args:
      name: as in `huggingface_files.find`.
      classes_file: the classes in the order of the labels, where the data set does not name them, see
        `class_files.read_class_file`; None: integers are the classes 0, 1, … up to the largest of training; texts are
        in alphabetical order.
      wanted: `image_key` is the column of the images; None: the only one. `label_key` is that of the labels; None: the
        only one with named classes, or else "label" or "labels". Several labels are in lists.
      splits: that will be used, as in `datasets.load_splits`; the files of others are not read, but for those of
        training where its labels are the classes. None: all.

    Returns:
      The names of the classes and the labels of the splits, as of a folder; and the sources of the splits, train first,
      each in the order of the files and their rows. A split with a missing or damaged file, other columns, a row
      without a label or a label that training does not have has a problem.

    Raises:
      UserError: no data set, a column that is missing or must be chosen, or a file of classes that cannot be read.
    """
    full = f"{huggingface_files.KIND}:{printable(name)}"
    found = huggingface_files.find(name)
    reference = split_names.training(found.splits)
    mentioned = split_names.mentioned(splits, found.splits) if splits else set()
    used = [split for split in found.splits if split in (mentioned or found.splits)]
    asked = _Asked(full, wanted, found.class_names)
    read: dict[str, _Split | str] = {}
    columns: _Columns | None = None

    def read_more(more: Iterable[str]) -> None:
        nonlocal columns
        for split in more:
            read[split] = own = _read_split(asked, found.splits[split], columns)
            columns = columns if isinstance(own, str) else own.columns

    read_more(used)
    if columns is None:
        raise UserError(next(problem for problem in read.values() if isinstance(problem, str)))
    if columns.class_names is not None and classes_file is not None:
        raise UserError(f"data.class_names = {classes_file!r}: {full} has its own class names and order; leave it out")
    if columns.class_names is None and classes_file is None and wanted.labelled:
        deciders = [reference] if reference is not None else [*found.splits]
        read_more(split for split in deciders if split not in read)
        for split in deciders:
            if isinstance(problem := read[split], str):
                raise UserError(f"{full}: its classes are those of {' and '.join(deciders)}: {problem}")
    deciding = [own.labels for split, own in read.items() if isinstance(own, _Split) and split == (reference or split)]
    deciding = [labels for labels in deciding if labels.values != [_NO_LABEL]]
    class_names: list[str] = []
    classes: dict[Any, int] = {}
    if wanted.labelled:
        class_names, classes = _classes(full, deciding, columns.class_names, classes_file)
    sources, parts = {}, {}
    notes = [*found.notes]
    for split in used:
        made: np.ndarray | LabelSets = _NO_LABELS
        problem, unlabelled = str(read[split]), False
        tables, names = open_tables([]), PackedNames.pack([])
        if isinstance(own := read[split], _Split):
            made, problem, unlabelled = _with_classes(own, classes, len(class_names))
            if not problem:
                try:
                    names = _read_names(own.tables, columns.image)
                    notes += _find_images(name, split, own.tables, columns.image)
                    tables = own.tables
                except UserError as error:
                    made, names, problem = _NO_LABELS, PackedNames.pack([]), str(error)
        sources[split] = TableRecords(tables, columns.image, made, names)
        parts[split] = FolderSplit("", names, made, _NO_LABELS, problem, unlabelled)
    open_classes = columns.class_names is None and classes_file is None and any(isinstance(key, str) for key in classes)
    others = [split for split, part in found.splits.items() if split not in used and not part.problem]
    return FolderScan(name, class_names, parts, LeftOut(), notes, open_classes, others), sources


@dataclasses.dataclass(frozen=True)
class _Split:
    """The files of a split, what is read of them, and the labels."""

    tables: Tables
    columns: _Columns
    labels: _Labels


def _read_split(asked: _Asked, files: huggingface_files.SplitTables, before: _Columns | None) -> _Split | str:
    """Reads the labels of a split whose columns are those of the split before it, or returns why it cannot be used."""
    if files.problem:
        return files.problem
    try:
        tables = open_tables(files.files)
        columns = _choose_columns(asked, tables, before)
        if columns.label is None:
            nothing = np.zeros(0, np.int64)
            return _Split(tables, columns, _Labels([], nothing, np.zeros(sum(tables.counts), np.int64)))
        return _Split(tables, columns, _read_labels(tables, columns.label, asked.wanted.several))
    except UserError as error:
        return str(error)


def _choose_columns(asked: _Asked, tables: Tables, before: _Columns | None) -> _Columns:
    """The columns of a split's files; `before`: of the split before it, which must be the same."""
    found = before
    for file in range(len(tables.files)):
        own = _columns_of(asked, printable(tables.files[file]), tables.schema(file))
        if found is not None and own != found:
            columns = f"columns {own.image!r} and {own.label!r}, or classes,"
            if own.label is None:
                columns = f"column {own.image!r} of images"
            raise UserError(
                f"{printable(tables.files[file])}: {columns} that are not those of the files before it; download the "
                "data set again, or read its splits one by one"
            )
        found = own
    if found is None:
        raise UserError(f"{asked.name}: a split without files")
    return found


def _columns_of(asked: _Asked, file: str, schema: Any) -> _Columns:
    where = f"{asked.name}: {file}"
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, LookupError, TypeError, RecursionError):
        features = {}
    features = features if isinstance(features, dict) else {}
    fields = {field.name: field.type for field in schema}
    if len(fields) < len(schema):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise UserError(f"{where}: two columns {twice!r}; rename one")
    images = [name for name in fields if huggingface_features.type_of(features.get(name)) == "Image"]
    images = images or [name for name in fields if holds_bytes(fields[name])]
    image = _choose(where, "image_key", "images", asked.wanted.image_key, images, fields)
    if not holds_bytes(fields[image]):
        of_images = ", ".join(map(repr, images)) or "none"
        raise UserError(
            f"{where}: column {image!r} has {fields[image]}; bytes of image files are needed, as in: {of_images}"
        )
    named = {**huggingface_features.class_names(features), **asked.class_names}
    label = _label_column(asked.wanted, where, named, fields, image) if asked.wanted.labelled else None
    for key in filter(None, (image, label)):  # a dot is between a column and its field
        if "." in key or any(name.startswith(f"{key}.") for name in fields):
            raise UserError(f"{where}: columns with a dot in their names beside {key!r}; rename them")
    names = named.get(label) if label is not None else None
    if names is not None and len({*names}) < len(names):
        raise UserError(f"{where}: column {label!r} names a class twice; correct its features")
    return _Columns(image, label, names)


def _label_column(wanted: Wanted, where: str, named: Collection[str], fields: Mapping[str, Any], image: str) -> str:
    """The column of the labels; `named`: the columns whose classes have names."""
    several, label_key = wanted.several, wanted.label_key
    kinds = [name for name in fields if _is_list(fields[name]) == several and name != image]
    labels = [name for name in kinds if name in named] or [name for name in _LABELS if name in kinds]
    others = [name for name in fields if name not in kinds and (name in named or name in _LABELS)]
    label = others[0] if label_key is None and not labels and others else ""
    label = label or _choose(where, "label_key", "labels", label_key, labels, fields)
    if _is_list(fields[label]) != several:
        has, kind = ("one label per row", "single") if several else ("lists of labels", "multi")
        raise UserError(f"{where}: column {label!r} has {has}: --config.data.labels={kind}")
    return label


def _choose(
    where: str, field: str, noun: str, key: str | None, candidates: Sequence[str], columns: Collection[str]
) -> str:
    if key is None and len(candidates) == 1:
        return candidates[0]
    if key is not None and key in columns:
        return key
    if key is not None:
        problem = f"no column {key!r}{nearest(key, columns)}"
    else:
        problem = f"{len(candidates)} columns of {noun}" if candidates else f"no column of {noun} that is known as one"
    shown = ", ".join(map(repr, candidates or columns))
    raise UserError(f"{where}: {problem}; name one, --config.data.{field}=…: {shown}")


def _is_list(type_: Any) -> bool:
    types = import_module("pyarrow.types")
    return any(
        getattr(types, f"is_{kind}")(type_)
        for kind in ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    )


def _read_labels(tables: Tables, column: str, several: bool) -> _Labels:
    """Reads the labels of all files.

    Raises:
      UserError: they are neither integers nor texts, or a file cannot be read.
    """
    pyarrow, types = import_module("pyarrow"), import_module("pyarrow.types")
    compute = import_module("pyarrow.compute")
    places: dict[Any, int] = {"": -1, None: -1}
    codes, ends, before = [], [], 0
    for number, file in enumerate(tables.files):
        found = tables.read_column(number, column)
        if several:
            lengths = compute.fill_null(compute.list_value_length(found), 0).to_numpy(zero_copy_only=False)
            ends.append(before + np.cumsum(lengths, dtype=np.int64))
            before += int(lengths.sum())
            found = compute.list_flatten(found)
        if types.is_dictionary(found.type):
            found = found.dictionary_decode()
        if types.is_string_view(found.type):
            found = found.cast(pyarrow.large_string())
        if not (types.is_integer(found.type) or types.is_string(found.type) or types.is_large_string(found.type)):
            raise UserError(
                f"{printable(file)}: column {column!r} has {found.type}; labels are integers or texts: name their "
                "column, --config.data.label_key=…, or cast it"
            )
        encoded = found.dictionary_encode()
        own = [places.setdefault(value, len(places) - 2) for value in encoded.dictionary.to_pylist()]
        indices = compute.fill_null(encoded.indices, len(own)).to_numpy(zero_copy_only=False)
        codes.append(np.array([*own, -1], np.int64)[indices])
    nothing = np.zeros(0, np.int64)
    values = [value for value, place in places.items() if place >= 0]
    return _Labels(values, np.concatenate([nothing, *codes]), np.concatenate([nothing, *ends]) if several else None)


def _classes(
    full: str, deciding: Sequence[_Labels], names: list[str] | None, classes_file: str | None
) -> tuple[list[str], dict[Any, int]]:
    """The names of the classes, and {label in the files: its class}.

    Args:
      full: name of the data set.
      deciding: the labels whose classes are those of the data set, where it does not name them.
      names: of the data set's own classes.
      classes_file: as in `scan`.
    """
    if names is not None:
        return names, {
            **{name: label for label, name in enumerate(names)},
            **{label: label for label in range(len(names))},
        }
    chosen = read_class_file(classes_file) if classes_file is not None else None
    values = {value for labels in deciding for value in labels.values}
    texts = sorted(value for value in values if isinstance(value, str))
    if texts:
        found = chosen or {text: text for text in texts}
        return list(found.values()), {key: label for label, key in enumerate(found)}
    if chosen is not None:
        return list(chosen.values()), integer_classes(chosen)
    if not values or not 0 <= min(values) <= max(values) < _MAX_LABELS:
        shown = f"labels from {min(values):,} to {max(values):,}" if values else "no labels"
        raise UserError(f"{full}: {shown}; integers from 0 to {_MAX_LABELS - 1:,}, or texts, are needed")
    return [str(number) for number in range(max(values) + 1)], {value: value for value in values}


def _with_classes(
    split: _Split, classes: Mapping[Any, int], num_classes: int
) -> tuple[np.ndarray | LabelSets, str, bool]:
    """The classes of a split's rows, what is wrong with them, and whether that is that no row has a label."""
    labels = split.labels
    found = np.array([*(classes.get(value, -1) for value in labels.values), -1], np.int64)[labels.codes]
    if (wrong := np.flatnonzero(found < 0)).size:
        row = int(wrong[0]) if labels.ends is None else int(np.searchsorted(labels.ends, wrong[0], side="right"))
        where, code = split.tables.row_name(row), int(labels.codes[wrong[0]])
        if all(value == _NO_LABEL for value in labels.values):
            return _NO_LABELS, f"{where}: no label; no other row has one", True
        if code < 0:
            return _NO_LABELS, f"{where}: no label", False
        value = labels.values[code]
        near = nearest(value, [key for key in classes if isinstance(key, str)]) if isinstance(value, str) else ""
        hint = "; data.class_names=FILE names all labels" if split.columns.class_names is None else ""
        return _NO_LABELS, f"{where}: label {value!r} is not among the {num_classes:,} classes{near}{hint}", False
    if labels.ends is None:
        return found, "", False
    starts = np.append(0, labels.ends)
    return LabelSets.pack((found[a:b].tolist() for a, b in itertools.pairwise(starts)), num_classes), "", False


def _read_names(tables: Tables, column: str) -> PackedNames:
    """The names of the images' original files, where every file of the data set keeps them beside the bytes."""
    types, found = import_module("pyarrow.types"), []
    for number in range(len(tables.files)):
        type_ = tables.schema(number).field(column).type
        place = type_.get_field_index("path") if types.is_struct(type_) else -1
        if place < 0 or not (
            types.is_string(type_.field(place).type) or types.is_large_string(type_.field(place).type)
        ):
            return PackedNames.pack([])
        found += tables.read_column(number, column, "path").to_pylist()
    return PackedNames.pack([(name or "").replace("\0", "") for name in found] if any(found) else [])


def _find_images(name: str, split: str, tables: Tables, column: str) -> Iterator[str]:
    """Finds the images in Parquet files; yields a note on those that are read by row groups and not kept as a whole."""
    if not isinstance(tables, ParquetTables):
        return
    type_ = tables.schema(0).field(column).type
    found = tables.find_bytes(column, "bytes" if import_module("pyarrow.types").is_struct(type_) else None)
    by_groups = [file for file, is_found in zip(tables.files, found, strict=True) if not is_found]
    if sum(map(os.path.getsize, by_groups)) > KEPT_BYTES:
        rows, size = tables.largest_group()
        yield (
            f"{split}: images are read with their row groups, up to {rows:,} rows of {size / 1e6:,.0f} MB; faster in "
            f"random order is a copy: python -m inception_jax.data.prepare huggingface --name=NAME --source={name}"
        )
