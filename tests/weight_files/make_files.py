"""Makes the files in goldens/, each with the publisher's own library, so that the tests need none of them.

    python tests/weight_files/make_files.py --only=torch        (torch, safetensors)
    python tests/weight_files/make_files.py --only=tensorflow   (tensorflow)
    python tests/weight_files/make_files.py --only=keras        (keras 3)
    python tests/weight_files/make_files.py --only=tf_keras     (tf_keras, which is Keras 2)
    python tests/weight_files/make_files.py --only=onnx         (onnx)

Made with torch 2.14.1, safetensors 0.8.0, tensorflow 2.21.0, keras 3.15.1, tf_keras 2.21.0 and onnx 1.23.2. The values
are a function of the names (`numbers`), from which the tests know them.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

GOLDENS = Path(__file__).resolve().parent / "goldens"


def numbers(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The values of one array, float32: halves between -64 and 63.5, which bfloat16 and float16 hold exactly."""
    start = zlib.crc32(name.encode()) % 256
    count = int(np.prod(shape, dtype=np.int64))
    return (((start + 37 * np.arange(count)) % 256) / 2 - 64).astype(np.float32).reshape(shape)


def make_torch() -> None:
    """State dicts in the zip form and the older one, what people wrap them in, and three that must be refused."""
    import torch
    from safetensors.torch import save_file

    def tensor(name, shape, dtype=torch.float32):
        return torch.from_numpy(numbers(name, shape)).to(dtype)

    shared = tensor("shared", (4, 6))
    state = {
        "conv.weight": torch.nn.Parameter(tensor("conv.weight", (2, 3, 3, 2))),
        "half": tensor("half", (3, 2), torch.float16),
        "brain": tensor("brain", (3, 2), torch.bfloat16),
        "double": tensor("double", (5,), torch.float64),
        "bn.num_batches_tracked": torch.tensor(12345678901),
        "flags": tensor("flags", (4,)) > 0,
        "bytes": torch.arange(5, dtype=torch.uint8),
        "shared": shared,
        "transposed": shared.T,
        "slice": shared[1:3, 2:5],
        "every_other": shared[:, ::2],
        "expanded": shared[:1].expand(3, 6),
        "permuted": shared.reshape(2, 2, 6).permute(2, 0, 1),
        "empty": torch.zeros(0, 3),
    }
    torch.save(state, GOLDENS / "torch_zip.pth")
    torch.save(state, GOLDENS / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))
    for name, value in module.state_dict().items():
        value.copy_(tensor(name, tuple(value.shape)))
    parallel = torch.nn.DataParallel(module).state_dict()
    training = {"epoch": 3, "state_dict": parallel, "loss": 0.5, "args": [1, (2, None)]}
    torch.save(training, GOLDENS / "torch_training.pth")
    torch.save(training, GOLDENS / "torch_training_legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(module, GOLDENS / "torch_module.pth")
    torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.5, 0, torch.qint8)}, GOLDENS / "torch_quantised.pth")
    torch.jit.save(torch.jit.script(module.eval()), GOLDENS / "torch_script.pt")
    _forget_places(GOLDENS / "torch_script.pt")
    names = ("conv.weight", "half", "brain", "double", "bn.num_batches_tracked", "flags", "empty")
    save_file({name: state[name].contiguous() for name in names}, GOLDENS / "torch.safetensors", {"format": "pt"})


def _forget_places(path):
    """Takes the notes for debuggers out of a TorchScript archive: they name the folders of the machine."""
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in kept.items():
            archive.writestr(name, data)


