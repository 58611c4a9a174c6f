"""What counts as an image of class folders: suffixes, hidden entries, and the records of a listing."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from inception_jax.data.names import PackedNames, encode

# What `images.decode` decodes; tests/data/test_folders.py tries each with the installed OpenCV.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".ras", ".sr",
)  # fmt: skip
# Images that are left out, because OpenCV does not decode them to 8 bits as they are meant.
UNDECODED = (
    ".heic", ".heif", ".hif", ".jxl", ".tga", ".psd", ".svg", ".ico", ".eps", ".exr", ".hdr", ".pic", ".pfm", ".pam",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".dcm",
)  # fmt: skip
# Besides all names that begin with a dot (.ipynb_checkpoints, .DS_Store, ._1.jpg): what macOS, Windows, NAS devices and
# Python put into folders.
SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information", "lost+found",
     "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"}
)  # fmt: skip

INDEX = ".inception_jax_index.npz"
"""The name of the index of a large folder (see `folder_index`), which is not counted among the hidden files."""

Stamp = tuple[int, int, int]


def stamp(path: str) -> Stamp:
    """The state of a folder: the times of its last change of content and of attributes (ns), and its inode.

    Raises:
      OSError: it is not there.
    """
    found = os.stat(path)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_ino


@dataclasses.dataclass
class LeftOut:
    """The entries of folders that are not taken, for the account.

    Attributes:
      suffixes: files without a suffix of `SUFFIXES`, by suffix.
      hidden: hidden and system entries, by name.
      links: paths of links to a folder or a file that counts already.
      others: folders beside the split folders.
    """

    suffixes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    hidden: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    links: list[str] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class SplitFiles:
    """The image files of one split.

    Attributes:
      name: of the split.
      folder: of the split, below the root; "" is the root itself.
      classes: its class folders in alphabetical order, those without images included.
      keys: paths of the images below `folder`, with forward slashes, in `hash_order`.
      labels: int32 [n], indices into `classes`.
      sizes: int64 [n], bytes of each file.
      loose: images that lie in `folder` itself, in no class folder.
      problem: why the split cannot be used, or "".
      notes: lines about it for the account.
    """

    name: str
    folder: str
    classes: list[str]
    keys: PackedNames
    labels: np.ndarray
    sizes: np.ndarray
    loose: int = 0
    problem: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)


def hash_order(keys: Sequence[str | int], split: str) -> list[int]:
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
        digest.update(encode(str(key).replace("\\", "/")))
        digests.append(digest.digest())
    halves = np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2)
    return np.lexsort((halves[:, 1], halves[:, 0])).tolist()


def is_hidden(name: str) -> bool:
    """Whether an entry of a folder is hidden, or belongs to the system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES
