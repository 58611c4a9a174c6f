"""Zip and tar archives read in memory: nothing is ever unpacked to disk, so no name in them is ever a path.

Sizes are charged before a member is inflated, and a member that inflates to more than it declares is refused.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath

from inception_jax.weight_files.types import ReadBudget, ReadError

_CHUNK = 1 << 20  # bytes inflated at a time
# What the standard library raises for a damaged archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError, NotImplementedError,
    RuntimeError, struct.error, IndexError,
)  # fmt: skip
_TAR_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, struct.error, IndexError)


class Archive:
    """The files in an archive by name, read one at a time. Folders are left out."""

    def __init__(self, budget: ReadBudget):
        self._budget = budget
        self._sizes: dict[str, int] = {}

    def names(self) -> list[str]:
        """The names, in the order of the archive."""
        return list(self._sizes)

    def __contains__(self, name: str) -> bool:
        return name in self._sizes

    def read(self, name: str) -> memoryview:
        """The bytes of one member; ReadError if it is damaged or too large."""
        size = self._sizes[name]
        self._budget.charge(size, f"{name!r} in the archive")
        data = self._inflate(name, size)
        if len(data) != size:
            raise ReadError(f"{name!r} in the archive holds {len(data):,} bytes and declares {size:,}: it is damaged")
        return memoryview(data)

    def _inflate(self, name: str, size: int) -> bytes:
        raise NotImplementedError

    def _list(self, name: str, size: int) -> None:
        if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise ReadError(f"the archive has a member named {name!r}, outside of itself: it is not read")
        if name in self._sizes:
            raise ReadError(f"the archive has two members named {name!r}")
        self._sizes[name] = size


class ZipArchive(Archive):
    """A zip archive."""

    def __init__(self, data: memoryview, budget: ReadBudget):
        super().__init__(budget)
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _ZIP_ERRORS as error:
            raise ReadError(f"a zip archive that cannot be read ({error}): it is truncated or damaged") from None
        self._infos = {}
        for info in self._zip.infolist():
            if not info.filename.endswith("/"):
                self._list(info.filename, info.file_size)
                self._infos[info.filename] = info

    def _inflate(self, name: str, size: int) -> bytes:
        info = self._infos[name]
        if info.flag_bits & 1:
            raise ReadError(f"{name!r} in the archive is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ReadError(
                f"{name!r} in the archive is compressed by method {info.compress_type}, not stored or deflated"
            )
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != size:
            raise ReadError(f"{name!r} in the archive is stored in {info.compress_size:,} bytes and declares {size:,}")
        try:
            with self._zip.open(info) as member:
                # One byte more than declared makes the library compare the check sum.
                return member.read(size + 1)
        except _ZIP_ERRORS as error:
            raise ReadError(f"{name!r} in the archive cannot be read ({error}): it is damaged") from None


class TarArchive(Archive):
    """A tar archive, gzipped or not. Links, devices and names outside of it make the whole archive refused."""

    def __init__(self, data: memoryview, budget: ReadBudget):
        super().__init__(budget)
        if bytes(data[:2]) == b"\x1f\x8b":
            data = _gunzip(data, budget)
        try:
            self._tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:")
            members = self._tar.getmembers()
        except _TAR_ERRORS as error:
            raise ReadError(f"a tar archive that cannot be read ({error}): it is truncated or damaged") from None
        self._infos = {}
        for info in members:
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise ReadError(f"the archive has the member {info.name!r}, which is no plain file: it is not read")
            self._list(info.name, info.size)
            self._infos[info.name] = info

    def _inflate(self, name: str, size: int) -> bytes:
        try:
            with self._tar.extractfile(self._infos[name]) as member:
                return member.read()
        except _TAR_ERRORS as error:
            raise ReadError(f"{name!r} in the archive cannot be read ({error}): it is damaged") from None


def _gunzip(data: memoryview, budget: ReadBudget) -> memoryview:
    """The content of a gzip file, charged as it inflates."""
    pieces = []
    try:
        # The library's reader takes the bytes in order; what `zlib` leaves over would be copied for each piece.
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(_CHUNK):
                budget.charge(len(piece), "the compressed archive")
                pieces.append(piece)
    except EOFError:
        raise ReadError("the compressed archive is cut off: it is truncated") from None
    except (OSError, zlib.error, struct.error) as error:
        raise ReadError(f"the compressed archive cannot be inflated ({error}): it is damaged") from None
    return memoryview(b"".join(pieces))
