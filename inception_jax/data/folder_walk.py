"""Lists the files of class folders: every real folder once, hidden and system entries left out and counted."""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Sequence

import numpy as np

from inception_jax.data import storage
from inception_jax.data.folder_files import (
    INDEX,
    SUFFIXES,
    LeftOut,
    SplitFiles,
    Stamp,
    hash_order,
    is_hidden,
    stamp,
)
from inception_jax.data.names import PackedNames, printable
from inception_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """An object of a storage, with what is asked of an `os.DirEntry`."""

    name: str
    size: int

    def stat(self) -> os.stat_result:
        return os.stat_result((stat.S_IFREG, 0, 0, 1, 0, 0, self.size, 0, 0, 0))

    def is_symlink(self) -> bool:
        return False


@dataclasses.dataclass
class Listing:
    """The entries of one folder that are not hidden; symbolic links to folders are apart."""

    folders: list[str]
    links: list[str]
    files: Sequence[os.DirEntry[str] | StoredFile]


def count_images(listing: Listing) -> int:
    """The number of image files of a listing."""
    return sum(entry.name.lower().endswith(SUFFIXES) for entry in listing.files)


class FolderWalker:
    """Lists folders below a root, and remembers what it left out and the state of each folder that it read.

    Attributes:
      root: the folder of the data set.
      stamps: {path below the root: state} of the folders that were listed, without the root.
      left_out: what is not taken.
    """

    def __init__(self, root: str):
        self.root = root
        self.stamps: dict[str, Stamp] = {}
        self.left_out = LeftOut()
        self._fixed: dict[tuple[int, int], str] = {}  # (device, inode): the root, split folders and class folders

    def fresh(self) -> FolderWalker:
        """A walker through the same folder that has counted nothing."""
        return FolderWalker(self.root)

    def read(self, path: str) -> Listing:
        """Lists a folder below the root; "" is the root itself.

        Raises:
          UserError: the folder cannot be read.
        """
        folders: list[str] = []
        links: list[str] = []
        files: list[os.DirEntry[str]] = []
        full = os.path.join(self.root, path)
        try:
            if path:
                self.stamps[path] = stamp(full)
            with os.scandir(full) as entries:
                for entry in entries:
                    if self._leave_out(entry.name):
                        continue
                    if not _is_folder(entry):
                        files.append(entry)
                    elif entry.is_symlink():
                        links.append(entry.name)
                    else:
                        folders.append(entry.name)
        except OSError as error:
            raise UserError(f"{printable(full)}: {error.strerror or error}") from None
        return Listing(folders, links, files)

    def _leave_out(self, name: str) -> bool:
        """Whether an entry is hidden; counts it."""
        if is_hidden(name) and not name.startswith(INDEX):
            self.left_out.hidden[_group(name)] += 1
        return is_hidden(name)

    def identity(self, path: str) -> tuple[int, int]:
        """Device and inode of a folder below the root: the same for all paths that lead to it."""
        found = os.stat(os.path.join(self.root, path))
        return found.st_dev, found.st_ino

    def images(self, listing: Listing) -> list[os.DirEntry[str] | StoredFile]:
        """The image files of a listing; counts the others."""
        found = []
        for entry in listing.files:
            suffix = os.path.splitext(entry.name)[1].lower()
            if suffix in SUFFIXES:
                found.append(entry)
            else:
                self.left_out.suffixes[suffix] += 1
        return found

    def fix(self, folders: dict[str, list[str]]) -> None:
        """Tells the walker the layout, before the first `split`: a link inside a class to one of these is not followed.

        Args:
          folders: class folders by split folder, below the root.
        """
        self._fixed = {self.identity(""): ""}
        for folder, classes in folders.items():
            for path in [folder, *(os.path.join(folder, name) for name in classes)]:
                self._fixed.setdefault(self.identity(path), path)

    def split(self, name: str, folder: str, classes: list[str], loose: int) -> SplitFiles:
        """Lists the images of a split.

        Args:
          name: of the split.
          folder: below the root.
          classes: its class folders.
          loose: images in `folder` itself.
        """
        return _SplitWalk(self, self._fixed, name, folder).run(classes, loose)


class StoredFolderWalker(FolderWalker):
    """Lists "folders" of an object storage, which has only the paths of objects; it has no links."""

    def __init__(self, address: str, sizes: dict[str, int] | None = None):
        """Lists all objects below an address.

        Args:
          address: of the folder of the data set.
          sizes: what `storage.list_sizes` has found there.

        Raises:
          UserError: the address cannot be opened or listed, or nothing is there.
        """
        super().__init__(address.rstrip("/"))
        self._sizes = storage.list_sizes(self.root) if sizes is None else sizes
        if not self._sizes:
            raise UserError(f"{self.root}: no such folder")
        if "dataset_info.json" in self._sizes:
            raise UserError(f"{self.root}: a prepared data set; these are read from a file system: mount the storage")
        self._entries: dict[str, dict[str, int | None]] = {"": {}}  # {folder: {entry: bytes; None: a folder}}
        for path, size in self._sizes.items():
            folder, _, name = path.rpartition("/")
            if name:  # some programs store an empty object "folder/"
                self._entries.setdefault(folder, {})[name] = size
            while folder:
                above, _, own = folder.rpartition("/")
                self._entries.setdefault(above, {})[own] = None
                folder = above
        self._numbers = {folder: number for number, folder in enumerate(self._entries)}

    def fresh(self) -> FolderWalker:
        return StoredFolderWalker(self.root, self._sizes)

    def read(self, path: str) -> Listing:
        entries = [(name, size) for name, size in sorted(self._entries[path].items()) if not self._leave_out(name)]
        files = [StoredFile(name, size) for name, size in entries if size is not None]
        return Listing([name for name, size in entries if size is None], [], files)

    def identity(self, path: str) -> tuple[int, int]:
        return 0, self._numbers[path]


