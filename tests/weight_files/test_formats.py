"""safetensors, Caffe, ONNX and NumPy: the parts of the formats that the common tests do not reach."""

import io
import json
import os
import struct

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import read_weights, types

from . import writers
from .make_files import numbers
from .test_reading import ARRAYS, same, written
from .writers import field, packed


def refused(tmp_path, data: bytes, message: str, name="a.bin") -> None:
    with pytest.raises(UserError, match=message):
        read_weights(written(tmp_path / name, data))


# safetensors.

A = np.arange(4, dtype=np.float32)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"data_offsets": [0, 12]}, "at bytes 0 to 12"),
        ({"data_offsets": [4, 20]}, "overlap or leave bytes"),
        ({"data_offsets": [16, 0]}, "not a begin and an end"),
        ({"data_offsets": [-4, 12]}, "not a list of sizes"),
        ({"data_offsets": [0, 16.0]}, "not a list of sizes"),
        ({"data_offsets": [0]}, "not a begin and an end"),
        ({"data_offsets": [16, 32], "shape": [4]}, "leave bytes"),
        ({"shape": [5]}, r"float32 of shape \[5\]"),
        ({"shape": [-4]}, "not a list of sizes"),
        ({"shape": [True, 4]}, "not a list of sizes"),
        ({"shape": 4}, "not a list of sizes"),
        ({"shape": [2**40, 2**40, 0]}, "impossible shape"),
        ({"dtype": "F4"}, "type 'F4'; known: F64, F32"),
        ({"dtype": ["F32"]}, "has the type"),
        ({"more": 1}, "not described by"),
        ({"dtype": "F64"}, "float64 of shape"),
    ],
)
def test_headers_of_safetensors_that_lie(tmp_path, changes, message):
    data = writers.safetensors({"a": A, "b": A}, a=changes)
    refused(tmp_path, data, message)


def test_damaged_safetensors(tmp_path):
    good = writers.safetensors({"a": A, "b": A})
    refused(tmp_path, good + b"x", "the tensors take 32 bytes, and the file has 33")
    refused(tmp_path, good[:-1], "truncated")
    refused(tmp_path, good[:20], "the header declares .* truncated")
    hole = writers.safetensors({"a": A, "b": A}, b={"data_offsets": [20, 36]})
    refused(tmp_path, hole + bytes(4), "overlap or leave bytes between them at byte 16")
    for size, message in (
        (100_000_000, "the header declares .* truncated"),
        (100_000_001, "unknown format, with the first bytes"),
    ):
        refused(tmp_path, struct.pack("<Q", size) + b"{" + b"\x90" * 90, message)
    for header, message in (
        (b'{"a": ', "not JSON"),
        (b'{"a": 1}', "not described"),
        (b'{"a": {}, "a": {}}', "occurs twice"),
        (b'{"__metadata__": {"a": 1}}', "not an object of strings"),
        (b"{" + b"[" * 50, "not JSON"),
        (b'{"\xff": 1}', "not text"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not JSON|not described"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON|not described"),
    ):
        refused(tmp_path, struct.pack("<Q", len(header)) + header, message)
    metadata = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    weights = read_weights(written(tmp_path / "a", struct.pack("<Q", len(metadata)) + metadata))
    assert (weights.arrays, weights.metadata) == ({}, {"safetensors": {"format": "pt"}})


# Caffe.


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_caffe(tmp_path, legacy, is_packed):
    """As bvlc_googlenet has it: a slash in the name, a layer without blobs, a weight and a bias."""
    weight, bias = numbers("w", (4, 3, 2, 2)), numbers("b", (4,))
    blobs = [writers.caffe_blob(array, legacy, is_packed) for array in (weight, bias)]
    layers = {
        False: writers.caffe_layer("conv1/7x7_s2", "Convolution", *blobs) + writers.caffe_layer("relu", "ReLU"),
        True: writers.caffe_layer_v1("conv1/7x7_s2", 4, *blobs) + writers.caffe_layer_v1("relu", 18),
    }
    for old, data in layers.items():
        weights = read_weights(written(tmp_path / "a.caffemodel", field(1, "GoogleNet") + data + field(5, 1)))
        shape = (1, 1, 1, 4) if legacy else (4,)
        same(weights.arrays, {"conv1/7x7_s2/0": weight, "conv1/7x7_s2/1": bias.reshape(shape)})
        assert weights.format == "caffe"
        layer, relu = weights.metadata["layers"]
        assert (layer["name"], layer["type"]) == ("conv1/7x7_s2", "Convolution")
        assert (layer["bottoms"], layer["tops"], relu["type"]) == (["data"], ["out"], "ReLU")
        assert weights.metadata["net"] == "GoogleNet", old


