"""Loads one split of a data set by its name: `load(name, split, data_dir)`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.data import digits, folders
from inception_jax.data.records import (
    ArrayRecords,
    ConcatenatedRecords,
    FileInstruction,
    FileRecords,
    MemoryRecords,
    OwnRecords,
    RecordRange,
    RecordSource,
    SyntheticRecords,
    read_labels,
)
from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The data sets that `data.prepare` makes by name, and the arguments it needs.
PREPARABLE = {
    "digits": "",
    "fashion_mnist": " --source=FOLDER_OF_THE_FOUR_FILES (Debian has them: apt-get install dataset-fashion-mnist)",
    "imagenet2012": " --source=FOLDER_OF_THE_TWO_TARS",
}


BUILT_IN = ("digits", "synthetic", "folder", *PREPARABLE)

# {name: (function that returns {split: data}, class names)} of the data sets that were added.
_ADDED: dict[str, tuple[Callable[[], Mapping[str, Any]], list[str]]] = {}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a data set: labelled images by index. It pickles, and any thread may read from it.

    Attributes:
      name: as given to `load`.
      split: as given to `load`.
      class_names: one per class, in the order of the labels.
      source: reads the records.
    """

    name: str
    split: str
    class_names: list[str] = dataclasses.field(repr=False)
    source: RecordSource = dataclasses.field(repr=False)

    @property
    def num_examples(self) -> int:
        """Examples of the split."""
        return len(self.source)

    @property
    def num_classes(self) -> int:
        """Classes of the data set."""
        return len(self.class_names)

    def labels(self) -> np.ndarray:
        """The label of every example, int64 [num_examples]; -1 where there is none. It may have to read all records."""
        labels = read_labels(self.source)
        return np.where((labels >= 0) & (labels < self.num_classes), labels, -1)

    def class_counts(self) -> np.ndarray:
        """Examples of each class: int64 [num_classes]."""
        labels = self.labels()
        return np.bincount(labels[labels >= 0], minlength=self.num_classes)

    def record(self, index: int) -> tuple[bytes | np.ndarray, int]:
        """Reads one record.

        Returns:
          The image, as the bytes of a file or as uint8 [height, width, 3], and its label, 0 <= label < num_classes.

        Raises:
          UserError: the record cannot be read, or has no label.
        """
        image, label = self.source[index]
        if not 0 <= label < self.num_classes:
            raise UserError(f"{self.record_name(index)}: label {label}; the classes are 0 to {self.num_classes - 1}")
        return image, label

    def record_name(self, index: int) -> str:
        """The name of a record in messages."""
        return f"{self.name} [{self.split}], {self.source.record_name(index)}"


def default_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of prepared data sets: as given, else TFDS_DATA_DIR, else ~/tensorflow_datasets (as in TFDS)."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def load(name: str, split: str, data_dir: str | None = None) -> Dataset:
    """Opens one split of a data set.

    Args:
      name: "digits" (embedded, nothing to prepare); "fashion_mnist", "imagenet2012" or any other data set that is
        prepared as ArrayRecord in `data_dir`, also "name/config:1.2.3"; "folder:PATH" (images in class folders, see
        `folders.scan`, or a prepared data set's own folder); "synthetic", "synthetic:CLASSES" or
        "synthetic:CLASSES:SIDE" (noise: 1000 classes, 256 pixels); or a name that was added.
      split: a name, or TFDS's syntax for slices and sums: "train[:90%]", "train[5000:]", "train+test".
      data_dir: folder of prepared data sets; see `default_data_dir`.

    Raises:
      UserError: unknown name or split, or a data set that is not prepared; the message lists what exists, or gives the
        command to run.
    """
    kind, _, rest = name.partition(":")
    if name in _ADDED:
        return _added(name, split)
    if name == "digits":
        return _from_splits(name, split, digits.CLASS_NAMES, {s: _digits(s) for s in digits.NUM_EXAMPLES})
    if kind == "synthetic":
        return _synthetic(name, split, rest)
    if kind == "folder":
        path = Path(rest).expanduser()
        if (path / "dataset_info.json").is_file():
            return _prepared(name, split, lambda: _tfds().builder_from_directory(path))
        class_names, parts = folders.scan(path)
        return _from_splits(name, split, class_names, {s: FileRecords(p.paths, p.labels) for s, p in parts.items()})
    return _prepared(name, split, lambda: _find_prepared(name, default_data_dir(data_dir)))


