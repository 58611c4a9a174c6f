"""TFDS builders that prepare data sets without TensorFlow: `Digits`, `FashionMnist`, `ImageFolder`, `HuggingFace`.

`imagenet2012` has the one for ImageNet. They are ordinary TFDS builders (`Digits(data_dir=…,
file_format="array_record").download_and_prepare()` works), but they know the key of every example before they read the
first one. `inception_jax.data.shards` uses that to write shard by shard, in TFDS's order, and to continue after an
interruption. Where TFDS has a builder of the same name, these have its version and features, and give the records in
the same order.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import absl.logging
import cv2
import numpy as np
import tensorflow_datasets as tfds

from inception_jax.data import digits, folder_account, folders, huggingface, raw_files
from inception_jax.data.label_sets import Wanted
from inception_jax.data.names import nearest_entry, printable
from inception_jax.data.stored_size import StoredSize
from inception_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Examples:
    """One split before its images are read.

    Attributes:
      keys: unique name or number of each example.
      sizes: bytes of each image, about.
      read: returns example `i` as a dict of the builder's features; several threads call it.
      offsets: position of each image in its file, so that they can be read in that order; None where it does not
        matter.
    """

    keys: Sequence[str | int]
    sizes: Sequence[int]
    read: Callable[[int], dict[str, Any]]
    offsets: Sequence[int] | None = None


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the context, TFDS logs errors alone."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


class SourceBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]  # of TFDS's base class
    """The base class of the builders.

    Attributes:
      EXPECTED: examples per split of the published data set; None where any number is accepted.
      source: folder of the original files, or None where there are none.
      stored: how images are stored; None: as they are.
    """

    EXPECTED: ClassVar[dict[str, int] | None] = None

    def __init__(self, *, source: str | os.PathLike | None = None, stored: StoredSize | None = None, **kwargs: Any):
        """Makes a builder.

        Args:
          source: folder of the original files.
          stored: how images are stored, in a config of the data set with a name of its own; None: as they are.
          **kwargs: as in `tfds.core.GeneratorBasedBuilder`: data_dir, file_format.

        Raises:
          UserError: there is no such folder.
        """
        self.source = None if source is None else Path(source).expanduser()
        if self.source is not None and not self.source.is_dir():
            raise UserError(f"{self.source}: no such folder{nearest_entry(self.source)}")
        self.stored = stored
        if stored is not None:
            kwargs["config"] = tfds.core.BuilderConfig(
                name=stored.config_name,
                version=self.VERSION,
                description=f"Images with a shorter side of at most {stored.side} pixels.",
            )
        with _without_warnings():  # of a config that the class does not list
            super().__init__(**kwargs)

    def source_folder(self) -> Path:
        """The folder of the original files, of a builder that has one."""
        assert self.source is not None
        return self.source

    def source_files(self) -> list[Path]:
        """The original files."""
        return []

    def examples(self) -> dict[str, Examples]:
        """The splits by name; raises `UserError` if the original files are not as expected."""
        raise NotImplementedError

    def stored_examples(self) -> dict[str, Examples]:
        """The splits as they are stored: `examples`, resized where the builder resizes.

        Raises:
          UserError: as `examples`.
        """
        stored = self.stored
        if stored is None:
            return self.examples()
        return {split: _resized(f"{self.name}, {split}", part, stored) for split, part in self.examples().items()}

    def verify(self, progress: Callable[[int, int], None]) -> None:
        """Compares the original files with the publisher's checksums, where there are any.

        Args:
          progress: called with (done, total) on the way.

        Raises:
          UserError: a file differs.
        """

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(examples) for split, examples in self.stored_examples().items()}

    def _generate_examples(self, examples: Examples) -> Any:
        for index, key in enumerate(examples.keys):
            yield key, examples.read(index)


def _resized(name: str, part: Examples, stored: StoredSize) -> Examples:
    """Examples whose images are resized when they are read."""

    def read(index: int) -> dict[str, Any]:
        example = part.read(index)
        return {**example, "image": stored.store(example["image"], f"{name}, {part.keys[index]}")}

    return dataclasses.replace(part, sizes=[stored.estimate_bytes(size) for size in part.sizes], read=read)


def _png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


class Digits(SourceBuilder):
    """The embedded digits as a prepared data set, with the records of `datasets.load("digits", …)` in their order."""

    VERSION = tfds.core.Version("1.0.0")
    EXPECTED: ClassVar = digits.NUM_EXAMPLES

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's 1,797 handwritten digits, grey values 0 to 16 scaled to bytes.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=digits.CLASS_NAMES),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # the order of the embedded file, so that both ways of reading give one order
        )

    def examples(self) -> dict[str, Examples]:
        found = {}
        for split in self.EXPECTED:
            images, labels, numbers = digits.load(split)
            read = _array_reader(images, labels)
            found[split] = Examples([int(number) for number in numbers], [64] * len(images), read)
        return found


def _array_reader(images: np.ndarray, labels: np.ndarray) -> Callable[[int], dict[str, Any]]:
    return lambda index: {"image": _png(images[index]), "label": int(labels[index])}


class FashionMnist(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]  # of TFDS's base class
    """Fashion-MNIST (arXiv:1708.07747) from the four original idx files, gzipped or not."""

    name = "fashion_mnist"
    VERSION = tfds.core.Version("3.0.1")  # of TFDS's own builder
    EXPECTED: ClassVar = {"train": 60_000, "test": 10_000}
    DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist
    FILES: ClassVar = {"train": "train", "test": "t10k"}
    # Of the unzipped files; Debian's package 0.0~git20200523.55506a9-1. Debian compresses the files again, so the sums
    # of the gzip files, which TFDS's own builder compares, do not hold for them.
    SHA256: ClassVar = {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }

    def __init__(self, *, source: str | os.PathLike | None = None, **kwargs: Any):
        if source is None:
            source = self.DEBIAN
            if not source.is_dir():
                raise UserError(
                    f"fashion_mnist: --source=FOLDER is needed: the folder of the four idx files"
                    f" (Debian's package dataset-fashion-mnist installs them in {self.DEBIAN})"
                )
        super().__init__(source=source, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        names = [
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Fashion-MNIST: 28 x 28 grey images of clothes, 60,000 for training and 10,000 for testing.",
            homepage="https://github.com/zalandoresearch/fashion-mnist",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(names=names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _file(self, stem: str) -> Path:
        return raw_files.find_file(self.source_folder(), f"{stem}.gz", stem)

    def source_files(self) -> list[Path]:
        return [self._file(stem) for stem in self.SHA256]

    def examples(self) -> dict[str, Examples]:
        found = {}
        for split, prefix in self.FILES.items():
            images = raw_files.read_idx(self._file(f"{prefix}-images-idx3-ubyte"))[0]
            labels = raw_files.read_idx(self._file(f"{prefix}-labels-idx1-ubyte"))[0]
            if images.shape[1:] != (28, 28) or labels.shape != (len(images),) or labels.max(initial=0) > 9:
                raise UserError(
                    f"{self.source}, {split}: images {images.shape} and labels {labels.shape} up to"
                    f" {labels.max(initial=0)}; n x 28 x 28 and n labels up to 9 are needed"
                )
            found[split] = Examples(range(len(images)), [images[0].size] * len(images), _array_reader(images, labels))
        return found

    def verify(self, progress: Callable[[int, int], None]) -> None:
        for done, (stem, expected) in enumerate(self.SHA256.items()):
            progress(done, len(self.SHA256))
            check_sha256(self._file(stem), raw_files.read_idx(self._file(stem))[1], expected)


def check_sha256(path: Path, found: str, expected: str) -> None:
    """Raises `UserError` if a file's checksum is not the expected one.

    Args:
      path: of the file, for the message.
      found: its SHA-256, in hexadecimal.
      expected: what it should be.
    """
    if found != expected:
        raise UserError(f"{path}: SHA-256 {found}; {expected} is expected: another file, or a damaged one")


class ImageFolder(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]  # of TFDS's base class
    """A folder of images (see `folders.scan`) as a prepared data set with a name of the user's choice.

    A split without labels is left out, with a line on standard error; any other that cannot be used is an error.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, *, name: str, source: str | os.PathLike, class_names: str | os.PathLike | None = None, **kwargs: Any
    ):
        """Makes a builder.

        Args:
          name: of the new data set.
          source: the folder.
          class_names: file with the order and the names of the classes (`class_files.read_class_file`).
          **kwargs: as in `SourceBuilder`.

        Raises:
          UserError: as `folders.scan`; a single class, or a split that cannot be used.
        """
        self.name = name
        found = folders.scan(source, None if class_names is None else os.fspath(class_names))
        for line in folder_account.format_account(found):
            print(line, file=sys.stderr)
        self._class_names = found.class_names
        self._splits = {split: files for split, files in found.splits.items() if not files.unlabelled}
        for problem in [files.problem for files in self._splits.values() if files.problem]:
            raise UserError(problem)
        _check_class_names(os.fspath(source), found.class_names)
        if len(found.class_names) < 2:
            raise UserError(
                f"{source}: a single class, {found.class_names[0]!r}; two or more are needed"
                + folders.single_class_hint(found)
            )
        super().__init__(source=source, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: a folder of images, one subfolder per class.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(names=self._class_names),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def source_files(self) -> list[Path]:
        return [Path(files.path(index)) for files in self._splits.values() for index in range(len(files.keys))]

    def examples(self) -> dict[str, Examples]:
        return {name: _file_examples(split) for name, split in self._splits.items()}


def _check_class_names(source: str, names: Sequence[str]) -> None:
    """Raises `UserError` for a name that TFDS, which keeps one a line and strips it, would not give back."""
    counts = collections.Counter(names)
    for name in names:
        if name.splitlines() != [name] or name.strip() != name or counts[name] > 1:
            raise UserError(
                f"{printable(source)}: class {name!r}: names that are empty, there twice, with spaces around them or "
                "of several lines cannot be kept; --class_names=FILE names the classes, or correct the data set"
            )


class HuggingFace(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]  # of TFDS's base class
    """A Hugging Face data set on this machine (see `huggingface.scan`) as a prepared one, in the same order.

    A split without labels is left out, with a line on standard error; any other that cannot be used is an error.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        name: str,
        source: str,
        class_names: str | os.PathLike | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        several: bool = False,
        **kwargs: Any,
    ):
        """Makes a builder.

        Args:
          name: of the new data set.
          source: as `name` of `huggingface.scan`.
          class_names: as in `huggingface.scan`.
          image_key: as in `huggingface.scan`.
          label_key: as in `huggingface.scan`.
          several: whether an image has any number of labels.
          **kwargs: as in `SourceBuilder`.

        Raises:
          UserError: as `huggingface.scan`; a split that cannot be used, or none with labels.
        """
        self.name, self._several = name, several
        file = None if class_names is None else os.fspath(class_names)
        found, sources = huggingface.scan(source, file, Wanted(image_key, label_key, several))
        for line in folder_account.format_account(found):
            if "prepare huggingface" not in line:  # which this is
                print(line, file=sys.stderr)
        self._class_names = found.class_names
        usable = {split: part for split, part in found.splits.items() if not part.unlabelled}
        for problem in [part.problem for part in usable.values() if part.problem]:
            raise UserError(problem)
        for split in [split for split in usable if not len(sources[split])]:
            print(f"{split}: left out: no examples", file=sys.stderr)
        self._sources = {split: sources[split] for split in usable if len(sources[split])}
        if not self._sources:
            raise UserError(f"{source}: no split with examples and labels")
        _check_class_names(source, found.class_names)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        label = tfds.features.ClassLabel(names=self._class_names)
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name}: a Hugging Face data set.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.Sequence(label) if self._several else label,
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # so that both ways of reading give one order
        )

    def source_files(self) -> list[Path]:
        return [Path(file) for source in self._sources.values() for file in source.tables.files]

    def examples(self) -> dict[str, Examples]:
        return {split: _table_examples(source, self._several) for split, source in self._sources.items()}


def _table_examples(source: huggingface.TableRecords, several: bool) -> Examples:
    def example(index: int) -> dict[str, Any]:
        image, label = source[index]
        labels = np.flatnonzero(label).tolist() if several else int(label)
        return {"image": image, "label": labels, "file_name": source.file_name(index) or ""}

    size = sum(map(os.path.getsize, source.tables.files)) // max(1, len(source))
    return Examples(range(len(source)), [size] * len(source), example)


def _file_examples(split: folders.FolderSplit) -> Examples:
    def example(index: int) -> dict[str, Any]:
        path = split.path(index)
        try:
            image = Path(path).read_bytes()
        except OSError as error:
            raise UserError(f"{printable(path)}: {error.strerror or error}") from None
        return {"image": image, "label": int(split.labels[index]), "file_name": printable(split.keys[index])}

    return Examples(split.keys, split.sizes.tolist(), example)
