"""Reads PyTorch's state dicts: the zip files since torch 1.6, and the older streams of pickles.

Sources: torch/serialization.py (`_save`, `_legacy_save`, `_legacy_load`), torch/storage.py.
"""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

from inception_jax.weight_files.archives import Archive
from inception_jax.weight_files.pickle_machine import MAX_PICKLE, PickleMachine
from inception_jax.weight_files.pickle_names import GlobalName, TensorSpec, describe_value
from inception_jax.weight_files.state_dicts import extract_state_dict
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of an old file
LEGACY_START = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")  # its bytes, after the pickle's PROTO instruction
_LEGACY_PROTOCOL = 1001

_DTYPES = {
    "FloatStorage": np.dtype(np.float32), "DoubleStorage": np.dtype(np.float64), "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16), "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_), "UntypedStorage": np.dtype(np.uint8),
    "float32": np.dtype(np.float32), "float": np.dtype(np.float32), "float64": np.dtype(np.float64),
    "double": np.dtype(np.float64), "float16": np.dtype(np.float16), "half": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16), "int64": np.dtype(np.int64), "long": np.dtype(np.int64),
    "int32": np.dtype(np.int32), "int": np.dtype(np.int32), "int16": np.dtype(np.int16), "short": np.dtype(np.int16),
    "int8": np.dtype(np.int8), "uint8": np.dtype(np.uint8), "bool": np.dtype(np.bool_),
}  # fmt: skip