def add(name: str, splits: Callable[[], Mapping[str, Any]], class_names: list[str]) -> None:
    """Adds a data set, or replaces one that was added under its name (`inception_jax.register_dataset`)."""
    _ADDED[name] = splits, class_names


def _added(name: str, split: str) -> Dataset:
    load_splits, class_names = _ADDED[name]
    try:
        splits = dict(load_splits())
    except UserError:
        raise
    except Exception as error:  # whatever a user's function raises
        raise UserError(f"data set {name!r}: {type(error).__name__}: {error}") from error
    sources = {key: _own_source(f"{name} [{key}]", data, len(class_names)) for key, data in splits.items()}
    return _not_empty(_from_splits(name, split, class_names, sources))


def _own_source(name: str, data: Any, num_classes: int) -> RecordSource:
    """The source of a split that was added, from arrays or from an object with a length and items; checks both."""
    if not isinstance(data, tuple):
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(f"{name}: {type(data).__name__}; (images, labels), or an object with a length and items")
        return OwnRecords(name, data)
    if len(data) != 2:
        raise UserError(f"{name}: a tuple of {len(data)}; (images, labels) is needed")
    images, labels = (np.asarray(array) for array in data)
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{name}: images {images.dtype}{list(images.shape)}; uint8 [n, height, width, 3] is needed")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"{name}: labels {labels.dtype}{list(labels.shape)}; integers [{len(images)}] are needed")
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise UserError(f"{name}: labels from {labels.min()} to {labels.max()}; the classes are 0 to {num_classes - 1}")
    return MemoryRecords(images, labels)


def _digits(split: str) -> MemoryRecords:
    images, labels, _ = digits.load(split)
    return MemoryRecords(np.repeat(images[..., None], 3, axis=-1), labels)


def _synthetic(name: str, split: str, sizes: str) -> Dataset:
    fields = sizes.split(":") if sizes else []
    if len(fields) > 2 or not all(field.isdigit() and int(field) > 0 for field in fields):
        raise UserError(f"data set {name!r}: synthetic, synthetic:CLASSES or synthetic:CLASSES:SIDE is allowed")
    classes, side = [int(value) for value in fields] + [1000, 256][len(fields) :]
    counts = {"train": 1_281_167, "validation": 50_000, "test": 50_000}  # as many as ImageNet has
    sources = {s: SyntheticRecords(count, classes, side) for s, count in counts.items()}
    return _from_splits(name, split, [str(label) for label in range(classes)], sources)


def _from_splits(name: str, split: str, class_names: list[str], sources: Mapping[str, RecordSource]) -> Dataset:
    """A data set that is not prepared, with TFDS's syntax for slices and sums of splits."""
    if split in sources:
        return Dataset(name, split, class_names, sources[split])
    from tensorflow_datasets.core import splits

    infos = {s: splits.SplitInfo(name=s, shard_lengths=[len(source)], num_bytes=0) for s, source in sources.items()}
    parts = []
    for part in _read_split(name, split, infos):
        source = sources[part.splitname]
        parts.append(RecordRange(source, part.from_ or 0, len(source) if part.to is None else part.to))
    return _not_empty(Dataset(name, split, class_names, ConcatenatedRecords(parts)))


def _read_split(name: str, split: str, infos: Any) -> list[Any]:
    """Parses a split with TFDS: its absolute instructions (splitname, from_, to)."""
    from tensorflow_datasets.core import splits

    try:
        return splits.AbstractSplit.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        known = ", ".join(f"{s} ({info.num_examples})" for s, info in infos.items())
        unknown = "Unknown split" in str(error)
        reason = nearest(split, infos) if unknown else f": {str(error).splitlines()[-1]}"
        raise UserError(f"{'unknown ' * unknown}split {split!r} of {name}{reason}; splits: {known}") from None


