"""Files with the order and the names of classes (`data.class_names`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inception_jax.errors import UserError, text_failure


def read_class_file(path: str) -> dict[str, str]:
    """Reads the order and the names of classes from a text file.

    Each line is the name of a class folder, in the order of the labels; after a tab, a name for tables and plots may
    follow. Empty lines are skipped.

    Args:
      path: of the file, in UTF-8.

    Returns:
      {class folder: name}, in the order of the labels.

    Raises:
      UserError: the file cannot be read, is empty, or has a folder or a name twice.
    """
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.class_names: cannot read {path}: {text_failure(error)}") from None
    found: dict[str, str] = {}
    for line in filter(None, lines):
        folder, _, name = (part.strip() for part in line.partition("\t"))
        if folder in found or (name or folder) in found.values():
            raise UserError(f"data.class_names: {path} has {line!r} twice; a line per class is needed")
        found[folder] = name or folder
    if not found:
        raise UserError(f"data.class_names: {path} is empty; a line per class folder is needed")
    return found


def integer_classes(chosen: Mapping[str, str]) -> dict[int, int]:
    """The classes of a file for integer labels.

    Args:
      chosen: what `read_class_file` returned.

    Returns:
      {label in the data: label, the position in the file}: by value where every line is an integer, such as "7" or
      "7<tab>cat"; else line 1 names label 0, and so on.
    """
    if all(is_integer(key) for key in chosen):
        return {int(key): label for label, key in enumerate(chosen)}
    return {label: label for label in range(len(chosen))}


def is_integer(text: str) -> bool:
    """Whether a text is an integer as Python writes it: "7", but not "07", "+7" or "1_0"."""
    return text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 20 and str(int(text)) == text
