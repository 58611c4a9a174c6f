"""Runs GoogLeNets that no package builds, for `tf_side.py`: Caffe's, the ONNX model zoo's, Google's inception5h.

Caffe's and inception5h are executed layer by layer with TensorFlow's operations, the zoo's as a graph in ONNX's
runtimes. Sources: BVLC/caffe, models/bvlc_googlenet/train_val.prototxt; onnx/models, googlenet; listings of the nodes
of tensorflow_inception_graph.pb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from strictness import check_names, versions

Arrays = Mapping[str, np.ndarray]
# Takes ({name: variable}, images [B, H, W, 3], whether in training), returns (logits, auxiliary logits).
Network = Callable[[Mapping[str, Any], Any, bool], tuple[Any, list[Any]]]

MODULES = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
HEADS = ("4a", "4d")  # modules whose output the first and the second auxiliary head read
POOLED = ("3b", "4e")  # modules followed by a max pool with stride 2


def run_network(network: Network, request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs a network operation by operation: logits, and gradients where the request has probes.

    Args:
      network: the function of the network.
      request: as in the package's docstring.
      weights: {name: array}.

    Returns:
      The arrays of the result, except `version`.
    """
    import tensorflow as tf

    dtype, train = str(request["dtype"]), str(request["mode"]) == "train"
    variables = {name: tf.Variable(array.astype(dtype)) for name, array in weights.items()}
    total = None
    with tf.GradientTape() as tape:
        logits, heads = network(variables, tf.constant(request["images"].astype(dtype)), train)
        if "probe" in request:
            total = tf.reduce_sum(logits * request["probe"].astype(dtype))
            for i, head in enumerate(heads):
                total += tf.reduce_sum(head * request[f"probe_aux/{i}"].astype(dtype))
    result = {"logits": np.asarray(logits)} | {f"aux/{i}": np.asarray(head) for i, head in enumerate(heads)}
    if total is not None:
        found = tape.gradient(total, variables)
        result |= {f"g/{name}": np.asarray(value) for name, value in found.items() if value is not None}
    return result


# --- Caffe -----------------------------------------------------------------------------------------------------------

CAFFE_UNITS = ("1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj")


class CaffeOps:
    """Caffe's layers in TensorFlow's elementary operations; feature maps are [B, H, W, C]."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        """Keeps the variables, {name: variable}."""
        import tensorflow as tf

        self.tf, self.weights = tf, weights

    def convolution(self, x: Any, name: str, stride: int = 1) -> Any:
        """Convolution and ReLU, padded by half the window on every side."""
        tf, kernel = self.tf, self.tf.transpose(self.weights[f"{name}/0"], (2, 3, 1, 0))
        pad = kernel.shape[0] // 2
        x = tf.pad(x, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        return tf.nn.relu(tf.nn.conv2d(x, kernel, stride, "VALID") + self.weights[f"{name}/1"])

    def max_pool(self, x: Any, stride: int, pad: int) -> Any:
        """3x3 max pool; the output's size is rounded up."""
        tf, low = self.tf, x.dtype.min
        after = [_ceil_pad(size, 3, stride, pad) for size in x.shape[1:3]]
        x = tf.pad(x, [[0, 0], [pad, after[0]], [pad, after[1]], [0, 0]], constant_values=low)
        return tf.nn.max_pool2d(x, 3, stride, "VALID")

    def lrn(self, x: Any) -> Any:
        """Local response normalization: size 5, alpha 1e-4 (divided by the size), beta 0.75, k 1, across channels."""
        return response_norm(self.tf, x, radius=2, bias=1.0, alpha=1e-4 / 5, beta=0.75)

    def inner_product(self, x: Any, name: str) -> Any:
        """A fully connected layer on a feature map flattened channels first."""
        tf = self.tf
        x = tf.reshape(tf.transpose(x, (0, 3, 1, 2)), (x.shape[0], -1)) if len(x.shape) == 4 else x
        return tf.matmul(x, self.weights[f"{name}/0"], transpose_b=True) + self.weights[f"{name}/1"]

    def inception(self, x: Any, name: str) -> Any:
        """One Inception module."""
        return self.tf.concat(
            [
                self.convolution(x, f"{name}/1x1"),
                self.convolution(self.convolution(x, f"{name}/3x3_reduce"), f"{name}/3x3"),
                self.convolution(self.convolution(x, f"{name}/5x5_reduce"), f"{name}/5x5"),
                self.convolution(self.max_pool(x, 1, 1), f"{name}/pool_proj"),
            ],
            3,
        )

    def head(self, x: Any, name: str) -> Any:
        """An auxiliary classifier; its 5x5 average pool with stride 3 fits a 14x14 feature map exactly."""
        x = self.convolution(self.tf.nn.avg_pool2d(x, 5, 3, "VALID"), f"{name}/conv")
        x = self.tf.nn.relu(self.inner_product(x, f"{name}/fc"))
        return self.inner_product(x, f"{name}/classifier")


