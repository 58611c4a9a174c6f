"""Writes the TensorFlow publishers' variable names and shapes, from their own built networks, to tensorflow.txt.gz.

    SLIM_NETS=DIR python tests/pretrained/names/make_names_tf.py

Runs where TensorFlow and the publishers' packages are installed (references/tf_side.py says which, and what SLIM_NETS
is). The file has a line "[source model classes]" per network, then "name shape" per variable, in the order of creation.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("tensorflow.txt.gz")
sys.path.insert(0, str(Path(__file__).parents[3] / "inception_jax" / "parity" / "references"))

Found = Iterator[tuple[str, int, dict[str, Any]]]


def _variables(tf: Any) -> dict[str, Any]:
    return {variable.op.name: variable.shape for variable in tf.compat.v1.global_variables()}


def slim_networks() -> Found:
    import tf_side

    slim = tf_side.import_slim()
    import tensorflow as tf

    for model, size in (
        ("inception_v1_bn", 224),
        ("inception_v2", 224),
        ("inception_v3", 299),
        ("inception_v4", 299),
        ("inception_resnet_v2", 299),
    ):
        with tf.Graph().as_default(), slim.arg_scope(tf_side.slim_scope("float32")):
            build = tf_side.slim_function(model.removesuffix("_bn"), slim)
            build(tf.compat.v1.placeholder(tf.float32, (1, size, size, 3)), num_classes=1001)
            yield model, 1001, _variables(tf)


def facenet_networks() -> Found:
    import tf_side

    slim = tf_side.import_slim()
    import tensorflow as tf

    with tf.Graph().as_default():
        images = tf.compat.v1.placeholder(tf.float32, (1, 160, 160, 3))
        module = tf_side.load_nets("inception_resnet_v1", slim)
        features, _ = module.inference(images, 1.0, bottleneck_layer_size=512)
        slim.fully_connected(features, 8631, activation_fn=None, scope="Logits")
        yield "inception_resnet_v1", 8631, _variables(tf)


def keras_networks() -> Found:
    import keras

    for model, name in (
        ("inception_v3", "InceptionV3"),
        ("inception_resnet_v2", "InceptionResNetV2"),
        ("xception", "Xception"),
    ):
        keras.utils.clear_session()
        network = getattr(keras.applications, name)(weights=None)
        yield model, 1000, {f"{layer.name}/{v.name}": v.shape for layer in network.layers for v in layer.weights}


NETWORKS = {"slim": slim_networks, "facenet": facenet_networks, "keras": keras_networks}


def main() -> None:
    lines = []
    for source, networks in NETWORKS.items():
        for model, classes, variables in networks():
            lines.append(f"[{source} {model} {classes}]")
            lines += [f"{name} {'x'.join(map(str, shape))}" for name, shape in variables.items()]
    # Without a time in it, the file is the same whenever it is made.
    TARGET.write_bytes(gzip.compress("\n".join(lines).encode(), 9, mtime=0))
    print(f"{TARGET.name}: {len(lines)} lines, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()
