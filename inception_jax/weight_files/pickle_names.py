"""The names that PyTorch's pickles of state dicts may mention, and the few that they may call.

A name becomes a token, never the thing itself; a call takes specs. A tensor becomes a `TensorSpec`, to be made of the
file's bytes by `torch_files` once all sizes have been checked. Source of the arguments: torch/_utils.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from inception_jax.weight_files.types import ReadError


class PickledOrderedDict(dict):
    """What stands for an OrderedDict; its attributes (`_metadata`, the modules' versions) are passed over."""


@dataclasses.dataclass(frozen=True)
class GlobalName:
    """A name of torch's or collections' that the program mentions."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """A tensor as the pickle describes it: which storage, where in it, and what of it."""

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
_QUANTISED = ("_rebuild_qtensor", "QInt8Storage", "QUInt8Storage", "QInt32Storage", "qint8", "quint8", "qint32")


def _ordered_dict(*items: Any) -> PickledOrderedDict:
    if not items:
        return PickledOrderedDict()
    pairs = items[0] if len(items) == 1 else None
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ReadError("an OrderedDict is made of something else than pairs")
    for key, _ in pairs:
        check_dict_key(key)
    return PickledOrderedDict((key, value) for key, value in pairs)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorSpec:
    _check_bits(rest[2:])  # behind requires_grad and hooks
    return TensorSpec(storage, offset, shape, strides)


def _tensor_v3(storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any):
    if not isinstance(dtype, GlobalName) or dtype.name not in _TORCH_DTYPES:
        raise ReadError(f"a tensor whose type is {describe_value(dtype)}")
    _check_bits(rest)
    return TensorSpec(storage, offset, shape, strides, dtype.name)


def _check_bits(metadata: tuple) -> None:
    """ReadError where torch would make other numbers of a tensor's bytes: views negated only when they are read."""
    if any(metadata):
        raise ReadError("a tensor with bits that change its values (`neg` or `conj`): save `tensor.resolve_neg()`")


def _parameter(data: Any, *_: Any) -> TensorSpec:
    if not isinstance(data, TensorSpec):
        raise ReadError("a parameter that holds no tensor")
    return data


def _size(shape: Any = ()) -> tuple:
    if not isinstance(shape, tuple | list):
        raise ReadError("a torch.Size that is no list of sizes")
    return tuple(shape)


# The only calls. None of them looks at anything but its arguments.
ALLOWED_CALLS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
}


def describe_value(value: Any) -> str:
    """A few words on a value. Never its repr: a few bytes of pickle make a value that takes forever to print."""
    if isinstance(value, TensorSpec):
        return "a tensor"
    return (
        f"{value.module}.{value.name}"
        if isinstance(value, GlobalName)
        else f"a value of the type {type(value).__name__}"
    )


def resolve_global(module: Any, name: Any) -> GlobalName:
    """The token of a name; ReadError naming it unless it is one of those that a state dict needs."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ReadError("the pickle asks for a name that is no text: it is not a state dict, and it is not executed")
    if (module, name) in ALLOWED_CALLS or (module, name) in _ALLOWED_NAMES:
        return GlobalName(module, name)
    if module.startswith("torch") and name in _QUANTISED:
        raise ReadError(
            f"quantised weights ({module}.{name}); the int8 files of torchvision are not read, the float ones are"
        )
    raise ReadError(
        f"the pickle asks for {module[:80]}.{name[:80]}, which a state dict does not need: nothing was executed. "
        "If you trust the file, load it in PyTorch and save `model.state_dict()` alone"
    )


def check_dict_key(key: Any) -> None:
    """Raises ReadError unless a dictionary's key is a plain value, whose hash runs no code of ours or of the file's."""
    if not isinstance(key, str | int | float | bool | None):
        raise ReadError(f"a dictionary has a key of the kind {type(key).__name__}")
