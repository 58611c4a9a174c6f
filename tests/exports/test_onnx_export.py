"""ONNX files against JAX, in onnxruntime (float32) and in ONNX's own evaluator (float64)."""

import sys
from collections import Counter

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from inception_jax.errors import UserError
from inception_jax.exports import onnx_file
from inception_jax.exports.onnx_file import export_onnx
from inception_jax.models.adaptive_pooling import even_avg_pool
from inception_jax.models.base import BaseNetwork
from inception_jax.models.checks import ModelError
from inception_jax.models.inception_v2 import PAPER_MODULES
from inception_jax.models.lrn import local_response_norm
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.pooling import avg_pool, global_avg_pool, max_pool
from inception_jax.models.registry import get_spec, model_names

onnx = pytest.importorskip("onnx", reason="onnx is an optional extra")
reference = pytest.importorskip("onnx.reference", reason="onnx is an optional extra")
onnxruntime = pytest.importorskip("onnxruntime", reason="what the files are run in; onnxruntime is not installed")

CLOSE = 2e-6  # what rounding to float32 leaves
# Whole networks are held against JAX in float64, and may be this many times as far from it as JAX's own float32 on the
# same processor. How far that is depends on the network and on the processor (Xception: 1.1e-6 and 1.7e-6 by JAX,
# 2.1e-6 and 1.7e-6 by onnxruntime, on two of them).
OTHER_ROUNDING = 4
# One endpoint per network: the widest variety of layers lies before it.
ENDPOINTS = {
    "inception_v1": "inception_4e",
    "inception_v2": "inception_4e",
    "inception_v3": "mixed_6e",
    "inception_v4": "mixed_6h",
    "xception": "block13",
}


def run(path, images, *names):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(list(names), {"images": images})


def operators(path):
    return Counter(node.op_type for node in onnx.load(str(path)).graph.node)


LARGE = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")
# Batch norm, an average pool, a stride of 2 beside a max pool, a max pool before a projection.
FEW = {name: PAPER_MODULES[name] for name in ("3b", "3c", "5b")}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("inception_v2", {"modules": FEW}, id="three modules of inception_v2"),
        *(pytest.param(name, {}, id=name, marks=[pytest.mark.slow] * (name in LARGE)) for name in model_names()),
    ],
)
def test_every_network_in_another_runtime(name, options, network_of, outputs, make_images, difference, tmp_path):
    model, variables = network_of(name, **options)
    least = get_spec(name).min_image_size
    height, width = least + 21, least + 16  # one odd, one even, and maps of more than a pixel at the end
    names = ["logits"]
    if name in ENDPOINTS and not options:
        names.append(ENDPOINTS[name])
    images = make_images(3, height, width)
    expected = outputs.exact(model, variables, images, *names)
    rounding = max(map(difference, outputs(model, variables, images, *names), expected))
    for fold in (False, True):
        export_onnx(model, variables, (height, width), tmp_path / "a.onnx", endpoints=names[1:], fold_batch_norm=fold)
        one_by_one = [run(tmp_path / "a.onnx", images[k : k + 1], *names) for k in range(3)]
        for found in (run(tmp_path / "a.onnx", images, *names), map(np.concatenate, zip(*one_by_one, strict=True))):
            for ours, theirs in zip(found, expected, strict=True):
                assert difference(ours, theirs) < OTHER_ROUNDING * rounding
        ops = operators(tmp_path / "a.onnx")
        # Pools and normalizations are whole: nothing is left of the slices that they are written with. AlexNet's halves
        # are slices of channels, and ONNX has no adaptive pool.
        own = {"Slice"} if name == "alexnet" else set()
        assert {"Slice", "Pad", "Max", "Sqrt", "Pow", "Reciprocal"} & set(ops) == own
        assert ops["LRN"] == (2 if name == "alexnet" or getattr(model, "lrn", False) else 0)
        assert not fold or ops["Mul"] <= 40  # the residuals' scales are all that is left