def make_tensorflow() -> None:
    """Checkpoints of both versions with a partitioned variable, one of objects, and a frozen graph."""
    import tensorflow as tf

    v1 = tf.compat.v1

    def variable(name, shape, dtype, **options):
        return v1.get_variable(
            name,
            shape,
            dtype,
            initializer=lambda size, dtype=None, partition_info=None: tf.cast(
                numbers(name, tuple(shape))[_where(partition_info, size)], dtype
            ),
            **options,
        )

    def _where(partition, size):
        starts = partition.var_offset if partition is not None else [0] * len(size)
        return tuple(slice(start, start + length) for start, length in zip(starts, size, strict=True))

    with tf.Graph().as_default(), v1.Session() as session:
        variable("InceptionV1/Conv2d_1a_7x7/weights", [3, 3, 2, 4], tf.float32, use_resource=False)
        variable("InceptionV1/Conv2d_1a_7x7/BatchNorm/beta", [4], tf.float32, use_resource=False)
        variable("half", [3], tf.float16, use_resource=False)
        variable("brain", [3], tf.bfloat16, use_resource=False)
        variable("double", [3], tf.float64, use_resource=False)
        rows = v1.fixed_size_partitioner(3, axis=0)
        variable("Logits/weights", [300, 2], tf.float32, partitioner=rows, use_resource=False)
        columns = v1.fixed_size_partitioner(2, axis=1)
        variable("Logits/columns", [2, 5], tf.float32, partitioner=columns, use_resource=False)
        steps = v1.constant_initializer(12345678901)
        v1.get_variable("global_step", [], tf.int64, initializer=steps, use_resource=False)
        session.run(v1.global_variables_initializer())
        folder = GOLDENS / "tensorflow_v2"
        folder.mkdir(exist_ok=True)
        saver = v1.train.Saver(save_relative_paths=True)
        saver.save(session, str(folder / "model.ckpt"), global_step=7, write_meta_graph=False)
        # The first version has no bfloat16.
        old = [variable for variable in v1.global_variables() if variable.dtype.base_dtype != tf.bfloat16]
        saver = v1.train.Saver(old, write_version=v1.train.SaverDef.V1)
        saver.save(session, str(GOLDENS / "tensorflow_v1.ckpt"), write_meta_graph=False, write_state=False)
    tracked = tf.train.Checkpoint(kernel=tf.Variable(numbers("kernel", (2, 3))))
    tracked.write(str(GOLDENS / "tensorflow_objects"))
    with tf.Graph().as_default() as graph:
        images = v1.placeholder(tf.float32, [None, 8, 8, 3], "input")
        kernel = tf.constant(numbers("conv2d0_w", (3, 3, 3, 2)), name="conv2d0_w")
        x = tf.nn.conv2d(images, kernel, [1, 2, 2, 1], "SAME", name="conv2d0_pre_relu/conv")
        x = v1.nn.bias_add(x, tf.constant(numbers("conv2d0_b", (2,)), name="conv2d0_b"), name="conv2d0_pre_relu")
        x = v1.nn.lrn(x, depth_radius=5, bias=2, alpha=0.0001, beta=0.5, name="localresponsenorm0")
        tf.add(x, tf.constant(3.0, shape=[2], name="same"), name="output")
        (GOLDENS / "tensorflow_graph.pb").write_bytes(graph.as_graph_def().SerializeToString())


def _keras_model(keras):
    inputs = keras.Input((6, 6, 3), name="pictures")
    x = keras.layers.Conv2D(2, 3, use_bias=False)(inputs)
    x = keras.layers.BatchNormalization(scale=False)(x)
    x = keras.layers.SeparableConv2D(2, 2, use_bias=False, name="block2_sepconv1")(x)
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(x))
    for layer in model.layers:
        paths = [f"{layer.name}/{weight.name.split('/')[-1].split(':')[0]}" for weight in layer.weights]
        layer.set_weights(
            [
                numbers(path, tuple(weight.shape))
                if weight.dtype == "float32"
                else np.zeros(weight.shape, weight.dtype)
                for path, weight in zip(paths, layer.weights, strict=True)
                if "seed" not in path
            ]
        )
    return model


