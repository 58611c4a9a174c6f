"""WebDataset tars: files `KEY.jpg` with `KEY.cls` or `KEY.json` beside them, read in place by index.

The convention (github.com/webdataset/webdataset): the key of a member is its path up to the first dot of its name; the
members of an example follow one another and differ in what comes after.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from inception_jax.data import file_index, file_patterns, split_names, tar_index
from inception_jax.data.class_files import integer_classes, read_class_file
from inception_jax.data.folder_files import LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit
from inception_jax.data.label_sets import LabelSets, Wanted, digest_parts, label_of
from inception_jax.data.names import PackedNames, printable
from inception_jax.data.open_files import OpenFiles
from inception_jax.data.records import sha256
from inception_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TarRecords:
    """Images in tars.

    Attributes:
      files: the tars.
      file_of: int32 [n], the tar of each image.
      offsets: int64 [n], the first byte of each image in its tar.
      sizes: int64 [n], bytes of each image.
      labels: int64 [n], or sets.
      keys: the key of each example.
      classes: where each class has a field of `.json`, their names.
    """

    files: tuple[str, ...]
    file_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | LabelSets
    keys: PackedNames
    classes: tuple[str, ...] = ()
    open_files: OpenFiles = dataclasses.field(default_factory=OpenFiles, repr=False)
    in_memory = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int | np.ndarray]:
        file, size = self.files[self.file_of[index]], int(self.sizes[index])
        try:
            content = self.open_files.read(file, int(self.offsets[index]), size)
        except OSError as error:
            raise UserError(f"{self.record_name(index)}: {error.strerror or error}") from None
        if len(content) != size:
            raise UserError(f"{self.record_name(index)}: truncated; copy the tar again")
        return content, label_of(self.labels, index)

    def record_name(self, index: int) -> str:
        return f"{printable(self.keys[index])!r} of {printable(self.files[self.file_of[index]])}"

    def digest(self) -> str:
        """SHA-256 of the keys, sizes and labels, in order: the tars may be moved, renamed or split anew."""
        return sha256("webdataset", self.keys.packed, self.sizes.astype("<i8"), *digest_parts(self.labels))


def scan(
    pattern: str,
    classes_file: str | None,
    wanted: Wanted,
    splits: Sequence[str],
) -> tuple[FolderScan, dict[str, TarRecords]]:
    """Finds tars and their examples.

    Args:
      pattern: path of the tars with `*`, `?`, `[…]`, `{000..127}`, and `{split}` where the name of the split is;
        without `{split}` all are "train".
      classes_file: the classes in the order of the labels, see `class_files.integer_classes`; None: 0, 1, … up to the
        largest label of training.
      wanted: `image_key` is the suffix of the image members, where an example has several, such as "left.jpg"; None:
        any image. `label_key` is the field of the `.json` members that has the label; None: `.cls`, or else "label" of
        `.json`. Several labels are a list of integers, or a dict of 0 and 1 (or bools), one for each class, whose keys
        are the classes, sorted; with `label_sets.COLUMNS` each bool of a `.json` is a class.
      splits: that will be used, as in `datasets.load_splits`; the tars of others are not read, but for those of
        training where the classes are known by its labels.

    Returns:
      The names of the classes and the labels of the splits, as of a folder; and the sources of the splits, train first,
      each in the order of the tars' names and of their members. A split with a missing or damaged tar, an example
      without an image or a label, a key that is there twice or a label that training does not have has a problem.

    Raises:
      UserError: no tars, or a file of classes that cannot be read.
    """
    shards = file_patterns.find(pattern, "webdataset", "tar")
    chosen = read_class_file(classes_file) if classes_file is not None else None
    if used := split_names.mentioned(splits, shards):
        reference = split_names.training(shards)
        if chosen is None and wanted.labelled:
            used = {*used, reference} if reference else {*shards}
        shards = {split: of_split for split, of_split in shards.items() if split in used}
    problems = {split: of_split.problem for split, of_split in shards.items()}
    sources, as_sets = {}, wanted.several or not wanted.labelled
    for split, of_split in shards.items():
        files = [] if of_split.problem else of_split.files
        try:
            sources[split] = _source(files, tar_index.load(files, wanted), as_sets)
        except UserError as error:
            sources[split], problems[split] = _source([], [], as_sets), str(error)
    reference = split_names.training(shards)
    if chosen is None and reference and problems[reference]:
        for split in shards:
            problems[split] = problems[split] or f"its classes are those of {reference}: {problems[reference]}"
    fields = _check_fields(sources, problems, reference)
    if fields and chosen is None:
        chosen = {field: field for field in fields}
    if chosen is not None:
        names, labels_of = list(chosen.values()), integer_classes(chosen)
        if fields:
            places = {key: label for label, key in enumerate(chosen)}
            labels_of = {number: places[field] for number, field in enumerate(fields) if field in places}
        known = f"the {len(chosen):,} of {classes_file}"
    elif not wanted.labelled:
        names, labels_of, known = [], {}, "none"
    else:
        of_train = [_flat(source.labels) for split, source in sources.items() if split == (reference or split)]
        labels = np.unique(np.concatenate(of_train))
        names = [str(number) for number in range(int(labels.max(initial=0)) + 1)]
        labels_of = {int(label): int(label) for label in labels}
        known = f"the {len(labels_of):,} of {'training' if reference else 'all splits'}"
    found = {}
    for split, source in sources.items():
        if not problems[split]:
            sources[split], problems[split] = _with_labels(source, labels_of, known, len(names))
        found[split] = FolderSplit("", source.keys, sources[split].labels, source.sizes, problems[split], False)
    notes = [of_split.note for of_split in shards.values() if of_split.note]
    return FolderScan(pattern, names, found, LeftOut(), notes), sources


def _check_fields(
    sources: Mapping[str, TarRecords], problems: dict[str, str], reference: str | None
) -> tuple[str, ...]:
    """Returns the classes that have fields in the reference split, or else the first; adds to the problems."""
    usable = [split for split, source in sources.items() if len(source) and not problems[split]]
    if not usable:
        return ()
    first = reference if reference in usable else usable[0]
    for split in usable:
        try:
            tar_index.check_classes(split, sources[split].classes, first, sources[first].classes)
        except UserError as error:
            problems[split] = str(error)
    return sources[first].classes


def _flat(labels: np.ndarray | LabelSets) -> np.ndarray:
    return labels.classes if isinstance(labels, LabelSets) else labels


def _source(files: Sequence[str], indices: Sequence[file_index.Arrays], several: bool) -> TarRecords:
    def column(name: str, dtype: type = np.int64) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(index[name] for index in indices)])

    counts = [len(index["offsets"]) for index in indices]
    labels: np.ndarray | LabelSets = column("labels")
    if several:
        parts = [LabelSets(index["ends"], index["labels"].astype(np.int32), tar_index.MAX_LABELS) for index in indices]
        labels = LabelSets.join([LabelSets.pack([], tar_index.MAX_LABELS), *parts])
    no_names = np.zeros(0, np.uint8)
    classes = {
        printable(file): tuple(PackedNames(index.get("classes", no_names)))
        for file, index, count in zip(files, indices, counts, strict=True)
        if count
    }
    first = next(iter(classes), "")
    for file, of_file in classes.items():
        tar_index.check_classes(file, of_file, first, classes[first])
    source = TarRecords(
        tuple(files),
        np.repeat(np.arange(len(files), dtype=np.int32), counts),
        column("offsets"),
        column("sizes"),
        labels,
        PackedNames(column("keys", np.uint8)),
        classes.get(first, ()),
    )
    seen: dict[bytes, int] = {}
    for index, key in enumerate(source.keys.packed.tobytes().split(b"\0")[:-1]):
        if key in seen:
            raise UserError(f"{source.record_name(index)} is also in {printable(files[source.file_of[seen[key]]])}")
        seen[key] = index
    return source


def _with_labels(
    source: TarRecords, labels_of: Mapping[int, int], known: str, num_classes: int
) -> tuple[TarRecords, str]:
    """A source with the labels {label in the tars: label}, and what is wrong with it, or ""."""
    table = np.full(tar_index.MAX_LABELS, -1, np.int64)
    for number, label in labels_of.items():
        if 0 <= number < len(table):
            table[number] = label
    given = _flat(source.labels)
    labels = table[given]
    wrong = np.flatnonzero(labels < 0)
    if not len(wrong):
        if isinstance(source.labels, LabelSets):
            starts = np.append(0, source.labels.ends)
            rows = (labels[start:stop].tolist() for start, stop in itertools.pairwise(starts))
            return dataclasses.replace(source, labels=LabelSets.pack(rows, num_classes)), ""
        return dataclasses.replace(source, labels=labels), ""
    label, row = int(given[wrong[0]]), int(wrong[0])
    shown = repr(source.classes[label]) if source.classes else label
    if isinstance(source.labels, LabelSets):
        row = int(np.searchsorted(source.labels.ends, row, side="right"))
    return source, (
        f"{source.record_name(row)}: label {shown} is not among {known}; data.class_names=FILE names all labels"
    )
