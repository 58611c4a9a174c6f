"""Rows of the metric files as lines of JSON, and back.

JSON has no NaN and no infinities, but a diverged run has them. They are written as the strings "NaN", "Infinity" and
"-Infinity", as the JSON mapping of Protocol Buffers has them (https://protobuf.dev/programming-guides/json/): every
line stays valid JSON, nothing is lost, and `float()` in Python, `Number()` in JavaScript and `pandas.read_json` read
them back as numbers. (null would be read as a missing value, and some tools count it as 0.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError
from inception_jax.runs.result import from_json_values, to_json_values


def to_plain_scalar(key: str, value: Any) -> str | int | float | bool | None:
    """Converts any scalar to a plain Python one, also NumPy and JAX arrays of shape ()."""
    if getattr(value, "ndim", None) == 0:
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    try:
        return float(value)  # bfloat16 and other dtypes that NumPy does not know as numbers
    except (TypeError, ValueError):
        raise ValueError(f"{key!r} is not a scalar: {type(value).__name__}") from None


def encode_row(row: Mapping[str, Any]) -> bytes:
    """A row as a line of a metric file."""
    return json.dumps(to_json_values(row), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def parse_row(line: bytes) -> dict[str, Any] | None:
    """Parses a line of a metric file, with NaN and infinities as floats; None where it is not a row."""
    try:
        row = json.loads(line)
    except ValueError:  # also UnicodeDecodeError: a crash of the machine may leave zeros
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return from_json_values(row)


def parse_lines(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], bool]:
    """Returns the (line, row) pairs of a file, and whether its last line was incomplete.

    A last line without its newline counts where it is a complete row.
    """
    lines = path.read_bytes().split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    parsed: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        row = parse_row(line)
        if row is not None:
            parsed.append((line + b"\n", row))
        elif number == len(lines):
            return parsed, True
        else:
            raise UserError(
                f'{path}, line {number}: not a row of metrics (a JSON object with an integer "step"): '
                f"{line[:60].decode(errors='replace')!r}; repair the line or remove it"
            )
    return parsed, False
