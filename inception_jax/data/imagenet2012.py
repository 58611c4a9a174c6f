"""`Imagenet2012`: the TFDS builder of ImageNet, without TensorFlow, network access or unpacking of the tars."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from inception_jax.data import raw_files
from inception_jax.data.builders import Examples, SourceBuilder, check_sha256
from inception_jax.errors import UserError


class Imagenet2012(SourceBuilder, skip_registration=True):  # type: ignore[call-arg]  # of TFDS's base class
    """ILSVRC 2012 from the two official tars, read in place; images are kept byte for byte.

    TFDS's own builder re-encodes 22 CMYK JPEGs and one PNG; here they stay as they are, and decoding handles them.
    Class order and validation labels are those of the files that TFDS includes (`datasets/imagenet2012`).
    """

    name = "imagenet2012"
    VERSION = tfds.core.Version("5.1.0")  # of TFDS's own builder
    EXPECTED: ClassVar = {"train": 1_281_167, "validation": 50_000}
    TARS: ClassVar = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}

    def __init__(self, *, source: str | os.PathLike | None = None, **kwargs: Any):
        if source is None:
            tars = " and ".join(self.TARS.values())
            raise UserError(f"imagenet2012: --source=FOLDER is needed: the folder of {tars} (from image-net.org)")
        super().__init__(source=source, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ILSVRC 2012: 1,281,167 training and 50,000 validation images of 1,000 classes.",
            homepage="https://image-net.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format=None if self.stored else "jpeg"),
                    "label": tfds.features.ClassLabel(names=_read_tfds_file("labels.txt")),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def source_files(self) -> list[Path]:
        return [raw_files.find_file(self.source_folder(), name) for name in self.TARS.values()]

    def examples(self) -> dict[str, Examples]:
        train, validation = self.source_files()
        names = set(self.info.features["label"].names)
        members, labels = [], []
        for inner in raw_files.tar_members(train):
            synset = inner.name.removesuffix(".tar")
            if synset not in names:
                raise UserError(
                    f"{train}: contains {inner.name!r}; a tar per synset, such as n01440764.tar, is expected"
                )
            inner_members = raw_files.tar_members(train, inner.offset, inner.size)
            members += inner_members
            labels += [synset] * len(inner_members)
        found = {"train": _tar_examples(train, members, labels)}
        members = sorted(raw_files.tar_members(validation), key=lambda member: member.name)
        labels = self.validation_labels()  # one line per image, in the order of the image's names
        if len(members) != len(labels):
            raise UserError(f"{validation}: {len(members)} images; {len(labels)} are expected")
        found["validation"] = _tar_examples(validation, members, labels)
        return found

    def validation_labels(self) -> list[str]:
        """Synsets of the validation images in the order of their names."""
        return _read_tfds_file("validation_labels.txt")

    def verify(self, progress: Callable[[int, int], None]) -> None:
        sums = {line.split()[0].rsplit("/", 1)[-1]: line.split()[-1] for line in _read_tfds_file("checksums.tsv")}
        for path in self.source_files():
            check_sha256(path, raw_files.sha256(path, progress), sums[path.name])


def synsets() -> list[str]:
    """The 1000 classes in their order, by synset: "n01440764", …."""
    return _read_tfds_file("labels.txt")


def _read_tfds_file(file: str) -> list[str]:
    """The lines of a file that TFDS includes for its own imagenet2012."""
    return (tfds.core.tfds_path("datasets/imagenet2012") / file).read_text().split("\n")[:-1]


def _tar_examples(path: Path, members: list[raw_files.Member], labels: list[str]) -> Examples:
    read = raw_files.read_at(path)

    def example(index: int) -> dict[str, Any]:
        member = members[index]
        return {"image": read(member), "label": labels[index], "file_name": member.name}

    sizes, offsets = [member.size for member in members], [member.offset for member in members]
    return Examples([member.name for member in members], sizes, example, offsets)
