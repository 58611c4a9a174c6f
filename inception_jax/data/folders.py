"""Class folders: images in a subfolder per class, below split folders (`train/`, `test/`, …) or below one folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.data import folder_index, image_files, split_names, storage
from inception_jax.data.class_files import read_class_file
from inception_jax.data.folder_files import LeftOut, SplitFiles, is_hidden
from inception_jax.data.folder_index import FolderFiles
from inception_jax.data.folder_walk import FolderWalker, StoredFolderWalker, count_images
from inception_jax.data.names import PackedNames, nearest_entry, printable
from inception_jax.data.split_names import KIND, OWN_NAMES, SPELLINGS
from inception_jax.errors import UserError, counted, nearest


@dataclasses.dataclass(frozen=True)
class FolderSplit:
    """The images of one split.

    Attributes:
      folder: of the split.
      keys: "class/file name" of each image.
      labels: int32 [n], indices into the folder's class names; of lists and tars also sets.
      sizes: int64 [n], bytes of each file.
      problem: why the split cannot be used, or "".
      unlabelled: whether it has images, but no class folders.
      loose: images in no class folder, which are left out.
    """

    folder: str
    keys: PackedNames
    labels: Any
    sizes: np.ndarray
    problem: str
    unlabelled: bool
    loose: int = 0

    def path(self, index: int) -> str:
        """The path of an image."""
        return os.path.join(self.folder, self.keys[index])


@dataclasses.dataclass(frozen=True)
class FolderScan:
    """The class names and the splits of a folder of images.

    Attributes:
      root: the folder.
      class_names: in the order of the labels.
      splits: by name. One that cannot be used has its `problem`, which concerns only who asks for it.
      left_out: what the scan did not take.
      notes: lines about the splits for the account.
      open_classes: whether every name that training has became a class: without a file of classes.
      not_read: names of other splits, which were not read.
    """

    root: str
    class_names: list[str]
    splits: Mapping[str, FolderSplit]
    left_out: LeftOut
    notes: Sequence[str]
    open_classes: bool = False
    not_read: Sequence[str] = ()

    def spellings(self) -> dict[str, str]:
        """{another name of a split: its name}, where that is clear: `val` is `validation` where there is only one."""
        return split_names.spellings(self.splits)


def scan(root: str | os.PathLike, classes_file: str | None = None, *, labelled: bool = True) -> FolderScan:
    """Lists the images of a folder, or reads its index.

    Args:
      root: folder with split folders of class folders, or with class folders (then all images are "train"); or the
        address of one, whose objects are listed at every call.
      classes_file: see `class_files.read_class_file`; None: the class folders in alphabetical order.
      labelled: whether labels are read; False: see `_scan_images` (at an address a split needs class folders then, too,
        but may have others than training).

    Returns:
      The class names and the splits, each in `hash_order`.

    Raises:
      UserError: no folder, no class folders, names that leave open whether a folder is a split or a class, or a wrong
        class file.
    """
    is_remote = storage.is_remote(root)
    root = os.fspath(root) if is_remote else os.path.expanduser(root)
    if not is_remote and not os.path.isdir(root):
        reason = "a file, not a folder" if os.path.exists(root) else f"no such folder{nearest_entry(root)}"
        raise UserError(f"{printable(root)}: {reason}")
    chosen = read_class_file(classes_file) if classes_file else None
    if not labelled and not is_remote:
        return _scan_images(root)
    as_classes = bool(chosen) and any(name.lower() in KIND for name in chosen or ())
    files = None if as_classes or is_remote else folder_index.read(root)
    if files is None:
        files = _list_files(StoredFolderWalker(root) if is_remote else FolderWalker(root), as_classes)
        if not as_classes and not is_remote:
            folder_index.write(root, files)
    return _with_class_names(root, files, chosen, str(classes_file), labelled)


def _scan_images(root: str) -> FolderScan:
    """The images of the folders that have names of splits, or else of the whole folder, whatever their classes are.

    A split of class folders is as `scan` gives it with labels. Any other, with images in no class folder or with faults
    that are of labels, has all images of its folder, in the order of `image_files.find`.
    """
    splits = {}
    try:
        scanned = scan(root)
    except UserError:
        top = FolderWalker(root).read("")
        names = [name for name in sorted([*top.folders, *top.links]) if name.lower() in KIND]
        folders = {split: os.path.join(root, folder) for split, folder in _name_splits(root, names).items()}
        left_out = LeftOut()
        splits = {split: _walk(folder) for split, folder in (folders or {"train": root}).items()}
    else:
        left_out = scanned.left_out
        for name, split in scanned.splits.items():
            splits[name] = _walk(split.folder) if split.problem or split.loose else split
    return FolderScan(root, [], splits, left_out, [])


def _walk(folder: str) -> FolderSplit:
    """All images of a folder, without labels."""
    problem, paths, sizes = "", [], []
    try:
        for found in image_files.find([folder]):
            if isinstance(found, image_files.Unreadable):
                raise UserError(f"{printable(found.path)}: {found.reason}")
            paths.append(found)
        sizes = [os.stat(path).st_size for path in paths]
    except UserError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{printable(str(error.filename))}: {error.strerror or error}"
    keys = PackedNames.pack([] if problem else [os.path.relpath(path, folder) for path in paths])
    return FolderSplit(folder, keys, np.full(len(keys), -1, np.int32), np.array(sizes, np.int64), problem, True)


def _list_files(walker: FolderWalker, as_classes: bool) -> FolderFiles:
    """Lists a folder: decides which of its subfolders are splits, and walks through their class folders."""
    root, top = walker.root, walker.read("")
    names = sorted([*top.folders, *top.links])
    folders, empty = ({}, []) if as_classes else _split_folders(walker.fresh(), names)
    if folders:
        walker.left_out.others += [name for name in names if name not in folders.values()]
        listings = {folder: walker.read(folder) for folder in folders.values()}
    else:
        folders, listings = {"train": ""}, {"": top}
        walker.left_out.others += empty
    classes = {
        folder: sorted(name for name in [*listing.folders, *listing.links] if name not in (empty if not folder else ()))
        for folder, listing in listings.items()
    }
    if not any(classes.values()):
        raise UserError(_no_class_folders(root, bool(count_images(listings[next(iter(listings))]))))
    walker.fix(classes)
    splits = [
        walker.split(split, folder, classes[folder], len(walker.images(listings[folder])))
        for split, folder in folders.items()
    ]
    return FolderFiles(splits, walker.left_out, walker.stamps)


def _split_folders(peek: FolderWalker, names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Finds the split folders among the subfolders of the root.

    They are splits where one with a split's name has folders itself. Where none has, all of them hold images at most.

    Returns:
      ({split: folder}, {} where the subfolders are classes; empty folders with a split's name, which are no classes).
    """
    root = peek.root
    listings = {name: peek.read(name) for name in names if name.lower() in KIND}
    if any(listing.folders or listing.links for listing in listings.values()):
        return _name_splits(root, list(listings)), []
    full = [name for name, listing in listings.items() if count_images(listing)]
    if full and len(listings) == len(names):
        raise UserError(
            f"{printable(root)}: {' and '.join(full)} without class folders; {full[0]}/CLASS/IMAGE.jpg is needed"
        )
    unclear = [name for name in full if name.lower() in OWN_NAMES]
    if unclear:
        beside = next(name for name in names if name not in listings)
        raise UserError(
            f"{printable(root)}: {unclear[0]} has the name of a split, but no class folders, and {printable(beside)!r} "
            "is beside it; move it away if its images have no labels; if it is a class, list all classes in a file "
            "(config.data.class_names)"
        )
    return {}, [name for name in listings if name not in full]


