"""PyTorch's state dicts: the zip files of torch 1.6 and later, and the streams of pickles before.

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
LEGACY_START = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")  # which is these bytes after the pickle's own protocol
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
    """A run of numbers that tensors share, by its key; where its bytes lie is known when all pickles have been read."""

    def __init__(self, key: str, dtype: np.dtype, count: int):
        self.key, self.dtype, self.count = key, dtype, count
        self.offset = 0  # elements into another storage, of which this is a view: files of torch 0.1 have such
        self.data = memoryview(b"")
        self.big_endian = False

    def values(self, dtype: np.dtype) -> np.ndarray:
        """The bytes as numbers of a type, which is the storage's own but for untyped storages."""
        size = dtype.itemsize
        raw = np.frombuffer(self.data, np.uint8, len(self.data) // size * size)
        if self.big_endian:
            raw = np.ascontiguousarray(raw.reshape(-1, size)[:, ::-1]).reshape(-1)
        return raw.view(dtype)


def read_zip(members: Archive, budget: ReadBudget) -> ParsedFile:
    """The tensors of a zip file. Metadata: that of `state_dicts.extract_state_dict`, and "byteorder".

    Raises:
      ReadError: the archive is no state dict, asks for something that a state dict does not need, or is damaged.
    """
    (pickle_name,) = [name for name in members.names() if name.rpartition("/")[2] == "data.pkl"]
    prefix = pickle_name.removesuffix("data.pkl")
    order = bytes(members.read(f"{prefix}byteorder")) if f"{prefix}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise ReadError(f"the record of the byte order says {order!r:.40}, not little or big")
    storages: dict[str, Storage] = {}
    found = PickleMachine(
        _check_pickle_size(members.read(pickle_name)), lambda identity: _storage(identity, storages)
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
    """The tensors of a file of torch before 1.6: magic number, protocol, system, object and keys, each a pickle, then
    the storages in the order of the keys. Metadata: that of `state_dicts.extract_state_dict`.

    Raises:
      ReadError: the file is no state dict, asks for something that a state dict does not need, or is damaged.
    """
    storages: dict[str, Storage] = {}
    machine = PickleMachine(source.data, lambda identity: _legacy_storage(identity, storages))
    if machine.load() != _MAGIC or machine.load() != _LEGACY_PROTOCOL:
        raise ReadError("a file of old PyTorch with another magic number or protocol than 1001")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ReadError("a file of old PyTorch from a big-endian machine; save it again on a little-endian one")
    found, keys = machine.load(), machine.load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
        raise ReadError("the list of storages is no list of distinct keys: the file is damaged")
    roots = {storage.key: storage for key, storage in storages.items() if "/" not in key}
    if set(keys) != set(roots):
        raise ReadError("the listed storages are not those that the tensors use: the file is damaged")
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
    if len(data) > MAX_PICKLE:
        raise ReadError(f"a pickle of {len(data):,} bytes, where a state dict takes some 100,000: it is not read")
    return data


def _parse_persistent_id(identity: Any, length: int) -> tuple[np.dtype, str, int]:
    """Type, key and count of a persistent id ("storage", type, key, location, count)."""
    if not isinstance(identity, tuple) or len(identity) != length or identity[0] != "storage":
        raise ReadError("the pickle refers to something outside of itself that is no storage of tensors")
    _, kind, key, location, count = identity[:5]
    if not isinstance(kind, GlobalName) or kind.name not in _DTYPES or not kind.name.endswith("Storage"):
        raise ReadError(f"a storage whose type is {describe_value(kind)}")
    if not isinstance(key, str) or not isinstance(location, str):
        raise ReadError("a storage whose key or place is no text")
    if type(count) is not int or not 0 <= count < 1 << 48:
        raise ReadError(f"the storage {key!r} has an impossible number of values")
    return _DTYPES[kind.name], key, count


def _storage(identity: Any, storages: dict[str, Storage]) -> Storage:
    dtype, key, count = _parse_persistent_id(identity, 5)
    storage = storages.setdefault(key, Storage(key, dtype, count))
    if (storage.dtype, storage.count) != (dtype, count):
        raise ReadError(f"the storage {key!r} is described in two ways: the file is damaged")
    return storage


def _legacy_storage(identity: Any, storages: dict[str, Storage]) -> Storage:
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
    """The array of a spec: a view into its storage, with the strides that the file gives."""
    storage, shape, strides, offset = spec.storage, spec.shape, spec.strides, spec.offset
    if not isinstance(storage, Storage):
        raise ReadError(f"tensor {name!r} has no storage")
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers):
            raise ReadError(f"tensor {name!r}: its shape, strides or offset are no sizes")
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
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