def _not_empty(dataset: Dataset) -> Dataset:
    if not dataset.num_examples:
        raise UserError(f"split {dataset.split!r} of {dataset.name}: has no examples")
    return dataset


def _prepared(name: str, split: str, open_builder: Callable[[], tfds.core.DatasetBuilder]) -> Dataset:
    """A split of a data set that is prepared on disk."""
    try:
        builder = open_builder()
    except UserError:
        raise
    except Exception as error:  # whatever TFDS's parsers raise
        raise UserError(f"data set {name!r}: cannot be opened ({type(error).__name__}: {error})") from None
    file_format = builder.info.file_format
    if file_format is None or file_format.file_suffix != "array_record":
        raise UserError(
            f"{builder.data_dir}: prepared as {file_format and file_format.file_suffix}; array_record is needed: move"
            f" it away and prepare it again with --file_format=array_record"
        )
    image_key, label_key, class_names = _features(name, builder.info)
    _read_split(name, split, dict(builder.info.splits.items()))
    parts = [
        FileInstruction(os.fspath(part.filename), part.skip, part.take, part.examples_in_shard)
        for part in builder.info.splits[split].file_instructions
    ]
    return _not_empty(Dataset(name, split, class_names, ArrayRecords(parts, image_key, label_key)))


def _features(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str, list[str]]:
    """The names of the image feature and of the label feature, and the class names."""
    features = _tfds().features
    found = {}
    for role, kind in (("image", features.Image), ("label", features.ClassLabel)):
        keys = [key for key, feature in info.features.items() if type(feature) is kind]
        if len(keys) > 1:
            keys = [key for key in info.supervised_keys or () if key in keys]
        if len(keys) != 1:
            raise UserError(f"data set {name!r}: one image and one class label are needed; it has {info.features}")
        found[role] = keys[0]
    image = info.features[found["image"]]
    if image.np_dtype != np.uint8:
        raise UserError(f"data set {name!r}: images of {image.np_dtype}; uint8 is needed")
    label = info.features[found["label"]]
    return found["image"], found["label"], [label.int2str(i) for i in range(label.num_classes)]


def _find_prepared(name: str, data_dir: Path) -> tfds.core.DatasetBuilder:
    """Finds a prepared data set in `data_dir`; raises `UserError` with the remedy if there is none."""
    from tensorflow_datasets.core import naming, read_only_builder, registered

    try:
        base = naming.parse_builder_name_kwargs(name)[0].name
    except ValueError:
        raise UserError(f"data set {name!r}: not a name; NAME, NAME/CONFIG or NAME:1.2.3 is allowed") from None
    try:
        return read_only_builder.builder_from_files(name, data_dir=os.fspath(data_dir))
    except registered.DatasetNotFoundError:
        pass
    if base in PREPARABLE:
        command = f"python -m inception_jax.data.prepare {base} --data_dir={data_dir}{PREPARABLE[base]}"
        raise UserError(f"data set {name!r} is not prepared in {data_dir}; run: {command}")
    stock = _tfds().list_builders(with_community_datasets=False)
    if base in stock:
        command = f"tfds build {name} --data_dir={data_dir} --file_format=array_record"
        raise UserError(f"data set {name!r} is not prepared in {data_dir}; run once, with tensorflow-cpu: {command}")
    here = sorted(path.parent.parent.name for path in data_dir.glob("*/*/dataset_info.json"))
    names = [*PREPARABLE, "folder:PATH", "synthetic", *_ADDED, *here]
    raise UserError(
        f"unknown data set {name!r}{nearest(base, [*names, *stock])}; data sets: {', '.join(dict.fromkeys(names))}, or"
        f" any of TFDS's prepared in {data_dir}"
    )


def _tfds() -> Any:
    """Imports TFDS, for the data sets that need it: it takes two thirds of a second, which the digits do without."""
    import tensorflow_datasets

    return tensorflow_datasets
