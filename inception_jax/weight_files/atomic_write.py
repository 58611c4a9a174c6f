"""Writes a file atomically: it appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from inception_jax.errors import UserError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Gives the path of a file to write beside `path`; it takes the place of `path` when what is inside has succeeded.

    Raises:
      UserError: it cannot be written (an OSError inside); what was at `path` stands.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
