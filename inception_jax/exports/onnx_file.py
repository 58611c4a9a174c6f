"""Exports a network's inference graph as an ONNX file, weights included."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from inception_jax import __version__
from inception_jax.errors import UserError
from inception_jax.exports import batch_norm
from inception_jax.exports.image_size import height_and_width
from inception_jax.exports.onnx_graph import Const, Graph, Tensor
from inception_jax.exports.onnx_operators import Converter
from inception_jax.models.base import BaseNetwork
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.platforms import TRACED_FOR
from inception_jax.weight_files.atomic_write import atomic_write

_OPSETS = (13, 22)  # ReduceSum has its axes as an input since 13; none of the operators used here changes up to 22
_MOST_BYTES = 2**31 - 2**22  # of weights: protobuf's limit, less some room for nodes and names
_IR_VERSION = 8  # onnx/docs/Versioning.md: that of opset 15 and later ones


def export_onnx(
    model: BaseNetwork,
    variables: Mapping[str, Any],
    image_size: int | tuple[int, int],
    path: str | os.PathLike,
    *,
    endpoints: Sequence[str] = (),
    batch: int | str = "N",
    input_layout: Literal["NHWC", "NCHW"] = "NHWC",
    fold_batch_norm: bool = False,
    opset: int = 17,
    dtype: Any = np.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes the inference graph of a network, with its weights inside.

    The graph is made from the jaxpr that JAX runs, so that it computes what the network computes. Convolutions, pools
    and local response normalization are one operator each (average pools with or without the padding in the count);
    batch norm is a product and a sum. The input is "images", the outputs are "logits" and one for each of `endpoints`.

    Args:
      model: the network; it is exported in `dtype`, whatever its own dtype is.
      variables: "params" and, with batch norm, "batch_stats".
      image_size: of the images, in pixels: one number, or (height, width).
      path: the file; an existing one is replaced when the new one is complete.
      endpoints: further outputs by name, ours or slim's.
      batch: images per run; a string names a dimension of any size.
      input_layout: "NHWC", as in JAX, or "NCHW": of the images and of the endpoints that are feature maps.
      fold_batch_norm: whether to fold batch norm into the convolutions (`batch_norm.fold_batch_norm`).
      opset: version of ONNX's operators, 13 to 22.
      dtype: float32, or float64 for a runtime that supports it.
      metadata: further entries of the file, such as the normalization that the images need.

    Raises:
      UserError: the package onnx is not installed, an argument is invalid, the file cannot be written, or it is above
        ONNX's limit of 2 GB.
      ModelError: an unknown endpoint, or images of a size that the network does not accept.
    """
    try:
        import onnx
    except ModuleNotFoundError:
        raise UserError("ONNX files need the package onnx: pip install 'inception_jax[onnx]'") from None
    dtype = np.dtype(dtype)
    if input_layout not in ("NHWC", "NCHW"):
        raise UserError(f"input_layout: {input_layout!r} is not 'NHWC' or 'NCHW'")
    if dtype not in (np.float32, np.float64):
        raise UserError(f"dtype: {dtype} is not float32 or float64")
    if not (batch if isinstance(batch, str) else hasattr(batch, "__index__") and batch >= 1):
        raise UserError(f"batch: {batch!r} is not a number of images from 1 on, or the name of a dimension")
    if not _OPSETS[0] <= opset <= _OPSETS[1]:
        raise UserError(f"opset: {opset} is not from {_OPSETS[0]} to {_OPSETS[1]}")
    batch, size = batch if isinstance(batch, str) else int(batch), height_and_width(image_size)
    if fold_batch_norm:
        model, variables = batch_norm.fold_batch_norm(model, variables)
    with jax.enable_x64(dtype == np.float64):
        made = _model(onnx, model, variables, size, endpoints, batch, input_layout, opset, dtype)
    about = {"network": type(model).__name__, "image_size": f"{size[0]}x{size[1]}", "layout": input_layout}
    onnx.helper.set_model_props(made, about | dict(metadata or {}))
    _write(onnx, made, path)