def _name_splits(root: str, folders: Sequence[str]) -> dict[str, str]:
    """{split: folder}, train first: `Testing` is the split "test"; with `test` beside it, each is one of its own."""
    splits: dict[str, str] = {}
    for kind in SPELLINGS:
        of_kind = [folder for folder in folders if KIND[folder.lower()] == kind]
        for folder in of_kind:
            split = folder.lower()
            if len(of_kind) == 1 and split not in OWN_NAMES:
                split = kind
            if split in splits or (kind == "train" and len(of_kind) > 1):
                raise UserError(
                    f"{printable(root)}: {' and '.join(of_kind)} are names of one split; rename one, or move it away"
                )
            splits[split] = folder
    return splits


def _with_class_names(
    root: str, files: FolderFiles, chosen: dict[str, str] | None, classes_file: str, labelled: bool
) -> FolderScan:
    """Numbers the classes, and finds out which splits can be used."""
    found = {split.name: split for split in files.splits}
    train = found.get("train")
    reference = train if train is not None and train.classes else None
    if reference is not None:
        folders = reference.classes
    else:
        folders = sorted({name for split in files.splits for name in split.classes})
    if chosen is not None:
        _check_class_file(classes_file, chosen, folders)
        folders = list(chosen)
    labels = {name: label for label, name in enumerate(folders)}
    splits = {}
    for name, split in found.items():
        problem = split.problem
        if labelled or not split.classes:
            problem = problem or _problem(root, split, labels, reference)
        numbers = np.array([labels.get(folder, -1) for folder in split.classes] or [-1], np.int32)
        splits[name] = FolderSplit(
            os.path.join(root, split.folder) if split.folder else root,
            split.keys,
            numbers[split.labels],
            split.sizes,
            problem,
            not split.classes,
            split.loose,
        )
    notes = [note for split in files.splits for note in split.notes]
    notes += [
        f"left out: {counted(split.loose, 'image')} in {splits[split.name].folder}, in no class folder"
        for split in files.splits
        if split.loose and split.classes
    ]
    names = list(chosen.values()) if chosen is not None else [printable(name) for name in folders]
    return FolderScan(root, names, splits, files.left_out, notes, chosen is None)


