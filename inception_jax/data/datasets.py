"""Loads splits of a data set by its name: `load(name, split, data_dir)`, `load_splits(name, splits, data_dir)`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.data import (
    digits,
    folder_account,
    folders,
    huggingface,
    huggingface_files,
    list_files,
    prepared_features,
    prepared_sets,
    split_names,
    storage,
    webdatasets,
)
from inception_jax.data.example_records import FORMATS, FileInstruction
from inception_jax.data.label_sets import COLUMNS, KINDS, NO_LABELS, LabelSets, Wanted
from inception_jax.data.names import printable
from inception_jax.data.records import (
    ConcatenatedRecords,
    FileRecords,
    MemoryRecords,
    OwnRecords,
    RecordRange,
    RecordSource,
    SyntheticRecords,
    read_labels,
)
from inception_jax.errors import UserError, must_be_one_of, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_HOLD_OUT = (
    "; to hold out a part of train: --config.data.train_split='train[:90%]' --config.data.eval_split='train[90%:]'"
)


BUILT_IN = ("digits", "synthetic", "folder", "list", "webdataset", "huggingface", *prepared_sets.PREPARABLE)

# {name: (function that returns {split: data}, class names)} of the data sets that were added.
_ADDED: dict[str, tuple[Callable[[], Mapping[str, Any]], list[str]]] = {}


Ranges = tuple[tuple[str, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set: labelled images by index. It pickles, and any thread may read from it.

    Attributes:
      name: as given to `load`.
      split: as given to `load`.
      class_names: one per class, in the order of the labels.
      source: reads the records.
      account: of class folders, lines for the log: images per class, and what was left out.
      class_hint: what may be meant instead, where there is only one class.
      label_kind: "single": each example has one label; "multi": any number (`config.data.labels`); "none": labels are
        not read.
      ranges: (split, start, stop) of the records, in their order; the splits by the data set's own names.
    """

    name: str
    split: str
    class_names: list[str] = dataclasses.field(repr=False)
    source: RecordSource = dataclasses.field(repr=False)
    account: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    class_hint: str = dataclasses.field(default="", repr=False)
    label_kind: str = dataclasses.field(default="single", repr=False)
    ranges: Ranges = dataclasses.field(default=(), repr=False)

    @property
    def num_examples(self) -> int:
        """Examples of the split."""
        return len(self.source)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return len(self.class_names)

    @property
    def label_columns(self) -> int | None:
        """Columns of a batch's labels, one per class, where examples have several; None: one class number each."""
        return self.num_classes if self.label_kind == "multi" else None

    def labels(self) -> np.ndarray:
        """The one label of each example, int64 [num_examples]; -1: there is none. It may have to read all records."""
        if self.label_kind == NO_LABELS:
            return np.full(self.num_examples, -1, np.int64)
        labels = read_labels(self.source)
        return np.where((labels >= 0) & (labels < self.num_classes), labels, -1)

    def class_counts(self) -> np.ndarray:
        """Examples of each class: int64 [num_classes]."""
        labels = self.labels()
        return np.bincount(labels[labels >= 0], minlength=self.num_classes)

    def record(self, index: int) -> tuple[bytes | np.ndarray, Any]:
        """Reads one record.

        Returns:
          The image, as the bytes of a file or as uint8 [height, width, C], and its label, 0 <= label < num_classes; of
          several labels uint8 [num_classes] of 0 and 1; -1 where labels are not read.

        Raises:
          UserError: the record cannot be read, or has no label.
        """
        image, label = self.source[index]
        if self.label_kind == NO_LABELS:
            return image, -1
        if self.label_kind == "multi":
            return image, label
        if not 0 <= label < self.num_classes:
            raise UserError(f"{self.record_name(index)}: label {label}; the classes are 0 to {self.num_classes - 1}")
        return image, label

    def record_name(self, index: int) -> str:
        """The name of a record in messages."""
        return f"{self.name} [{self.split}], {self.source.record_name(index)}"


def load(name: str, split: str, *chosen: Any, **choices: Any) -> Dataset:
    """Opens one split of a data set.

    Args:
      name: as in `load_splits`.
      split: as in `load_splits`.
      *chosen: the further arguments of `load_splits`, in their order.
      **choices: those by name.

    Raises:
      UserError: as `load_splits`.
    """
    return load_splits(name, [split], *chosen, **choices)[0]


