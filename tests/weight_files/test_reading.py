"""What the publishers' own libraries wrote, read with none of them; and files that are not weight files."""

import gzip
import hashlib
import os
import stat
import struct
import tarfile
import time
import zipfile

import ml_dtypes
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import FORMATS, read_weights
from inception_jax.weight_files.types import ReadBudget, ReadError

from . import writers
from .make_files import GOLDENS, numbers

SHARED = numbers("shared", (4, 6))
# What make_files.py put into its two state dicts of many kinds.
TORCH = {
    "conv.weight": numbers("conv.weight", (2, 3, 3, 2)),
    "half": numbers("half", (3, 2)).astype(np.float16),
    "brain": numbers("brain", (3, 2)).astype(ml_dtypes.bfloat16),
    "double": numbers("double", (5,)).astype(np.float64),
    "bn.num_batches_tracked": np.array(12345678901),
    "flags": numbers("flags", (4,)) > 0,
    "bytes": np.arange(5, dtype=np.uint8),
    "shared": SHARED,
    "transposed": SHARED.T,
    "slice": SHARED[1:3, 2:5],
    "every_other": SHARED[:, ::2],
    "expanded": np.broadcast_to(SHARED[:1], (3, 6)),
    "permuted": SHARED.reshape(2, 2, 6).transpose(2, 0, 1),
    "empty": np.zeros((0, 3), np.float32),
}
TENSORFLOW = {
    "InceptionV1/Conv2d_1a_7x7/BatchNorm/beta": numbers("InceptionV1/Conv2d_1a_7x7/BatchNorm/beta", (4,)),
    "InceptionV1/Conv2d_1a_7x7/weights": numbers("InceptionV1/Conv2d_1a_7x7/weights", (3, 3, 2, 4)),
    "Logits/columns": numbers("Logits/columns", (2, 5)),
    "Logits/weights": numbers("Logits/weights", (300, 2)),
    "brain": numbers("brain", (3,)).astype(ml_dtypes.bfloat16),
    "double": numbers("double", (3,)).astype(np.float64),
    "global_step": np.array(12345678901),
    "half": numbers("half", (3,)).astype(np.float16),
}


def same(found: dict, expected: dict, order: bool = True) -> None:
    """The same names, in the same order, and the same shapes, types and values."""
    assert (list(found) if order else sorted(found)) == (list(expected) if order else sorted(expected))
    for name, array in expected.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def written(path, data: bytes):
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name,kind", [("torch_zip.pth", "torch"), ("torch_legacy.pth", "torch_legacy")])
def test_torch_goldens(name, kind):
    weights = read_weights(GOLDENS / name)
    same(weights.arrays, TORCH)
    assert weights.format == kind
    assert weights.sha256 == hashlib.sha256((GOLDENS / name).read_bytes()).hexdigest()
    assert not any(array.flags.writeable for array in weights.arrays.values() if array.size)


@pytest.mark.parametrize("name", ["torch_training.pth", "torch_training_legacy.pth"])
def test_a_state_dict_inside_of_a_training_state(name):
    weights = read_weights(GOLDENS / name)
    shapes = {
        "0.weight": (2, 3, 1, 1),
        "0.bias": (2,),
        "1.weight": (2,),
        "1.bias": (2,),
        "1.running_mean": (2,),
        "1.running_var": (2,),
    }
    expected = {key: numbers(key, shape) for key, shape in shapes.items()}
    # The values of num_batches_tracked are int64 made of the same halves.
    expected["1.num_batches_tracked"] = numbers("1.num_batches_tracked", ()).astype(np.int64)
    same(weights.arrays, expected)
    assert weights.metadata["nested_under"] == "state_dict"
    assert weights.metadata["stripped_prefix"] == "module."
    assert weights.metadata["left_out"] == {"epoch": "int", "loss": "float", "args": "list"}


@pytest.mark.parametrize(
    "name,message",
    [
        ("torch_module.pth", "torch.nn.modules.container.Sequential.*nothing was executed.*state_dict"),
        ("torch_quantised.pth", "quantized weights.*int8"),
        ("torch_script.pt", "TorchScript.*state_dict"),
    ],
)
def test_files_of_torch_that_are_no_state_dicts(name, message):
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        read_weights(GOLDENS / name)