def test_the_graph_of_inception_v4_is_the_papers(network_of, tmp_path):
    model, variables = network_of("inception_v4")
    export_onnx(model, variables, 139, tmp_path / "a.onnx", fold_batch_norm=True)
    assert operators(tmp_path / "a.onnx") == {
        "Transpose": 1,
        "Conv": 149,
        "Relu": 149,
        "MaxPool": 4,
        "AveragePool": 14,
        "Concat": 25,
        "Add": 14,
        "GlobalAveragePool": 1,
        "Flatten": 1,
        "Gemm": 1,
        "Identity": 1,
    }
    graph = onnx.load(str(tmp_path / "a.onnx")).graph
    kernels = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert kernels["mixed_6b/conv_7x1/kernel"] == (25, 22, 7, 1)
    assert kernels["classifier/kernel"] == (150, 7)


def test_the_largest_structures_at_larger_images(network_of, outputs, make_images, difference, tmp_path):
    model, variables = network_of("inception_v1", min_width=4, aux_heads=True)
    images = make_images(1, 224, 223)
    (expected,) = outputs(model, variables, images, "logits")
    export_onnx(model, variables, (224, 223), tmp_path / "a.onnx")
    assert difference(run(tmp_path / "a.onnx", images, "logits")[0], expected) < CLOSE


# Two operators as ONNX's text has them. Those of the evaluator of onnx 1.23 are not: its LRN goes over as many channels
# as there are images, and its MaxPool fails on padding behind the map alone.
class LRN(reference.op_run.OpRun):
    def _run(self, x, alpha=None, beta=None, bias=None, size=None):
        padded = np.pad(x**2, [(0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)])
        sums = sum(padded[:, k : k + x.shape[1]] for k in range(size))
        return (x / (float(bias) + float(alpha) / size * sums) ** float(beta),)


class MaxPool(reference.op_run.OpRun):
    def _run(self, x, kernel_shape=None, strides=None, pads=None, **rest):
        edges = [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]
        padded = np.pad(x, edges, constant_values=-np.inf)
        found = np.lib.stride_tricks.sliding_window_view(padded, kernel_shape, (2, 3)).max((4, 5))
        return (found[:, :, :: strides[0], :: strides[1]],)


# ONNX stores constants of an operator in float32; a power of two is exact there.
ALPHA = {"lrn_alpha": 2.0**-13}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inception_v1", ALPHA),
        ("inception_v1", ALPHA | {"pool_rounding": "pad1", "conv1_padding": "same", "five_by_five": 3}),
        pytest.param("inception_v3", {"min_width": 4}, marks=pytest.mark.slow),
        pytest.param("xception", {"min_width": 4}, marks=pytest.mark.slow),
    ],
)
def test_in_double_precision(name, options, network_of, outputs, make_images, difference, tmp_path, x64):
    model, variables = network_of(name, np.float64, dtype="float64", param_dtype="float64", **options)
    size = get_spec(name).min_image_size
    images = make_images(2, size, size + 1, np.float64)
    (expected,) = outputs(model, variables, images, "logits")
    export_onnx(model, variables, (size, size + 1), tmp_path / "a.onnx", dtype=np.float64)
    # onnxruntime convolves in float32 alone; the evaluator of the onnx package computes in any.
    evaluator = reference.ReferenceEvaluator(str(tmp_path / "a.onnx"), new_ops=[LRN, MaxPool])
    (found,) = evaluator.run(["logits"], {"images": images})
    assert found.dtype == np.float64
    assert difference(found, expected) < 1e-12


class Toy(BaseNetwork):
    """A network of one function."""

    layer: object = None

    @nn.compact
    def __call__(self, images, *, train=False, example_keys=None):
        x = self.layer(images.astype(self.dtype))
        logits = global_avg_pool(images) if x.ndim == 4 else x
        return InceptionOutput(logits, (), {"map": x})


