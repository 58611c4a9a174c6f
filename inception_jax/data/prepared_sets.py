"""Finds the data sets that TFDS has prepared on disk, in any file format, or says how to prepare them.

TFDS's own `builder_from_files` and `builder_from_directory` find and describe them; they import no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.data import storage
from inception_jax.data.example_records import LabelForm
from inception_jax.data.names import printable
from inception_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# The data sets that `data.prepare` makes by name, and the arguments it needs.
PREPARABLE = {
    "digits": "",
    "fashion_mnist": " --source=FOLDER_OF_THE_FOUR_FILES (Debian has them: apt-get install dataset-fashion-mnist)",
    "imagenet2012": " --source=FOLDER_OF_THE_TWO_TARS",
}
# What people call them, without regard to case, dashes and underscores.
_OTHER_NAMES = {
    "imagenet2012": ("imagenet", "imagenet1k", "ilsvrc", "ilsvrc2012", "ilsvrc12"),
    "fashion_mnist": ("fashionmnist", "fmnist"),
}


def default_data_dir(data_dir: str | os.PathLike | None = None) -> Path:
    """The folder of prepared data sets: as given, else TFDS_DATA_DIR, else ~/tensorflow_datasets (as in TFDS)."""
    if data_dir is not None and storage.is_remote(data_dir):
        raise UserError(
            f"data.data_dir = {os.fspath(data_dir)!r}: prepared data sets are read from a file system; mount the "
            "storage as one, or use class folders (data.name=folder:gs://…)"
        )
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def find_prepared(name: str, data_dir: Path, others: Sequence[str] = ()) -> tfds.core.DatasetBuilder:
    """Finds a prepared data set.

    Args:
      name: of the data set.
      data_dir: folder of prepared data sets.
      others: names of further data sets, for the message.

    Raises:
      UserError: there is none; with the remedy.
    """
    from tensorflow_datasets.core import naming, read_only_builder, registered

    try:
        base = naming.parse_builder_name_kwargs(name)[0].name
    except ValueError:
        _refuse_path(name)
        _refuse_other_name(name)
        raise UserError(f"data set {name!r}: not a name; NAME, NAME/CONFIG or NAME:1.2.3 is allowed") from None
    try:
        return read_only_builder.builder_from_files(name, data_dir=os.fspath(data_dir))
    except registered.DatasetNotFoundError:
        _refuse_other_name(name)
    configs = sorted({path.parent.parent.name for path in data_dir.glob(f"{base}/*/*/dataset_info.json")})
    if configs:
        raise UserError(f"data set {name!r}: {data_dir} has {', '.join(f'{base}/{config}' for config in configs)}")
    if base in PREPARABLE:
        command = f"python -m inception_jax.data.prepare {base} --data_dir={data_dir}{PREPARABLE[base]}"
        raise UserError(f"data set {name!r} is not prepared in {data_dir}; run: {command}")
    _refuse_path(name)
    stock = load_tfds().list_builders(with_community_datasets=False)
    if base in stock:
        # Not `tfds build`: that of TFDS 4.9.10 does not start without Apache Beam.
        call = f"tfds.builder({name!r}, data_dir={os.fspath(data_dir)!r}).download_and_prepare()"
        raise UserError(
            f"data set {name!r} is not prepared in {data_dir}; run once, with tensorflow-cpu (pip install "
            f"'inception_jax[tf]'): python -c \"import tensorflow_datasets as tfds; {call}\""
        )
    here = sorted(
        path.parent.parent.relative_to(data_dir).as_posix()
        for depth in ("*/*", "*/*/*")
        for path in data_dir.glob(f"{depth}/dataset_info.json")
    )
    names = [*PREPARABLE, "folder:PATH", "list:FILE", "webdataset:PATTERN", "synthetic", *others, *here]
    raise UserError(
        f"unknown data set {name!r}{nearest(base, [*names, *stock])}; data sets: {', '.join(dict.fromkeys(names))}, or"
        f" any of TFDS's prepared in {data_dir}"
    )


def choose_format(builder: tfds.core.DatasetBuilder, readable: Sequence[str]) -> str:
    """Chooses the files to read: the set's own format, or else another that `tfds convert_format` has added.

    Args:
      builder: of a prepared data set; its splits then name the files of the chosen format.
      readable: the formats that can be read.

    Raises:
      UserError: none of its formats can be read.
    """
    info = builder.info
    own = info.file_format.file_suffix
    formats = [own, *(other.file_suffix for other in info.alternative_file_formats)]
    known = [name for name in formats if name in readable]
    if not known:
        raise UserError(
            f"{builder.data_dir}: prepared as {' and '.join(formats)}; {', '.join(readable)} can be read: move it away "
            "and prepare it again with --file_format=array_record"
        )

    def has_files(name: str) -> bool:
        for split in info.splits.values():
            files = split.filename_template.replace(filetype_suffix=name).sharded_filepaths(split.num_shards)
            if any(file.exists() for file in files):
                return True
        return False

    chosen = next(filter(has_files, known), known[0])
    if chosen != own:
        info.set_file_format(chosen, override=True, override_if_initialized=True)
    return chosen


def _refuse_path(name: str) -> None:
    """Raises `UserError` for a name that is a path: the kind of the data set is missing before it."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise UserError(f"data set {name!r}: a folder; class folders are named with their kind: folder:{name}")
    if name.startswith(("/", "./", "../", "~")):
        raise UserError(
            f"data set {name!r}: {printable(str(path))} is not there; class folders are named folder:PATH, prepared "
            "data sets NAME, NAME/CONFIG or NAME:1.2.3"
        )


