"""Reads zip and tar archives in memory. Nothing is unpacked to disk, so no name in an archive becomes a path.

Sizes are charged before a member is decompressed, and a member that holds more than it declares is refused.
"""

from __future__ import annotations

import gzip
import io
import lzma
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import PurePosixPath

from inception_jax.weight_files.types import Cost, ReadBudget, ReadError

_CHUNK = 1 << 20  # bytes decompressed at a time
# Exceptions of the standard library for a damaged archive.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, OverflowError, NotImplementedError,
    RuntimeError, struct.error, IndexError,
)  # fmt: skip
# tarfile reads the headers of one member (long names, extended headers) by calling itself.
_TAR_ERRORS = (
    tarfile.TarError, EOFError, OSError, ValueError, OverflowError, struct.error, IndexError, RecursionError,
)  # fmt: skip
_ENTRY = 46  # bytes of an entry in a zip's directory, at least
_END, _END_64 = b"PK\x05\x06", b"PK\x06\x06"


class Archive:
    """The files in an archive by name, read one at a time. Folders are not listed."""

    def __init__(self, budget: ReadBudget) -> None:
        """Starts with an empty listing.

        Args:
          budget: to which the bytes of each member that is read are charged.
        """
        self._budget = budget
        self._sizes: dict[str, int] = {}

    def names(self) -> list[str]:
        """Returns the names, in the order of the archive."""
        return list(self._sizes)

    def __contains__(self, name: str) -> bool:
        """Returns whether the archive has a member of this name."""
        return name in self._sizes

    def read(self, name: str) -> memoryview:
        """Reads one member.

        Args:
          name: one of `names()`.

        Raises:
          ReadError: the member is damaged, encrypted, compressed by another method than deflate, or too large.
        """
        size = self._sizes[name]
        self._budget.charge(size, f"{name!r} in the archive")
        data = self._decompress(name, size)
        if len(data) != size:
            raise ReadError(f"{name!r} in the archive holds {len(data):,} bytes and declares {size:,}: it is damaged")
        return memoryview(data)

    def _decompress(self, name: str, size: int) -> bytes:
        """Returns the bytes of one member."""
        raise NotImplementedError

    def _add_name(self, name: str, size: int) -> None:
        """Lists a member; ReadError for a name outside of the archive, or one that occurs twice."""
        if not name or name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            raise ReadError(f"the archive has a member named {name!r}, a path outside of the archive: it is not read")
        if name in self._sizes:
            raise ReadError(f"the archive has two members named {name!r}")
        self._sizes[name] = size


class ZipArchive(Archive):
    """A zip archive."""

    def __init__(self, data: memoryview, budget: ReadBudget) -> None:
        """Lists the members.

        Args:
          data: the whole file.
          budget: as in `Archive`.

        Raises:
          ReadError: the archive is damaged or has a forbidden member.
        """
        super().__init__(budget)
        budget.charge_objects(Cost.MEMBER * _directory_size(data) // _ENTRY, "the archive's directory")
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _ZIP_ERRORS as error:
            raise ReadError(f"a zip archive that cannot be read ({error}): it is truncated or damaged") from None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            if not info.filename.endswith("/"):
                self._add_name(info.filename, info.file_size)
                self._infos[info.filename] = info

    def _decompress(self, name: str, size: int) -> bytes:
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
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "error", UserWarning
                )  # Python 3.13 warns of some entries that overlap, and refuses others
                with self._zip.open(info) as member:
                    # Reading past the declared size makes the library compare the checksum.
                    return member.read(size + 1)
        except (*_ZIP_ERRORS, UserWarning) as error:
            raise ReadError(f"{name!r} in the archive cannot be read ({error}): it is damaged") from None


class TarArchive(Archive):
    """A tar archive, gzipped or not. One link, device or path outside of it makes the whole archive refused."""

    def __init__(self, data: memoryview, budget: ReadBudget) -> None:
        """Lists the members; arguments and errors as in `ZipArchive`."""
        super().__init__(budget)
        if bytes(data[:2]) == b"\x1f\x8b":
            data = _gunzip(data, budget)
        try:
            self._tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:")
            members = []
            for member in self._tar:
                budget.charge_objects(Cost.MEMBER, "an archive of many members")
                members.append(member)
        except _TAR_ERRORS as error:
            raise ReadError(f"a tar archive that cannot be read ({error}): it is truncated or damaged") from None
        self._infos: dict[str, tarfile.TarInfo] = {}
        for info in members:
            if info.isdir():
                continue
            if not info.isreg() or info.issparse():
                raise ReadError(
                    f"the archive has the member {info.name!r}, which is not a regular file: it is not read"
                )
            self._add_name(info.name, info.size)
            self._infos[info.name] = info

    def _decompress(self, name: str, size: int) -> bytes:
        try:
            member = self._tar.extractfile(self._infos[name])
            if member is None:  # of links and devices alone, which are refused before
                raise ReadError(f"{name!r} in the archive is not a regular file")
            with member:
                return member.read()
        except _TAR_ERRORS as error:
            raise ReadError(f"{name!r} in the archive cannot be read ({error}): it is damaged") from None


def _directory_size(data: memoryview) -> int:
    """Returns how many bytes a zip says that its directory has, which is what the library parses (APPNOTE, 4.3)."""
    end = bytes(data[-(1 << 17) :])  # of the file: its last record, before a comment of at most 64 KiB
    place = end.rfind(_END)
    if place < 0 or place + 16 > len(end):
        return 0  # not a zip: the library says so
    (size,) = struct.unpack_from("<I", end, place + 12)
    place = end.rfind(_END_64)
    if place >= 0 and place + 48 <= len(end):
        size = max(size if size < 0xFFFFFFFF else 0, *struct.unpack_from("<Q", end, place + 40))
    return min(size, len(data))


def _gunzip(data: memoryview, budget: ReadBudget) -> memoryview:
    """Decompresses a gzip file, charging its bytes piece by piece."""
    pieces = []
    try:
        # GzipFile reads the bytes in order; `zlib` alone would copy all remaining bytes for each piece.
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while piece := file.read(_CHUNK):
                budget.charge(len(piece), "the compressed archive")
                pieces.append(piece)
    except EOFError:
        raise ReadError("the compressed archive is truncated") from None
    except (OSError, zlib.error, struct.error) as error:
        raise ReadError(f"the compressed archive cannot be decompressed ({error}): it is damaged") from None
    return memoryview(b"".join(pieces))
