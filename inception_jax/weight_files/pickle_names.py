"""Lists the names that PyTorch's pickles of state dicts may contain, and the few that they may call.

A name becomes a `GlobalName`, never the object itself. A call of a tensor's constructor becomes a `TensorSpec`, of
which `torch_files` makes an array when all sizes have been checked. Source of the arguments: torch/_utils.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from inception_jax.weight_files.types import ReadError


class PickledOrderedDict(dict):
    """Stands for an OrderedDict; its attributes (`_metadata`, the modules' versions) are ignored."""


@dataclasses.dataclass(frozen=True)
class GlobalName:
    """A name of torch or collections in a pickle.

    Attributes:
      module: the module.
      name: the name in it.
    """

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor as the pickle describes it, not yet checked.

    Attributes:
      storage: the object of its persistent id.
      offset: elements into the storage.
      shape: sizes.
      strides: elements from one index to the next, for each dimension.
      dtype: name of the torch.dtype; None: the storage's.
    """

    storage: Any
    offset: Any
    shape: Any
    strides: Any
    dtype: str | None = None


_STORAGES = (
    "FloatStorage", "DoubleStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage", "ShortStorage",
    "CharStorage", "ByteStorage", "BoolStorage", "UntypedStorage",
)  # fmt: skip
_TORCH_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "float", "double", "half", "long", "int", "short",
)  # fmt: skip
_ALLOWED_NAMES = {
    *(("torch", name) for name in (*_STORAGES, *_TORCH_DTYPES)),
    *(("torch.cuda", name) for name in _STORAGES),
    ("torch.storage", "UntypedStorage"),
}
_QUANTIZED = ("_rebuild_qtensor", "QInt8Storage", "QUInt8Storage", "QInt32Storage", "qint8", "quint8", "qint32")


def _ordered_dict(*items: Any) -> PickledOrderedDict:
    """Stands for collections.OrderedDict."""
    if not items:
        return PickledOrderedDict()
    pairs = items[0] if len(items) == 1 else None
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ReadError("the arguments of an OrderedDict are not pairs")
    for key, _ in pairs:
        check_dict_key(key)
    return PickledOrderedDict((key, value) for key, value in pairs)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorSpec:
    """Stands for torch._utils._rebuild_tensor and _rebuild_tensor_v2."""
    _check_bits(rest[2:])  # behind requires_grad and hooks
    return TensorSpec(storage, offset, shape, strides)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> TensorSpec:
    """Stands for torch._utils._rebuild_tensor_v3."""
    if not isinstance(dtype, GlobalName) or dtype.name not in _TORCH_DTYPES:
        raise ReadError(f"a tensor whose type is {describe_value(dtype)}")
    _check_bits(rest)
    return TensorSpec(storage, offset, shape, strides, dtype.name)


def _check_bits(metadata: tuple) -> None:
    """Refuses tensors whose bytes torch negates or conjugates when it reads them: lazy `neg` and `conj` views."""
    if any(metadata):
        raise ReadError("a tensor with bits that change its values (`neg` or `conj`): save `tensor.resolve_neg()`")


def _parameter(data: Any, *_: Any) -> TensorSpec:
    """Stands for torch._utils._rebuild_parameter."""
    if not isinstance(data, TensorSpec):
        raise ReadError("a parameter that does not hold a tensor")
    return data


def _size(shape: Any = ()) -> tuple:
    """Stands for torch.Size."""
    if not isinstance(shape, tuple | list):
        raise ReadError("a torch.Size that is not a list of sizes")
    return tuple(shape)


# The only calls. Each one depends on its arguments alone.
ALLOWED_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
}


def describe_value(value: Any) -> str:
    """Describes a value without its repr: a few bytes of pickle can make a value that takes forever to print."""
    if isinstance(value, TensorSpec):
        return "a tensor"
    return (
        f"{value.module}.{value.name}"
        if isinstance(value, GlobalName)
        else f"a value of the type {type(value).__name__}"
    )


def resolve_global(module: Any, name: Any) -> GlobalName:
    """Returns the stand-in of a name.

    Args:
      module: the module in the pickle.
      name: the name in it.

    Raises:
      ReadError: a state dict does not need that name.
    """
    if not isinstance(module, str) or not isinstance(name, str):
        raise ReadError(
            "the pickle asks for a name that is not a string: it is not a state dict, and it is not executed"
        )
    if (module, name) in ALLOWED_CALLS or (module, name) in _ALLOWED_NAMES:
        return GlobalName(module, name)
    if module.startswith("torch") and name in _QUANTIZED:
        raise ReadError(
            f"quantized weights ({module}.{name}): torchvision's int8 files are not read; use the float ones"
        )
    raise ReadError(
        f"the pickle asks for {module[:80]}.{name[:80]}, which a state dict does not need: nothing was executed. "
        "If you trust the file, load it in PyTorch and save `model.state_dict()` alone"
    )


def check_dict_key(key: Any) -> None:
    """Refuses a dictionary's key that is not a plain value, whose hash runs no code of ours or of the file's."""
    if not isinstance(key, str | int | float | bool | None):
        raise ReadError(f"a dictionary has a key of the type {type(key).__name__}, not a string or a number")
    # Python's hash of a whole number is itself below 2**61: larger ones can all have the same.
    if isinstance(key, int) and abs(key) >= 1 << 61:
        raise ReadError(f"a dictionary has the key {key:,}, which no state dict has")
