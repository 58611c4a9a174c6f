"""Class folders: images in a subfolder per class, below `train/`, `test/`, `val/` and `validation/` or one folder."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

from inception_jax.errors import UserError

SPLIT_NAMES = ("train", "test", "val", "validation")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """The images of one split.

    Attributes:
      keys: "class/file name" of each image.
      paths: their paths.
      labels: indices into the folder's class names.
    """

    keys: list[str]
    paths: list[str]
    labels: list[int]


def hash_order(keys: list, split: str) -> list[int]:
    """The order in which TFDS writes the examples of a split: by the MD5 of the split's name and the key.

    A folder that is read directly uses it too. So it gives the same examples in the same order as when it is prepared,
    and `train[:90%]` is a sample of all classes rather than the first classes of the alphabet.

    Args:
      keys: unique str or int, one per example.
      split: name of the split.

    Returns:
      Indices into `keys`, in the order of writing.
    """
    salt = hashlib.md5(split.encode())
    digests = []
    for key in keys:
        digest = salt.copy()
        digest.update(str(key).replace("\\", "/").encode())
        digests.append(digest.digest())
    return sorted(range(len(keys)), key=digests.__getitem__)


def scan(root: str | os.PathLike) -> tuple[list[str], dict[str, FolderSplit]]:
    """Lists the images of a folder. Hidden files, and files with other suffixes than `SUFFIXES`, are left out.

    Args:
      root: folder with split folders of class folders, or with class folders (then all images are "train").

    Returns:
      The class names in alphabetical order, and the splits, each in `hash_order`.

    Raises:
      UserError: no folder, no classes, no images, or a class that is in another split but not in "train".
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    folders = {name: root / name for name in SPLIT_NAMES if (root / name).is_dir()} or {"train": root}
    found = {split: _class_files(folder) for split, folder in folders.items()}
    names = sorted(found["train"] if "train" in found else {name for classes in found.values() for name in classes})
    splits = {}
    for split, classes in found.items():
        for name in classes:
            if name not in names:
                raise UserError(f"{folders[split] / name}: class {name!r} is not in {folders['train']}")
        keys = [key for name in classes for key in classes[name]]
        labels = [names.index(name) for name in classes for _ in classes[name]]
        order = hash_order(keys, split)
        keys = [keys[i] for i in order]
        splits[split] = FolderSplit(keys, [str(folders[split] / key) for key in keys], [labels[i] for i in order])
    return names, splits


def _class_files(folder: Path) -> dict[str, list[str]]:
    """The images of each class folder, at any depth: their paths below `folder`, with forward slashes."""
    classes = {}
    for name in sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        files = [
            (Path(parent) / file).relative_to(folder).as_posix()
            for parent, _, names in os.walk(folder / name, followlinks=True)
            for file in names
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")
        ]
        if not files:
            raise UserError(f"{folder / name}: a class folder without images ({', '.join(SUFFIXES)})")
        classes[name] = sorted(files)
    if not classes:
        raise UserError(f"{folder}: no class folders; a folder per class, with its images in it, is needed")
    return classes