def test_caffe_in_float64(tmp_path):
    values = np.linspace(0, 1, 6).reshape(2, 3)
    data = writers.caffe_layer("fc", "InnerProduct", writers.caffe_blob(values))
    same(read_weights(written(tmp_path / "a.caffemodel", data)).arrays, {"fc/0": values})


def test_what_caffe_may_not_say(tmp_path):
    good = writers.caffe_blob(numbers("w", (2, 2)))
    short = field(7, packed(1, (2, 3))) + field(5, numbers("w", (5,)).tobytes())
    refused(tmp_path, writers.caffe_layer("a", "Convolution", short), r"blob 'a/0': 5 values for the shape \[2, 3\]")
    refused(tmp_path, writers.caffe_layer("a", "Convolution", good) * 2, "'a/0' occurs twice")
    refused(tmp_path, writers.caffe_layer("a", "ReLU"), "1 layers without weights")
    negative = field(7, packed(1, (-2, -3))) + field(5, numbers("w", (6,)).tobytes())
    refused(tmp_path, writers.caffe_layer("a", "Convolution", negative), "impossible shape")
    odd = field(7, packed(1, (1,))) + field(5, b"12345")
    refused(tmp_path, writers.caffe_layer("a", "Convolution", odd), "whole numbers")
    refused(tmp_path, field(1, "net") + field(2, field(1, field(1, "a"))), "network of 2013")
    cut = writers.caffe_layer("a", "Convolution", good)[:-1]
    refused(tmp_path, cut, "named like a Caffe network, but", "a.caffemodel")


# ONNX.


def test_external_data_stays_in_the_folder(tmp_path):
    """No absolute path, no way up, no link out: not even where the file is there and would fit."""
    folder = tmp_path / "model"
    (folder / "inside").mkdir(parents=True)
    values = numbers("w", (3, 2))
    (tmp_path / "outside.bin").write_bytes(values.tobytes())
    (folder / "inside" / "w.bin").write_bytes(b"skip" + values.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "up").symlink_to(tmp_path)

    def of(location, **more):
        about = {"w": {"location": location, **more}}
        return read_weights(written(folder / "m.onnx", writers.onnx_model({"w": values}, about)))

    same(of("inside/w.bin", offset="4").arrays, {"w": values})
    same(of("inside/w.bin", offset="4", length="24").arrays, {"w": values})
    for location in ("../outside.bin", str(tmp_path / "outside.bin"), "inside/../../outside.bin", "", "a\\b"):
        with pytest.raises(UserError, match=r"outside of the model's folder: it is not opened"):
            of(location)
    for location in ("link.bin", "up/outside.bin"):
        with pytest.raises(UserError, match="a link out of the model's folder: it is not opened"):
            of(location)
    for location, more, message in (
        ("none.bin", {}, "which is not beside the model"),
        ("inside", {}, "which is not beside"),
        ("inside/w.bin", {"offset": "5"}, "24 bytes at 5"),
        ("inside/w.bin", {"offset": "-1"}, "24 bytes at -1"),
        ("inside/w.bin", {"length": "4"}, "4 bytes at 0"),
        ("inside/w.bin", {"offset": "x"}, "offset or length in .* is not a number"),
    ):
        with pytest.raises(UserError, match=message):
            of(location, **more)
    data = writers.onnx_model({"w": values}, {"w": {"location": "inside/w.bin"}})
    refused(tmp_path, writers.zipped({"m.onnx": data}), r"lies in another file.*unpack the archive")
    with (folder / "large.bin").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(UserError, match=r"'large.bin' brings the files to 1,099,511,627,... bytes, above the limit"):
        of("large.bin")


def test_external_data_are_measured_by_their_own_file(tmp_path, monkeypatch):
    """A model of a few kilobytes may have hundreds of megabytes beside it, but not the same file many times."""
    monkeypatch.setattr(types, "_INFLATION_FLOOR", 1000)
    values = numbers("w", (300, 300))
    (tmp_path / "w.bin").write_bytes(values.tobytes())
    data = writers.onnx_model({"w": values}, {"w": {"location": "w.bin"}})
    assert values.nbytes > 100 * len(data)
    path = written(tmp_path / "m.onnx", data)
    same(read_weights(path).arrays, {"w": values})
    same(read_weights(path, limit=len(data) + values.nbytes).arrays, {"w": values})
    with pytest.raises(UserError, match="above the limit of"):
        read_weights(path, limit=len(data) + values.nbytes - 1)
    spelled = {"a": {"location": "w.bin"}, "b": {"location": "./w.bin"}, "c": {"location": ".//w.bin"}}
    three = writers.onnx_model({name: values for name in spelled}, spelled)
    with pytest.raises(UserError, match=r"'.//w\.bin' brings the files to"):
        read_weights(written(tmp_path / "m.onnx", three), limit=3 * values.nbytes)


