"""Finds the state dict in the object of a PyTorch file, and removes the prefixes of wrappers from its names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from inception_jax.weight_files.pickle_names import TensorSpec, describe_value
from inception_jax.weight_files.types import ParsedFile, ReadError, add_array

# Keys under which training scripts save the state dict, in the order in which they are tried.
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net", "module")
_PREFIXES = ("module.", "_orig_mod.")  # those of torch.nn.DataParallel and of torch.compile


def extract_state_dict(
    found: Any, array: Callable[[TensorSpec, str], np.ndarray], metadata: dict[str, Any]
) -> ParsedFile:
    """Makes the arrays of a state dict, by name and in its order.

    Args:
      found: the object of the pickle.
      array: a function that makes the array of a tensor's spec and name.
      metadata: further metadata of the file.

    Returns:
      The arrays. Metadata: `metadata`, and "nested_under", the key at which the state dict was found, or None;
      "stripped_prefix", the prefixes of wrappers with which every name began, such as "module.", or None; "left_out",
      {name: type} of the rest.

    Raises:
      ReadError: there is no state dict.
    """
    if not isinstance(found, dict):
        raise ReadError(f"the file holds {describe_value(found)}, not a state dict: save `model.state_dict()`")
    # Checked first: a training state may have tensors beside the state dict (the best accuracy, in PyTorch's example).
    nested = next((key for key in NESTED_UNDER if _has_tensors(found.get(key))), None)
    table, left_out = found, {}
    if nested is not None:
        table = found[nested]
        left_out = {str(key)[:200]: _kind(value) for key, value in found.items() if key != nested}
    elif not _has_tensors(found):
        keys = ", ".join(repr(str(key)[:40]) for key in list(found)[:8])
        raise ReadError(f"no state dict at the top or under {', '.join(NESTED_UNDER)}; the keys are {keys or 'none'}")
    specs = {}
    for name, value in table.items():
        if not isinstance(name, str):
            raise ReadError(f"the state dict has the key {name!r}, which is not a string")
        if isinstance(value, TensorSpec):
            specs[name] = value
        else:
            left_out[name] = _kind(value)
    prefix = ""
    for _ in _PREFIXES:  # one wrapper may be in the other
        prefix += next((one for one in _PREFIXES if all(name.startswith(prefix + one) for name in specs)), "")
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        add_array(arrays, name.removeprefix(prefix), array(spec, name))
    about = {"nested_under": nested, "stripped_prefix": prefix or None, "left_out": left_out}
    return ParsedFile(arrays, metadata | about)


def _kind(value: Any) -> str:
    """Returns the type's name of an entry that is left out."""
    return "tensor" if isinstance(value, TensorSpec) else type(value).__name__


def _has_tensors(table: Any) -> bool:
    """Returns whether a value is a dictionary with tensors in it."""
    return isinstance(table, dict) and any(isinstance(value, TensorSpec) for value in table.values())
