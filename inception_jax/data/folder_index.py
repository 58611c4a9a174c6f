"""Keeps the listing of a large folder of images in one file, so that only the first start of a run lists it.

The index is used only while nothing has changed that it can see, at the price of one `stat` per folder:

- the names in the root folder, hidden ones excepted;
- each folder below it that holds images: its inode and the times of its last change (mtime, ctime), which the system
  sets when an entry is added, removed or renamed;
- the sizes of 64 files, spread evenly.

It does not see a file that was overwritten in place, other than those 64, nor changes on a file system that keeps no
times of folders. An index is written only when the newest change is older than two seconds: one that comes later has
another time then, whatever the resolution of the file system's clock (as in git's index).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.data import index_files
from inception_jax.data.folder_files import INDEX, LeftOut, SplitFiles, Stamp, is_hidden, stamp
from inception_jax.data.names import PackedNames, encode

MIN_IMAGES = 10_000
"""A folder with fewer images is listed each time: that takes less than half a second."""

_VERSION = 1
_SAMPLES = 64
_COLUMNS = ("keys", "labels", "sizes")
# In names with a zero byte before the first and after each: an absolute path, and a part "..".
_LEADS_OUT = re.compile(rb"\0/|(?:^|[/\0])\.\.(?=[/\0])|^/")


@dataclasses.dataclass(frozen=True)
class FolderFiles:
    """The listing of a folder of images.

    Attributes:
      splits: its splits, train first.
      left_out: what was not taken.
      stamps: {path below the root: state} of the folders that were listed, without the root.
    """

    splits: list[SplitFiles]
    left_out: LeftOut
    stamps: dict[str, Stamp]


def paths(root: str) -> list[Path]:
    """Where the index of a folder may be: in the folder, or, where that is read-only, in the user's cache directory."""
    return [Path(root, INDEX), index_files.cache_path("folders", root)]


def read(root: str) -> FolderFiles | None:
    """Reads the index of a folder; None where there is none, or where the folder has changed since.

    The file may be anybody's: it came with the folder, perhaps from elsewhere. One that this module would not have
    written is not used, and takes no more memory than its own size.
    """
    for path in paths(root):
        with contextlib.suppress(*index_files.DAMAGED):
            arrays = index_files.read_arrays(path)
            content = json.loads(arrays["content"].tobytes())
            if content["version"] == _VERSION and _is_current(root, content):
                splits = [
                    _split(fields, [arrays[f"{column}{number}"] for column in _COLUMNS])
                    for number, fields in enumerate(content["splits"])
                ]
                if splits and _sizes_match(root, splits):
                    return FolderFiles(splits, _left_out(content["left_out"]), {})
    return None


def write(root: str, files: FolderFiles) -> Path | None:
    """Writes the index of a large folder, atomically.

    Returns:
      Its path; None where there is none: a small folder, one that has just changed, or no place that can be written.
    """
    if sum(len(split.keys) for split in files.splits) < MIN_IMAGES or not _has_settled(files):
        return None
    content = {
        "version": _VERSION,
        "root": _root_digest(root),
        "stamps": files.stamps,
        "splits": [
            {
                field.name: getattr(split, field.name)
                for field in dataclasses.fields(split)
                if field.name not in _COLUMNS
            }
            for split in files.splits
        ],
        "left_out": dataclasses.asdict(files.left_out),
    }
    arrays = {"content": np.frombuffer(json.dumps(content).encode(), np.uint8)}
    for number, split in enumerate(files.splits):
        arrays |= {f"keys{number}": split.keys.packed, f"labels{number}": split.labels, f"sizes{number}": split.sizes}
    return index_files.write_arrays(paths(root), arrays)


def _is_current(root: str, content: dict[str, Any]) -> bool:
    return content["root"] == _root_digest(root) and all(
        stamp(os.path.join(root, path)) == tuple(before) for path, before in content["stamps"].items()
    )


def _has_settled(files: FolderFiles) -> bool:
    """Whether every folder has a time of its last change, and that is old enough."""
    times = [time_ns for mtime, ctime, _ in files.stamps.values() for time_ns in (mtime, ctime)]
    return bool(times) and min(times) > 0 and index_files.has_settled(max(times))


def _sizes_match(root: str, splits: list[SplitFiles]) -> bool:
    total = sum(len(split.keys) for split in splits)
    for split in splits:
        for index in range(0, len(split.keys), max(1, total // _SAMPLES)):
            if os.stat(os.path.join(root, split.folder, split.keys[index])).st_size != split.sizes[index]:
                return False
    return True


def _root_digest(root: str) -> str:
    """A digest of the names in the root folder. Not its time: the index itself is written there."""
    names = sorted(encode(name) for name in os.listdir(root) if not is_hidden(name))
    return hashlib.sha256(b"\0".join(names)).hexdigest()


def _split(fields: dict[str, Any], columns: list[np.ndarray]) -> SplitFiles:
    """Makes a split of what an index says.

    Raises:
      ValueError: its columns do not belong together, a label is of no class, or a path leads out of the folder.
    """
    keys, labels, sizes = columns
    split = SplitFiles(**fields, keys=PackedNames(keys), labels=labels, sizes=sizes)
    texts = (split.name, split.folder, split.problem, *split.classes, *split.notes)
    if not all(isinstance(text, str) for text in texts) or not isinstance(split.loose, int):
        raise ValueError("fields of other types")
    count = len(split.keys)
    if (keys.size and keys[-1]) or len(labels) != count or len(sizes) != count:
        raise ValueError("columns of different lengths")
    if (labels.dtype, sizes.dtype, keys.dtype) != (np.int32, np.int64, np.uint8):
        raise ValueError("columns of other types")
    if count and not (0 <= labels.min() and labels.max() < len(split.classes) and sizes.min() >= 0):
        raise ValueError("a label of no class, or a size below zero")
    if _LEADS_OUT.search(encode(split.folder) + b"\0" + keys.tobytes()):
        raise ValueError("a path that leads out of the folder")
    return split


def _left_out(fields: dict[str, Any]) -> LeftOut:
    return LeftOut(Counter(fields["suffixes"]), Counter(fields["hidden"]), fields["links"], fields["others"])
