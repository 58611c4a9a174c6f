"""Writes and reads result.json, and computes the fingerprint by which the final states of runs are compared."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.runs.manifest import read_json_object, replace_text

FILE = "result.json"

_FROM_TEXT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 of a tree of arrays: equal where names, dtypes, shapes and every bit of the values are equal.

    It depends neither on the devices that hold the arrays nor on the container types: a leaf is named by its path.
    Where no process holds all of a sharded array, every process must call this.

    Args:
      tree: arrays of any dtype, of NumPy or JAX; Python numbers are converted by NumPy.

    Returns:
      64 hex digits.
    """
    from inception_jax.checkpoints.checksums import array_bytes, host_arrays  # with jax, which no reader needs
    from inception_jax.tree_paths import named_leaves

    arrays = host_arrays(named_leaves(tree))
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        # This line gives the length of the bytes that follow: no two trees give the same bytes.
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(array_bytes(array))
    return digest.hexdigest()


def write_result(workdir: str | os.PathLike, result: Mapping[str, Any]) -> Path:
    """Writes result.json atomically.

    JSON has no NaN and no infinities: they are written as the strings "NaN", "Infinity" and "-Infinity", as in
    metrics.jsonl, so that the result of a diverged run is valid JSON, too.

    Args:
      workdir: an existing directory.
      result: nested dictionaries and lists of scalars (of Python, NumPy or JAX) and strings.

    Returns:
      The file's path.

    Raises:
      TypeError: a value is none of these.
      UserError: the file cannot be written; an old one stays.
    """
    path = Path(workdir) / FILE
    replace_text(path, json.dumps(to_json_values(result), indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def read_result(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """Reads result.json, with NaN and infinities as floats; None where there is none.

    Raises:
      UserError: the file is not a JSON object.
    """
    content = read_json_object(Path(workdir) / FILE, "remove it: the command of the run writes it again")
    return None if content is None else from_json_values(content)


def to_json_values(value: Any) -> Any:
    """Converts a tree of values for JSON: scalars become Python's, NaN and infinities strings."""
    if isinstance(value, Mapping):
        return {str(name): to_json_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if not isinstance(value, str) and getattr(value, "ndim", None) == 0:
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def from_json_values(value: Any) -> Any:
    """Converts a tree of JSON values back: the strings of `to_json_values` become NaN and infinities."""
    if isinstance(value, dict):
        return {name: from_json_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [from_json_values(item) for item in value]
    return _FROM_TEXT.get(value, value) if isinstance(value, str) else value
