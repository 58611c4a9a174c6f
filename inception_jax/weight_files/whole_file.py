"""What the exports have in common: the size of the pictures, and a file that is there when it is whole."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from inception_jax.errors import UserError


def height_and_width(image_size: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, int]:
    """(height, width) in pixels of an `image_size`: one number, or two, of Python or NumPy.

    Raises:
      UserError: it is neither, or below 1.
    """
    try:
        height, width = _sides(image_size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1 or isinstance(image_size, bool):
        raise UserError(f"image_size: {image_size!r} is no number of pixels from 1 on, and no (height, width)")
    return height, width


def _sides(image_size: Any) -> Iterator[int]:
    try:
        side = operator.index(image_size)
        return iter((side, side))
    except TypeError:
        return map(operator.index, image_size)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
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
