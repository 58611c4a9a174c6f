"""Names, checksums and records of trees of arrays."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inception_jax import tree_paths
from inception_jax.checkpoints import checksums


def test_names_are_the_paths_of_the_leaves():
    tree = {"b": (1, None, [2]), "a": optax.ScaleState(), "c": optax.TraceState(trace={"k": 3})}
    assert tree_paths.named_leaves(tree) == {"b/0": 1, "b/2/0": 2, "c/trace/k": 3}
    with pytest.raises(ValueError, match="same path"):
        tree_paths.named_leaves({"a/b": 1, "a": {"b": 2}})


def test_nest_is_the_inverse_for_dictionaries():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert tree_paths.nest(tree_paths.named_leaves(tree)) == tree


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 5)])
def test_a_checksum_is_of_the_bytes(dtype, shape):
    values = (np.arange(15) % 4)[: np.prod(shape, dtype=int)].reshape(shape).astype(jnp.dtype(dtype))
    expected = zlib.crc32(values.tobytes())
    assert checksums.checksum(values) == checksums.checksum(checksums.host_array(jnp.asarray(values))) == expected
    if len(shape) == 2:  # in C order, however the array lies in memory
        assert checksums.checksum(np.asfortranarray(values)) == expected != checksums.checksum(values.T)


def test_threads_change_no_checksum():
    arrays = {str(i): np.random.default_rng(i).normal(size=1000) for i in range(20)}
    assert checksums.checksums(arrays, threads=4) == checksums.checksums(arrays)


def test_a_corruption_is_named():
    arrays = {"a": np.arange(4.0), "b": np.arange(4)}
    record = json.loads(checksums.dump_record({}, arrays))["content"]["leaves"]
    assert checksums.first_corruption(record, arrays) is None
    assert checksums.first_corruption(record, {"b": arrays["b"]}) is None
    assert "values of b" in checksums.first_corruption(record, arrays | {"b": np.arange(4) + 1})
    assert "a is float64[4] in the checkpoint and float32[4]" in checksums.first_corruption(
        record, arrays | {"a": np.arange(4, dtype=np.float32)}
    )
    assert "a is float64[4] in the checkpoint and float64[2, 2]" in checksums.first_corruption(
        record, arrays | {"a": np.arange(4.0).reshape(2, 2)}
    )


def test_no_bit_of_a_sealed_record_can_flip():
    content = {"text": "é", "numbers": [0.1, -0.0, float("inf")], "nested": {"b": None, "a": True}}
    text = checksums.dump_with_crc(content).encode()
    assert checksums.load_with_crc(text.decode()) == content
    for place in range(len(text)):
        for bit in range(8):
            flipped = bytearray(text)
            flipped[place] ^= 1 << bit
            try:
                found = checksums.load_with_crc(flipped.decode())
            except ValueError:
                continue
            # A space for a tab, an escape in capitals: other bytes of the same content.
            assert found == content, (place, bit)
    for length in range(len(text)):
        with pytest.raises(ValueError):
            checksums.load_with_crc(text[:length].decode())


def test_one_copy_of_a_replicated_array_is_saved():
    array = jax.device_put(
        jnp.arange(3.0),
        jax.sharding.NamedSharding(
            jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",)), jax.sharding.PartitionSpec()
        ),
    )
    saved = checksums.arrays_to_save({"w": array, "n": 3})
    assert saved["w"].sharding.device_set == {jax.devices()[0]}
    assert saved["n"] == 3