def _refuse_other_name(name: str) -> None:
    """Raises `UserError` for a name that people use for a data set that has another one here."""
    for own, others in _OTHER_NAMES.items():
        if name != own and name.lower().replace("-", "").replace("_", "") in others:
            raise UserError(f"unknown data set {name!r}; did you mean {own!r}?")


def load_tfds() -> Any:
    """Imports TFDS, for the data sets that need it: it takes two thirds of a second, which the digits do without."""
    import tensorflow_datasets

    return tensorflow_datasets


@dataclasses.dataclass(frozen=True)
class Keys:
    """The features that hold image and label, where the user has chosen them.

    Attributes:
      image: `data.image_key`, or None.
      label: `data.label_key`, or None.
    """

    image: str | None = None
    label: str | None = None

    def refuse(self, name: str) -> None:
        """Raises `UserError` where a key is chosen: the data set `name` has no features."""
        for role, key in (("image", self.image), ("label", self.label)):
            if key is not None:
                raise UserError(
                    f"data.{role}_key = {key!r}: {name} has one image and one label per example; only data sets "
                    "that TFDS has prepared, lists and tars take it; leave it out"
                )


def read_features(
    name: str, info: tfds.core.DatasetInfo, keys: Keys = Keys(), several: bool = False
) -> tuple[str, str, list[str]]:
    """Chooses the features to read: by `keys`, else the only one, else that of the set's supervised keys.

    Args:
      name: of the data set, for messages.
      info: of the data set.
      keys: what the user has chosen.
      several: whether examples have several labels: those of a Sequence of ClassLabel (also inside a Sequence of
        objects, as "objects/label"), or of a Tensor [classes] of 0 and 1, whose classes are named by their numbers.

    Returns:
      The key of the image, that of the label (both as in the records: "outer/inner" for a nested one), and the names of
      the classes.

    Raises:
      UserError: there is no such feature, none, or more than one to choose from; with the keys.
    """
    flat = dict(_flatten(info.features))
    image_key = _choose(name, info, flat, "image", _is_image, keys.image)
    role, is_kind = ("labels", _is_label_set) if several else ("label", _is_label)
    label_key = _choose(name, info, flat, role, is_kind, keys.label)
    image, label = flat[image_key], flat[label_key]
    if image.np_dtype != np.uint8:
        raise UserError(f"data set {name!r}: images {image_key!r} of {image.np_dtype}; uint8 is needed")
    if _label_vector(label) is not None:
        return image_key, label_key, [str(number) for number in range(label.shape[0])]
    label = label.feature if several else label
    return image_key, label_key, [label.int2str(i) for i in range(label.num_classes)]