def load_splits(
    name: str,
    splits: Sequence[str],
    data_dir: str | None = None,
    class_names: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    labels: str = "single",
) -> list[Dataset]:
    """Opens several splits of a data set, for the price of one: class folders are listed once.

    Args:
      name: "digits" (embedded, nothing to prepare); "fashion_mnist", "imagenet2012" or any other data set that TFDS has
        prepared in `data_dir`, also "name/config:1.2.3"; "folder:PATH" (images in class folders, see
        `folders.scan`, or a prepared data set's own folder); "list:FILE" (a CSV or Parquet file of paths and
        labels, see `list_files.scan`); "webdataset:PATTERN" (tars, see `webdatasets.scan`); "huggingface:PATH"
        (Parquet and Arrow files with images, see `huggingface_files.find`); "synthetic", "synthetic:CLASSES",
        "synthetic:CLASSES:SIDE" or "synthetic:CLASSES:SIDE:CHANNELS" (noise: 1000 classes, 256 pixels, 3 channels); or
        a name that was added.
      splits: each a name, or TFDS's syntax for slices and sums: "train[:90%]", "train[5000:]", "train+test".
      data_dir: folder of prepared data sets; see `prepared_sets.default_data_dir`.
      class_names: of class folders, lists, tars, and Parquet and Arrow files that do not name their classes: a file of
        their order and names (`class_files.read_class_file`).
      image_key: of a prepared data set with several images: the feature to read, nested ones as "outer/inner"; of a
        list: the column of the paths; of tars: the suffix of the images; of Parquet and Arrow files: their column.
      label_key: of a prepared data set with several labels: the feature to read; of a list, and of Parquet and Arrow
        files: the column of the labels; of tars: the field of `.json`.
      labels: "single": each example has one label; "multi": any number, from a list, tars, arrays, a column of
        lists, or a prepared data set's Sequence of ClassLabel or Tensor of 0 and 1. "none": labels are not read and
        need not be there; then `class_names` and `label_key` choose nothing.

    Raises:
      UserError: unknown name or split, or a data set that is not prepared; the message lists what exists, or gives the
        command to run.
    """
    if labels not in (*KINDS, NO_LABELS):
        raise UserError(f"labels = {labels!r}: {must_be_one_of(labels, (*KINDS, NO_LABELS))}")
    labelled = labels != NO_LABELS
    if not labelled:
        class_names = label_key = None
    wanted = Wanted(image_key, label_key, labels == "multi", labelled)
    try:
        opened = _open_splits(name, splits, data_dir, class_names, wanted)
    except UserError as error:
        kind, _, path = name.partition(":")
        is_other = (
            kind == "folder" and name not in _ADDED and path.strip() and not str(error).startswith("unknown split")
        )
        if is_other and huggingface_files.is_data_set(Path(os.path.expanduser(path))):
            raise UserError(
                f"{printable(name)}: a Hugging Face data set? Then huggingface:{printable(path)}; as class folders: "
                f"{error}"
            ) from None
        raise
    return [dataclasses.replace(dataset, label_kind=labels) for dataset in opened]


