"""Sets of images for generative metrics: folders, patterns, data sets, files of arrays, statistics of other tools."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inception_jax.data import datasets, image_files, images, records
from inception_jax.data.label_sets import NO_LABELS
from inception_jax.data.names import one_line, printable
from inception_jax.errors import UserError, nearest
from inception_jax.features.statistics import MAX_FEATURES

DATASET = "dataset:"
_OF_ARRAY = ".npz#"  # FILE.npz#ARRAY
_CHUNK = 1 << 24  # bytes
_MOST_TEXT = 1 << 16  # bytes
# What zipfile and NumPy raise of damaged files, of encrypted ones and of unknown compressions.
_DAMAGES = (OSError, ValueError, TypeError, EOFError, SyntaxError, RuntimeError, KeyError, MemoryError, OverflowError,
            zipfile.BadZipFile, zlib.error)  # fmt: skip
_PICKLES = (".pkl", ".pickle", ".pt", ".pth")
_NO_IMAGES = ("mu", "sigma", "mu_s", "sigma_s", "count", "input", "network", "index", "label", "file")
_PREFERRED = ("arr_0", "images", "feats", "features", "global_pool", "pool")  # names of the array, the best first


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """One of the two sets that are compared: images to compute features of, or what was computed of them before.

    Attributes:
      name: as it was given.
      count: images; None: only statistics are there, which do not say it.
      read: of a position, returns the image, uint8 [height, width, 3]; None: there are no images.
      features: [count, C], where a file has features.
      statistics: {"pool": (mu, sigma), "spatial": (mu, sigma)}, where a file has statistics.
      identity: changes where the images are others.
      input: the input rule of statistics or features that `score` or `extract` wrote; None: not known.
      network: `network_digest.digest` of the network of these; None: not known.
    """

    name: str
    count: int | None
    read: Callable[[int], np.ndarray] | None = None
    features: np.ndarray | None = None
    statistics: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    identity: str = ""
    input: str | None = None
    network: str | None = None


def open_set(name: str, max_pixels: int = images.MAX_PIXELS, image_key: str | None = None) -> ImageSet:
    """Opens a set of images.

    Args:
      name: a folder, an image file or a pattern; "dataset:NAME#SPLIT"; an .npz or .npy file: images uint8
        [n, height, width, 3] (ADM's batches: `arr_0`), features [n, C] (of `extract`, or clean-fid's `feats`), or
        statistics `mu` and `sigma` (pytorch-fid's, TTUR's, clean-fid's; with `mu_s` and `sigma_s`: ADM's);
        "FILE.npz#ARRAY": one of its arrays.
      max_pixels: the largest image file that is decoded, height times width.
      image_key: of a data set: as `config.data.image_key`.

    Raises:
      UserError: there is no such thing, or a file holds none of these.
    """
    if name.startswith(DATASET):
        return _open_dataset(name, max_pixels, image_key)
    if name.endswith(".npz"):
        return _open_npz(name)
    if _OF_ARRAY in name:
        return _open_npz(*name.rsplit("#", 1))
    if name.endswith(".npy"):
        return _of_array(name, _load_npy(name), name)
    if name.endswith(_PICKLES):
        raise UserError(
            f"{name}: pickled files are not read; statistics are an .npz file, of np.savez(FILE, mu=…, sigma=…)"
        )
    paths = []
    for found in image_files.find([name]):
        if isinstance(found, image_files.Unreadable):
            raise UserError(f"{printable(found.path)}: {found.reason}")
        paths.append(found)

    def read(position: int) -> np.ndarray:
        return images.decode_image_file(paths[position], max_pixels)

    return ImageSet(name, len(paths), read, identity=_digest(*map(_file_identity, paths)))


def of_arrays(array: np.ndarray, name: str = "array") -> ImageSet:
    """Makes a set of an array in memory: images uint8 [n, height, width, 3] or features, floating point [n, C].

    Raises:
      UserError: another array.
    """
    return _of_array(name, array, "")


def _of_array(name: str, array: np.ndarray, file: str) -> ImageSet:
    identity = _digest(_file_identity(file), array.shape) if file else ""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and len(array):
        return ImageSet(name, len(array), lambda position: np.asarray(array[position]), identity=identity)
    if array.dtype.kind == "f" and array.ndim == 2 and len(array):
        return ImageSet(name, len(array), features=array, identity=identity)
    raise UserError(
        f"{name}: an array {array.dtype}{list(array.shape)}; images are uint8 [n, height, width, 3] (features."
        "quantize makes them of floating-point ones), and features floating point [n, C]"
    )


def _open_dataset(name: str, max_pixels: int, image_key: str | None) -> ImageSet:
    dataset, separator, split = name.removeprefix(DATASET).rpartition("#")
    if not (separator and dataset and split):
        raise UserError(f"{name}: dataset:NAME#SPLIT is needed, such as dataset:digits#test")
    try:
        data = datasets.load(dataset, split, image_key=image_key, labels=NO_LABELS)
    except UserError as error:
        raise UserError(error.naming_flags("image_key")) from None
    for line in data.account:
        print(line, file=sys.stderr)

    def read(position: int) -> np.ndarray:
        image, _ = data.record(position)
        if isinstance(image, np.ndarray):
            return image
        return images.decode(image, lambda: data.record_name(position), max_pixels)

    # The digest knows names and sizes, not contents.
    stamps = map(_file_identity, sorted(records.files_of(data.source)))
    return ImageSet(name, data.num_examples, read, identity=_digest(name, data.source.digest(), *stamps))


def _open_npz(name: str, wanted: str | None = None) -> ImageSet:
    try:
        with zipfile.ZipFile(name) as archive:
            names = [member.removesuffix(".npy") for member in archive.namelist() if member.endswith(".npy")]
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except _DAMAGES as error:
        raise UserError(f"{name}: not a NumPy archive ({one_line(str(error)[:100])})") from None
    statistics = {}
    if {"mu", "sigma"} <= {*names}:
        statistics["pool"] = _load_statistics(name, "")
        if {"mu_s", "sigma_s"} <= {*names}:
            statistics["spatial"] = _load_statistics(name, "_s")
    others = [key for key in names if key not in _NO_IMAGES]
    if wanted is not None and wanted not in others:
        raise UserError(
            f"{name}: it has no array {wanted}{nearest(wanted, others)}; it has {one_line(', '.join(names))}"
        )
    chosen = wanted or next((key for key in _PREFERRED if key in others), others[0] if len(others) == 1 else None)
    if chosen is None and not statistics:
        raise UserError(
            f"{name}: which array is meant? It has {one_line(', '.join(names)) or 'none'}; statistics are mu and "
            "sigma, images arr_0 or images, features feats, features or global_pool, or the only array; "
            f"{name}#ARRAY names one"
        )
    if chosen is None:
        return ImageSet(
            name,
            _stored_count(name, names),
            statistics=statistics,
            identity=_file_identity(name),
            input=_stored_text(name, "input", names),
            network=_stored_text(name, "network", names),
        )
    found = _of_array(f"{name}: {one_line(chosen)}", _load_member(name, chosen), name)
    return dataclasses.replace(
        found,
        name=name if wanted is None else f"{name}#{wanted}",
        identity=found.identity if wanted is None else _digest(found.identity, wanted),
        statistics={} if wanted else statistics,
        input=_stored_text(name, "input", names),
        network=_stored_text(name, "network", names, chosen),
    )


def _load_statistics(name: str, suffix: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance; their shapes are checked before the numbers are read."""
    most = 8 * MAX_FEATURES**2
    mu, sigma = (np.asarray(_load_member(name, f"{key}{suffix}", most)) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        raise UserError(
            f"{name}: mu{suffix} {mu.dtype}{list(mu.shape)} and sigma{suffix} {sigma.dtype}{list(sigma.shape)}; "
            "floating point [C] and [C, C] are needed"
        )
    return mu, sigma


def _stored_count(name: str, names: list[str]) -> int | None:
    """The number of images that `score --statistics` and `extract --statistics` write beside the statistics."""
    if "count" not in names:
        return None
    value = _load_member(name, "count")
    return int(value) if value.ndim == 0 and value.dtype.kind in "iu" else None


def read_origin(name: str) -> tuple[str | None, str | None]:
    """The input rule and the `network_digest.digest` that a file of statistics names.

    Args:
      name: of an .npz file, which `statistics.read_statistics` has read.

    Returns:
      Each is None where a tool that names none wrote the file.
    """
    with zipfile.ZipFile(name) as archive:
        names = [member.removesuffix(".npy") for member in archive.namelist()]
    return _stored_text(name, "input", names), _stored_text(name, "network", names)


def _stored_text(name: str, key: str, names: list[str], endpoint: str | None = None) -> str | None:
    """A text that `--statistics` writes beside the statistics; None: another tool wrote the file.

    `extract` writes one for each endpoint, in rows of an endpoint's name and its text.
    """
    if key not in names:
        return None
    value = _load_member(name, key, _MOST_TEXT)
    if value.ndim == 2 and value.shape[1] == 2 and value.dtype.kind == "U":
        return dict(value.tolist()).get(endpoint)
    return str(value) if value.ndim == 0 and value.dtype.kind == "U" else None


def _load_member(name: str, key: str, most: int | None = None) -> np.ndarray:
    """An array of an .npz file: mapped where it is stored as it is, so that it may be larger than the memory.

    Args:
      name: of the file.
      key: of the array.
      most: bytes that it may have; None: as many as it has.
    """
    try:
        with zipfile.ZipFile(name) as archive:
            info = archive.getinfo(f"{key}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"version {version} of the format")
                shape, fortran, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(member)
                header = member.tell()
                if dtype.hasobject:
                    raise ValueError("Python objects are not read")
                if most is not None and math.prod(shape) * dtype.itemsize > most:
                    raise ValueError(f"{dtype}{list(shape)} is larger than such a file has it, {most:,} bytes")
                mapped = info.compress_type == zipfile.ZIP_STORED and not fortran and bool(shape)
                while mapped and member.read(_CHUNK):  # to its end, where the checksum is compared
                    pass
            if mapped:
                start = _data_offset(name, info) + header
                return np.memmap(name, dtype, "r", start, shape)
            with np.load(name, allow_pickle=False) as arrays:
                return arrays[key]
    except _DAMAGES as error:
        raise UserError(f"{name}: {one_line(key)} is not a readable array ({one_line(str(error)[:100])})") from None


def _data_offset(name: str, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin: after its local header, of 30 bytes, a name and an extra field."""
    with open(name, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _load_npy(name: str) -> np.ndarray:
    try:
        return np.load(name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file") from None
    except _DAMAGES as error:
        raise UserError(f"{name}: not a readable array ({one_line(str(error)[:100])})") from None


def _file_identity(path: str) -> str:
    found = os.stat(path)
    return f"{Path(path).resolve()} {found.st_size} {found.st_mtime_ns}"


def _digest(*parts: object) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(f"{part}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:16]
