"""How a run ended: result.json, and the fingerprint by which two runs can be told equal."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.checkpoints.checksums import array_bytes, host_arrays
from inception_jax.runs.manifest import read_json_object, replace_text
from inception_jax.tree_paths import named_leaves

FILE = "result.json"

_FROM_TEXT = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def fingerprint(tree: Any) -> str:
    """SHA-256 of a tree of arrays: equal where names, dtypes, shapes and every bit of every value are equal.

    It does not depend on the devices that hold the arrays, nor on the kinds of containers: a leaf counts by its path.
    Where no process holds all of a sharded array, every process must call this.

    Args:
      tree: arrays of any dtype, of NumPy or JAX; Python numbers count as NumPy makes arrays of them.

    Returns:
      64 hex digits.
    """
    arrays = host_arrays(named_leaves(tree))
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        # The lengths of all parts follow from this line: no two trees give the same bytes.
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode() + b"\n")
        digest.update(array_bytes(array))
    return digest.hexdigest()


def write_result(workdir: str | os.PathLike, result: Mapping[str, Any]) -> Path:
    """Writes result.json, whole or not at all.

    JSON has no NaN and no infinities: they are written as the strings "NaN", "Infinity" and "-Infinity", as in
    metrics.jsonl, so that a diverged run's result is still JSON for every reader.

    Args:
      workdir: an existing directory.
      result: nested dictionaries and lists of scalars (of Python, NumPy or JAX) and strings.

    Returns:
      The file's path.

    Raises:
      TypeError: a value that is none of these.
      UserError: the file cannot be written; an old one stands.
    """
    path = Path(workdir) / FILE
    replace_text(path, json.dumps(to_json_values(result), indent=2, allow_nan=False, ensure_ascii=False) + "\n")
    return path


def read_result(workdir: str | os.PathLike) -> dict[str, Any] | None:
    """The content of result.json, with NaN and the infinities as floats again; None where there is none.

    Raises:
      UserError: the file is not a JSON object.
    """
    content = read_json_object(Path(workdir) / FILE)
    return None if content is None else _from_json_values(content)


def to_json_values(value: Any) -> Any:
    """A tree of values as JSON can hold it: plain scalars, and NaN and the infinities as strings."""
    if isinstance(value, Mapping):
        return {str(name): to_json_values(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_values(item) for item in value]
    if not isinstance(value, str) and getattr(value, "ndim", None) == 0:
        value = np.asarray(value).item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _from_json_values(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _from_json_values(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_from_json_values(item) for item in value]
    return _FROM_TEXT.get(value, value) if isinstance(value, str) else value
