"""What is stored, leaf by leaf, and the proof that it came back unchanged.

Orbax keeps no checksum of array payloads: a flipped bit in one loads without complaint. So every checkpoint carries a
record of its leaves (name, dtype, shape, CRC-32 of the values in host memory), and the record carries a CRC of itself.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def arrays_to_save(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays that Orbax is given: one copy of each.

    Of an array that several devices of this process have whole, the first device's. Orbax would write a slice from each
    device, and compile a program for every shape to cut it out. With several processes, arrays in host memory: Orbax
    then writes those of process 0.
    """
    if jax.process_count() > 1:
        return host_arrays(leaves)

    def one_copy(leaf: Any) -> Any:
        replicated = isinstance(leaf, jax.Array) and leaf.is_fully_addressable and leaf.is_fully_replicated
        return leaf.addressable_data(0) if replicated else leaf

    return {name: one_copy(leaf) for name, leaf in leaves.items()}


def to_global_array(array: np.ndarray, like: Any) -> jax.Array:
    """A global array of these values with the sharding of an abstract or real array, or else on the first device."""
    sharding = getattr(like, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def host_array(leaf: Any) -> np.ndarray:
    """The whole value of one leaf in host memory, without a copy where it already lies there.

    A view of a CPU buffer keeps that buffer from being reused: JAX lets a step that donates it write elsewhere. Where
    no process holds all of a sharded array, the processes gather it: all of them must then call this in the same order.
    """
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def host_arrays(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`host_array` of every leaf; all transfers from the devices are started before the first is waited for."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return {name: host_array(leaf) for name, leaf in leaves.items()}


def array_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, of any dtype (bfloat16 has no buffer protocol of its own)."""
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def checksum(array: np.ndarray) -> int:
    """CRC-32 of the bytes of one array."""
    return zlib.crc32(array_bytes(array))


def checksums(arrays: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, int]:
    """CRC-32 of every array. `zlib.crc32` releases the interpreter lock, so threads help."""
    if threads == 1:
        return {name: checksum(array) for name, array in arrays.items()}
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        return dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))


def dtypes_and_shapes(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """dtype and shape of every leaf, as they stand in the record: `{"dtype": "float32", "shape": [7, 7, 3, 64]}`."""
    return {name: {"dtype": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)} for name, leaf in leaves.items()}


def first_difference(saved: Mapping[str, dict], wanted: Mapping[str, dict]) -> str | None:
    """The first leaf, by name, in which two sets of `dtypes_and_shapes` differ, in words; None where they agree."""

    def words(kind: dict | None) -> str:
        return "absent" if kind is None else f"{kind['dtype']}{kind['shape']}"

    pairs = {name: (saved.get(name), wanted.get(name)) for name in sorted({*saved, *wanted})}
    different = [
        f"{name} is {words(old)} in the checkpoint and {words(new)} in this run"
        for name, (old, new) in pairs.items()
        if old is None or new is None or (old["dtype"], old["shape"]) != (new["dtype"], new["shape"])
    ]
    if not different:
        return None
    return different[0] + (f" ({len(different) - 1} more leaves differ)" if len(different) > 1 else "")


def first_corruption(record: Mapping[str, dict], arrays: Mapping[str, np.ndarray]) -> str | None:
    """The first array whose values are not those that were saved, in words; None where all are."""
    difference = first_difference({name: record[name] for name in arrays}, dtypes_and_shapes(arrays))
    if difference:
        return difference
    found = checksums(arrays, threads=4)
    bad = [name for name, value in found.items() if value != record[name]["crc32"]]
    return f"the values of {bad[0]} are not those that were saved ({len(bad)} bad leaves)" if bad else None


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def dump_with_crc(content: dict[str, Any]) -> str:
    """JSON text that carries a CRC-32 of its content. Floats come back exactly (shortest representation; NaN allowed).

    Raises:
      TypeError: the content has something that JSON has no word for, an array for one.
    """
    return json.dumps({"content": content, "crc32": zlib.crc32(_canonical(content).encode())})


def dump_record(record: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """`dump_with_crc` of a record and of what `first_corruption` needs to check these arrays later, under "leaves"."""
    found, kind = checksums(arrays), dtypes_and_shapes(arrays)
    return dump_with_crc({**record, "leaves": {name: {**kind[name], "crc32": found[name]} for name in arrays}})


def load_with_crc(text: str) -> dict[str, Any]:
    """The content that `dump_with_crc` wrote.

    Raises:
      ValueError: the text is not whole.
    """
    try:
        sealed = json.loads(text)
        content, crc = sealed["content"], sealed["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a whole record ({type(error).__name__})") from error
    if zlib.crc32(_canonical(content).encode()) != crc:
        raise ValueError("the record is not the one that was saved")
    return content
