"""The index of a WebDataset tar: the offsets and sizes of its images, with their labels.

It is made from the headers once, checked to the end of the tar, and kept (`file_index`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from inception_jax.data import file_index
from inception_jax.data.folder_files import SUFFIXES
from inception_jax.data.label_sets import COLUMNS, NO_LABELS, Wanted, is_set
from inception_jax.data.names import PackedNames, one_line, printable
from inception_jax.errors import UserError

MAX_LABELS = 1_000_000
_VERSION = 2  # 1 accepted tars that are cut or damaged at a header
_MOST_BYTES = 1 << 20  # of a .cls or .json
_END = 2 * tarfile.BLOCKSIZE  # two blocks of zeros
_MOST_SUFFIXES = 8  # in a message


def load(files: Sequence[str], wanted: Wanted) -> list[file_index.Arrays]:
    """Reads the indices of tars; makes those that are missing or out of date.

    Args:
      files: the tars.
      wanted: as in `webdatasets.scan`; without labels the arrays are those of several, of which each example has none.

    Returns:
      For each tar, the arrays offsets, sizes and labels (int64 [n]) and keys (uint8 [bytes], see `PackedNames`). With
      several labels per example labels are those of all examples one after another, and ends (int64 [n]) is where those
      of each example end. Where each class has a field, classes (uint8 [bytes], see `PackedNames`) has their names,
      sorted, and a label is a position among them.

    Raises:
      UserError: a tar is damaged, or has an example without an image or a label, or of other classes, or a key twice.
    """
    kind = ["multi"] * wanted.several if wanted.labelled else [NO_LABELS]
    keys = json.dumps([_VERSION, wanted.image_key, wanted.label_key, *kind]).encode()
    variant = "" if wanted == Wanted() else f".{hashlib.sha256(keys).hexdigest()[:8]}"
    field = np.frombuffer(keys, np.uint8)

    def is_valid(file: str, arrays: file_index.Arrays, size: int) -> bool:
        del file
        return _is_valid(field, arrays, size)

    def make(file: str) -> file_index.Arrays:
        arrays = {"field": field, **_find_examples(file, wanted)}
        if not is_valid(file, arrays, os.path.getsize(file)):
            raise UserError(f"{printable(file)}: changed while it was read, or damaged; copy the tar again")
        return arrays

    found = file_index.load(files, is_valid, make, "the images of {} tars", variant)
    return [found[file] for file in files]


def _is_valid(field: np.ndarray, arrays: file_index.Arrays, size: int) -> bool:
    """Whether arrays are an index of a tar of so many bytes, made with the keys in `field`."""
    offsets, sizes, labels, keys = (arrays[column] for column in ("offsets", "sizes", "labels", "keys"))
    types = (offsets.dtype, sizes.dtype, labels.dtype, keys.dtype) == (np.int64, np.int64, np.int64, np.uint8)
    ends, classes = arrays.get("ends"), arrays.get("classes")
    if ends is not None and not (
        ends.dtype == np.int64
        and (np.diff(ends, prepend=0) >= 0).all()
        and (int(ends[-1]) if len(ends) else 0) == len(labels)
    ):
        return False
    return bool(
        types
        and np.array_equal(arrays["field"], field)
        and len(offsets) == len(sizes) == len(labels if ends is None else ends) == int((keys == 0).sum())
        and (not keys.size or keys[-1] == 0)
        and ((offsets >= 0) & (offsets <= size)).all()
        and ((sizes >= 0) & (sizes <= size - offsets)).all()  # not their sum, which may overflow
        and ((labels >= 0) & (labels < (MAX_LABELS if classes is None else int((classes == 0).sum())))).all()
    )


def _find_examples(file: str, wanted: Wanted) -> file_index.Arrays:
    """Reads the headers and the labels of a tar."""
    examples = _Examples(printable(file), wanted)
    with open(file, "rb") as stream:
        for member in _members(stream, examples.name):
            examples.add(member, stream)
    return examples.arrays()


def _members(stream: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of a tar. `tarfile` ends at a damaged one as it does at the end, so the end is checked."""
    size = os.fstat(stream.fileno()).st_size
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            offset = 0
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or the headers of a million files stay in memory
                if member.size < 0 or tar.offset <= offset:
                    raise UserError(f"{name}: damaged at byte {offset:,}; copy the tar again")
                if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                    raise UserError(f"{name}: truncated inside {one_line(member.name)}; copy the tar again")
                offset = tar.offset
                yield member
            _check_end(stream, tar.offset, name)
    except UserError:
        raise
    except Exception as error:  # tarfile raises many: RecursionError at a chain of long names, ValueError at others
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{name}: no complete, uncompressed tar ({reason}); copy it again; a .tar.gz is unpacked with gunzip"
        ) from None


