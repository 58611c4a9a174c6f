"""Runs the TensorFlow publishers' networks with given weights; the package's docstring has the format of the files.

    python tf_side.py REQUEST.npz RESULT.npz

Needs TensorFlow and the publisher's package (tf_slim with tf_keras; keras; onnx and onnxruntime), and nothing of
inception_jax. Three networks are in no package: SLIM_NETS names a directory with inception_v4.py and
inception_resnet_v2.py of tensorflow/models, research/slim/nets, and inception_resnet_v1.py of davidsandberg/facenet,
src/models. GoogLeNets without batch norm are executed layer by layer (googlenets.py). The arrays of
the request and the variables of the network must have the same names.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from googlenets import run_caffe, run_inception5h, run_onnx
from strictness import check_names, versions

Arrays = Mapping[str, np.ndarray]


# --- slim: graphs of TensorFlow 1 ------------------------------------------------------------------------------------

# model -> slim's name of its function.
_SLIM = {
    "inception_v1_bn": "inception_v1",
    "inception_v2": "inception_v2",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "inception_resnet_v2": "inception_resnet_v2",
}
_IN_PACKAGE = ("inception_v1", "inception_v2", "inception_v3")
# Functions with the argument create_aux_logits.
_WITH_AUX = ("inception_v3", "inception_v4", "inception_resnet_v2")


def import_slim() -> Any:
    """Imports tf_slim in a TensorFlow without the layers of version 1, which tf_keras has."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    from tf_keras.src import legacy_tf_layers

    sys.modules["tf_keras.legacy_tf_layers"] = legacy_tf_layers
    for name in ("base", "convolutional", "core", "normalization", "pooling"):
        module = importlib.import_module(f"tf_keras.src.legacy_tf_layers.{name}")
        sys.modules[f"tf_keras.legacy_tf_layers.{name}"] = module
    import tensorflow as tf
    import tf_slim
    from tensorflow.python.framework import ops

    # tf_slim looks for the class in its old place.
    if not hasattr(ops, "Tensor"):
        ops.Tensor = tf.Tensor
    return tf_slim


def slim_function(name: str, slim: Any) -> Any:
    """Returns slim's function of a network, from the package or from the file in SLIM_NETS."""
    if name in _IN_PACKAGE:
        module = importlib.import_module(f"tf_slim.nets.{name}")
        return getattr(module, name)
    return getattr(load_nets(name, slim), name)


def load_nets(name: str, slim: Any) -> Any:
    """Loads a file in SLIM_NETS as a module, with its imports replaced by today's."""
    folder = os.environ.get("SLIM_NETS")
    if not folder or not (Path(folder) / f"{name}.py").exists():
        raise SystemExit(f"SLIM_NETS = {folder!r}: must name a directory with the publisher's {name}.py")
    import tensorflow as tf

    # The files import the TensorFlow 1 of their time; the functions stay unchanged.
    source = (Path(folder) / f"{name}.py").read_text()
    for old in (
        "import tensorflow.compat.v1 as tf",
        "import tensorflow as tf",
        "import tf_slim as slim",
        "from tensorflow.contrib import slim as contrib_slim",
        "import tensorflow.contrib.slim as slim",
        "slim = tf.contrib.slim",
        "slim = contrib_slim",
        "from nets import inception_utils",
    ):
        source = "\n".join("" if line.strip() == old else line for line in source.split("\n"))
    module = types.ModuleType(name)
    compat = tf.compat.v1
    if not hasattr(compat, "compat"):
        compat.compat = tf.compat
    utils = types.SimpleNamespace(inception_arg_scope=None)  # used outside of the functions only
    module.__dict__.update(tf=compat, slim=slim, inception_utils=utils)
    exec(compile(source, name, "exec"), module.__dict__)
    return module


def slim_scope(dtype: str) -> Any:
    """Returns slim's argument scope of all Inception networks; its fused batch norm does not support float64."""
    scope = importlib.import_module("tf_slim.nets.inception_v3").inception_v3_arg_scope()
    if dtype == "float64":
        for arguments in scope.values():
            if "normalizer_params" in arguments:
                arguments["normalizer_params"]["fused"] = False
    return scope


