"""Hostile files: each is refused, or read, in one line, within some hundred MB and a few CPU-seconds.

The files are read in one process whose memory the system limits, so that what escapes the budget ends as an error.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import read_weights
from inception_jax.weight_files.types import ReadBudget, ReadError

from . import hostile, writers

MEMORY = 600  # MB: three million objects take 300, and a file of 40 MB is there three times while its header is parsed
SECONDS = 12.0  # of processor time; the slowest take 3 to 5
READER = Path(__file__).with_name("read_limited.py")


def read_limited(paths: list[Path], memory: int = MEMORY) -> list[dict]:
    """What became of each file, and how long it took."""
    done = subprocess.run([sys.executable, READER, str(memory), *paths], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(tmp_path: Path, makers: dict, seed: int) -> None:
    paths = []
    for maker in makers:
        paths.append(tmp_path / maker.__name__)
        paths[-1].write_bytes(maker(np.random.default_rng(seed)))
    for (maker, message), found in zip(makers.items(), read_limited(paths), strict=True):
        assert re.search(message or "^read 300 numbers$", found["outcome"]), (maker.__name__, found)
        assert "\n" not in found["outcome"], maker.__name__
        assert "not enough memory" not in found["outcome"], maker.__name__
        assert found["seconds"] < SECONDS, (maker.__name__, found)


def test_hostile_files(tmp_path):
    pytest.importorskip("h5py", reason="reading Keras's files needs h5py (the extra `convert`)")
    quick = (
        hostile.hdf5_strings_on_one_heap_object,
        hostile.torch_big_endian_storage,
        hostile.torch_colliding_keys,
        hostile.safetensors_header_of_numbers,
        hostile.onnx_empty_nodes,
        hostile.tar_chained_headers,
        hostile.zip_many_members,
        hostile.npz_of_zeros,
    )
    check(tmp_path, {maker: hostile.FILES[maker] for maker in quick}, seed=0)


@pytest.mark.slow
@pytest.mark.attack
@pytest.mark.parametrize("seed", range(5))
def test_all_hostile_files(tmp_path, seed):
    check(tmp_path, hostile.FILES, seed)


def test_a_budget_counts_objects_and_seconds(monkeypatch):
    budget = ReadBudget(1 << 40, 640)
    budget.charge_objects(3_000_010, "entries")
    with pytest.raises(ReadError, match=r"entries: too many objects for a file of 640 bytes"):
        budget.charge_objects(1, "entries")
    large = ReadBudget(1 << 40, 64_000_000)
    large.charge_objects(3_900_000, "entries")
    monkeypatch.setattr("time.thread_time", lambda: 1e9)
    with pytest.raises(ReadError, match=r"entries: reading has taken 94 s of processor time"):
        large.charge_objects(10_000, "entries")


def test_a_large_ordinary_file_is_read(tmp_path):
    """2,000 tensors of 8 kB: more names than any published file, in a process that has little more than its size."""
    arrays = {f"block{number}/branch_{number % 7}/weight": np.ones(2048, np.float32) for number in range(2000)}
    paths = []
    for name, write in (("a.safetensors", writers.safetensors), ("a.npz", writers.npz), ("a.pth", writers.torch_state)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(write(arrays))
    for found in read_limited(paths, memory=128):
        assert found["outcome"] == f"read {2000 * 2048} numbers"
        assert found["seconds"] < 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h5", "safetensors", "onnx", "npz"])
def test_the_largest_ordinary_files_are_read(tmp_path, kind):
    """240 MB, as inception_resnet_v2's files have."""
    arrays = {f"layer{number}": np.full((1024, 1024), number, np.float32) for number in range(60)}
    path = tmp_path / f"a.{kind}"
    if kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                group = file.create_group(name)
                group.attrs["weight_names"] = [f"{name}/kernel:0".encode()]
                group[f"{name}/kernel:0"] = array
    else:
        write = {"safetensors": writers.safetensors, "onnx": writers.onnx_model, "npz": writers.npz}[kind]
        path.write_bytes(write(arrays))
    assert sum(array.size for array in read_weights(path).arrays.values()) == 60 << 20


def test_big_endian_tensors_of_many_kinds(tmp_path):
    """Each tensor's own bytes are turned, with its strides."""
    values = np.arange(24, dtype=np.float32)
    tensors = {
        "whole": writers.pickled_tensor("0", (4, 6), (6, 1), 24),
        "transposed": writers.pickled_tensor("0", (6, 4), (1, 6), 24),
        "part": writers.pickled_tensor("0", (2,), (3,), 24, offset=5),
        "scalar": writers.pickled_tensor("0", (), (), 24, offset=7),
    }
    data = {"a/data.pkl": b"\x80\x02" + writers.pickled(tensors) + b".", "a/byteorder": b"big"}
    path = tmp_path / "a.pth"
    path.write_bytes(writers.zipped(data | {"a/data/0": values.astype(">f4").tobytes()}))
    found = read_weights(path).arrays
    matrix = values.reshape(4, 6)
    for name, expected in (
        ("whole", matrix),
        ("transposed", matrix.T),
        ("part", values[5:11:3]),
        ("scalar", values[7]),
    ):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == np.float32


def test_a_process_without_memory_is_told_in_a_line(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    path.write_bytes(writers.npz({"a": np.ones(2)}))

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("inception_jax.weight_files.npz_files.read", fail)
    with pytest.raises(UserError, match="has not enough memory"):
        read_weights(path)