def test_safetensors_golden():
    weights = read_weights(GOLDENS / "torch.safetensors")
    names = ("conv.weight", "half", "brain", "double", "bn.num_batches_tracked", "flags", "empty")
    same(weights.arrays, {name: TORCH[name] for name in names}, order=False)
    assert (weights.format, weights.metadata) == ("safetensors", {"safetensors": {"format": "pt"}})


@pytest.mark.parametrize(
    "path", ["", "model.ckpt-7", "model.ckpt-7.index", "model.ckpt-7.data-00000-of-00001", "model.ckpt-7.meta"]
)
def test_checkpoint_of_version_2(path):
    weights = read_weights(GOLDENS / "tensorflow_v2" / path)
    same(weights.arrays, TENSORFLOW)
    assert (weights.format, weights.metadata) == ("tensorflow_v2", {"left_out": {}})
    files = [GOLDENS / "tensorflow_v2" / f"model.ckpt-7.{end}" for end in ("index", "data-00000-of-00001")]
    assert weights.sha256 == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_checkpoint_of_version_1():
    weights = read_weights(GOLDENS / "tensorflow_v1.ckpt")
    same(weights.arrays, {name: array for name, array in TENSORFLOW.items() if name != "brain"})
    assert weights.format == "tensorflow_v1"


def test_checkpoint_of_objects():
    weights = read_weights(GOLDENS / "tensorflow_objects")
    same(weights.arrays, {"kernel/.ATTRIBUTES/VARIABLE_VALUE": numbers("kernel", (2, 3))})
    assert list(weights.metadata["left_out"]) == ["_CHECKPOINTABLE_OBJECT_GRAPH"]


def test_frozen_graph():
    weights = read_weights(GOLDENS / "tensorflow_graph.pb")
    expected = {"conv2d0_w": numbers("conv2d0_w", (3, 3, 3, 2)), "conv2d0_b": numbers("conv2d0_b", (2,))}
    same(weights.arrays, {**expected, "same": np.full(2, 3, np.float32)})
    nodes = {node["name"]: node for node in weights.metadata["nodes"]}
    norm = nodes["localresponsenorm0"]
    assert (norm["op"], norm["inputs"]) == ("LRN", ["conv2d0_pre_relu"])
    assert norm["attributes"]["depth_radius"] == 5
    assert norm["attributes"]["bias"] == 2.0
    assert norm["attributes"]["alpha"] == pytest.approx(1e-4)
    conv = nodes["conv2d0_pre_relu/conv"]["attributes"]
    assert (conv["strides"], conv["padding"], conv["T"]) == ([1, 2, 2, 1], "SAME", "float32")
    assert nodes["input"]["attributes"]["shape"] == [-1, 8, 8, 3]


def test_onnx_golden():
    weights = read_weights(GOLDENS / "onnx.onnx")
    half, brain = np.float16, ml_dtypes.bfloat16
    same(
        weights.arrays,
        {
            "conv1/7x7_s2_w_0": numbers("conv1/7x7_s2_w_0", (2, 3, 3, 3)),
            "listed": numbers("listed", (2, 2)),
            "half": numbers("half", (3,)).astype(half),
            "half_listed": numbers("half_listed", (3,)).astype(half),
            "brain": numbers("brain", (3,)).astype(brain),
            "brain_listed": numbers("brain_listed", (3,)).astype(brain),
            "double": numbers("double", (3,)).astype(np.float64),
            "shape": np.array([0, -1]),
            "bias": numbers("bias", (2,)),
            "two": np.array([2, -2]),
        },
    )
    about = weights.metadata
    assert (about["inputs"], about["outputs"]) == (["data_0"], ["norm"])
    assert (about["opset"], about["producer"]) == (17, "make_files")
    assert about["left_out"] == ["text"]
    conv, norm = about["nodes"][-2:]
    assert (conv["name"], conv["op"], conv["outputs"]) == ("first", "Conv", ["conv"])
    assert conv["inputs"] == ["data_0", "conv1/7x7_s2_w_0", "bias"]
    assert conv["attributes"] == {"strides": [2, 2], "pads": [1, 1, 1, 1]}
    assert norm["attributes"]["size"] == 5
    assert norm["attributes"]["beta"] == 0.75