@contextlib.contextmanager
def _zipped(name):
    """A folder whose files come into one zip: HDF5 pads small files with kilobytes of zeros."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        with zipfile.ZipFile(GOLDENS / name, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(folder).iterdir()):
                archive.write(path, path.name)


def make_keras() -> None:
    """One model in Keras 3's three forms. Its unnamed layers do not begin at zero: another model came before."""
    import keras

    _keras_model(keras)
    model = _keras_model(keras)
    with _zipped("keras3.zip") as folder:
        model.save(folder / "keras3.keras")
        model.save(folder / "keras3_model.h5")
        model.save_weights(folder / "keras3.weights.h5")


def make_tf_keras() -> None:
    """The same from Keras 2, and a whole model with a model inside."""
    import tf_keras as keras

    model = _keras_model(keras)
    inner = keras.Sequential([keras.layers.Dense(2, name="a"), keras.layers.BatchNormalization(name="b")], name="inner")
    outer = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1, name="head")])
    for layer in (*inner.layers, outer.layers[-1]):
        layer.set_weights([numbers(weight.name.split(":")[0], tuple(weight.shape)) for weight in layer.weights])
    with _zipped("keras2.zip") as folder:
        model.save_weights(folder / "keras2.h5")
        model.save_weights(folder / "keras2.weights.h5")
        outer.save(folder / "keras2_nested.h5")


def make_onnx() -> None:
    """A model with initializers of every type and place, and one whose values lie in a second file."""
    import ml_dtypes
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(numbers("conv1/7x7_s2_w_0", (2, 3, 3, 3)), "conv1/7x7_s2_w_0")
    listed = helper.make_tensor("listed", TensorProto.FLOAT, (2, 2), numbers("listed", (4,)))
    initializers = [
        kernel,
        listed,
        numpy_helper.from_array(numbers("half", (3,)).astype(np.float16), "half"),
        helper.make_tensor("half_listed", TensorProto.FLOAT16, (3,), numbers("half_listed", (3,))),
        numpy_helper.from_array(numbers("brain", (3,)).astype(ml_dtypes.bfloat16), "brain"),
        helper.make_tensor("brain_listed", TensorProto.BFLOAT16, (3,), numbers("brain_listed", (3,))),
        helper.make_tensor("double", TensorProto.DOUBLE, (3,), numbers("double", (3,))),
        helper.make_tensor("shape", TensorProto.INT64, (2,), [0, -1]),
        helper.make_tensor("text", TensorProto.STRING, (1,), [b"a"]),
    ]
    value = numpy_helper.from_array(numbers("bias", (2,)))
    nodes = [
        helper.make_node("Constant", [], ["bias"], value=value),
        helper.make_node("Constant", [], ["two"], value_ints=[2, -2]),
        helper.make_node("Conv", ["data_0", kernel.name, "bias"], ["conv"], "first", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("LRN", ["conv"], ["norm"], alpha=0.0001, beta=0.75, bias=1.0, size=5),
    ]
    inputs = [helper.make_tensor_value_info("data_0", TensorProto.FLOAT, (1, 3, 8, 8))]
    outputs = [helper.make_tensor_value_info("norm", TensorProto.FLOAT, (1, 2, 4, 4))]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers)
    model = helper.make_model(graph, producer_name="make_files", opset_imports=[helper.make_opsetid("", 17)])
    (GOLDENS / "onnx.onnx").write_bytes(model.SerializeToString())
    far = [kernel, numpy_helper.from_array(numbers("b", (2,)), "b")]
    graph = helper.make_graph(nodes[2:3], "far", inputs, outputs, far)
    onnx.save(
        helper.make_model(graph),
        GOLDENS / "onnx_external.onnx",
        save_as_external_data=True,
        location="onnx_external.bin",
        size_threshold=0,
    )


MAKERS = {
    "torch": make_torch,
    "tensorflow": make_tensorflow,
    "keras": make_keras,
    "tf_keras": make_tf_keras,
    "onnx": make_onnx,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(MAKERS), required=True)
    GOLDENS.mkdir(exist_ok=True)
    MAKERS[parser.parse_args().only]()
