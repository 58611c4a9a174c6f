"""Reads Caffe's `.caffemodel` files: a NetParameter in binary form.

Source: BVLC/caffe, src/caffe/proto/caffe.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from inception_jax.weight_files.protobuf_wire import LENGTH, Message, fields, to_int64
from inception_jax.weight_files.types import InputFile, ParsedFile, ReadBudget, ReadError, add_array

LAYER, LAYERS_V1 = 100, 2  # NetParameter's fields of layers: the current one, and that of 2013 and 2014

# V1LayerParameter.LayerType, by the current names of the layer types.
V1_TYPES = {
    0: "None", 1: "Accuracy", 2: "BNLL", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 7: "EuclideanLoss",
    8: "Flatten", 9: "HDF5Data", 10: "HDF5Output", 11: "Im2col", 12: "ImageData", 13: "InfogainLoss",
    14: "InnerProduct", 15: "LRN", 16: "MultinomialLogisticLoss", 17: "Pooling", 18: "ReLU", 19: "Sigmoid",
    20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise", 26: "Power",
    27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData", 30: "ArgMax", 31: "Threshold", 32: "DummyData",
    33: "Slice", 34: "MVN", 35: "AbsVal", 36: "Silence", 37: "ContrastiveLoss", 38: "Exp", 39: "Deconvolution",
}  # fmt: skip


def read(source: InputFile, budget: ReadBudget) -> ParsedFile:
    """Reads the blobs of the layers as `<layer>/<number>`.

    Blob 0 of a convolution is the weight, [out, in, h, w], and blob 1 the bias. Shapes are the file's. Files of before
    2015 give every blob four dimensions: a dense layer has a weight [1, 1, out, in] and a bias [1, 1, 1, out].

    Args:
      source: the file.
      budget: to which the arrays are charged.

    Returns:
      The arrays. Metadata: "net", the network's name; "layers", a list in the order of the file of {"name", "type",
      "bottoms", "tops"}.

    Raises:
      ReadError: the file is damaged. A file truncated between two layers is not detected: it has fewer layers.
    """
    arrays: dict[str, np.ndarray] = {}
    layers: list[dict[str, Any]] = []
    net = ""
    for number, wire, value in fields(source.data, budget):
        if wire != LENGTH or isinstance(value, int):
            continue
        if number == 1:
            net = bytes(value).decode("utf-8", "replace")
        elif number in (LAYER, LAYERS_V1):
            layer, blobs = _layer(value, budget) if number == LAYER else _layer_v1(value, budget)
            layers.append(layer)
            for place, blob in enumerate(blobs):
                name = f"{layer['name']}/{place}"
                add_array(arrays, name, _blob(blob, name, budget))
    if not arrays:
        raise ReadError(f"a Caffe network of {len(layers)} layers without weights")
    return ParsedFile(arrays, {"net": net, "layers": layers})


def _layer(data: memoryview, budget: ReadBudget) -> tuple[dict[str, Any], Iterable[Message]]:
    """Returns the description of a LayerParameter, and its blobs."""
    layer = Message(data, "a layer", budget)
    name = layer.text(1)
    about = {"name": name, "type": layer.text(2), "bottoms": layer.texts(3), "tops": layer.texts(4)}
    return about, layer.messages(7, f"layer {name!r}")


def _layer_v1(data: memoryview, budget: ReadBudget) -> tuple[dict[str, Any], Iterable[Message]]:
    """Returns the description of a V1LayerParameter, and its blobs."""
    layer = Message(data, "a layer", budget)
    if 1 in layer:
        raise ReadError(
            "a Caffe network of 2013, with another layout of layers: convert it with Caffe's upgrade_net_proto_binary"
        )
    name, kind = layer.text(4), layer.integer(5)
    about = {
        "name": name,
        "type": V1_TYPES.get(kind, f"type {kind}"),
        "bottoms": layer.texts(2),
        "tops": layer.texts(3),
    }
    return about, layer.messages(6, f"layer {name!r}")


def _blob(blob: Message, name: str, budget: ReadBudget) -> np.ndarray:
    """Reads a BlobProto."""
    blob.what = f"blob {name!r}"
    if 7 in blob:
        shape = blob.message(7, blob.what).integers(1).tolist()
    else:
        shape = [to_int64(blob.integer(number)) for number in (1, 2, 3, 4)]
    double = 8 in blob
    values = blob.fixed(8, "<f8") if double else blob.fixed(5, "<f4")
    shape = budget.charge_array(shape, values.dtype, blob.what)
    if len(values) != math.prod(shape):
        raise ReadError(f"{blob.what}: {len(values):,} values for the shape {list(shape)}")
    return values.reshape(shape)