def label_form(info: tfds.core.DatasetInfo, label_key: str) -> LabelForm | None:
    """How the records hold the labels of a feature that `read_features` has chosen; None: one class number."""
    feature = dict(_flatten(info.features))[label_key]
    if (columns := _label_vector(feature)) is not None:
        return LabelForm(columns, is_table=True)
    return LabelForm(feature.feature.num_classes, is_table=False) if _is_label_set(feature) else None


def _is_image(feature: Any) -> bool:
    return type(feature) is load_tfds().features.Image


def _is_label(feature: Any) -> bool:
    return type(feature) is load_tfds().features.ClassLabel


def _is_label_set(feature: Any) -> bool:
    sequence = type(feature) is load_tfds().features.Sequence and _is_label(feature.feature)
    return sequence or _label_vector(feature) is not None


def _label_vector(feature: Any) -> int | None:
    """The number of classes of a Tensor [classes]; None: it is another feature."""
    if type(feature) is not load_tfds().features.Tensor or len(feature.shape) != 1 or not feature.shape[0]:
        return None
    return int(feature.shape[0])


def _flatten(features: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (key, feature) of all features, with the keys of the records."""
    for key, feature in features.items():
        features = load_tfds().features
        if isinstance(feature, features.FeaturesDict):
            yield from _flatten(feature, f"{above}{key}/")
        elif type(feature) is features.Sequence and isinstance(feature.feature, features.FeaturesDict):
            for inner, one in _flatten(feature.feature, f"{above}{key}/"):
                if _is_label(one):  # the labels of objects; other sequences in sequences are not read
                    yield inner, features.Sequence(one)
            yield f"{above}{key}", feature
        else:
            yield f"{above}{key}", feature


def _choose(
    name: str,
    info: tfds.core.DatasetInfo,
    flat: dict[str, Any],
    role: str,
    is_kind: Callable[[Any], bool],
    chosen: str | None,
) -> str:
    """The key of the image or of the label; see `read_features`."""
    keys = sorted(key for key, feature in flat.items() if is_kind(feature))
    field = f"config.data.{role.removesuffix('s')}_key"
    needed = "one image and one class label per example are read"
    if role == "labels":
        needed = "with config.data.labels = 'multi' a Sequence of ClassLabel or a Tensor [classes] of 0 and 1 is read"
    if chosen is not None:
        if chosen in keys:
            return chosen
        what = f"a feature {flat[chosen]}" if chosen in flat else f"no feature{nearest(chosen, keys)}"
        raise UserError(
            f"data set {name!r}: {field} = {chosen!r}: {what}; {needed}"
            + (f"; it has {', '.join(map(repr, keys))}" if keys else f"; it has {_one_line(info.features)}")
        )
    top = [key for key in keys if key in info.features] or keys
    if len(top) > 1:
        top = [key for key in info.supervised_keys or () if key in top]
    if len(top) == 1:
        return top[0]
    if not keys:
        sets = sorted(key for key, feature in flat.items() if _is_label_set(feature)) if role == "label" else []
        hint = (
            f" (several labels per example are read with --config.data.labels=multi: {', '.join(sets)})" if sets else ""
        )
        wanted = needed if role == "labels" else "one image and one class label are needed"
        raise UserError(f"data set {name!r}: {wanted}{hint}; it has {_one_line(info.features)}")
    names = ", ".join(map(repr, keys))
    raise UserError(f"data set {name!r}: {role.removesuffix('s')}s {names}; choose one: --{field}={keys[0]}")


def _one_line(features: Any) -> str:
    return " ".join(str(features).split())