def _ceil_pad(size: int, window: int, stride: int, pad: int) -> int:
    """Padding after the feature map that fills the last window where the output size is rounded up."""
    out = -(-(size + 2 * pad - window) // stride) + 1
    if (out - 1) * stride >= size + pad:
        out -= 1
    return max(0, (out - 1) * stride + window - size - pad)


def response_norm(tf: Any, x: Any, *, radius: int, bias: float, alpha: float, beta: float) -> Any:
    """TensorFlow's local response normalization; spelled out in float64, which its operation does not support."""
    if x.dtype == tf.float32:
        return tf.nn.local_response_normalization(x, radius, bias, alpha, beta)
    channels = x.shape[3]
    squares = tf.pad(tf.square(x), [[0, 0], [0, 0], [0, 0], [radius, radius]])
    total = tf.add_n([squares[..., i : i + channels] for i in range(2 * radius + 1)])
    return x * (bias + alpha * total) ** -beta


def caffe_network(weights: Mapping[str, Any], x: Any, train: bool) -> tuple[Any, list[Any]]:
    """bvlc_googlenet, from the image to the three classifiers."""
    ops, heads = CaffeOps(weights), []
    x = ops.lrn(ops.max_pool(ops.convolution(x, "conv1/7x7_s2", 2), 2, 0))
    x = ops.convolution(ops.convolution(x, "conv2/3x3_reduce"), "conv2/3x3")
    x = ops.max_pool(ops.lrn(x), 2, 0)
    for module in MODULES:
        x = ops.inception(x, f"inception_{module}")
        if train and module in HEADS:
            heads.append(ops.head(x, f"loss{1 + HEADS.index(module)}"))
        if module in POOLED:
            x = ops.max_pool(x, 2, 0)
    return ops.inner_product(ops.tf.nn.avg_pool2d(x, 7, 1, "VALID"), "loss3/classifier"), heads


def run_caffe(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs bvlc_googlenet operation by operation; returns the arrays of the result."""
    layers = ["conv1/7x7_s2", "conv2/3x3_reduce", "conv2/3x3", "loss3/classifier"]
    layers += [f"inception_{module}/{unit}" for module in MODULES for unit in CAFFE_UNITS]
    if any(name.startswith("loss1/") for name in weights):
        layers += [f"loss{i}/{layer}" for i in (1, 2) for layer in ("conv", "fc", "classifier")]
    check_names("bvlc_googlenet", [f"{layer}/{blob}" for layer in layers for blob in (0, 1)], weights)
    version = f"bvlc_googlenet, operation by operation in {versions('tensorflow')}"
    return run_network(caffe_network, request, weights) | {"version": np.array(version)}


# --- inception5h -----------------------------------------------------------------------------------------------------

INCEPTION5H_UNITS = ("1x1", "3x3_bottleneck", "3x3", "5x5_bottleneck", "5x5", "pool_reduce")


class Inception5hOps:
    """The graph's layers; all have TensorFlow's padding SAME."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        """Keeps the variables, {name: variable}."""
        import tensorflow as tf

        self.tf, self.weights = tf, weights

    def convolution(self, x: Any, name: str, stride: int = 1) -> Any:
        """Nodes name_pre_relu/conv, name_pre_relu and name."""
        tf = self.tf
        return tf.nn.relu(tf.nn.conv2d(x, self.weights[f"{name}_w"], stride, "SAME") + self.weights[f"{name}_b"])

    def max_pool(self, x: Any, stride: int) -> Any:
        """3x3 max pool."""
        return self.tf.nn.max_pool2d(x, 3, stride, "SAME")

    def lrn(self, x: Any) -> Any:
        """Nodes localresponsenorm0 and 1; their constants: greentfrapp/lucent, pull request 51."""
        return response_norm(self.tf, x, radius=5, bias=2.0, alpha=1e-4, beta=0.5)

    def dense(self, x: Any, name: str) -> Any:
        """A fully connected layer on a feature map flattened in the order rows, columns, channels."""
        x = self.tf.reshape(x, (x.shape[0], -1))
        return self.tf.matmul(x, self.weights[f"{name}_w"]) + self.weights[f"{name}_b"]

    def inception(self, x: Any, name: str) -> Any:
        """One Inception module."""
        return self.tf.concat(
            [
                self.convolution(x, f"{name}_1x1"),
                self.convolution(self.convolution(x, f"{name}_3x3_bottleneck"), f"{name}_3x3"),
                self.convolution(self.convolution(x, f"{name}_5x5_bottleneck"), f"{name}_5x5"),
                self.convolution(self.max_pool(x, 1), f"{name}_pool_reduce"),
            ],
            3,
        )

    def head(self, x: Any, number: int) -> Any:
        """headN_pool to softmaxN_pre_activation: a 14x14 map gives 4x4 pixels of 128 channels."""
        x = self.convolution(self.tf.nn.avg_pool2d(x, 5, 3, "VALID"), f"head{number}_bottleneck")
        return self.dense(self.tf.nn.relu(self.dense(x, f"nn{number}")), f"softmax{number}")


def inception5h_network(weights: Mapping[str, Any], x: Any, train: bool) -> tuple[Any, list[Any]]:
    """The graph, from the image to the three pre-activations of its softmaxes."""
    ops, heads = Inception5hOps(weights), []
    x = ops.lrn(ops.max_pool(ops.convolution(x, "conv2d0", 2), 2))
    x = ops.convolution(ops.convolution(x, "conv2d1"), "conv2d2")
    x = ops.max_pool(ops.lrn(x), 2)
    for module in MODULES:
        x = ops.inception(x, f"mixed{module}")
        if train and module in HEADS:
            heads.append(ops.head(x, HEADS.index(module)))
        if module in POOLED:
            x = ops.max_pool(x, 2)
    return ops.dense(ops.tf.nn.avg_pool2d(x, 7, 1, "VALID"), "softmax2"), heads


def run_inception5h(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs inception5h operation by operation; returns the arrays of the result."""
    layers = ["conv2d0", "conv2d1", "conv2d2", "softmax2"]
    layers += [f"mixed{module}_{unit}" for module in MODULES for unit in INCEPTION5H_UNITS]
    if any(name.startswith("nn0_") for name in weights):
        layers += [layer for i in (0, 1) for layer in (f"head{i}_bottleneck", f"nn{i}", f"softmax{i}")]
    check_names("inception5h", [f"{layer}_{kind}" for layer in layers for kind in "wb"], weights)
    version = f"inception5h, operation by operation in {versions('tensorflow')}"
    return run_network(inception5h_network, request, weights) | {"version": np.array(version)}


# --- The ONNX model zoo's GoogLeNet -----------------------------------------------------------------------------------


def zoo_graph(weights: Arrays, shape: tuple[int, ...]) -> Any:
    """Builds the zoo's graph with given weights, without the final softmax; its pools pad where Caffe's round up.

    Args:
      weights: {name of the initializer: array}.
      shape: of the images, [B, 3, H, W].
    """
    from onnx import helper, numpy_helper

    nodes: list[Any] = []

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"{kind}_{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def convolution(x: str, name: str, stride: int = 1) -> str:
        window = weights[f"{name}_w_0"].shape[2]
        found = node(
            "Conv",
            x,
            f"{name}_w_0",
            f"{name}_b_0",
            kernel_shape=[window] * 2,
            strides=[stride] * 2,
            pads=[window // 2] * 4,
        )
        return node("Relu", found)

    def pool(x: str, stride: int) -> str:
        pads = [0, 0, 1, 1] if stride == 2 else [1] * 4
        return node("MaxPool", x, kernel_shape=[3, 3], strides=[stride] * 2, pads=pads)

    def lrn(x: str) -> str:
        return node("LRN", x, size=5, alpha=1e-4, beta=0.75, bias=1.0)

    x = lrn(pool(convolution("data_0", "conv1/7x7_s2", 2), 2))
    x = pool(lrn(convolution(convolution(x, "conv2/3x3_reduce"), "conv2/3x3")), 2)
    for module in MODULES:
        at = f"inception_{module}/"
        branches = (
            convolution(x, f"{at}1x1"),
            convolution(convolution(x, f"{at}3x3_reduce"), f"{at}3x3"),
            convolution(convolution(x, f"{at}5x5_reduce"), f"{at}5x5"),
            convolution(pool(x, 1), f"{at}pool_proj"),
        )
        x = node("Concat", *branches, axis=1)
        x = pool(x, 2) if module in POOLED else x
    x = node("Flatten", node("AveragePool", x, kernel_shape=[7, 7], strides=[1, 1]), axis=1)
    x = node("Gemm", x, "loss3/classifier_w_0", "loss3/classifier_b_0", transB=1)
    used = {name for made in nodes for name in made.input if name.endswith(("_w_0", "_b_0"))}
    check_names("googlenet", used, weights)
    kind = helper.np_dtype_to_tensor_dtype(next(iter(weights.values())).dtype)
    graph = helper.make_graph(
        nodes,
        "googlenet",
        [helper.make_tensor_value_info("data_0", kind, shape)],
        [helper.make_tensor_value_info(x, kind, None)],
        [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def run_onnx(request: Arrays, weights: Arrays) -> dict[str, np.ndarray]:
    """Runs the zoo's graph in ONNX Runtime, or in float64, which it lacks, in ONNX's reference evaluator."""
    dtype = str(request["dtype"])
    images = np.ascontiguousarray(request["images"].astype(dtype).transpose(0, 3, 1, 2))
    model = zoo_graph({name: array.astype(dtype) for name, array in weights.items()}, images.shape)
    if dtype == "float64":
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.op_run import OpRun

        class LRN(OpRun):
            # The evaluator's own counts channels by the batch (onnx/reference/ops/op_lrn.py: range(x.shape[0])).
            def _run(self, x, alpha=None, beta=None, bias=None, size=None):
                squares = np.pad(x**2, ((0, 0), (size // 2,) * 2, (0, 0), (0, 0)))
                total = sum(squares[:, i : i + x.shape[1]] for i in range(size))
                return (x / (bias + alpha / size * total) ** beta,)

        (logits,) = ReferenceEvaluator(model, new_ops=[LRN]).run(None, {"data_0": images})
        version = f"reference evaluator of {versions('onnx')}"
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (logits,), version = session.run(None, {"data_0": images}), versions("onnxruntime", "onnx")
    return {"logits": np.asarray(logits), "version": np.array(version)}
