"""WebDataset tars: files `KEY.jpg` with `KEY.cls` or `KEY.json` beside them, read in place by index.

The convention (github.com/webdataset/webdataset): the key of a member is its path up to the first dot of its name; the
members of an example follow one another and differ in what comes after. The offsets of images are found once per tar,
with the labels, and kept (`file_index`).
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from inception_jax.data import file_index, storage
from inception_jax.data.folder_files import SUFFIXES, LeftOut
from inception_jax.data.folders import FolderScan, FolderSplit, read_class_file
from inception_jax.data.names import PackedNames, printable
from inception_jax.data.open_files import OpenFiles
from inception_jax.data.records import sha256
from inception_jax.errors import UserError

_SPLIT = "{split}"
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MAX_FILES = 1_000_000
_MANY_BYTES = 1 << 30  # tars of so many bytes take so long to index that a line says so
_THREADS = 8
_MOST_BYTES = 1 << 20  # of a .cls or .json


@dataclasses.dataclass(frozen=True)
class TarRecords:
    """Images in tars.

    Attributes:
      files: the tars.
      file_of: int32 [n], the tar of each image.
      offsets: int64 [n], the first byte of each image in its tar.
      sizes: int64 [n], bytes of each image.
      labels: int64 [n].
      keys: the key of each example.
    """

    files: tuple[str, ...]
    file_of: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    keys: PackedNames
    open_files: OpenFiles = dataclasses.field(default_factory=OpenFiles, repr=False)
    in_memory = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        file, size = self.files[self.file_of[index]], int(self.sizes[index])
        try:
            content = self.open_files.read(file, int(self.offsets[index]), size)
        except OSError as error:
            raise UserError(f"{self.record_name(index)}: {error.strerror or error}") from None
        if len(content) != size:
            raise UserError(f"{self.record_name(index)}: truncated; copy the tar again")
        return content, int(self.labels[index])

    def record_name(self, index: int) -> str:
        return f"{printable(self.keys[index])!r} of {printable(self.files[self.file_of[index]])}"

    def digest(self) -> str:
        """SHA-256 of the keys, sizes and labels, in order: the tars may be moved, renamed or split anew."""
        return sha256("webdataset", self.keys.packed, self.sizes.astype("<i8"), self.labels.astype("<i8"))


def scan(
    pattern: str, classes_file: str | None = None, image_key: str | None = None, label_key: str | None = None
) -> tuple[FolderScan, dict[str, TarRecords]]:
    """Finds tars and their examples.

    Args:
      pattern: path of the tars with `*`, `?`, `[…]`, `{000..127}`, and `{split}` where the name of the split is;
        without `{split}` all are "train".
      classes_file: a class per line, in the order of the labels; None: the classes are 0, 1, ….
      image_key: suffix of the image members, where an example has several, such as "left.jpg"; None: any image.
      label_key: field of the `.json` members that has the label; None: `.cls`, or else "label" of `.json`.

    Returns:
      The names of the classes and the labels of the splits, as of a folder; and the sources of the splits, train first,
      each in the order of the tars' names and of their members.

    Raises:
      UserError: no tars, a damaged one, an example without an image or a label, or a key that is there twice.
    """
    splits = _find_files(pattern)
    files = [file for of_split in splits.values() for file in of_split]
    indices = dict(zip(files, _load_indices(files, image_key, label_key), strict=True))
    sources = {split: _source(of_split, [indices[file] for file in of_split]) for split, of_split in splits.items()}
    most = max((int(source.labels.max(initial=0)) for source in sources.values()), default=0)
    names = [str(number) for number in range(most + 1)]
    if classes_file is not None:
        names = list(read_class_file(classes_file).values())
    for source in sources.values():
        wrong = np.flatnonzero(source.labels >= len(names))
        if len(wrong):
            raise UserError(
                f"{source.record_name(int(wrong[0]))}: label {source.labels[wrong[0]]}; {classes_file} has "
                f"{len(names)} classes, 0 to {len(names) - 1}"
            )
    found = {
        split: FolderSplit("", source.keys, source.labels, source.sizes, "", False) for split, source in sources.items()
    }
    return FolderScan(pattern, names, found, LeftOut(), []), sources


def _find_files(pattern: str) -> dict[str, list[str]]:
    """{split: its tars in the order of their names}, train first."""
    name = f"webdataset:{printable(pattern)}"
    if storage.is_remote(pattern):
        raise UserError(f"{name}: tars are read from a file system; mount the storage as one")
    if not pattern or pattern.count(_SPLIT) > 1:
        raise UserError(f"{name}: webdataset:PATTERN is needed, a path with at most one {_SPLIT}")
    found: dict[str, list[str]] = {}
    for path in _expand(os.path.abspath(os.path.expanduser(pattern)), name):
        before, marker, after = path.partition(_SPLIT)
        files = sorted(file for file in glob.glob(f"{before}*{after}" if marker else path) if os.path.isfile(file))
        if not files and not marker and not glob.has_magic(path):
            raise UserError(f"{name}: {printable(path)}: no such file")
        matching = re.compile(_expression(before) + "(?P<split>[A-Za-z0-9_]+)" + _expression(after))
        for file in files:
            match = matching.fullmatch(file) if marker else None
            if not marker or match:
                found.setdefault(match["split"] if match else "train", []).append(file)
    if not found:
        raise UserError(f"{name}: no such files; *, ?, [a-z], {{000..127}} and {_SPLIT} are allowed in the path")
    return {split: sorted(set(found[split])) for split in sorted(found, key=lambda split: (split != "train", split))}


def _expression(pattern: str) -> str:
    """A regular expression for a part of a path with `*`, `?` and `[…]`, none of which match a slash."""
    pieces = re.split(r"(\*|\?|\[[^\]/]+\])", pattern)
    known = {"*": "[^/]*?", "?": "[^/]"}
    return "".join(
        known.get(piece) or (piece.replace("[!", "[^") if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )


def _expand(pattern: str, name: str) -> Iterator[str]:
    """Yields the paths of a pattern with ranges such as {000..127}."""
    ranges = [(first, last) for first, last in _RANGE.findall(pattern)]
    count = 1
    for first, last in ranges:
        count *= max(0, int(last) - int(first) + 1)
    if not 0 < count <= _MAX_FILES:
        raise UserError(f"{name}: a range of {count:,} files; 1 to {_MAX_FILES:,} are allowed")
    parts = _RANGE.split(pattern)[::3]
    numbers = [[f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)] for first, last in ranges]
    for chosen in itertools.product(*numbers):
        yield parts[0] + "".join(number + part for number, part in zip(chosen, parts[1:], strict=True))


def _load_indices(files: Sequence[str], image_key: str | None, label_key: str | None) -> list[file_index.Arrays]:
    """The indices of tars; makes those that are missing or out of date, or were made with other keys."""
    field = np.frombuffer(json.dumps([image_key, label_key]).encode(), np.uint8)

    def is_valid(arrays: file_index.Arrays, size: int) -> bool:
        offsets, sizes, labels, keys = (arrays[column] for column in ("offsets", "sizes", "labels", "keys"))
        types = (offsets.dtype, sizes.dtype, labels.dtype, keys.dtype) == (np.int64, np.int64, np.int64, np.uint8)
        count = len(labels)
        return bool(
            types
            and np.array_equal(arrays["field"], field)
            and len(offsets) == len(sizes) == count == int((keys == 0).sum())
            and (not keys.size or keys[-1] == 0)
            and (not count or (min(offsets.min(), sizes.min(), labels.min()) >= 0 and (offsets + sizes).max() <= size))
        )

    def make(file: str) -> file_index.Arrays:
        return {"field": field, **_find_examples(file, image_key, label_key)}

    try:
        found = {file: file_index.read(file, is_valid) for file in files}
        missing = [file for file, index in found.items() if index is None]
        if sum(os.path.getsize(file) for file in missing) > _MANY_BYTES:
            print(f"finding the images of {len(missing):,} tars, once", file=sys.stderr)
        with ThreadPoolExecutor(_THREADS) as pool:
            made = pool.map(lambda file: file_index.build(file, make), missing)
            found |= dict(zip(missing, made, strict=True))
    except OSError as error:
        raise UserError(f"{printable(str(error.filename))}: {error.strerror or error}") from None
    return [index for file in files if (index := found[file]) is not None]


def _find_examples(file: str, image_key: str | None, label_key: str | None) -> file_index.Arrays:
    """Reads the headers and the labels of a tar: offsets, sizes, labels int64 [n], and keys uint8 [bytes]."""
    name = printable(file)
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        size = os.path.getsize(file)
        with open(file, "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # or the headers of a million files stay in memory
                if member.offset_data + member.size > size:
                    raise UserError(f"{name}: truncated inside {printable(member.name)}; copy the tar again")
                if not member.isreg() or os.path.basename(member.name).startswith("."):
                    continue
                key, suffix = _split_name(member.name)
                is_image = (
                    f".{suffix.rpartition('.')[2]}" in SUFFIXES if image_key is None else suffix == image_key.lower()
                )
                if is_image:
                    if key in images:
                        raise UserError(
                            f"{name}: two images have the key {printable(key)!r}; keys must be unique, or "
                            f"--config.data.image_key={suffix} names the suffix of those to read"
                        )
                    images[key] = member.offset_data, member.size
                elif suffix == ("json" if label_key else "cls") or (suffix == "json" and key not in labels):
                    where = f"{name}: {printable(member.name)}"
                    if member.size > _MOST_BYTES:
                        raise UserError(f"{where}: {member.size:,} bytes; at most {_MOST_BYTES:,} are read")
                    found = _label(
                        where, os.pread(stream.fileno(), member.size, member.offset_data), suffix, label_key or "label"
                    )
                    if found is not None:
                        labels[key] = found
    except tarfile.TarError as error:
        raise UserError(f"{name}: no complete, uncompressed tar ({error}); a .tar.gz is unpacked with gunzip") from None
    wanted = f".json with {label_key!r}" if label_key else ".cls, or .json with 'label',"
    for key in images:
        if key not in labels:
            raise UserError(f"{name}: {printable(key)!r} has no label: {wanted} is needed beside it")
    places = np.array(list(images.values()), np.int64).reshape(-1, 2)
    return {
        "offsets": places[:, 0].copy(),
        "sizes": places[:, 1].copy(),
        "labels": np.array([labels[key] for key in images], np.int64),
        "keys": PackedNames.pack(images).packed,
    }


def _split_name(path: str) -> tuple[str, str]:
    """("a/b", "seg.png") of "a/b.seg.png"."""
    folder, name = os.path.split(path.removeprefix("./"))
    stem, _, suffix = name.partition(".")
    return os.path.join(folder, stem), suffix.lower()


def _label(where: str, content: bytes, suffix: str, label_key: str) -> int | None:
    """The label of a `.cls` or of a `.json`; None where a `.json` has no such field."""
    value: Any
    try:
        if suffix == "cls":
            value = int(content)
        else:
            fields = json.loads(content)
            if not isinstance(fields, dict) or label_key not in fields:
                return None
            value = fields[label_key]
    except (ValueError, RecursionError):
        value = content[:40]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1_000_000:
        raise UserError(f"{where}: label {value!r}; an integer from 0 is needed")
    return value


def _source(files: Sequence[str], indices: Sequence[file_index.Arrays]) -> TarRecords:
    def column(name: str) -> np.ndarray:
        return np.concatenate([index[name] for index in indices])

    counts = [len(index["labels"]) for index in indices]
    source = TarRecords(
        tuple(files),
        np.repeat(np.arange(len(files), dtype=np.int32), counts),
        column("offsets"),
        column("sizes"),
        column("labels"),
        PackedNames(column("keys")),
    )
    seen: dict[bytes, int] = {}
    for index, key in enumerate(source.keys.packed.tobytes().split(b"\0")[:-1]):
        if key in seen:
            raise UserError(f"{source.record_name(index)} is also in {printable(files[source.file_of[seen[key]]])}")
        seen[key] = index
    return source