def _check_class_file(path: str, chosen: Mapping[str, str], folders: Sequence[str]) -> None:
    for name in folders:
        if name not in chosen:
            near = nearest(name, chosen)
            raise UserError(f"data.class_names: the class folder {printable(name)!r} is not in {path}{near}")
    for name in chosen:
        if name not in folders:
            raise UserError(f"data.class_names: {path} has {name!r}, but there is no such class folder")


def _problem(root: str, split: SplitFiles, labels: Mapping[str, int], reference: SplitFiles | None) -> str:
    """Why a split cannot be used, in one line; "" if it can."""
    folder = printable(os.path.join(root, split.folder) if split.folder else root)
    if not split.classes:
        if split.loose:
            return f"{folder}: {counted(split.loose, 'image')} without class folders: they have no labels"
        return _no_class_folders(folder, False)
    for name in split.classes:
        if name not in labels and reference is not None:
            of = printable(os.path.join(root, reference.folder) if reference.folder else root)
            near = nearest(printable(name), map(printable, labels))
            return f"{folder}/{printable(name)}: class {printable(name)!r} is not in {of}{near}"
    counts = np.bincount(split.labels, minlength=len(split.classes))
    for name, count in zip(split.classes, counts, strict=True):
        if not count:
            return f"{folder}/{printable(name)}: a class folder without images; remove it, or put some into it"
    return ""


def _no_class_folders(folder: str, has_images: bool) -> str:
    above = f"; do you mean the folder above it, {Path(folder).absolute().parent}?" if has_images else ""
    return f"{printable(folder)}: no class folders; a folder per class, with its images in it, is needed{above}"


def single_class_hint(found: FolderScan) -> str:
    """What may be meant by a folder with a single class: the nearest folder below with several folders; "" for none."""
    split = next(iter(found.splits.values()))
    root = os.path.join(split.folder, split.keys[0].partition("/")[0]) if len(split.keys) else split.folder
    while True:
        try:
            names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
        except OSError:
            return ""
        if len(names) > 1:
            break
        if not names:
            return ""
        root = os.path.join(root, names[0])
    shown = ", ".join(printable(name) for name in names[:3]) + (", …" if len(names) > 3 else "")
    if split.folder == found.root:
        return f"; one level too high? {printable(root)} holds {shown}: name that folder"
    return f"; {printable(root)} holds {shown}: if these are the classes, move them to {printable(split.folder)}"