class Storage:
    """A run of numbers that tensors may share.

    Attributes:
      key: its name in the file.
      dtype: of its numbers.
      count: how many.
      offset: elements into another storage, of which this is a view (files of torch 0.1 have such).
      data: its bytes, which are set when all pickles have been read.
      big_endian: the byte order.
    """

    def __init__(self, key: str, dtype: np.dtype, count: int) -> None:
        """Starts without bytes; arguments as the attributes."""
        self.key, self.dtype, self.count = key, dtype, count
        self.offset = 0
        self.data = memoryview(b"")
        self.big_endian = False

    def values(self, dtype: np.dtype) -> np.ndarray:
        """Returns the bytes as numbers of a dtype, which is the storage's own unless the storage is untyped.

        Big-endian ones are whole numbers of its size, in that order: of tensors alone are bytes copied, which are
        charged, and not of the storage for each tensor.
        """
        size = dtype.itemsize
        raw = np.frombuffer(self.data, np.uint8, len(self.data) // size * size)
        return raw.view(np.dtype(f">u{size}") if self.big_endian else dtype)


def read_zip(members: Archive, budget: ReadBudget) -> ParsedFile:
    """Reads the tensors of a zip file.

    Args:
      members: the zip file.
      budget: to which the arrays are charged.

    Returns:
      The tensors. Metadata: that of `state_dicts.extract_state_dict`, and "byteorder".

    Raises:
      ReadError: the archive is not a state dict, asks for something that a state dict does not need, or is damaged.
    """
    (pickle_name,) = [name for name in members.names() if name.rpartition("/")[2] == "data.pkl"]
    prefix = pickle_name.removesuffix("data.pkl")
    order = bytes(members.read(f"{prefix}byteorder")) if f"{prefix}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise ReadError(f"the record `byteorder` is {order!r:.40}, not little or big")
    storages: dict[str, Storage] = {}
    found = PickleMachine(
        _check_pickle_size(members.read(pickle_name)), lambda identity: _storage(identity, storages), budget
    ).load()
    for storage in storages.values():
        name = f"{prefix}data/{storage.key}"
        if name not in members:
            raise ReadError(f"the storage {storage.key!r} is not in the archive")
        storage.data = members.read(name)
        if len(storage.data) != storage.count * storage.dtype.itemsize:
            raise ReadError(
                f"the storage {storage.key!r} holds {len(storage.data):,} bytes, not {storage.count:,} of "
                f"{storage.dtype.name}"
            )
        storage.big_endian = order == b"big"
    return extract_state_dict(found, lambda spec, name: _array(spec, name, budget), {"byteorder": order.decode()})


def read_legacy(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the tensors of a file of torch before 1.6.

    Magic number, protocol, system, object and keys are a pickle each; the storages follow in the order of the keys.

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      The tensors. Metadata: that of `state_dicts.extract_state_dict`.

    Raises:
      ReadError: the file is not a state dict, asks for something that a state dict does not need, or is damaged.
    """
    storages: dict[str, Storage] = {}
    machine = PickleMachine(source.data, lambda identity: _legacy_storage(identity, storages), budget)
    if machine.load() != _MAGIC or machine.load() != _LEGACY_PROTOCOL:
        raise ReadError("a file of PyTorch before 1.6 with an unknown magic number, or another protocol than 1001")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ReadError("a file of PyTorch before 1.6 from a big-endian machine; save it again on a little-endian one")
    found, keys = machine.load(), machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise ReadError("the list of storages is not a list of distinct keys: the file is damaged")
    roots = {storage.key: storage for key, storage in storages.items() if "/" not in key}
    if set(keys) != set(roots):
        raise ReadError("the listed storages are not the ones that the tensors use: the file is damaged")
    for key in keys:
        count = machine.read_number("<q")
        if count != roots[key].count:
            raise ReadError(f"the storage {key!r} has {count:,} values, not {roots[key].count:,}: the file is damaged")
        roots[key].data = machine.read_bytes(count * roots[key].dtype.itemsize)
    if machine.position != len(source.data):
        raise ReadError(f"{len(source.data) - machine.position:,} bytes follow the last storage: the file is damaged")
    for storage in storages.values():
        root = roots[storage.key]
        size = storage.dtype.itemsize
        storage.data = root.data[storage.offset * size : (storage.offset + storage.count) * size]
    return extract_state_dict(found, lambda spec, name: _array(spec, name, budget), {})


def _check_pickle_size(data: memoryview) -> memoryview:
    """Returns a pickle that is not too large; ReadError for one that is."""
    if len(data) > MAX_PICKLE:
        raise ReadError(
            f"a pickle of {len(data):,} bytes, above the limit of {MAX_PICKLE:,}; a state dict has some 100,000"
        )
    return data


def _parse_persistent_id(identity: Any, length: int) -> tuple[np.dtype, str, int]:
    """Returns (dtype, key, count) of a persistent id ("storage", type, key, location, count)."""
    if not isinstance(identity, tuple) or len(identity) != length or identity[0] != "storage":
        raise ReadError("the pickle has a persistent id that is not a storage of tensors")
    _, kind, key, location, count = identity[:5]
    if not isinstance(kind, GlobalName) or kind.name not in _DTYPES or not kind.name.endswith("Storage"):
        raise ReadError(f"a storage whose type is {describe_value(kind)}")
    if not isinstance(key, str) or not isinstance(location, str):
        raise ReadError("a storage whose key or location is not a string")
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise ReadError(f"the storage {key!r} has an impossible number of values")
    return _DTYPES[kind.name], key, count


def _storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    """Returns the storage of a persistent id, the same one for the same key."""
    dtype, key, count = _parse_persistent_id(identity, 5)
    storage = storages.setdefault(key, Storage(key, dtype, count))
    if (storage.dtype, storage.count) != (dtype, count):
        raise ReadError(f"the storage {key!r} is described in two different ways: the file is damaged")
    return storage


def _legacy_storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    """Returns the storage of an older persistent id, which may be a view of another storage."""
    dtype, key, count = _parse_persistent_id(identity, 6)
    if "/" in key:
        raise ReadError(f"a storage with the key {key!r:.40}: the file is damaged")
    root = _storage(("storage", *identity[1:5]), storages)
    view = identity[5]
    if view is None:
        return root
    if not isinstance(view, tuple) or len(view) != 3 or not isinstance(view[0], str):
        raise ReadError(f"a view of the storage {key!r} without key, offset and size: the file is damaged")
    name, offset, size = view
    if type(offset) is not int or type(size) is not int or min(offset, size) < 0 or offset + size > count:
        raise ReadError(f"a view of the storage {key!r} reaches out of it: the file is damaged")
    part = storages.setdefault(f"{key}/{name}", Storage(key, dtype, size))
    part.offset = offset
    return part


def _array(spec: TensorSpec, name: str, budget: ReadBudget) -> np.ndarray:
    """Makes the array of a tensor: a view of its storage, with the strides of the file."""
    storage, shape, strides, offset = spec.storage, spec.shape, spec.strides, spec.offset
    if not isinstance(storage, Storage):
        raise ReadError(f"tensor {name!r} has no storage")
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ReadError(f"tensor {name!r}: its shape, strides or offset are not sizes")
    if len(shape) != len(strides):
        raise ReadError(f"tensor {name!r}: {len(shape)} sizes and {len(strides)} strides")
    dtype = storage.dtype if spec.dtype is None else _DTYPES[spec.dtype]
    if spec.dtype is not None and storage.dtype.itemsize != 1 and storage.dtype != dtype:
        raise ReadError(f"tensor {name!r} reads a storage of {storage.dtype.name} as {dtype.name}")
    shape = budget.charge_array(shape, dtype, f"tensor {name!r}")
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    values = storage.values(dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= len(values):
        raise ReadError(f"tensor {name!r} reaches to value {last:,} of a storage of {len(values):,}")
    steps = [stride * dtype.itemsize for stride in strides]
    array = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
    if not storage.big_endian:
        return array
    array = array.astype(array.dtype.newbyteorder("="), order="C").view(dtype)
    array.flags.writeable = False
    return array