def _check_end(stream: BinaryIO, offset: int, name: str) -> None:
    """Raises UserError unless a tar ends after its last member with two blocks of zeros, and zeros only."""
    stream.seek(offset)
    length = 0
    while piece := stream.read(1 << 20):
        if piece.count(0) != len(piece):
            raise UserError(
                f"{name}: truncated or damaged at byte {offset:,}, or tars that were joined; copy or pack the tar again"
            )
        length += len(piece)
    if length < _END:
        raise UserError(
            f"{name}: truncated at byte {offset:,}, where two blocks of zeros are to end the tar; copy it again; where "
            f"nothing is missing but this end, `truncate -s +{_END} FILE` adds it"
        )


@dataclasses.dataclass
class _Examples:
    """The images and labels of a tar, as far as it has been read.

    Attributes:
      name: of the tar, for messages.
      wanted: as in `webdatasets.scan`.
    """

    name: str
    wanted: Wanted

    def __post_init__(self) -> None:
        self._images: dict[str, tuple[int, int]] = {}
        # {"cls": {key: label, or what is wrong with it}, …}, the one that counts first
        wanted = self.wanted
        kinds = ("json",) if wanted.label_key or wanted.several else ("cls", "json") if wanted.labelled else ()
        self._labels: dict[str, dict[str, int | list[int] | UserError | None]] = {kind: {} for kind in kinds}
        self._classes: tuple[str, dict[str, int]] | None = None  # of the first example: where, {name: position}
        self._suffixes: Counter[str] = Counter()

    def add(self, member: tarfile.TarInfo, stream: BinaryIO) -> None:
        """Takes a member of the tar."""
        if member.isdir() or os.path.basename(member.name).startswith("."):
            return
        key, suffix = _split_name(member.name)
        self._suffixes[suffix] += 1
        image_key = self.wanted.image_key
        is_image = f".{suffix.rpartition('.')[2]}" in SUFFIXES if image_key is None else suffix == image_key.lower()
        if not is_image and suffix not in self._labels:
            return
        where = f"{self.name}: {one_line(member.name)}"
        if not member.isreg() or member.issparse() or "\0" in member.name:
            kinds = {
                "a sparse file": member.issparse(),
                "a hard link": member.islnk(),
                "a symbolic link": member.issym(),
            }
            kind = next((kind for kind, applies in kinds.items() if applies), "no regular file")
            raise UserError(
                f"{where}: {kind}, which is not read; pack the tar again, with GNU tar: --dereference "
                "--hard-dereference, without --sparse"
            )
        if key in (self._images if is_image else self._labels[suffix]):
            remedy = f", or --config.data.image_key={suffix} names the suffix of those to read" if is_image else ""
            raise UserError(
                f"{self.name}: two {'images' if is_image else f'.{suffix}'} have the key {one_line(key)!r}; keys must "
                f"be unique{remedy}"
            )
        if is_image:
            self._images[key] = member.offset_data, member.size
        elif member.size > _MOST_BYTES:
            self._labels[suffix][key] = UserError(f"{where}: {member.size:,} bytes; at most {_MOST_BYTES:,} are read")
        else:
            content = os.pread(stream.fileno(), member.size, member.offset_data)
            value = _read(content, suffix, self.wanted.label_key or "label")
            self._labels[suffix][key] = self._label_set(where, value) if self.wanted.several else _label(where, value)

    def _label_set(self, where: str, value: Any) -> list[int] | UserError | None:
        """Several labels, or what is wrong with them: a list, or a dict that has a value 0 or 1 for each class."""
        if self.wanted.label_key == COLUMNS and isinstance(value, dict):
            known = self._classes[1] if self._classes else {}
            value = {name: one for name, one in value.items() if isinstance(one, bool) or name in known} or None
        if value is None:
            return None
        is_dict = isinstance(value, dict) and value != {} and all(name and name.isprintable() for name in value)
        if not is_dict and not (isinstance(value, list) and all(map(_is_label, value))):
            return UserError(
                f"{where}: {self.wanted.label_key or 'label'!r} = {str(value)[:60]}; with config.data.labels = 'multi' "
                f"a list of integers from 0 to {MAX_LABELS - 1:,} or a dict of 0 and 1, one for each class, is needed"
            )
        names = sorted(value) if is_dict else []
        if self._classes is None:
            self._classes = where, {name: position for position, name in enumerate(names)}
        first, known = self._classes
        try:
            check_classes(where, names, first, known)
            return [known[name] for name in names if is_set(value[name], name, where)] if is_dict else sorted({*value})
        except UserError as error:
            return error

    def arrays(self) -> file_index.Arrays:
        """The index, when all members have been taken."""
        for labels in self._labels.values():
            for key, label in labels.items():
                if label is not None and key not in self._images:
                    raise UserError(f"{self.name}: {one_line(key)!r} has a label, but no image{self._suffixes_found()}")
        places = np.array(list(self._images.values()), np.int64).reshape(-1, 2)
        found = [self._label_of(key) if self.wanted.labelled else [] for key in self._images]
        ends = {}
        if self.wanted.several or not self.wanted.labelled:
            ends = {"ends": np.cumsum([len(one) for one in found], dtype=np.int64)}
            found = [label for one in found for label in one]
        return {
            "offsets": places[:, 0].copy(),
            "sizes": places[:, 1].copy(),
            "labels": np.array(found, np.int64),
            "keys": PackedNames.pack(self._images).packed,
            **ends,
            **({"classes": PackedNames.pack(self._classes[1]).packed} if self._classes and self._classes[1] else {}),
        }

    def _label_of(self, key: str) -> Any:
        for labels in self._labels.values():
            label = labels.get(key)
            if isinstance(label, UserError):
                raise label
            if label is not None:
                return label
        wanted = f".json with {self.wanted.label_key!r}" if self.wanted.label_key else ".cls, or .json with 'label',"
        if self.wanted.several:
            wanted = f".json with a list or a dict {self.wanted.label_key or 'label'!r}"
            if self.wanted.label_key == COLUMNS:
                wanted = ".json with a bool for each class"
        raise UserError(f"{self.name}: {one_line(key)!r} has no label: {wanted} is needed beside it")

    def _suffixes_found(self) -> str:
        chosen = "" if self.wanted.image_key is None else f" with the suffix of data.image_key={self.wanted.image_key}"
        shown = ", ".join(f"{one_line(suffix)!r} ({n:,})" for suffix, n in self._suffixes.most_common(_MOST_SUFFIXES))
        more = ", …" * (len(self._suffixes) > _MOST_SUFFIXES)
        return f"{chosen} that can be decoded; the suffixes in this tar: {shown}{more}"