def test_onnx_with_its_values_in_a_second_file():
    weights = read_weights(GOLDENS / "onnx_external.onnx")
    kernel = "conv1/7x7_s2_w_0"
    same(weights.arrays, {kernel: numbers(kernel, (2, 3, 3, 3)), "b": numbers("b", (2,))})
    assert weights.metadata["external_files"] == ["onnx_external.bin"]


# Files that are not weight files, and their descriptions in the error.
OTHER_FILES = {
    "empty.pth": (b"", "empty file"),
    "zeros.pth": (bytes(500), "zeros"),
    "page.pth": (b"\n<!DOCTYPE html><html><title>404</title></html>", "web page"),
    "error.pth": (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "web page"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n" + bytes(50), "PNG image"),
    "photograph.h5": (b"\xff\xd8\xff\xe0" + bytes(50), "JPEG image"),
    "array.npy": (b"\x93NUMPY\x01\x00" + bytes(50), "np.savez"),
    "notes.txt": (b"these are my weights", "text that begins 'these are my weights'"),
    "error.json": (b'{"error": "not found"}', "text that begins"),
    "list.pkl": (b"\x80\x04]\x94.", "plain pickle"),
    "lite.tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(50), "TensorFlow Lite"),
    "noise.bin": (bytes(range(200, 256)), "unknown format, with the first bytes.*c8 c9"),
    "cut.ckpt": (writers.table([(b"a", b"b" * 200)])[:-20], "its end is missing: the file is truncated"),
    "cut.onnx": (writers.onnx_model({"a": np.ones(9, np.float32)})[:-20], "named like an ONNX model, but"),
    "graph.pb": (writers.graph_node("input", "Placeholder"), "not frozen"),
    "no.zip": (b"PK\x03\x04 and no more", "zip archive that cannot be read"),
    "no.tar.gz": (b"\x1f\x8b and no more", "compressed archive cannot be decompressed"),
    "no.h5": (b"\x89HDF\r\n\x1a\n and no more", "HDF5 file whose end is missing|h5py"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_files(tmp_path, name):
    data, message = OTHER_FILES[name]
    with pytest.raises(UserError, match=f"{name}: .*({message})"):
        read_weights(written(tmp_path / name, data))


def test_what_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="this is a folder"):
        read_weights(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="device or a pipe"):
        read_weights(tmp_path / "pipe")
    with pytest.raises(UserError, match="device or a pipe"):
        read_weights("/dev/zero")
    (tmp_path / "checkpoint").write_text("nothing\n")
    with pytest.raises(UserError, match="names no checkpoint"):
        read_weights(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path):
    path = written(tmp_path / "secret.npz", b"x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("whoever runs the tests may read every file")
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_weights(path)
    path.chmod(stat.S_IRWXU)


ARRAYS = {"a/kernel": numbers("a/kernel", (3, 4)), "b": numbers("b", (5,)), "c": numbers("c", ())}


def every_format() -> dict[str, bytes]:
    """The same arrays in every format that can be written here, by the file's name."""
    index, (data,) = writers.checkpoint_v2(ARRAYS)
    return {
        "torch.pth": writers.torch_state(ARRAYS),
        "torch_legacy.pth": writers.torch_legacy(
            writers.pickled(
                {
                    name: writers.pickled_tensor(name, array.shape, (1,) * array.ndim, array.size, tail=(None,))
                    for name, array in ARRAYS.items()
                    if "/" not in name
                }
            ),
            {name: array for name, array in ARRAYS.items() if "/" not in name},
        ),
        "safetensors.safetensors": writers.safetensors(ARRAYS),
        "tensorflow_v1.ckpt": writers.checkpoint_v1(ARRAYS),
        "tensorflow_v2.zip": writers.zipped({"m/x.ckpt-1.index": index, "m/x.ckpt-1.data-00000-of-00001": data}),
        "tensorflow_graph.pb": b"".join(writers.graph_constant(name, array) for name, array in ARRAYS.items()),
        "caffe.caffemodel": writers.field(1, "net")
        + b"".join(
            writers.caffe_layer(name, "Convolution", writers.caffe_blob(array)) for name, array in ARRAYS.items()
        ),
        "onnx.onnx": writers.onnx_model(ARRAYS),
        "npz.npz": writers.npz(ARRAYS),
    }


def expected_of(name: str) -> dict[str, np.ndarray]:
    if name.startswith("caffe"):
        return {f"{key}/0": array for key, array in ARRAYS.items()}
    if name.startswith("torch_legacy"):
        return {key: array for key, array in ARRAYS.items() if "/" not in key}
    return ARRAYS


@pytest.mark.parametrize("name", every_format())
def test_every_format(tmp_path, name):
    weights = read_weights(written(tmp_path / name, every_format()[name]))
    # A checkpoint's keys are in order of the alphabet, and ours are already.
    same(weights.arrays, expected_of(name))
    assert weights.format == name.split(".")[0]
    assert weights.format in FORMATS


@pytest.mark.parametrize("name", every_format())
def test_the_format_is_known_by_the_content_and_not_by_the_name(tmp_path, name):
    weights = read_weights(written(tmp_path / "weights.jpg", every_format()[name]))
    assert weights.format == name.split(".")[0]


@pytest.mark.parametrize("name", every_format())
def test_limits(tmp_path, name):
    data = every_format()[name]
    path = written(tmp_path / name, data)
    size = sum(array.nbytes for array in expected_of(name).values())
    with pytest.raises(UserError, match="above the limit of"):
        read_weights(path, limit=size - 1)
    with pytest.raises(UserError, match="above the limit of"):
        read_weights(path, limit=len(data) - 1)
    same(read_weights(path, limit=len(data) + size).arrays, expected_of(name))


def test_the_limit_holds_for_the_arrays_where_the_file_is_smaller(tmp_path):
    zeros = {"a": np.zeros(250_000, np.float32), "b": np.zeros(250_000, np.float32)}
    files = {
        "a.npz": writers.npz(zeros, np.savez_compressed),
        "a.pth": writers.torch_zip(
            writers.pickled({name: writers.pickled_tensor("0", (250_000,), (0,), 1) for name in zeros}), {"0": bytes(4)}
        ),
    }
    for name, data in files.items():
        path = written(tmp_path / name, data)
        assert len(data) < 1_000_000
        told = r"brings the arrays to 2,000,000 bytes, above the limit of 1,999,999|archive"
        with pytest.raises(UserError, match=told):
            read_weights(path, limit=1_999_999)
        same(read_weights(path, limit=2_000_000 + 1000).arrays, zeros)


@pytest.mark.parametrize("name", [name for name in every_format() if not name.endswith(("zip", "npz"))])
def test_archives_of_one_file(tmp_path, name):
    members = {
        "README.md": b"hello",
        f"model/{name}": every_format()[name],
        "__MACOSX/._x.pth": b"junk",
        "model/test_data_set_0/input_0.pb": b"junk",
        "labels.txt": b"cat\ndog\n",
    }
    archives = {
        "zip": writers.zipped(members),
        "deflated.zip": writers.zipped(members, zipfile.ZIP_DEFLATED),
        "tar": writers.tarred(members, "w:"),
        "tar.gz": writers.tarred(members),
    }
    for ending, data in archives.items():
        weights = read_weights(written(tmp_path / f"{name}.{ending}", data))
        same(weights.arrays, expected_of(name))
        assert weights.metadata["member"] == f"model/{name}"
        assert weights.sha256 == hashlib.sha256(data).hexdigest()


def test_archives_that_hold_a_graph_beside_a_checkpoint_or_too_much(tmp_path):
    """The first as facenet publishes, the others as nobody should."""
    index, (data,) = writers.checkpoint_v2(ARRAYS)
    checkpoint = {"20180402/model.ckpt-275.index": index, "20180402/model.ckpt-275.data-00000-of-00001": data}
    graph = {"20180402/20180402.pb": writers.graph_constant("other", np.ones(3, np.float32))}
    weights = read_weights(written(tmp_path / "facenet.zip", writers.zipped({**graph, **checkpoint})))
    same(weights.arrays, ARRAYS)
    assert list(read_weights(written(tmp_path / "5h.zip", writers.zipped(graph))).arrays) == ["other"]
    del checkpoint["20180402/model.ckpt-275.data-00000-of-00001"]
    for members, message in (
        (checkpoint, "has no '20180402/model.ckpt-275.data-00000-of-00001'"),
        ({"a.pth": b"", "b.pth": b""}, "2 weight files .a.pth, b.pth., not one"),
        ({"a.txt": b""}, "no weight file, not one; it holds a.txt"),
        ({}, "it holds nothing"),
        ({"a.pth": writers.zipped({"b.pth": b""})}, "archive in an archive"),
        ({"a.pth": b"<html>"}, "web page"),
    ):
        with pytest.raises(UserError, match=message):
            read_weights(written(tmp_path / "a.zip", writers.zipped(members)))


def test_archives_whose_members_lie_elsewhere(tmp_path):
    good = every_format()["npz.npz"]
    nameless = writers.zipped({"a.ckpt": good}).replace(b"a.ckpt", b"\0.ckpt")
    with pytest.raises(UserError, match="a member named '', a path outside of the archive"):
        read_weights(written(tmp_path / "bad", nameless))
    for name in ("../a.ckpt", "/a.ckpt", "a/../../b.ckpt"):
        for archive in (writers.zipped({name: good}), writers.tarred({name: good})):
            with pytest.raises(UserError, match="outside of the archive"):
                read_weights(written(tmp_path / "bad", archive))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        link = tarfile.TarInfo("model.ckpt")
        link.type, link.linkname = kind, "/etc/passwd"
        with pytest.raises(UserError, match="not a regular file"):
            read_weights(written(tmp_path / "bad", writers.tarred({"model.ckpt": link})))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_bombs(tmp_path):
    """200 MB of zeros in 200 kB, in a zip, in a gzip, and declared by a few bytes."""
    zeros = bytes(200 << 20)
    bombs = {
        "zip": writers.zipped({"a.pth": zeros}, zipfile.ZIP_DEFLATED),
        "tar.gz": writers.tarred({"a.pth": zeros}),
        "npz": writers.zipped({"a.npy": zeros}, zipfile.ZIP_DEFLATED),
        "pb": writers.graph_node(
            "splat",
            "Const",
            value=writers.field(
                8, writers.field(1, 1) + writers.field(2, writers.tensor_shape((1 << 26,))) + writers.field(5, 1.0)
            ),
        ),
        "pth": writers.torch_zip(
            writers.pickled({"a": writers.pickled_tensor("0", (1 << 26,), (0,), 1)}), {"0": bytes(4)}
        ),
    }
    del zeros
    for name, data in bombs.items():
        with pytest.raises(UserError, match="more than 100 times as much is not read"):
            read_weights(written(tmp_path / f"bomb.{name}", data))


def test_a_gzip_of_many_parts_is_read_in_one_go(tmp_path):
    """Parts may follow one another, and zeros the last; and what follows a part is not copied for each."""
    data = gzip.compress(writers.tarred({"a.npz": writers.npz(ARRAYS)}, "w:")[:700])
    data += gzip.compress(writers.tarred({"a.npz": writers.npz(ARRAYS)}, "w:")[700:])
    same(read_weights(written(tmp_path / "a.tgz", data + bytes(9))).arrays, ARRAYS)
    for length in range(3, len(data), 61):
        with pytest.raises(UserError, match=r"truncated|damaged|no weight file"):
            read_weights(written(tmp_path / "b.tgz", data[:length]))
    started = time.process_time()
    with pytest.raises(UserError, match="tar archive that cannot be read"):
        read_weights(written(tmp_path / "c.tgz", gzip.compress(b"") * 150_000))
    assert time.process_time() - started < 4  # linear; it took ten seconds, and four times as many for the double


def test_a_zip_whose_sizes_lie(tmp_path):
    """A member that decompresses to more than it declares: the size is in the local header and in the directory."""
    data = bytearray(writers.zipped({"a.npy": bytes(5000)}, zipfile.ZIP_DEFLATED))
    for place in (22, data.index(b"PK\x01\x02") + 24):
        assert struct.unpack_from("<I", data, place) == (5000,)
        struct.pack_into("<I", data, place, 50)
    with pytest.raises(UserError, match=r"'a\.npy' in the archive .*: it is damaged"):
        read_weights(written(tmp_path / "a.npz", bytes(data)))
    for place in (22, data.index(b"PK\x01\x02") + 24):
        struct.pack_into("<I", data, place, 50_000)
    with pytest.raises(UserError, match="holds 5,000 bytes and declares 50,000: it is damaged"):
        read_weights(written(tmp_path / "a.npz", bytes(data)))
    stored = bytearray(writers.zipped({"a.npy": bytes(5000)}))
    for place in (22, stored.index(b"PK\x01\x02") + 24):
        struct.pack_into("<I", stored, place, 50)
    with pytest.raises(UserError, match="is stored in 5,000 bytes and declares 50"):
        read_weights(written(tmp_path / "a.npz", bytes(stored)))


def test_zips_of_other_kinds(tmp_path):
    for method, number in ((zipfile.ZIP_BZIP2, 12), (zipfile.ZIP_LZMA, 14)):
        with pytest.raises(UserError, match=f"compressed by method {number}, not stored or deflated"):
            read_weights(written(tmp_path / "a.npz", writers.zipped({"a.npy": bytes(5000)}, method)))
    locked = bytearray(writers.zipped({"a.npy": bytes(5000)}))
    for place in (6, locked.index(b"PK\x01\x02") + 8):
        locked[place] |= 1
    with pytest.raises(UserError, match=r"'a\.npy' in the archive is encrypted"):
        read_weights(written(tmp_path / "a.npz", bytes(locked)))


def test_sizes_up_to_the_limit_and_not_a_byte_more(tmp_path):
    budget = ReadBudget(100, 10)
    budget.charge(100, "a")
    with pytest.raises(ReadError, match="b brings the arrays to 101 bytes, above the limit of 100"):
        budget.charge(1, "b")
    # Not even opened: a file of a terabyte, none of which is there.
    with (tmp_path / "large.pth").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(UserError, match="the file has 1,099,511,627,776 bytes, above the limit"):
        read_weights(tmp_path / "large.pth")


def test_an_empty_array_may_not_have_any_other_size(tmp_path):
    """NumPy cannot hold 2**61 rows of nothing."""
    shape = (0, 1 << 61)
    files = {
        "a.safetensors": writers.safetensors({"a": np.zeros((0, 2), np.float32)}, a={"shape": list(shape)}),
        "a.pb": writers.graph_node(
            "a", "Const", value=writers.field(8, writers.field(1, 1) + writers.field(2, writers.tensor_shape(shape)))
        ),
    }
    for name, data in files.items():
        with pytest.raises(UserError, match="impossible shape"):
            read_weights(written(tmp_path / name, data))


def test_a_refusal_is_one_line_whatever_it_quotes(tmp_path):
    long = "a" * 5_000_000
    for data in (
        writers.zipped({"a\nb.pth": b"", "\x1b[31mred.pth": b""}),
        writers.torch_zip(writers.pickled({long: writers.pickled_tensor("0", (3,), (1, 1), 3)}), {"0": bytes(12)}),
        writers.torch_state({long: np.ones(2, np.float32)}),
        writers.safetensors({"a\nb": np.ones(2, np.float32)}),
        writers.safetensors({"\ud800": np.ones(2, np.float32)}),
        writers.graph_constant("weights\r", np.ones(2, np.float32)),
    ):
        with pytest.raises(UserError) as caught:
            read_weights(written(tmp_path / "a.bin", data))
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 1200


def test_old_tar_files_of_torch(tmp_path):
    data = writers.tarred({"storages": b"1", "tensors": b"2", "pickle": b"3"}, "w:")
    with pytest.raises(UserError, match=r"PyTorch before 0\.1\.10"):
        read_weights(written(tmp_path / "old.pth", data))


def test_files_that_other_calls_read(tmp_path):
    (tmp_path / "params.msgpack").write_bytes(b"\x81\xa6params\x80")
    with pytest.raises(UserError, match=r"params\.msgpack: .* flax\.serialization\.msgpack_restore\("):
        read_weights(tmp_path / "params.msgpack")
    (tmp_path / "config.json").touch()
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"this is the workdir of a run; .* inception_jax\.load_run\(path\)"):
        read_weights(tmp_path)