def check_layer(layer, images, path, close=1e-6, batch="N"):
    """Exports the layer, compares its values, gives its operators."""
    export_onnx(Toy(layer=layer), {}, images.shape[1:3], path, endpoints=["map"], batch=batch)
    (found,) = run(path, images, "map")
    expected = np.asarray(layer(jnp.asarray(images)))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, close, 1e-6)
    around = ("Transpose", "Identity", "GlobalAveragePool", "Flatten")  # the layouts, and the toy's logits
    return {op: count for op, count in operators(path).items() if op not in around}


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CEIL", 1])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (3, 1), (2, 2), (5, 3)])
def test_pools_are_one_operator_each(padding, window, stride, make_images, tmp_path):
    for height, width in ((11, 12), (7, 10), (6, 9)):
        images = make_images(2, height, width) - 3  # below 0: padding must not win
        ops = check_layer(lambda x: max_pool(x, window, stride, padding), images, tmp_path / "a.onnx")
        assert ops == {"MaxPool": 1}
        for count_include_pad in (False, True):
            layer = lambda x, include=count_include_pad: avg_pool(x, window, stride, padding, include)  # noqa: E731
            ops = check_layer(layer, images, tmp_path / "a.onnx")
            assert ops.pop("Mul", 0) <= (count_include_pad and padding in ("SAME", 1))
            assert ops == {"AveragePool": 1}


@pytest.mark.parametrize("dilation", [2, 4])
def test_dilated_pools(dilation, make_images, tmp_path):
    images = make_images(2, 11, 12) - 3
    ops = check_layer(lambda x: max_pool(x, 3, 1, "SAME", dilation), images, tmp_path / "a.onnx")
    assert ops == {"MaxPool": 1} | ({"Pad": 1} if dilation == 4 else {})  # ONNX pads fewer pixels than taps
    check_layer(lambda x: avg_pool(x, 3, 1, "SAME", dilation=dilation), images, tmp_path / "a.onnx")


def test_pools_that_are_no_pool_operator(make_images, tmp_path):
    """A map smaller than the window, single elements, evenly laid windows, pools of pools, and a sum of two maps."""
    images = make_images(2, 2, 3) - 3
    check_layer(lambda x: max_pool(x, 5, 3, "SAME"), images, tmp_path / "a.onnx")
    check_layer(lambda x: avg_pool(x, 5, 1, "SAME"), images, tmp_path / "a.onnx")
    assert check_layer(lambda x: max_pool(x, 1, 2, "VALID"), images, tmp_path / "a.onnx") == {"Slice": 2}
    images = make_images(2, 13, 11) - 3
    check_layer(lambda x: even_avg_pool(x, 4, 5, 3), images, tmp_path / "a.onnx")
    pools = check_layer(lambda x: max_pool(max_pool(x, 3, 2), 3, 2), images, tmp_path / "a.onnx")
    assert pools == {"MaxPool": 2}
    # Sums and maxima of slices that are no pool: of two axes at once, of uneven steps, used more than once.
    for layer in (
        lambda x: x[:, 1:7, 2:9] + x[:, 5:11, 3:10],
        lambda x: jnp.maximum(x[:, 0:3], x[:, 2:5]) * x[:, 5:8],
        lambda x: jnp.maximum(x[:, 0:3], jnp.maximum(x[:, 1:4], x[:, 5:8])),
        lambda x: jnp.maximum(x[:, 0:3], x[:, 1:4]) + x[:, 0:3],
        lambda x: x[:, 0:12:2] + x[:, 1:13:2] + x[:, 1:13:2],
        lambda x: jnp.sum(x, (1, 2)) / 7,  # a sum over the map that is divided by another number than its pixels
        lambda x: jnp.sum(x, (1, 2)) * 2,
        lambda x: lax.pad(x[:, 2:9], 2.0, [(0, 0, 0), (1, 2, 0), (0, 1, 0), (0, 0, 0)]),
        lambda x: lax.pad(jnp.maximum(x[..., 0:2], x[..., 1:3]), 0.0, [(0, 0, 0), (1, 2, 0), (0, 1, 0), (1, 0, 0)]),
    ):
        check_layer(layer, images, tmp_path / "a.onnx", batch=2)