def test_what_onnx_may_not_say(tmp_path):
    def of(tensor: bytes) -> bytes:
        node = field(1, field(2, "y") + field(4, "Relu"))
        return field(1, 8) + field(7, node + field(5, tensor))

    floats = numbers("w", (2,)).tobytes()
    for tensor, message in (
        (packed(1, (3,)) + field(2, 1) + field(8, "w") + field(9, floats), r"'w': 8 bytes for float32 of shape \[3\]"),
        (packed(1, (3,)) + field(2, 1) + field(8, "w") + field(4, floats), r"2 values for the shape \[3\]"),
        (packed(1, (2,)) + field(2, 14) + field(8, "w"), "ONNX's type 14"),
        (packed(1, (-2,)) + field(2, 1), "impossible shape"),
        (packed(1, (2,)) + field(2, 1) + field(3, b"") + field(9, floats), "segments"),
    ):
        refused(tmp_path, of(tensor), message)
    good = packed(1, (2,)) + field(2, 1) + field(8, "w") + field(9, floats)
    refused(tmp_path, field(1, 8) + field(7, field(5, good) * 2), "'w' occurs twice")
    refused(tmp_path, field(1, 8) + field(7, b""), "without a graph")


# NumPy.


def test_npz_of_every_kind(tmp_path):
    arrays = {
        "f": np.asfortranarray(numbers("f", (3, 4))),
        "big": numbers("g", (3,)).astype(">f4"),
        "i": np.arange(3),
        "half": np.ones(2, np.float16),
        "flag": np.array([True, False]),
        "deep/name": np.zeros((0, 2)),
        "scalar": np.array(5.0),
    }
    for save in (np.savez, np.savez_compressed):
        found = read_weights(written(tmp_path / "a.npz", writers.npz(arrays, save))).arrays
        same(found, {name: array.astype(array.dtype.newbyteorder("=")) for name, array in arrays.items()})


def test_npz_of_python_2(tmp_path):
    """Whose long integers have an L; there is no warning."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 1L), }\n"
    data = writers.zipped({"a.npy": npy(header, numbers("a", (2, 1)).tobytes())})
    same(read_weights(written(tmp_path / "a.npz", data)).arrays, {"a": numbers("a", (2, 1))})


def npy(header: str, body: bytes = b"", version=(1, 0)) -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + body


@pytest.mark.parametrize(
    "member,message",
    [
        (npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"\x80\x02N."), "holds object, not numbers"),
        (npy("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", bytes(4)), "not numbers"),
        (npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", bytes(16)), "not numbers"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (500000000,)}"), "more than 100 times as much"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (5000000000,)}"), "above the limit"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "impossible shape"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(11)), "11 bytes for float32"),
        (npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}", bytes(13)), "13 bytes for float32"),
        (npy("__import__('os').system('touch SENTINEL')"), "no valid NumPy header"),
        (npy("(" * 3000), "no valid NumPy header"),
        (npy("{}", version=(3, 0)), "version .3, 0.; weights have"),
        (b"", "no valid NumPy header"),
        (b"junk", "no valid NumPy header"),
    ],
)
def test_members_of_npz_that_are_not_read(tmp_path, monkeypatch, member, message):
    monkeypatch.chdir(tmp_path)
    refused(tmp_path, writers.zipped({"a.npy": member}), f"array 'a.npy'.*{message}", "a.npz")
    assert not (tmp_path / "SENTINEL").exists()


def test_npz_of_objects_as_numpy_writes_them(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, a=np.array([{"b": 1}], dtype=object))
    refused(tmp_path, stream.getvalue(), "holds object, not numbers", "a.npz")


def test_the_arrays_are_in_the_files_order(tmp_path):
    arrays = dict(reversed(ARRAYS.items()))
    for data in (writers.npz(arrays), writers.safetensors(arrays), writers.checkpoint_v1(arrays)):
        assert list(read_weights(written(tmp_path / "a", data)).arrays) == list(arrays)
