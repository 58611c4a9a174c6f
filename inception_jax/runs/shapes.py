"""What a workdir's files hold, by kind: a value of another kind is damage, and is passed over with a note."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.runs import manifest, result

NUMBER, TEXT, OBJECT, LIST = numbers.Real, str, Mapping, Sequence
_WORDS = {NUMBER: "a number", TEXT: "a text", OBJECT: "an object", LIST: "a list"}

TRIAL = "trial.json"

# Only what is read; whatever else stands there may be of any kind.
_SHAPES: dict[str, dict[str, type]] = {
    manifest.CONFIG: {"model": OBJECT, "data": OBJECT, "num_steps": NUMBER, "num_epochs": NUMBER},
    manifest.MANIFEST: {"versions": OBJECT, "git": OBJECT, "devices": LIST, "starts": LIST, "hostname": TEXT,
                        "platform": TEXT},
    result.FILE: {"status": TEXT, "message": TEXT, "signal": TEXT, "steps": NUMBER, "epochs": NUMBER,
                  "metrics": OBJECT, "wall_seconds": NUMBER, "compile_seconds": NUMBER, "data_wait_seconds": NUMBER,
                  "fingerprint": TEXT},
    TRIAL: {"status": TEXT, "message": TEXT, "value": NUMBER},
}  # fmt: skip
_TEXTS_OF_ROWS = ("kind", "split", "weights")


def fitting(path: Path, content: Mapping[str, Any], notes: list[str]) -> dict[str, Any]:
    """The content of a file without the values that are of another kind than is written there; null counts as absent.

    Args:
      path: of the file; its name says what is expected.
      content: of it.
      notes: gets a line for each value that does not fit.
    """
    shape = _SHAPES[path.name]
    kept = {}
    for name, value in content.items():
        if name not in shape:
            kept[name] = value
        elif is_a(value, shape[name]):
            kept[name] = value
        elif value is not None:
            notes.append(f"{path}: {name!r} = {str(value)[:40]!r} is not {_WORDS[shape[name]]}, and is passed over")
    return kept


def fitting_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a metric file without the values of another kind: all are numbers, but for three names."""
    return {name: value for name, value in row.items() if is_a(value, TEXT if name in _TEXTS_OF_ROWS else NUMBER)}


def is_a(value: Any, kind: type) -> bool:
    """Whether a value is of a kind; a truth value is no number, and a text no list."""
    if kind is NUMBER:
        return isinstance(value, NUMBER) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is LIST and isinstance(value, str))
