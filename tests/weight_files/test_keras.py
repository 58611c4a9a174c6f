"""Keras's files: one form of names from all layouts, and no way out of the file."""

import importlib.util
import io
import os
import zipfile

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files import keras_names, keras_process, read_weights
from inception_jax.weight_files.types import ReadBudget, ReadError

from .make_files import GOLDENS, numbers
from .test_reading import same, written
from .writers import zipped

h5py = pytest.importorskip("h5py", reason="reading Keras's files needs h5py (the extra `convert`)")

SHAPES = {
    "conv2d/kernel": (3, 3, 3, 2),
    "batch_normalization/beta": (2,),
    "batch_normalization/moving_mean": (2,),
    "batch_normalization/moving_variance": (2,),
    "block2_sepconv1/depthwise_kernel": (2, 2, 2, 1),
    "block2_sepconv1/pointwise_kernel": (1, 1, 2, 2),
}


def golden(name: str) -> bytes:
    with zipfile.ZipFile(GOLDENS / f"{name[:6]}.zip") as archive:
        return archive.read(name)


def small_model(conv="conv2d", norm="batch_normalization") -> dict[str, np.ndarray]:
    """The weights of make_files.py's model; its layers without names may be numbered from anywhere."""
    names = {name: name.replace("conv2d/", f"{conv}/").replace("batch_normalization/", f"{norm}/") for name in SHAPES}
    return {renamed: numbers(renamed, SHAPES[name]) for name, renamed in names.items()}


@pytest.mark.parametrize("name", ["keras3.keras", "keras3_model.h5", "keras3.weights.h5", "keras2.h5"])
def test_goldens(tmp_path, name):
    weights = read_weights(written(tmp_path / "weights", golden(name)))
    expected = small_model() if name == "keras2.h5" else small_model("conv2d_1", "batch_normalization_1")
    # Keras 3's weights alone keep no order: there the layers come by class and number.
    same(weights.arrays, expected, order=name != "keras3.weights.h5")
    assert weights.format == ("keras" if name.endswith(".keras") else "keras_h5")
    layers = [layer for layer in weights.metadata["layers"] if any(key.startswith(f"{layer}/") for key in expected)]
    assert layers == list(dict.fromkeys(key.split("/")[0] for key in weights.arrays))
    versions = {"keras3.keras": "3.15.1", "keras3_model.h5": "3.15.1", "keras2.h5": "2.21.0"}
    assert weights.metadata.get("keras_version") == versions.get(name)


def test_the_order_of_weights_of_keras_3_alone(tmp_path):
    weights = read_weights(written(tmp_path / "weights", golden("keras3.weights.h5")))
    assert weights.metadata["layers"] == ["batch_normalization_1", "conv2d_1", "block2_sepconv1"]
    assert weights.metadata["left_out"] == []