def _open_splits(
    name: str, splits: Sequence[str], data_dir: str | None, class_names: str | None, wanted: Wanted
) -> list[Dataset]:
    if name in _ADDED:
        kind = rest = ""
    else:
        kind, _, rest = name.partition(":")
    if kind in ("folder", "list", "webdataset") and not rest.strip():
        what = prepared_sets.KINDS_WITH_PATH[kind][0]
        raise UserError(f"data set {name!r}: {kind}:{what} is needed; is a variable of the shell unset?")
    if kind in ("list", "webdataset") and wanted.label_key == COLUMNS and not wanted.several:
        what = "column" if kind == "list" else "field"
        raise UserError(
            f"{printable(name)}: config.data.label_key = '*': {what}s of classes are several labels per image; set "
            f"--config.data.labels=multi, or name the {what} of the label"
        )
    if kind == "list":
        found = list_files.scan(rest, class_names, wanted)
        return _from_folder(printable(name), splits, found, wanted.labelled)
    if kind == "webdataset":
        found, tars = webdatasets.scan(rest, class_names, wanted, splits)
        return _from_folder(printable(name), splits, found, wanted.labelled, tars)
    if kind == "huggingface" and ":" in name:
        found, tables = huggingface.scan(rest, class_names, wanted, splits)
        return _from_folder(printable(name), splits, found, wanted.labelled, tables)
    is_remote = storage.is_remote(rest)
    path = Path(rest).expanduser() if kind == "folder" else Path()
    if kind == "folder" and (is_remote or not (path / "dataset_info.json").is_file()):
        if not is_remote and (versions := sorted(path.glob("*/dataset_info.json"))):
            raise UserError(f"{name}: the folder above a prepared data set; name its own: folder:{versions[-1].parent}")
        wanted.refuse_keys(name)
        wanted.refuse_several(name)
        found = folders.scan(rest if is_remote else path, class_names, labelled=wanted.labelled)
        return _from_folder(printable(name), splits, found, wanted.labelled)
    if class_names is not None:
        raise UserError(
            f"data.class_names = {class_names!r}: {name} has its own class names and order; only class folders "
            "(folder:PATH), lists (list:FILE), tars (webdataset:PATTERN) and files without named classes "
            "(huggingface:PATH) take them from a file"
        )
    if name in _ADDED:
        wanted.refuse_keys(name)
        return [_added(name, split, wanted) for split in splits]
    if name == "digits" or kind == "synthetic":
        wanted.refuse_keys(name)
        wanted.refuse_several(name)
        return [_digits(split) if name == "digits" else _synthetic(name, split, rest) for split in splits]

    def open_builder() -> tfds.core.DatasetBuilder:
        if kind == "folder":
            return prepared_sets.load_tfds().builder_from_directory(path)
        return prepared_sets.find_prepared(name, prepared_sets.default_data_dir(data_dir), [*_ADDED])

    return [_prepared(name, split, wanted, open_builder) for split in splits]


def _from_folder(
    name: str,
    splits: Sequence[str],
    found: folders.FolderScan,
    labelled: bool,
    sources: Mapping[str, RecordSource] | None = None,
) -> list[Dataset]:
    """Splits of class folders or the like, by any spelling of a name; of image files, if it has no other sources."""
    if sources is None:
        sources = {s: FileRecords(part.folder, part.keys, part.labels, part.sizes) for s, part in found.splits.items()}
    problems = {s: part.problem for s, part in found.splits.items() if part.problem}
    unlabelled = {s for s, part in found.splits.items() if part.problem and part.unlabelled}
    train = split_names.training(found.splits)
    can_hold_out = train is not None and train not in problems and len(sources[train])
    all_splits = [*found.splits, *found.not_read]
    others = [s for s in all_splits if s not in (split_names.training(all_splits), *problems)]
    hint = f"; another split: --config.data.eval_split={others[0]}" if others else _HOLD_OUT if can_hold_out else ""
    if not labelled:
        hint = ""  # of training
    problems |= {s: problems[s] + hint for s in unlabelled}
    unknown = folder_account.misnamed_splits(found) or hint
    opened = [
        _from_splits(name, split, found.class_names, sources, found.spellings(), problems, unknown) for split in splits
    ]
    meant = folders.single_class_hint(found) if len(found.class_names) == 1 and name.startswith("folder:") else ""
    wholes = {(split, 0, len(source)) for split, source in sources.items()}
    parts = {dataset.split: dataset.ranges for dataset in opened if not wholes.issuperset(dataset.ranges)}
    account = tuple(folder_account.format_account(found, labelled, parts))
    return [dataclasses.replace(dataset, account=account, class_hint=meant) for dataset in opened]


def add(name: str, splits: Callable[[], Mapping[str, Any]], class_names: list[str]) -> None:
    """Adds a data set, or replaces one that was added under its name (`inception_jax.register_dataset`)."""
    _ADDED[name] = splits, class_names


def _added(name: str, split: str, wanted: Wanted) -> Dataset:
    load_data, class_names = _ADDED[name]
    try:
        splits = dict(load_data())
    except UserError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise UserError(f"data set {name!r}: {type(error).__name__}: {error}") from error
    sources = {key: _own_source(f"{name} [{key}]", data, len(class_names), wanted) for key, data in splits.items()}
    return _not_empty(_from_splits(name, split, class_names, sources))