def _split_name(path: str) -> tuple[str, str]:
    """("a/b", "seg.png") of "a/b.seg.png"."""
    folder, name = os.path.split(path.removeprefix("./"))
    stem, _, suffix = name.partition(".")
    return os.path.join(folder, stem), suffix.lower()


def _read(content: bytes, suffix: str, label_key: str) -> Any:
    """The value of a `.cls`, or of a field of a `.json` (of `COLUMNS` all); None where a `.json` has no such field."""
    try:
        if suffix == "cls":
            return int(content) if content.strip().lstrip(b"-").isdigit() else content[:40]  # int reads "1_0", too
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return content[:40]
    if not isinstance(fields, dict):
        return None
    return fields if label_key == COLUMNS else fields.get(label_key)


def _label(where: str, value: Any) -> int | UserError | None:
    """The only label, or what is wrong with it."""
    if value is None or _is_label(value):
        return value
    hint = ""
    if isinstance(value, dict | list):
        hint = " (several labels per example are read with --config.data.labels=multi)"
    return UserError(f"{where}: label {repr(value)[:60]}{hint}; an integer from 0 to {MAX_LABELS - 1:,} is needed")


def check_classes(where: str, classes: Sequence[str], first: str, known: Collection[str]) -> None:
    """Raises UserError where the classes of an example, a tar or a split are not those of the first one."""
    if names := sorted({*classes} ^ {*known}):
        what = "no class {!r}, which {} has" if names[0] in known else "class {!r}, which {} does not have"
        raise UserError(f"{where}: {what.format(names[0], first)}; all examples need the same classes")


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_LABELS
