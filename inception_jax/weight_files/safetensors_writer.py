"""Writes and reads our variables as safetensors files (huggingface/safetensors, README.md, "Format")."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.errors import UserError, write_error
from inception_jax.weight_files import read_weights
from inception_jax.weight_files.atomic_write import atomic_write


def save_safetensors(
    path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes a network's variables, each under its path, such as "params/mixed_5b/conv_1x1/kernel".

    Args:
      path: the file; an existing one is replaced when the new one is complete.
      variables: {"params": …, "batch_stats": …}, arrays of NumPy or JAX in any floating dtype.
      metadata: entries of the file's `__metadata__`; values other than strings are written as JSON.

    Raises:
      UserError: as `save_arrays`.
    """
    save_arrays(path, flatten_dict(dict(variables), sep="/"), metadata)


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes any named arrays, such as a publisher's state dict.

    Args:
      path: as in `save_safetensors`.
      arrays: arrays of numbers by name.
      metadata: as in `save_safetensors`.

    Raises:
      UserError: the format does not allow an array's name or dtype, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    about = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
    # The library writes an array of another order as it lies in memory.
    contiguous = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    if "__metadata__" in contiguous:
        raise UserError("__metadata__: not allowed as the name of an array; the format reserves it for metadata")
    for name, array in contiguous.items():
        if array.dtype.kind not in "biufV" or array.dtype.hasobject or array.dtype.names:
            raise UserError(f"{name}: the dtype is {array.dtype}; a safetensors file holds numbers alone")
    with atomic_write(path) as part:
        part.touch()
        mode = part.stat().st_mode  # as of other files; the library makes one that only its owner can read
        try:
            save_file(contiguous, part, about or None)  # empty metadata without arrays would make an unreadable file
        except SafetensorError as error:
            code = re.search(r"\(os error (\d+)\)", str(error))  # of the system, such as a full disk
            reason = OSError(int(code[1]), os.strerror(int(code[1]))) if code else OSError(str(error))
            raise write_error(path, reason) from None
        part.chmod(mode)


def load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """Reads the variables that `save_safetensors` wrote.

    Args:
      path: the file.

    Returns:
      Nested dictionaries of NumPy arrays, in the dtypes of the file.

    Raises:
      UserError: the file does not exist, is damaged, or its arrays are not named as our variables.
    """
    arrays = read_weights(path).arrays
    foreign = [name for name in arrays if name.split("/")[0] not in ("params", "batch_stats")]
    if foreign or not arrays:
        raise UserError(
            f"{path}: {f'{foreign[0]!r} is not a' if foreign else 'the file holds no'} variable of this package's "
            "networks (params/…, batch_stats/…); read a publisher's file with import_weights"
        )
    return unflatten_dict(arrays, sep="/")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Reads the `__metadata__` of a safetensors file.

    Args:
      path: the file.

    Returns:
      Strings by name; empty where the file has none.

    Raises:
      UserError: the file does not exist, or is damaged.
    """
    return dict(read_weights(path).metadata.get("safetensors", {}))
