"""Reads safetensors files.

Source: huggingface/safetensors, README.md ("Format") and safetensors/src/tensor.rs, whose limits and refusals these
are. `safetensors.deserialize` (0.8.0) was tried instead of this parser: it copies every tensor (peak memory 1,014
MB instead of 525 MB for a file of 500 MB), before a budget could be charged; of a name that occurs twice it keeps one
in silence; it drops `__metadata__`; and its errors name no tensor, no bytes and no dtype.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from inception_jax.weight_files.types import (
    InputFile,
    ParsedFile,
    ReadBudget,
    ReadError,
    add_array,
    decode_utf8,
    parse_json,
)

_MAX_HEADER = 100_000_000  # bytes; the reference's limit
_DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16), "I8": np.dtype(np.int8), "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8), "BOOL": np.dtype(np.bool_),
}  # fmt: skip


def is_safetensors(data: memoryview) -> bool:
    """Returns whether the bytes begin as a safetensors file: the length of a header, then a JSON object."""
    return len(data) > 8 and 2 <= int.from_bytes(data[:8], "little") <= _MAX_HEADER and data[8] == ord("{")


def read(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the tensors in the order of the header.

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      Arrays that are views of the file's bytes. Metadata: "safetensors", the file's `__metadata__`, strings by name.

    Raises:
      ReadError: the header is invalid, or the tensors do not fill the file exactly, one after the other.
    """
    size = int.from_bytes(source.data[:8], "little")
    if 8 + size > len(source.data):
        raise ReadError(f"the header declares {size:,} bytes, and the file has {len(source.data):,}: it is truncated")
    header = _header(decode_utf8(source.data[8 : 8 + size], "the header"), budget)
    body = source.data[8 + size :]
    about = header.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise ReadError("__metadata__ is not an object of strings")
    arrays: dict[str, np.ndarray] = {}
    places = []
    for name, entry in header.items():
        dtype, sizes, (begin, end) = _entry(name, entry)
        shape = budget.charge_array(sizes, dtype, f"tensor {name!r}")
        if end - begin != math.prod(shape) * dtype.itemsize or end > len(body):
            raise ReadError(
                f"tensor {name!r}: {dtype.name} of shape {list(shape)} at bytes {begin:,} to {end:,} of {len(body):,}"
                + (": the file is truncated" if end > len(body) else "")
            )
        places.append((begin, end))
        add_array(arrays, name, np.frombuffer(body[begin:end], dtype).reshape(shape))
    reached = 0
    for begin, end in sorted(places):
        if begin != reached:
            raise ReadError(f"the tensors overlap or leave bytes between them at byte {min(begin, reached):,}")
        reached = end
    if reached != len(body):
        raise ReadError(f"the tensors take {reached:,} bytes, and the file has {len(body):,} for them")
    return ParsedFile(arrays, {"safetensors": about})


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes a dictionary of a JSON object; ReadError where a key occurs twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ReadError("a name occurs twice in the header")
    return dict(pairs)


def _header(text: str, budget: ReadBudget) -> dict[str, Any]:
    """Parses the header; ReadError where it is not a JSON object."""
    header = parse_json(text, "the header", budget, object_pairs_hook=_no_repeats)
    if not isinstance(header, dict):
        raise ReadError("the header is not a JSON object")
    return header


def _entry(name: str, entry: Any) -> tuple[np.dtype, list[int], list[int]]:
    """The type, shape and place of one tensor, checked one by one: the header may claim anything."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ReadError(f"tensor {name!r} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ReadError(f"tensor {name!r} has the type {kind!r}; known: {', '.join(_DTYPES)}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ReadError(f"tensor {name!r}: {numbers!r:.80} is not a list of sizes")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ReadError(f"tensor {name!r}: {offsets!r:.80} is not a begin and an end")
    return _DTYPES[kind], shape, offsets
