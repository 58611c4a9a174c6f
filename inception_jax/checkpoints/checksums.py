"""CRC-32 checksums of the arrays of a checkpoint, and of the JSON record that holds them.

Orbax stores no checksum of array data: a flipped bit is loaded without an error. Therefore every checkpoint has a
record of its leaves (name, dtype, shape, CRC-32 of the values in host memory), and the record has a CRC of itself.
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

from inception_jax.multihost import processes


def arrays_to_save(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays that are passed to Orbax: one copy of each.

    Of an array that is replicated on several devices of this process, the first device's copy. (Orbax would write a
    slice from each device, and compile a program for every shape to cut it out.) With several processes, arrays in host
    memory: Orbax then writes those of process 0.
    """
    if jax.process_count() > 1:
        return host_arrays(leaves)

    def one_copy(leaf: Any) -> Any:
        replicated = isinstance(leaf, jax.Array) and leaf.is_fully_addressable and leaf.is_fully_replicated
        return leaf.addressable_data(0) if replicated else leaf

    return {name: one_copy(leaf) for name, leaf in leaves.items()}


def to_global_array(array: np.ndarray, like: Any) -> jax.Array:
    """Makes a global array with the sharding of an abstract or real array, otherwise on the first device."""
    sharding = getattr(like, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def host_array(leaf: Any) -> np.ndarray:
    """Returns the whole value of one leaf in host memory, without a copy where it is there already.

    A view of a CPU buffer keeps that buffer from being reused: a step that donates it then writes to another buffer.
    Where no process holds all of a sharded array, the processes gather it: all must then call this in the same order.
    """
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return processes.gather(leaf, tiled=True)
    return np.asarray(leaf)


def host_arrays(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns `host_array` of every leaf; starts all transfers from the devices before it waits for the first."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return {name: host_array(leaf) for name, leaf in leaves.items()}


def array_bytes(array: np.ndarray) -> memoryview:
    """Returns the bytes of an array in C order, for any dtype (bfloat16 has no buffer protocol)."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def checksum(array: np.ndarray) -> int:
    """Returns the CRC-32 of the bytes of one array."""
    return zlib.crc32(array_bytes(array))


def checksums(arrays: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, int]:
    """Returns the CRC-32 of every array. `zlib.crc32` releases the GIL, so threads help."""
    if threads == 1:
        return {name: checksum(array) for name, array in arrays.items()}
    with ThreadPoolExecutor(min(threads, os.cpu_count() or 1)) as pool:
        return dict(zip(arrays, pool.map(checksum, arrays.values()), strict=True))


def dtypes_and_shapes(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns dtype and shape of every leaf, as in the record: `{"dtype": "float32", "shape": [7, 7, 3, 64]}`."""
    return {name: {"dtype": np.dtype(leaf.dtype).name, "shape": list(leaf.shape)} for name, leaf in leaves.items()}


def first_difference(saved: Mapping[str, dict], wanted: Mapping[str, dict]) -> str | None:
    """Describes the first leaf, by name, in which two sets of `dtypes_and_shapes` differ; None where they agree."""

    def format_leaf(leaf: Mapping[str, Any] | None) -> str:
        return "absent" if leaf is None else f"{leaf['dtype']}{leaf['shape']}"

    pairs = {name: (saved.get(name), wanted.get(name)) for name in sorted({*saved, *wanted})}
    different = [
        f"{name} is {format_leaf(old)} in the checkpoint and {format_leaf(new)} in this run"
        for name, (old, new) in pairs.items()
        if old is None or new is None or (old["dtype"], old["shape"]) != (new["dtype"], new["shape"])
    ]
    if not different:
        return None
    return different[0] + (f" ({len(different) - 1} more leaves differ)" if len(different) > 1 else "")


def first_corruption(record: Mapping[str, dict], arrays: Mapping[str, np.ndarray]) -> str | None:
    """Describes the first array whose dtype, shape or checksum is not the recorded one; None where all are."""
    difference = first_difference({name: record[name] for name in arrays}, dtypes_and_shapes(arrays))
    if difference:
        return difference
    found = checksums(arrays, threads=4)
    bad = [name for name, value in found.items() if value != record[name]["crc32"]]
    return f"the values of {bad[0]} are not those that were saved ({len(bad)} bad leaves)" if bad else None


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def dump_with_crc(content: dict[str, Any]) -> str:
    """Encodes content as JSON text with its CRC-32. Floats are restored exactly (shortest representation; NaN allowed).

    Raises:
      TypeError: the content has a value that JSON cannot hold, such as an array.
    """
    return json.dumps({"content": content, "crc32": zlib.crc32(_canonical(content).encode())})


def dump_record(record: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """Encodes a record, and under "leaves" what `first_corruption` needs to check these arrays later."""
    found, kind = checksums(arrays), dtypes_and_shapes(arrays)
    return dump_with_crc({**record, "leaves": {name: {**kind[name], "crc32": found[name]} for name in arrays}})


def load_with_crc(text: str) -> dict[str, Any]:
    """Decodes the text of `dump_with_crc`, and checks its CRC-32.

    Raises:
      ValueError: the text is damaged.
    """
    try:
        record = json.loads(text)
        content, crc = record["content"], record["crc32"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a complete record ({type(error).__name__})") from error
    if zlib.crc32(_canonical(content).encode()) != crc:
        raise ValueError("the record does not match its checksum")
    return content