def _model(
    onnx: Any,
    model: BaseNetwork,
    variables: Any,
    size: tuple[int, int],
    endpoints: Sequence[str],
    batch: int | str,
    layout: str,
    opset: int,
    dtype: np.dtype,
) -> Any:
    names = list(dict.fromkeys(["logits", *endpoints]))
    model = model.clone(dtype=dtype.name, param_dtype=dtype.name)
    flat = {path: np.asarray(leaf).astype(dtype) for path, leaf in flatten_dict(dict(variables), sep="/").items()}

    def run(leaves: list[jax.Array], images: jax.Array) -> list[jax.Array]:
        given = {tuple(path.split("/")): leaf for path, leaf in zip(flat, leaves, strict=True)}
        output = cast(InceptionOutput, model.apply(_nested(given), images, train=False))
        return [output.logits if name == "logits" else output.endpoint(name) for name in names]

    rows = jax.export.symbolic_shape("n")[0] if isinstance(batch, str) else batch
    shape = (rows, *size, model.in_channels)
    leaves = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in flat.values()]
    with TRACED_FOR("onnx"):  # of the layers' forms the default one
        closed = jax.make_jaxpr(run)(leaves, jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))
    graph = Graph(dtype)
    images = Tensor("images", shape)
    if layout == "NHWC":
        images = graph.emit("Transpose", ["images"], shape, perm=[0, 3, 1, 2])
    converter = Converter(graph)
    constants = [Const(leaf, path.partition("/")[2]) for path, leaf in flat.items()]
    tensors = [converter.tensor(value) for value in converter.run(closed.jaxpr, closed.consts, [*constants, images])]
    outputs, described = {}, []
    graph.scope = "outputs"
    for name, tensor in zip(names, tensors, strict=True):
        dims = list(tensor.shape)
        if len(dims) == 4 and layout == "NHWC":
            tensor = graph.emit("Transpose", [tensor.name], tensor.shape, perm=[0, 2, 3, 1])
        elif len(dims) == 4:
            dims = [dims[axis] for axis in (0, 3, 1, 2)]
        outputs[name] = tensor.name
        described.append((name, [batch, *map(int, dims[1:])]))
    graph.simplify(outputs)
    weights = sum(array.nbytes for array in graph.initializers.values())
    if weights > _MOST_BYTES:
        raise UserError(f"ONNX export: {weights:,} bytes of weights; a file holds {_MOST_BYTES:,} at most")
    return _proto(onnx, graph, outputs, described, (batch, (*size, model.in_channels), layout), opset, dtype)


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Makes nested dictionaries of leaves by path."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        branch = tree
        for name in path[:-1]:
            branch = branch.setdefault(name, {})
        branch[path[-1]] = leaf
    return tree


def _proto(
    onnx: Any,
    graph: Graph,
    outputs: Mapping[str, str],
    described: list[tuple[str, list[Any]]],
    images: tuple[int | str, tuple[int, int, int], str],
    opset: int,
    dtype: np.dtype,
) -> Any:
    helper, kind = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype(dtype)
    batch, (height, width, channels), layout = images
    # An output has its requested name, whatever the name of the value in the graph.
    nodes = [helper.make_node(n.op, n.inputs, [n.output], name=n.name, **n.attributes) for n in graph.nodes]
    nodes += [helper.make_node("Identity", [value], [name]) for name, value in outputs.items()]
    image_shape = [batch, height, width, channels] if layout == "NHWC" else [batch, channels, height, width]
    weights = [onnx.numpy_helper.from_array(array, name) for name, array in graph.initializers.items()]
    proto = helper.make_graph(
        nodes,
        "inception_jax",
        [helper.make_tensor_value_info("images", kind, image_shape)],
        [helper.make_tensor_value_info(name, kind, dims) for name, dims in described],
        weights,
    )
    return helper.make_model(
        proto,
        producer_name="inception_jax",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", opset)],
    )


def _write(onnx: Any, made: Any, path: str | os.PathLike) -> None:
    """Checks a ModelProto with the onnx package, and writes it."""
    try:
        content = made.SerializeToString()
        onnx.checker.check_model(content, full_check=True)
    except ValueError as error:  # protobuf's limit
        raise UserError(f"{path}: {error}") from None
    with atomic_write(path) as part:
        part.write_bytes(content)
