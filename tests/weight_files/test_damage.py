"""Damage of every kind, everywhere: a refusal or arrays, and never another exception.

Cut off at any byte, a file is refused. There are two exceptions, for nothing in these formats says how long a file is:
a Caffe network or a frozen graph that ends between two layers is a shorter one, with fewer arrays, all of them right.
A flipped bit is refused where the format has a checksum; elsewhere it may be in the numbers themselves.
"""

import sys
import zlib

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import keras_process, read_weights

from ..limits import limited
from .make_files import GOLDENS
from .test_reading import every_format, expected_of, same, written

FILES = every_format() | {
    name: (GOLDENS / name).read_bytes()
    for name in ("torch_legacy.pth", "torch_training.pth", "torch.safetensors", "tensorflow_v1.ckpt", "onnx.onnx")
}
UNMARKED = ("caffe.caffemodel", "tensorflow_graph.pb")  # formats whose ends cannot be told
CHECKED = ("torch.pth", "torch_training.pth", "tensorflow_v1.ckpt", "tensorflow_v2.zip", "npz.npz")  # with checksums


def positions(data: bytes, seed: int, most: int = 240) -> list[int]:
    """Every position of a short file, and some of a long one, with all of its beginning and end."""
    if len(data) <= most:
        return list(range(len(data)))
    random = np.random.default_rng(seed)
    middle = random.choice(np.arange(60, len(data) - 60), most - 120, replace=False)
    return [*range(60), *sorted(middle.tolist()), *range(len(data) - 60, len(data))]


def outcome(path) -> dict | None:
    """The arrays, or None where the file is refused. Anything else that is raised is the test's failure."""
    try:
        return read_weights(path).arrays
    except UserError as error:
        assert str(path) in str(error)
        assert "not enough memory" not in str(error)
        return None


@pytest.mark.parametrize("name", FILES)
def test_files_cut_off_anywhere(tmp_path, name):
    data = FILES[name]
    for length in positions(data, seed=1):
        found = outcome(written(tmp_path / name, data[:length]))
        if name in UNMARKED and found is not None:
            expected = dict(list(expected_of(name).items())[: len(found)])
            same(found, expected)
            assert len(found) < len(expected_of(name))
        else:
            assert found is None, length


@pytest.mark.parametrize("name", FILES)
def test_any_byte_changed(tmp_path, name):
    data = FILES[name]
    right = outcome(written(tmp_path / name, data))
    wrong = 0
    for place in positions(data, seed=2):
        for change in (0x01, 0xC0):
            broken = bytearray(data)
            broken[place] ^= change
            found = outcome(written(tmp_path / name, bytes(broken)))
            if found is not None and name in CHECKED:
                # Names in a zip's directory and headers have no checksum of their own; the values do.
                differ = [key for key in found if key in right and found[key].tobytes() != right[key].tobytes()]
                wrong += bool(differ)
    assert wrong == 0


@pytest.mark.parametrize("name", ["keras2.h5", "keras3.weights.h5", "keras3.keras"])
def test_files_of_keras_cut_off_anywhere(tmp_path, name):
    for length in positions(keras_golden(name), seed=3):
        assert outcome(written(tmp_path / name, keras_golden(name)[:length])) is None, length


def keras_golden(name: str) -> bytes:
    pytest.importorskip("h5py", reason="reading Keras's files needs h5py (the extra `convert`)")
    from .test_keras import golden

    return golden(name)


@pytest.mark.parametrize(
    "name,most",
    [
        ("keras3.weights.h5", 12),
        pytest.param("keras3.weights.h5", 600, marks=pytest.mark.slow),
        pytest.param("keras2.h5", 600, marks=pytest.mark.slow),
        pytest.param("keras3.keras", 600, marks=pytest.mark.slow),
    ],
)
def test_any_byte_of_a_file_of_keras_changed(tmp_path, name, most):
    data = keras_golden(name)
    for place in np.random.default_rng(4).choice(len(data), most, replace=False):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        outcome(written(tmp_path / name, bytes(broken)))


def test_a_crash_of_the_library_is_a_refusal(tmp_path):
    """The version of the type of an attribute, changed: the HDF5 of h5py 3.16 dies of it."""
    data = bytearray(keras_golden("keras3.weights.h5"))
    data[data.index(b"name\0") + 9] ^= 0xFF
    assert outcome(written(tmp_path / "a.h5", bytes(data))) is None


@pytest.mark.parametrize(
    "script,message",
    [
        ("kill -SEGV $$", r"HDF5 crashed on it \(signal 11\)"),
        ("echo a problem >&2; exit 3", "files failed: a problem"),
        ("sleep 60", "HDF5 did not end within"),
        ("cat > /dev/null; echo nonsense", "no valid answer"),
        ("cat > /dev/null; echo 5", "no valid answer"),
        ('cat > /dev/null; echo \'{"names": ["a"]}\'', "cannot be read"),
    ],
)
def test_whatever_becomes_of_the_process_that_reads_hdf5(tmp_path, monkeypatch, script, message):
    data = keras_golden("keras2.h5")
    written(tmp_path / "python", f"#!/bin/sh\n{script}\n".encode()).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(keras_process, "_SECONDS", 0.5 if "sleep" in script else 60)
    with pytest.raises(UserError, match=message):
        read_weights(written(tmp_path / "a.h5", data))


@pytest.mark.parametrize("name", FILES)
def test_bytes_dropped_doubled_and_shuffled(tmp_path, name):
    data = FILES[name]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(60):
        start, stop = sorted(random.integers(0, len(data), 2))
        outcome(written(tmp_path / name, data[:start] + data[stop:]))
        outcome(written(tmp_path / name, data[:stop] + data[start:]))
        noise = random.bytes(int(random.integers(1, 9)))
        outcome(written(tmp_path / name, data[:start] + noise + data[start + len(noise) :]))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("tries", [1, pytest.param(30, marks=(pytest.mark.slow, pytest.mark.attack))])
def test_pieces_that_are_repeated_very_often(tmp_path, name, tries):
    """A few bytes of a file, again and again up to a megabyte: what a parser makes of each of them adds up."""
    data, random, refused = FILES[name], np.random.default_rng(zlib.crc32(name.encode()) + tries), 0
    for _ in range(tries):
        start, size = int(random.integers(0, len(data))), int(random.choice([1, 2, 3, 8, 64, 512]))
        piece = data[start : start + size]
        broken = data[:start] + piece * (1_000_000 // len(piece)) + data[start:]
        with limited(600, 6.0):
            refused += outcome(written(tmp_path / name, broken)) is None
    print(f"{name}: {tries} tries, {refused} refused")