def _own_source(name: str, data: Any, num_classes: int, wanted: Wanted) -> RecordSource:
    """The source of a split that was added, from arrays or from an object with a length and items; checks both."""
    if not isinstance(data, tuple):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(f"{name}: {type(data).__name__}; (images, labels), or an object with a length and items")
        return OwnRecords(name, data, num_classes if wanted.several else None, wanted.labelled)
    if not wanted.labelled:
        data = data[0], np.full(np.shape(data[0])[:1], -1)
    if len(data) != 2:
        raise UserError(f"{name}: a tuple of {len(data)}; (images, labels) is needed")
    try:
        images, labels = (np.asarray(array) for array in data)
    except ValueError:  # lists of arrays of different shapes
        raise UserError(
            f"{name}: (images, labels) are no arrays; for images of different sizes give an object whose item i is "
            "(image, label), such as a list of these"
        ) from None
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or not images.shape[3]:
        raise UserError(
            f"{name}: images {images.dtype}{list(images.shape)}; uint8 [n, height, width, channels], or [n, height, "
            "width] of grey ones, is needed"
        )
    if not wanted.labelled:
        return MemoryRecords(images, labels)
    if wanted.several:
        return MemoryRecords(images, _own_label_sets(name, labels, (len(images), num_classes)))
    if labels.ndim == 2 and labels.shape == (len(images), num_classes):
        raise UserError(
            f"{name}: labels {labels.dtype}{list(labels.shape)}: several per example are for config.data.labels = "
            f"'multi'; with 'single' integers [{len(images)}] are needed"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: labels {labels.dtype}{list(labels.shape)}; integers [{len(images)}] are needed")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(f"{name}: labels from {labels.min()} to {labels.max()}; the classes are 0 to {num_classes - 1}")
    return MemoryRecords(images, labels)


def _own_label_sets(name: str, labels: np.ndarray, shape: tuple[int, int]) -> LabelSets:
    """The labels of arrays, [n, classes] of 0 and 1; checks them."""
    if labels.ndim == 1:
        Wanted(several=True).refuse_several(name)
    if labels.shape != shape or not (labels.dtype == bool or np.issubdtype(labels.dtype, np.number)):
        raise UserError(
            f"{name}: labels {labels.dtype}{list(labels.shape)}; with config.data.labels = 'multi' 0 and 1 "
            f"{list(shape)} are needed, a column per class"
        )
    if (wrong := (labels != 0) & (labels != 1)).any():
        row, column = np.argwhere(wrong)[0].tolist()
        raise UserError(
            f"{name}: label {labels[row, column]} of example {row}, class {column}; with config.data.labels = 'multi' "
            "each is 0 or 1"
        )
    return LabelSets.from_table(labels)


def _digits(split: str) -> Dataset:
    sources = {}
    for own in digits.NUM_EXAMPLES:
        images, labels, _ = digits.load(own)
        sources[own] = MemoryRecords(np.repeat(images[..., None], 3, axis=-1), labels)
    return _from_splits("digits", split, digits.CLASS_NAMES, sources)


def _synthetic(name: str, split: str, sizes: str) -> Dataset:
    fields = sizes.split(":") if sizes else []
    if len(fields) > 3 or not all(field.isdigit() and int(field) > 0 for field in fields):
        raise UserError(
            f"data set {name!r}: synthetic, synthetic:CLASSES, synthetic:CLASSES:SIDE or "
            "synthetic:CLASSES:SIDE:CHANNELS is allowed"
        )
    classes, side, channels = [int(value) for value in fields] + [1000, 256, 3][len(fields) :]
    counts = {"train": 1_281_167, "validation": 50_000, "test": 50_000}  # as many as ImageNet has
    sources = {s: SyntheticRecords(count, classes, side, channels) for s, count in counts.items()}
    return _from_splits(name, split, [str(label) for label in range(classes)], sources)


def _from_splits(
    name: str,
    split: str,
    class_names: list[str],
    sources: Mapping[str, RecordSource],
    spellings: Mapping[str, str] = MappingProxyType({}),
    problems: Mapping[str, str] = MappingProxyType({}),
    hint: str = "",
) -> Dataset:
    """A data set that is not prepared, with TFDS's syntax for slices and sums of splits.

    Args:
      name: of the data set.
      split: as in `load`.
      class_names: one per class.
      sources: of the splits.
      spellings: {another name of a split: its name}.
      problems: {split: why it cannot be used}.
      hint: the end of the error for an unknown split that is near to none.
    """
    if split in sources and split not in problems:
        source = sources[split]
        return _not_empty(Dataset(name, split, class_names, source, ranges=((split, 0, len(source)),)))
    from tensorflow_datasets.core import splits

    own_names = {**{s: s for s in sources}, **spellings}
    spec = split
    if "all" not in sources:  # the sum of all splits, which would count every spelling
        spec = re.sub(r"\ball\b(?!\[)", "+".join(sources), split)  # TFDS refuses slices of it
    infos = {
        s: splits.SplitInfo(name=s, shard_lengths=[len(sources[own])], num_bytes=0) for s, own in own_names.items()
    }
    ranges = _ranges(_read_split(name, spec, infos, list(sources), hint), infos, own_names)
    for own, _, _ in ranges:
        if own in problems:
            raise UserError(f"split {split!r} of {name}: {problems[own]}")
    parts = [RecordRange(sources[own], start, stop) for own, start, stop in ranges]
    if len(parts) == 1 and (parts[0].start, parts[0].stop) == (0, len(parts[0].source)):
        return _not_empty(Dataset(name, split, class_names, parts[0].source, ranges=ranges))
    return _not_empty(Dataset(name, split, class_names, ConcatenatedRecords(parts), ranges=ranges))


def _ranges(
    parts: Sequence[Any], infos: Mapping[str, Any], own_names: Mapping[str, str] = MappingProxyType({})
) -> Ranges:
    """(split, start, stop) of TFDS's absolute instructions.

    Args:
      parts: the instructions.
      infos: TFDS's, by split.
      own_names: {a name of a split: the data set's own}; of others their own.
    """
    return tuple(
        (
            own_names.get(part.splitname, part.splitname),
            part.from_ or 0,
            infos[part.splitname].num_examples if part.to is None else part.to,
        )
        for part in parts
    )


def _read_split(name: str, split: str, infos: Any, names: Sequence[str] | None = None, hint: str = "") -> list[Any]:
    """Parses a split with TFDS: its absolute instructions (splitname, from_, to); errors list `names`, or else all.

    The error for an unknown split that is near to none ends with `hint`.
    """
    from tensorflow_datasets.core import splits

    try:
        return splits.AbstractSplit.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        known = ", ".join(f"{s} ({infos[s].num_examples})" for s in names or infos)
        unknown = "Unknown split" in str(error)
        reason = nearest(split, infos) if unknown else f": {str(error).splitlines()[-1]}"
        if "Unrecognized split format" in reason:
            reason = ": not a split such as train, train[:80%], train[5000:] or train+test"
        if (percent := re.sub(r"(?<=[\[:])-?0?\.\d+(?=[:\]])", _as_percent, split)) != split:
            reason = f": a part is given in percent; did you mean {percent!r}?"
        hint = hint if unknown and not reason else ""
        raise UserError(f"{'unknown ' * unknown}split {split!r} of {name}{reason}; splits: {known}{hint}") from None


def _as_percent(fraction: re.Match[str]) -> str:
    return f"{100 * float(fraction[0]):g}%"


def _not_empty(dataset: Dataset) -> Dataset:
    if not dataset.num_examples:
        raise UserError(f"split {dataset.split!r} of {dataset.name}: has no examples")
    return dataset


def _prepared(name: str, split: str, wanted: Wanted, open_builder: Callable[[], tfds.core.DatasetBuilder]) -> Dataset:
    """A split of a data set that is prepared on disk."""
    try:
        builder = open_builder()
    except UserError:
        raise
    except Exception as error:  # whatever TFDS's parsers raise
        raise UserError(f"data set {name!r}: cannot be opened ({type(error).__name__}: {error})") from None
    file_format = prepared_sets.choose_format(builder, list(FORMATS))
    if wanted.labelled:
        image_key, label_key, class_names = prepared_features.read_features(name, builder.info, wanted)
        form = prepared_features.label_form(builder.info, label_key)
    else:
        image_key, label_key, class_names = prepared_features.image_feature(name, builder.info, wanted), None, []
        form = None
    infos = dict(builder.info.splits.items())
    ranges = _ranges(_read_split(name, split, infos), infos)
    parts = [
        FileInstruction(os.fspath(part.filename), part.skip, part.take, part.examples_in_shard)
        for part in builder.info.splits[split].file_instructions
    ]
    source = FORMATS[file_format](parts, image_key, label_key, form)
    return _not_empty(Dataset(name, split, class_names, source, ranges=ranges))
