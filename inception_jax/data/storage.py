"""Addresses of object storage (`gs://bucket/…`, `s3://…`): whole objects, by way of fsspec.

fsspec rather than `etils.epath`, which has four schemes and calls fsspec for each of them: so any package that brings
a file system for fsspec will do.
"""

from __future__ import annotations

import os
import re
from typing import Any

from inception_jax.errors import UserError


def is_remote(path: str | os.PathLike) -> bool:
    """Returns whether a path is an address, such as "gs://bucket/runs/a"."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def open_address(address: str) -> tuple[Any, str]:
    """Opens the file system of an address.

    Returns:
      (an `fsspec.AbstractFileSystem`, the path in it).

    Raises:
      UserError: fsspec does not know the scheme, the package for it is not installed, or it refuses.
    """
    import fsspec

    scheme = address.partition("://")[0]
    options = {"auto_mkdir": True} if scheme in ("file", "local") else {}
    try:
        files, root = fsspec.core.url_to_fs(address, **options)
    except (ImportError, ValueError) as error:
        known = scheme in fsspec.available_protocols()
        hint = "" if known else "; schemes are gs, s3, az and others that fsspec has"
        raise UserError(f"{address}: {one_line(error)}{hint}") from None
    except Exception as error:  # credentials that cannot be read, …
        raise UserError(f"cannot open {address}: {type(error).__name__}: {one_line(error)}") from None
    return files, root.rstrip("/")


def read_bytes(address: str) -> bytes:
    """Reads one object.

    Raises:
      UserError: it is not there, or cannot be read.
    """
    files, path = open_address(address)
    try:
        return files.cat_file(path)
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"{address}: {type(error).__name__}: {one_line(error)}") from None


def list_sizes(address: str) -> dict[str, int]:
    """{path below the address: bytes} of all objects there.

    Raises:
      UserError: they cannot be listed.
    """
    files, root = open_address(address)
    try:
        files.invalidate_cache()
        found = files.find(root, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise UserError(f"cannot list {address}: {type(error).__name__}: {one_line(error)}") from None
    return {path[len(root) + 1 :]: int(about.get("size") or 0) for path, about in found.items() if path != root}


def one_line(error: BaseException) -> str:
    """The text of an error as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]
