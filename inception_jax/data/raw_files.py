"""Reads the files in which data sets are published: idx files, and tar archives, which are read without unpacking."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import math
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from inception_jax.errors import UserError


def find_file(folder: Path, *names: str) -> Path:
    """Returns the first of `names` that is a file in `folder`.

    Args:
      folder: to look in.
      *names: file names.

    Raises:
      UserError: none is there.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: {' or '.join(names)} is not in this folder")


def read_idx(path: Path) -> tuple[np.ndarray, str]:
    """Reads an idx file of bytes, the format of MNIST and Fashion-MNIST, gzipped or not.

    The format (http://yann.lecun.com/exdb/mnist): two zero bytes, the type (8: unsigned bytes), the number of axes,
    their lengths as big-endian 32-bit numbers, then the values.

    Returns:
      uint8 array, and the SHA-256 of the content after unzipping (gzip headers differ from one publisher to the next).

    Raises:
      UserError: unreadable, truncated, or not an idx file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise UserError(f"{path}: not an idx file of bytes")
    axes = content[3]
    shape = tuple(int(n) for n in np.frombuffer(content[4 : 4 + 4 * axes], ">u4"))
    if len(shape) != axes or len(content) != 4 + 4 * axes + math.prod(shape):
        raise UserError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}; is the file truncated?")
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
    return values, hashlib.sha256(content).hexdigest()


@dataclasses.dataclass(frozen=True)
class Member:
    """A file inside a tar.

    Attributes:
      name: without folders.
      offset: of its first byte in the outermost tar.
      size: in bytes.
    """

    name: str
    offset: int
    size: int


def tar_members(path: Path, offset: int = 0, size: int | None = None) -> list[Member]:
    """Lists the regular files of an uncompressed tar from its headers alone; nothing is extracted.

    Args:
      path: the tar, or the tar that contains it.
      offset: of its first byte in `path`.
      size: in bytes; None: up to the end of `path`.

    Raises:
      UserError: not a tar, or truncated.
    """
    members = []
    try:
        end = os.path.getsize(path) if size is None else offset + size
        with open(path, "rb") as file:
            file.seek(offset)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or the headers of a million files stay in memory
                    if member.offset_data + member.size > end:
                        raise UserError(f"{path}: truncated inside {member.name}")
                    if member.isreg():
                        members.append(Member(os.path.basename(member.name), member.offset_data, member.size))
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path}: not a complete tar archive: {error}") from None
    return members


def read_at(path: Path) -> Callable[[Member], bytes]:
    """Returns a function that reads members of a tar, from any thread."""
    descriptor = os.open(path, os.O_RDONLY)

    def read(member: Member) -> bytes:
        content = os.pread(descriptor, member.size, member.offset)
        if len(content) != member.size:
            raise UserError(f"{path}: truncated inside {member.name}")
        return content

    return read


def sha256(path: Path, progress: Callable[[int, int], None]) -> str:
    """SHA-256 of a file, in hexadecimal; calls `progress(bytes done, total bytes)` on the way."""
    digest, done, total = hashlib.sha256(), 0, os.path.getsize(path)
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
            done += len(block)
            progress(done, total)
    return digest.hexdigest()
