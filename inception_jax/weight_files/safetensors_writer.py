"""Our variables, or anyone's named arrays, as a safetensors file (huggingface/safetensors, README.md, "Format")."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax.errors import UserError
from inception_jax.weight_files import read_weights
from inception_jax.weight_files.atomic_write import atomic_write


def save_safetensors(path: str | os.PathLike, variables: Mapping[str, Any], metadata: Mapping[str, Any] | None = None):
    """Writes a network's variables under their paths: "params/mixed_5b/conv_1x1/kernel".

    Args:
      path: the file; another one of that name is replaced at once, when the new one is whole.
      variables: {"params": …, "batch_stats": …}, arrays of NumPy or JAX in any floating dtype.
      metadata: what else the file says; values that are no text are written as JSON.

    Raises:
      UserError: as `save_arrays`.
    """
    save_arrays(path, flatten_dict(dict(variables), sep="/"), metadata)


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes any named arrays, such as a publisher's state dict; arguments and errors as `save_safetensors`.

    Raises:
      UserError: the package safetensors is not installed, an array's name or dtype has no place in the format, or
        the file cannot be written.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import save_file
    except ModuleNotFoundError:
        raise UserError("safetensors files need the package safetensors: pip install safetensors") from None
    about = {name: value if isinstance(value, str) else json.dumps(value) for name, value in (metadata or {}).items()}
    # An array of another order would be written as it lies in memory.
    whole = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    if "__metadata__" in whole:
        raise UserError("__metadata__: no name of an array; the format keeps it for what the file says")
    for name, array in whole.items():
        if array.dtype.kind not in "biufV" or array.dtype.hasobject or array.dtype.names:
            raise UserError(f"{name}: {array.dtype} values; a safetensors file holds numbers")
    with atomic_write(path) as part:
        try:
            save_file(whole, part, about or None)  # an empty one beside no array makes a file that is not readable
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written ({error})") from None


def load_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The variables that `save_safetensors` wrote: nested dictionaries of NumPy arrays, dtypes as saved.

    Raises:
      UserError: there is no such file, it is damaged, or its arrays are not named as our variables.
    """
    arrays = read_weights(path).arrays
    foreign = [name for name in arrays if name.split("/")[0] not in ("params", "batch_stats")]
    if foreign or not arrays:
        raise UserError(
            f"{path}: {f'{foreign[0]!r} is' if foreign else 'holds'} no leaf of this package's "
            "networks (params/…, batch_stats/…); publishers' files are read by import_weights"
        )
    return unflatten_dict(arrays, sep="/")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What a safetensors file says about itself, text by text.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    return dict(read_weights(path).metadata.get("safetensors", {}))