@pytest.mark.parametrize(
    ("size", "alpha", "beta", "k"),
    [
        (5, 1e-4, 0.75, 1.0),
        (3, 0.5, 0.75, 2.0),
        (5, 2.0, 0.5, 1.0),
        (3, 2.0, 1.0, 0.7),
        (1, 1.0, 0.6, 1.5),
    ],
)
def test_response_normalization_is_one_operator(size, alpha, beta, k, make_images, tmp_path):
    def layer(x):
        return local_response_norm(jnp.concatenate([3 * x, x, 2 * x], -1), size, alpha, beta, k)

    ops = check_layer(layer, make_images(2, 6, 7), tmp_path / "a.onnx", 2e-6)
    assert ops["LRN"] == 1
    assert set(ops) == {"LRN", "Concat", "Mul"}


def test_dilated_networks(network_of, outputs, make_images, difference, tmp_path):
    model, variables = network_of("inception_v3", output_stride=8)
    images = make_images(1, 97, 97)
    names = ("logits", "mixed_7c")
    export_onnx(model, variables, 97, tmp_path / "a.onnx", endpoints=names[1:])
    for found, expected in zip(
        run(tmp_path / "a.onnx", images, *names), outputs(model, variables, images, *names), strict=True
    ):
        assert difference(found, expected) < CLOSE


@pytest.mark.parametrize("opset", [13, 17, 22])
def test_layouts_names_batches_and_operator_sets(opset, network_of, outputs, make_images, difference, tmp_path):
    model, variables = network_of("inception_v1", dtype="bfloat16")  # exported in float32 all the same
    images = make_images(2, 48, 41)
    names = ("logits", "Mixed_3b", "conv1")
    export_onnx(
        model,
        variables,
        (48, 41),
        tmp_path / "a.onnx",
        endpoints=[*names, "conv1"],
        batch=2,
        input_layout="NCHW",
        opset=opset,
        metadata={"normalization": "caffe"},
    )
    found = run(tmp_path / "a.onnx", images.transpose(0, 3, 1, 2), *names)
    expected = outputs(model.clone(dtype="float32"), variables, images, *names)
    assert difference(found[0], expected[0]) < CLOSE
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert difference(ours.transpose(0, 2, 3, 1), theirs) < CLOSE
    proto = onnx.load(str(tmp_path / "a.onnx"))
    assert {entry.key: entry.value for entry in proto.metadata_props} == {
        "network": "InceptionV1",
        "image_size": "48x41",
        "layout": "NCHW",
        "normalization": "caffe",
    }
    assert [entry.version for entry in proto.opset_import] == [opset]
    assert [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim] == [2, 3, 48, 41]
    assert [output.name for output in proto.graph.output] == list(names)  # each once
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_what_is_refused(network_of, tmp_path, monkeypatch):
    model, variables = network_of("inception_v1")

    def export(size=32, **options):
        export_onnx(model, variables, size, tmp_path / "a.onnx", **options)

    with pytest.raises(UserError, match="input_layout: 'NHCW' is not 'NHWC' or 'NCHW'"):
        export(input_layout="NHCW")
    with pytest.raises(UserError, match="opset: 12 is not from 13 to 22"):
        export(opset=12)
    with pytest.raises(UserError, match="dtype: bfloat16"):
        export(dtype=jnp.bfloat16)
    for batch in (0, -1, 2.5, ""):
        with pytest.raises(UserError, match="is not a number of images from 1 on, or the name of a dimension"):
            export(batch=batch)
    with pytest.raises(ModelError, match="no endpoint 'inception_3x'; did you mean 'inception_3"):
        export(endpoints=["inception_3x"])
    with pytest.raises(ModelError, match="too few"):
        export(size=16)
    with pytest.raises(UserError, match="no rule for JAX's 'sin'"):
        export_onnx(Toy(layer=jnp.sin), {}, 8, tmp_path / "a.onnx")
    with pytest.raises(UserError, match="of the batch"):
        export_onnx(Toy(layer=lambda x: x[:1]), {}, 8, tmp_path / "a.onnx", batch=2)
    with pytest.raises(UserError, match="cannot write"):
        export_onnx(model, variables, 32, tmp_path / "nowhere" / "a.onnx")
    with monkeypatch.context() as patch, pytest.raises(UserError, match="bytes of weights; a file holds 100,000 at"):
        patch.setattr(onnx_file, "_MOST_BYTES", 100_000)
        export()
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match="ONNX files need the package onnx: pip install"):
        export()
