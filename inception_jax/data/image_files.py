"""Finds image files in folders, by patterns and in lists of names, and reads one of them."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from inception_jax.data import channels as image_channels
from inception_jax.data import images
from inception_jax.data.animation import is_animated
from inception_jax.data.folder_files import SUFFIXES, is_hidden
from inception_jax.data.folder_walk import FolderWalker, StoredFile
from inception_jax.data.names import printable
from inception_jax.errors import UserError

_ANY_DEPTH = "**"
_CHUNK = 1 << 16  # bytes of a list that are read at once


class Unreadable(NamedTuple):
    """A folder below one that was named, which cannot be read.

    Attributes:
      path: of the folder.
      reason: in a few words.
    """

    path: str
    reason: str


def find(named: Iterable[str | os.PathLike], exclude: Iterable[str | os.PathLike] = ()) -> Iterator[str | Unreadable]:
    """Finds the image files of files, folders and patterns.

    A file that is named is taken whatever its suffix. A folder is walked as the class folders of a data set are: the
    files with a suffix of `folder_files.SUFFIXES`; hidden and system entries are left out; every real folder and file
    is visited once, whatever links lead to it, and links to the folders around it are not followed. A pattern (`*`,
    `?`, `[…]`, and `**` for folders of any depth) selects of these files those whose whole path matches; it is read as
    a name where there is such a file.

    The order is that of `named`; within a folder that of the names: its files, then the folders inside it, then, at the
    end of the walk, what only links lead to. A file that several of them name is taken once, at its first place.

    Args:
      named: paths and patterns.
      exclude: files and folders that are left out, where a folder or pattern leads to them.

    Returns:
      An iterator of paths, and of folders that cannot be read. Each folder and pattern was read as far as its first
      image; the rest is read while the result is iterated.

    Raises:
      UserError: a file that is not there; a folder or a pattern without an image.
    """
    left_out = frozenset(os.path.realpath(path) for path in exclude)
    parts = [_expand(os.fsdecode(os.fspath(name)), left_out) for name in named]
    found = itertools.chain.from_iterable(parts)
    return found if len(parts) < 2 else drop_repeated(found)


def drop_repeated(files: Iterable[str | Unreadable]) -> Iterator[str | Unreadable]:
    """Yields each real file once, at its first place, whatever links and spellings name it; remembers their paths."""
    seen = set()
    for file in files:
        path = file.path if isinstance(file, Unreadable) else file
        real = path if "\0" in path else os.path.realpath(path)
        if real not in seen:
            seen.add(real)
            yield file


def _expand(name: str, exclude: frozenset[str]) -> Iterable[str | Unreadable]:
    if os.path.isdir(name):
        walk = _Walk(name, name, (_ANY_DEPTH,), exclude)
        return _started(walk, lambda: f"{printable(name)}: no image in this folder ({walk.describe_left_out()})")
    if os.path.lexists(name) or not glob.has_magic(name):
        with contextlib.suppress(ValueError):  # a zero byte in the name: who reads it says so
            try:
                os.stat(name)
            except OSError as error:
                raise UserError(f"{printable(name)}: {error.strerror or error}") from None
        return [name]
    names = name.split("/")
    first = next(position for position, part in enumerate(names) if glob.has_magic(part))
    prefix = "/".join(names[:first]) + "/" if first else ""
    if not os.path.isdir(prefix or "."):
        raise UserError(f"{printable(name)}: no such file, and as a pattern it has no folder {printable(prefix)}")
    pattern = _Walk(prefix or ".", prefix, tuple(filter(None, names[first:])), exclude)
    hint = "" if _ANY_DEPTH in names else "; ** stands for folders of any depth"
    return _started(
        pattern,
        lambda: (
            f"{printable(name)}: no such file, and as a pattern it matches no image "
            f"({pattern.describe_left_out()}){hint}"
        ),
    )


def _started(walk: Iterable[str | Unreadable], describe: Callable[[], str]) -> Iterator[str | Unreadable]:
    """Reads as far as the first image.

    Raises:
      UserError: there is none; `describe` gives the message.
    """
    items, begun = iter(walk), []
    for item in items:
        begun.append(item)
        if isinstance(item, str):
            return itertools.chain(begun, items)
    unreadable = [item for item in begun if isinstance(item, Unreadable)]
    if unreadable:
        raise UserError(f"{printable(unreadable[0].path)}: {unreadable[0].reason}")
    raise UserError(describe())


class _Walk:
    """The image files below a folder whose path matches a pattern, each once."""

    def __init__(self, root: str, prefix: str, parts: tuple[str, ...], exclude: frozenset[str]):
        """Prepares the walk.

        Args:
          root: the folder.
          prefix: of the paths in the result.
          parts: the pattern for the path below the root, one per folder and one for the name.
          exclude: real paths that are left out.
        """
        self._walker, self._prefix, self._parts, self._exclude = FolderWalker(root), prefix, parts, exclude
        self._excluded_names = {os.path.basename(path) for path in exclude}
        # Not the folders around the root either: a link to one of them is a loop.
        self._visited = {_identity(os.stat(path)) for path in pathlib.Path(os.path.realpath(root)).parents}
        self._folder_links: list[tuple[str, frozenset[int]]] = []
        self._file_links: list[str] = []
        self._unmatched = 0

    def describe_left_out(self) -> str:
        """What is there and was not taken, in a few words."""
        left_out = self._walker.left_out
        suffixes = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in left_out.suffixes.most_common(3)]
        others = {
            "other images": self._unmatched,
            "hidden": sum(left_out.hidden.values()),
        }
        found = [*suffixes, *(f"{count:,} {what}" for what, count in others.items() if count)]
        return f"left out: {', '.join(found)}" if found else "it is empty"

    def __iter__(self) -> Iterator[str | Unreadable]:
        yield from self._walk("", self._closure([0]))
        while self._folder_links:
            links, self._folder_links = sorted(self._folder_links), []
            for path, places in links:
                yield from self._walk(path, places)
        yield from self._follow_file_links()

    def _closure(self, places: Iterable[int]) -> frozenset[int]:
        """Places in the pattern, and those behind a `**`, which may stand for no folder at all."""
        found = set(places)
        for place in sorted(found):
            while place < len(self._parts) and self._parts[place] == _ANY_DEPTH:
                place += 1
                found.add(place)
        return frozenset(found)

    def _advance(self, places: Iterable[int], name: str) -> frozenset[int]:
        """The places in the pattern after one more name of a path."""
        after = set()
        for place in places:
            if place < len(self._parts):
                if self._parts[place] == _ANY_DEPTH:
                    after.add(place)
                elif fnmatch.fnmatchcase(name, self._parts[place]):
                    after.add(place + 1)
        return self._closure(after)

    def _is_open(self, places: frozenset[int]) -> bool:
        """Whether a longer path may match."""
        return any(place < len(self._parts) for place in places)

    def _walk(self, path: str, places: frozenset[int]) -> Iterator[str | Unreadable]:
        """The files of a folder and of the real folders in it; links are kept for later."""
        folders = [(path, places)]
        while folders:
            path, places = folders.pop()
            try:
                identity = self._walker.identity(path)
                if identity in self._visited or self._is_excluded(path):
                    continue
                self._visited.add(identity)
                listing = self._walker.read(path)
            except (UserError, OSError) as error:
                yield Unreadable(self._path(path), getattr(error, "strerror", None) or str(error).rpartition(": ")[2])
                continue
            for entry in sorted(self._walker.images(listing), key=lambda entry: entry.name):
                below = os.path.join(path, entry.name)
                if len(self._parts) not in self._advance(places, entry.name) or self._is_excluded(below):
                    self._unmatched += 1
                elif entry.is_symlink():
                    self._file_links.append(below)
                elif isinstance(entry, StoredFile) or entry.is_file():
                    yield self._path(below)
            inside = [(os.path.join(path, name), self._advance(places, name)) for name in sorted(listing.folders)]
            folders += [one for one in reversed(inside) if self._is_open(one[1])]
            links = [(os.path.join(path, name), self._advance(places, name)) for name in listing.links]
            self._folder_links += [one for one in links if self._is_open(one[1])]

    def _follow_file_links(self) -> Iterator[str]:
        """The links to files that the walk has not met, and of links to one file the first."""
        seen = set()
        takes_all = self._parts[-1] == _ANY_DEPTH
        for below in self._file_links:
            full = os.path.join(self._walker.root, below)
            try:
                found, folder = os.stat(full), os.stat(os.path.dirname(os.path.realpath(full)))
            except OSError:
                yield self._path(below)  # a link to nothing: who reads it says why
                continue
            name = os.path.basename(os.path.realpath(full))
            is_met = takes_all and _identity(folder) in self._visited and _is_image_name(name)
            if not is_met and _identity(found) not in seen and stat.S_ISREG(found.st_mode):
                seen.add(_identity(found))
                yield self._path(below)

    def _path(self, below: str) -> str:
        return os.path.join(self._prefix, below) if below else self._prefix or "."

    def _is_excluded(self, below: str) -> bool:
        """Asked when an entry is met: what is excluded may have been made since the walk began."""
        if os.path.basename(below) not in self._excluded_names:
            return False
        return os.path.realpath(os.path.join(self._walker.root, below)) in self._exclude


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _is_image_name(name: str) -> bool:
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in SUFFIXES


def read_list(path: str) -> Iterator[str]:
    """Reads names of files, one a line, or with a zero byte after each (as `find -print0` writes them).

    Args:
      path: of the list; "-" is standard input.

    Returns:
      An iterator of the names, which are read as they come; empty lines are left out.

    Raises:
      UserError: the list cannot be read.
    """
    try:
        # A file of our own: Python's buffered standard input may not be read by a daemon thread while Python exits.
        file = open(0 if path == "-" else path, "rb", buffering=0, closefd=path != "-")
    except OSError as error:
        raise UserError(f"--files={printable(path)}: {error.strerror or error}") from None

    def names() -> Iterator[str]:
        rest, separator = b"", b""
        with file:
            while chunk := file.read(_CHUNK):
                rest += chunk
                separator = separator or next((one for one in (b"\0", b"\n") if one in rest), b"")
                if separator:
                    *whole, rest = rest.split(separator)
                    yield from map(_decode_name, filter(None, whole))
        if rest:
            yield _decode_name(rest)

    return (name for name in names() if name)


def _decode_name(line: bytes) -> str:
    return os.fsdecode(line.removesuffix(b"\r"))


def read_image(
    path: str | os.PathLike, max_pixels: int = images.MAX_PIXELS, channels: int = image_channels.COLOURS
) -> np.ndarray:
    """Reads one image file, of which it is clear what image is meant.

    Args:
      path: of the file.
      max_pixels: as in `images.decode`.
      channels: as in `images.decode`.

    Returns:
      uint8 [height, width, channels], as `images.decode`.

    Raises:
      UserError: it cannot be read, is empty, no complete image, animated, or of other channels; the message is the
        reason alone.
    """
    try:
        with open(path, "rb") as file:
            encoded = file.read()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(getattr(error, "strerror", None) or str(error)) from None
    if not encoded:
        raise UserError("an empty file")
    if is_animated(encoded):
        raise UserError("an animation: which of its frames is meant? Save that one as an image")
    name = "image"
    try:
        return images.decode(encoded, name, max_pixels, channels=channels)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"{name}: ")) from None