def run_slim(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs a network of slim's; returns the arrays of the result."""
    slim = import_slim()
    import tensorflow as tf

    v1, dtype, train = tf.compat.v1, str(request["dtype"]), str(request["mode"]) == "train"
    name, classes = _SLIM[str(request["model"])], int(request["classes"])
    build = slim_function(name, slim)
    options = {"num_classes": classes, "is_training": train, "dropout_keep_prob": 1.0}
    if name in _WITH_AUX:
        options["create_aux_logits"] = any("/AuxLogits/" in array for array in weights)
    with tf.Graph().as_default(), v1.Session() as session:
        images = tf.constant(request["images"].astype(dtype))
        with slim.arg_scope(slim_scope(dtype)):
            logits, ends = build(images, **options)
        heads = [ends["AuxLogits"]] if train and "AuxLogits" in ends else []
        wanted: dict[str, Any] = {"logits": logits} | {f"aux/{i}": head for i, head in enumerate(heads)}
        total = None
        if "probe" in request:
            total = tf.reduce_sum(logits * request["probe"].astype(dtype))
            for i, head in enumerate(heads):
                total += tf.reduce_sum(head * request[f"probe_aux/{i}"].astype(dtype))
        result = run_graph(session, f"slim {name}", weights, wanted, total)
    return result | {"version": np.array(versions("tf-slim", "tensorflow"))}


def run_graph(session: Any, what: str, weights: Arrays, wanted: dict[str, Any], total: Any) -> dict[str, np.ndarray]:
    """Evaluates `wanted` with the given weights, and the gradients of `total` unless it is None.

    Args:
      session: of TensorFlow 1.
      what: the network, for messages.
      weights: {name of the variable: array}.
      wanted: {name in the result: tensor}.
      total: a scalar tensor, or None.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    variables = {variable.op.name: variable for variable in v1.global_variables()}
    check_names(what, variables, weights)
    for array, variable in variables.items():
        initial = variable.initializer.inputs[1]
        session.run(variable.initializer, {initial: weights[array].astype(initial.dtype.as_numpy_dtype)})
    if total is not None:
        # facenet's running statistics are among the trainable variables.
        trained = [variable for variable in variables.values() if "/moving_" not in variable.op.name]
        pairs = zip(trained, tf.gradients(total, trained), strict=True)
        wanted |= {f"g/{variable.op.name}": found for variable, found in pairs if found is not None}
    return session.run(wanted)


def run_facenet(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs facenet's Inception-ResNet-v1 with its train_softmax.py's classifier; returns the arrays of the result."""
    slim = import_slim()
    import tensorflow as tf

    v1, dtype, train = tf.compat.v1, str(request["dtype"]), str(request["mode"]) == "train"
    module = load_nets("inception_resnet_v1", slim)
    features = weights["InceptionResnetV1/Bottleneck/weights"].shape[1]
    fused = {} if dtype == "float32" else {"fused": False}
    with tf.Graph().as_default(), v1.Session() as session:
        images = tf.constant(request["images"].astype(dtype))
        with slim.arg_scope([slim.batch_norm], **fused):
            prelogits, _ = module.inference(images, 1.0, phase_train=train, bottleneck_layer_size=features)
        logits = slim.fully_connected(prelogits, int(request["classes"]), activation_fn=None, scope="Logits")
        wanted: dict[str, Any] = {"logits": logits}
        total = tf.reduce_sum(logits * request["probe"].astype(dtype)) if "probe" in request else None
        result = run_graph(session, "facenet", weights, wanted, total)
    return result | {"version": np.array(f"facenet, {versions('tf-slim', 'tensorflow')}")}


# --- Keras -----------------------------------------------------------------------------------------------------------

_KERAS = {"inception_v3": "InceptionV3", "inception_resnet_v2": "InceptionResNetV2", "xception": "Xception"}


def run_keras(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs a network of keras.applications; returns the arrays of the result."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow as tf

    dtype, train = str(request["dtype"]), str(request["mode"]) == "train"
    keras.config.set_floatx(dtype)
    name, images = _KERAS[str(request["model"])], tf.constant(request["images"].astype(dtype))
    classes = int(request["classes"])
    top = {"classes": classes, "classifier_activation": None} if classes else {"include_top": False, "pooling": "avg"}
    network = getattr(keras.applications, name)(weights=None, input_shape=tuple(images.shape[1:]), **top)
    variables = {f"{layer.name}/{v.name}": v for layer in network.layers for v in layer.weights}
    check_names(f"keras {name}", variables, weights)
    for array, variable in variables.items():
        variable.assign(weights[array].astype(dtype))
    trained = {array: v.value for array, v in variables.items() if v.trainable}
    with tf.GradientTape() as tape:
        logits = network(images, training=train)
        total = tf.reduce_sum(logits * request["probe"].astype(dtype)) if "probe" in request else None
    result = {"logits": np.asarray(logits), "version": np.array(versions("keras", "tensorflow"))}
    if total is not None:
        found = tape.gradient(total, trained)
        result |= {f"g/{array}": np.asarray(value) for array, value in found.items() if value is not None}
    return result


RUNNERS = {
    "slim": run_slim,
    "facenet": run_facenet,
    "keras": run_keras,
    "caffe": run_caffe,
    "onnx": run_onnx,
    "inception5h": run_inception5h,
}


def main(request: str, result: str) -> None:
    """Reads a request and writes its result."""
    with np.load(request, allow_pickle=False) as arrays:
        asked = {name: arrays[name] for name in arrays.files}
    weights = {name[2:]: array for name, array in asked.items() if name.startswith("w/")}
    np.savez(result, **RUNNERS[str(asked["source"])](asked, weights))


if __name__ == "__main__":
    main(*sys.argv[1:])
