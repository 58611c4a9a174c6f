"""Writes a file atomically: it appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from inception_jax.errors import write_error


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of a temporary file beside `path`, which replaces `path` when the block has succeeded.

    Args:
      path: the file to write.

    Raises:
      UserError: it cannot be written (the block raised an OSError; `DiskFull` where no space is left); an older file at
        `path` stays as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