class _SplitWalk:
    """The walk through the class folders of one split.

    Real folders come first. Then links are followed, each to a real folder that was not visited: so the result does not
    depend on the order of the classes.
    """

    def __init__(self, walker: FolderWalker, fixed: dict[tuple[int, int], str], name: str, folder: str):
        self._walker, self._fixed, self._name, self._folder = walker, fixed, name, folder
        self._visited: dict[tuple[int, int], tuple[int, bool]] = {}  # (class, whether by way of a link)
        self._links: list[tuple[int, str]] = []
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._sizes: list[int] = []
        self._inodes: list[int] = []
        self._linked: list[int] = []  # positions of the files that are links
        self._missing: list[str] = []
        self._problems: list[str] = []
        self._notes: list[str] = []

    def run(self, classes: list[str], loose: int) -> SplitFiles:
        self._check_class_folders(classes)
        for label, name in enumerate(classes):
            self._walk(label, name, by_link=False)
        while self._links:
            links, self._links = sorted(self._links), []
            for label, path in links:
                self._follow(label, path)
        kept = self._without_duplicates(classes)
        if self._missing:
            self._problems.append(
                f"{self._full(self._missing[0])}: a link to a file that is not there"
                + (f" ({len(self._missing)} such links)" if len(self._missing) > 1 else "")
            )
        keys = [self._keys[i] for i in kept]
        order = hash_order(keys, self._name)
        labels, sizes = (np.asarray(values)[kept][order] for values in (self._labels or [0], self._sizes or [0]))
        return SplitFiles(
            self._name,
            self._folder,
            classes,
            PackedNames.pack(keys[i] for i in order),
            labels.astype(np.int32),
            sizes.astype(np.int64),
            loose,
            self._problems[0] if self._problems else "",
            self._notes,
        )

    def _full(self, key: str) -> str:
        return printable(os.path.join(self._walker.root, self._folder, key))

    def _check_class_folders(self, classes: list[str]) -> None:
        """Notes two class folders that are one, by links: two classes of a split, or the same one of two splits."""
        seen: dict[tuple[int, int], str] = {}
        for name in classes:
            path = os.path.join(self._folder, name)
            identity = self._walker.identity(path)
            if identity in seen:
                self._problems.append(f"{self._full(name)}: the same folder as {self._full(seen[identity])}, by a link")
            elif (first := self._fixed[identity]) != path:
                self._notes.append(
                    f"{printable(path)} is the same folder as {printable(first) or self._walker.root}, by a link"
                )
            seen.setdefault(identity, name)

    def _walk(self, label: int, path: str, by_link: bool) -> None:
        """Takes the images of a folder and of the real folders below it."""
        folders = [path]
        while folders:
            path = folders.pop()
            below = os.path.join(self._folder, path)
            listing = self._walker.read(below)
            self._visited[self._walker.identity(below)] = label, by_link
            folders += [f"{path}/{name}" for name in listing.folders]
            self._links += [(label, f"{path}/{name}") for name in listing.links]
            for entry in self._walker.images(listing):
                self._take(label, f"{path}/{entry.name}", entry)

    def _take(self, label: int, key: str, entry: os.DirEntry[str] | StoredFile) -> None:
        try:
            found = entry.stat()
        except OSError:
            self._missing.append(key)  # a link whose file is missing, or a file removed since it was listed
            return
        if entry.is_symlink():
            self._linked.append(len(self._keys))
        self._keys.append(key)
        self._labels.append(label)
        self._sizes.append(found.st_size if stat.S_ISREG(found.st_mode) else 0)
        self._inodes.append(found.st_ino)

    def _follow(self, label: int, path: str) -> None:
        identity = self._walker.identity(os.path.join(self._folder, path))
        before, by_link = self._visited.get(identity, (None, False))
        if before is None and identity not in self._fixed:
            self._walk(label, path, by_link=True)
            return
        self._walker.left_out.links.append(os.path.join(self._folder, path))
        if before not in (None, label) and by_link:
            self._problems.append(f"{self._full(path)}: a link to a folder to which a link in another class leads too")

    def _without_duplicates(self, classes: list[str]) -> np.ndarray:
        """Positions of the files, each real file once; a file in two classes is a problem of the split."""
        keep = np.ones(len(self._keys), bool)
        if not self._linked:
            return np.flatnonzero(keep)
        inodes, linked = np.asarray(self._inodes), np.zeros(len(self._keys), bool)
        linked[self._linked] = True
        suspects: dict[tuple[int, int], list[int]] = collections.defaultdict(list)
        for position in np.flatnonzero(np.isin(inodes, inodes[linked])).tolist():
            found = os.stat(os.path.join(self._walker.root, self._folder, self._keys[position]))
            suspects[found.st_dev, found.st_ino].append(position)
        for group in suspects.values():
            first, *others = sorted(group, key=lambda position: (linked[position], self._keys[position]))
            for position in others:
                if not linked[position]:
                    continue  # hard links are files of their own
                keep[position] = False
                self._walker.left_out.links.append(os.path.join(self._folder, self._keys[position]))
                if self._labels[position] != self._labels[first]:
                    self._problems.append(
                        f"{self._full(self._keys[position])}: a link to the same image as "
                        f"{self._full(self._keys[first])}, in another class"
                    )
        return np.flatnonzero(keep)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that may not be read
        return False


def _group(name: str) -> str:
    """The name under which a hidden entry is counted: images have as many names as there are."""
    if name.startswith("._"):
        return "._*"
    suffix = os.path.splitext(name)[1].lower()
    return f".*{suffix}" if suffix in SUFFIXES else name