def test_states_that_are_no_weights(tmp_path):
    """Keras 3.0 keeps the random generators of dropout, and a compiled model its optimizer."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["layers/conv2d/vars/0"] = numbers("0", (1, 1, 1, 1))
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file["optimizer/vars/0"] = np.array(7)
    weights = read_weights(tmp_path / "a.h5")
    assert list(weights.arrays) == ["conv2d/kernel"]
    assert sorted(weights.metadata["left_out"]) == ["layers/dropout/seed_generator", "optimizer"]


def test_weights_of_keras_2_in_the_form_of_keras_3(tmp_path):
    """No names of layers are in the file: classes and numbers are what there is."""
    expected = {name.replace("block2_sepconv1", "separable_conv2d"): array for name, array in small_model().items()}
    same(read_weights(written(tmp_path / "weights", golden("keras2.weights.h5"))).arrays, expected, order=False)


def test_a_model_in_a_model(tmp_path):
    weights = read_weights(written(tmp_path / "weights", golden("keras2_nested.h5")))
    names = ["a/kernel", "a/bias", "b/gamma", "b/beta", "b/moving_mean", "b/moving_variance"]
    assert list(weights.arrays) == [*(f"inner/{name}" for name in names), "head/kernel", "head/bias"]
    np.testing.assert_array_equal(weights.arrays["inner/a/kernel"], numbers("a/kernel", (3, 2)))


def old_file(path, layers: dict[str, dict[str, np.ndarray]], chunks=1, root="", encode=lambda text: text, **options):
    """An `.h5` as Keras 1 and 2 write it; `chunks` above 1 cuts the lists of names into attributes."""
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file

        def attribute(group, name, texts):
            if chunks == 1:
                group.attrs[name] = [encode(text) for text in texts]
            else:
                for number, piece in enumerate(np.array_split(texts, chunks)):
                    group.attrs[f"{name}{number}"] = [encode(str(text)) for text in piece]

        attribute(top, "layer_names", list(layers))
        for layer, weights in layers.items():
            group = top.create_group(layer)
            attribute(group, "weight_names", list(weights))
            for name, array in weights.items():
                group.create_dataset(name, data=array, **options)
    return path


@pytest.mark.parametrize("encode", [lambda text: text, lambda text: np.bytes_(text.encode())], ids=["vlen", "fixed"])
@pytest.mark.parametrize("chunks,root", [(1, ""), (3, ""), (1, "model_weights"), (2, "model_weights")])
def test_layouts_of_names(tmp_path, encode, chunks, root):
    layers = {
        f"conv2d_{n}": {f"conv2d_{n}/kernel:0": numbers(f"k{n}", (1, n)), f"conv2d_{n}/bias:0": numbers(f"b{n}", (n,))}
        for n in (94, 95, 100, 9)
    }
    expected = {
        f"{layer}/{name.split('/')[1][:-2]}": array
        for layer, weights in layers.items()
        for name, array in weights.items()
    }
    weights = read_weights(old_file(tmp_path / "a.h5", layers, chunks, root, encode))
    same(weights.arrays, expected)
    assert weights.metadata["layers"] == list(layers)


def test_layers_of_keras_1_and_of_shared_scopes():
    """Keras 1 joined the names by underscores; TensorFlow numbered the scopes of layers that are built twice."""
    old = [f"batchnormalization_1_{end}" for end in ("gamma", "beta", "running_mean", "running_std")]
    assert keras_names.from_weight_names("batchnormalization_1", old) == [
        f"batchnormalization_1/{end}" for end in ("gamma", "beta", "moving_mean", "moving_variance")
    ]
    assert keras_names.from_weight_names("block1_conv1", ["block1_conv1_W:0", "block1_conv1_b:0"]) == [
        "block1_conv1/kernel",
        "block1_conv1/bias",
    ]
    assert keras_names.from_weight_names("s", ["s_depthwise_kernel", "s_pointwise_kernel"]) == [
        "s/depthwise_kernel",
        "s/pointwise_kernel",
    ]
    assert keras_names.from_weight_names("conv2d_1", ["conv2d_1_1/kernel:0"]) == ["conv2d_1/kernel"]
    assert keras_names.from_weight_names("conv2d_1", ["model/conv2d_1/kernel:0"]) == ["conv2d_1/kernel"]
    assert keras_names.from_weight_names("input", []) == []


@pytest.mark.parametrize(
    "group,count,config,expected",
    [
        ("conv2d_12", 1, {}, ["kernel"]),
        ("conv2d", 2, {}, ["kernel", "bias"]),
        ("dense", 2, {}, ["kernel", "bias"]),
        ("separable_conv2d_3", 2, {}, ["depthwise_kernel", "pointwise_kernel"]),
        ("batch_normalization", 4, {}, ["gamma", "beta", "moving_mean", "moving_variance"]),
        ("batch_normalization_3", 3, {}, ["beta", "moving_mean", "moving_variance"]),
        ("batch_normalization", 3, {"scale": True, "center": False}, ["gamma", "moving_mean", "moving_variance"]),
        ("batch_normalization", 2, {}, ["moving_mean", "moving_variance"]),
        ("batch_normalization", 5, {}, ["0", "1", "2", "3", "4"]),
        ("conv2d", 3, {}, ["0", "1", "2"]),
        ("prelu", 1, {}, ["0"]),
    ],
)
def test_variables_by_the_class_of_the_layer(group, count, config, expected):
    assert keras_names.variable_names(group, count, config) == expected


def test_classes_in_snake_case():
    for name, expected in {
        "Conv2D": "conv2d",
        "BatchNormalization": "batch_normalization",
        "SeparableConv2D": "separable_conv2d",
        "InputLayer": "input_layer",
        "GlobalAveragePooling2D": "global_average_pooling2d",
        "ReLU": "re_lu",
    }.items():
        assert keras_names.snake_case(name) == expected


def test_twenty_layers_come_by_number_and_not_by_the_alphabet(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for n in range(20):
            group = file.create_group(f"layers/conv2d_{n}/vars" if n else "layers/conv2d/vars")
            group.create_dataset("0", data=numbers(str(n), (1, 1, 1, 1)))
    found = read_weights(tmp_path / "a.h5").arrays
    assert list(found) == ["conv2d/kernel", *(f"conv2d_{n}/kernel" for n in range(1, 20))]


GOOD = {"a": {"a/kernel:0": np.ones(3, np.float32)}}


def refused(path, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_weights(path)


def test_nothing_outside_of_the_file_is_followed(tmp_path):
    """Links, external storage and virtual datasets, each to a file that is there and would fit."""
    other = old_file(tmp_path / "other.h5", GOOD)
    (tmp_path / "raw").write_bytes(np.ones(3, np.float32).tobytes())
    layout = h5py.VirtualLayout((3,), np.float32)
    layout[:] = h5py.VirtualSource(other, "a/a/kernel:0", (3,))

    def linked(group):
        group["a/kernel:0"] = h5py.ExternalLink("other.h5", "/a/a/kernel:0")

    def soft(group):
        group["real"] = np.ones(3, np.float32)
        group["a/kernel:0"] = h5py.SoftLink("/a/real")

    def external(group):
        group.create_dataset("a/kernel:0", (3,), np.float32, external=[(str(tmp_path / "raw"), 0, 12)])

    def virtual(group):
        group.create_virtual_dataset("a/kernel:0", layout)

    for make, message in (
        (linked, "ExternalLink.*not followed"),
        (soft, "SoftLink.*not followed"),
        (external, "lies in other files"),
        (virtual, "lies in other files"),
    ):
        path = old_file(tmp_path / "a.h5", {"a": {}})
        with h5py.File(path, "a") as file:
            file["a"].attrs["weight_names"] = ["a/kernel:0"]
            make(file["a"])
        refused(path, message)
    with h5py.File(path, "w") as file:
        file["model_weights"] = h5py.ExternalLink("other.h5", "/")
    refused(path, "ExternalLink.*not followed")


def test_bombs_and_filters(tmp_path):
    zeros = np.zeros(1 << 25, np.float32)
    path = old_file(tmp_path / "a.h5", {"a": {"a/kernel:0": zeros}}, compression="gzip", compression_opts=9)
    assert path.stat().st_size < 1 << 19
    refused(path, "more than 100 times as much is not read")
    good = {"a": {"a/kernel:0": np.ones((20, 20), np.float32)}}
    path = old_file(path, good, compression="gzip", shuffle=True, fletcher32=True)
    same(read_weights(path).arrays, {"a/kernel": np.ones((20, 20), np.float32)})
    refused(old_file(path, good, compression="lzf"), "HDF5 filter 32000, not deflate, shuffle, fletcher32")
    # Never written: the file has only the size that it claims.
    with h5py.File(old_file(path, {"a": {}}), "a") as file:
        file["a"].attrs["weight_names"] = ["w"]
        file["a"].create_dataset("w", (1 << 40,), np.float32, chunks=(1 << 10,))
    refused(path, "above the limit")
    # Small, but in a chunk that is not.
    with h5py.File(old_file(path, {"a": {}}), "a") as file:
        file["a"].attrs["weight_names"] = ["w"]
        file["a"].create_dataset("w", (3,), np.float32, chunks=(1 << 27,), maxshape=(None,), compression="gzip")
    refused(path, "a chunk of weight 'w' brings")


def test_what_is_not_kerass(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["something"] = np.ones(3)
    refused(path, "not of Keras: its top level holds 'something'")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [1, 2]
    refused(path, "'layer_names' of '/' does not hold strings")
    text = old_file(path, {"a": {"a/kernel:0": np.array([b"text"])}})
    refused(text, "holds .S4, not numbers")
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/1"] = np.ones(3)
    refused(path, "variables of 'layers/conv2d' are '1', not 0, 1")
    with h5py.File(path, "w") as file:
        file["/".join(["layers", *"x" * 30, "vars", "0"])] = np.ones(3)
    refused(path, "more than 20 deep")
    with h5py.File(path, "w") as file:
        file["layers/a/vars/0"] = np.ones(3)
        file["layers/a/b"] = file["layers"]
    refused(path, "more than 20 deep")
    big = old_file(path, {"a": {"a/kernel:0": numbers("x", (3,)).astype(">f4")}})
    same(read_weights(big).arrays, {"a/kernel": numbers("x", (3,))})


def test_keras_archives(tmp_path):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["layers/batch_normalization/vars/0"] = numbers("0", (2,))
        file["layers/batch_normalization/vars/1"] = numbers("1", (2,))
        file["layers/batch_normalization/vars/2"] = numbers("2", (2,))
    config = (
        b'{"class_name": "Functional", "config": {"layers": [{"class_name": "BatchNormalization", "config": '
        b'{"name": "odd", "center": false}}, 5, {"class_name": "X"}]}}'
    )
    members = {"config.json": config, "metadata.json": b"{}", "model.weights.h5": stream.getvalue()}
    weights = read_weights(written(tmp_path / "a.keras", zipped(members)))
    names = ("odd/gamma", "odd/moving_mean", "odd/moving_variance")
    same(weights.arrays, {name: numbers(str(place), (2,)) for place, name in enumerate(names)})
    deep = b"[" * 100_000
    for text, message in ((b"[]", "not a JSON object"), (b"{", "not JSON"), (b"\xff", "not text"), (deep, "not JSON")):
        refused(written(tmp_path / "a.keras", zipped({**members, "config.json": text})), f"config.json is {message}")


def test_a_configuration_that_can_be_read_but_not_handed_on():
    """json writes a few levels less than it reads, deeper in the stack."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ReadError, match="configuration is too deep"):
        keras_process.read(memoryview(golden("keras3.weights.h5")), ReadBudget(1 << 30, 1 << 20), deep)


def test_without_h5py(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "h5py" else find(name))
    refused(written(tmp_path / "a.h5", golden("keras2.h5")), r"pip install 'inception_jax\[convert\]'")
    assert os.listdir(tmp_path) == ["a.h5"]
