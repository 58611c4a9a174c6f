"""The name maps of slim, facenet, Keras, Caffe, ONNX and inception5h against names and shapes of their own networks."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.errors import UserError
from inception_jax.parity.seeded_weights import seeded_arrays
from inception_jax.pretrained import identification
from inception_jax.pretrained.exporting import export_weights
from inception_jax.pretrained.importing import import_variant, import_weights
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.publishers.keras import renumber
from inception_jax.pretrained.variants import FileArrays

NAMES = Path(__file__).with_name("names") / "tensorflow.txt.gz"
NARROW = {"width_multiplier": 0.1, "min_width": 4}


def published():
    """{(source, model): (classes, {name: shape})}, as names/make_names_tf.py found them."""
    networks = {}
    for line in gzip.decompress(NAMES.read_bytes()).decode().splitlines():
        if line.startswith("["):
            source, model, classes = line[1:-1].split()
            names = networks.setdefault((source, model), (int(classes), {}))[1]
        else:
            name, shape = line.split(" ")
            names[name] = tuple(int(size) for size in shape.split("x") if size)
    return networks


PUBLISHED = published()
EVERY = [*PUBLISHED, ("caffe", "inception_v1"), ("onnx", "inception_v1"), ("inception5h", "inception_v1")]


def names_of(variant):
    leaves = variant.leaves(aux_heads=True, num_classes=variant.num_classes)
    found = [(variant.source_array(path, shape), shape) for path, shape in leaves.items()]
    return [(theirs.name, theirs.layout.shape(shape), theirs.optional) for theirs, shape in found]


def narrow_arrays(source, model):
    variant = registry.get_variant(model, source)
    return variant, seeded_arrays(variant, aux_heads=True, dtype=np.float32, num_classes=11, **NARROW)


def assert_same(first, second):
    first, second = flatten_dict(first, sep="/"), flatten_dict(second, sep="/")
    assert first.keys() == second.keys()
    assert all(first[path].tobytes() == second[path].tobytes() for path in first)


def assert_names_bound_the_score(variant, shapes):
    """Of the publisher's own arrays, names alone promise what names and shapes give: all of them fit."""
    arrays = FileArrays({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()})
    assert identification.bound(variant, arrays) == identification.score(variant, arrays) == 1


@pytest.mark.parametrize("source", ["slim", "facenet", "keras"])
def test_every_form_has_its_publishers_names(source):
    assert {(variant.source, variant.model) for variant in registry.variants_of(source).values()} == {
        key for key in PUBLISHED if key[0] == source
    }


@pytest.mark.parametrize(("source", "model"), list(PUBLISHED))
def test_names_and_shapes_are_the_publishers_and_all_of_them(source, model):
    variant = registry.get_variant(model, source)
    classes, theirs = PUBLISHED[source, model]
    assert variant.num_classes == classes
    # A list, since two leaves may not share an array.
    assert sorted(names_of(variant)) == sorted((name, shape, False) for name, shape in theirs.items())
    assert variant.naming.apply(theirs) == theirs
    assert_names_bound_the_score(variant, theirs)


def test_caffes_names_and_shapes():
    found = {name: shape for name, shape, _ in names_of(registry.get_variant("inception_v1", "caffe"))}
    assert len(found) == 128  # 57 convolutions, the classifier, two heads of three layers: a weight and a bias each
    for name, shape in {
        "conv1/7x7_s2/0": (64, 3, 7, 7),
        "conv2/3x3_reduce/0": (64, 64, 1, 1),
        "conv2/3x3/1": (192,),
        "inception_3a/5x5_reduce/0": (16, 192, 1, 1),
        "inception_4e/pool_proj/0": (128, 528, 1, 1),
        "inception_5b/5x5/0": (128, 48, 5, 5),
        "loss1/conv/0": (128, 512, 1, 1),
        "loss1/fc/0": (1024, 2048),
        "loss2/classifier/0": (1000, 1024),
        "loss3/classifier/0": (1000, 1024),
        "loss3/classifier/1": (1000,),
    }.items():
        assert found[name] == shape
    assert_names_bound_the_score(registry.get_variant("inception_v1", "caffe"), found)
    onnx = {name: shape for name, shape, _ in names_of(registry.get_variant("inception_v1", "onnx"))}
    assert onnx == {
        name.removesuffix("/0") + "_w_0" if name.endswith("/0") else name.removesuffix("/1") + "_b_0": shape
        for name, shape in found.items()
        if not name.startswith(("loss1", "loss2"))
    }


def test_inception5hs_names_and_shapes():
    found = {name: shape for name, shape, _ in names_of(registry.get_variant("inception_v1", "inception5h"))}
    assert len(found) == 128
    assert sum(math.prod(shape) for shape in found.values()) == 13_461_996
    assert_names_bound_the_score(registry.get_variant("inception_v1", "inception5h"), found)
    # Widths as users' listings of the graph's nodes have them; 204, 508 and 48 are not the paper's.
    for name, shape in {
        "conv2d0_w": (7, 7, 3, 64),
        "conv2d1_w": (1, 1, 64, 64),
        "conv2d2_w": (3, 3, 64, 192),
        "conv2d2_b": (192,),
        "mixed3a_1x1_w": (1, 1, 192, 64),
        "mixed3a_5x5_bottleneck_b": (16,),
        "mixed3a_pool_reduce_w": (1, 1, 192, 32),
        "mixed4a_3x3_w": (3, 3, 96, 204),
        "mixed4b_1x1_w": (1, 1, 508, 160),
        "mixed4e_3x3_bottleneck_b": (160,),
        "mixed5a_5x5_bottleneck_w": (1, 1, 832, 48),
        "mixed5b_5x5_w": (5, 5, 48, 128),
        "head0_bottleneck_w": (1, 1, 508, 128),
        "head1_bottleneck_w": (1, 1, 528, 128),
        "nn0_w": (2048, 1024),
        "nn1_b": (1024,),
        "softmax0_w": (1024, 1008),
        "softmax2_w": (1024, 1008),
        "softmax2_b": (1008,),
    }.items():
        assert found[name] == shape


def test_inception5h_has_the_response_norm_of_its_graph_and_ignores_its_other_constants():
    variant, arrays = narrow_arrays("inception5h", "inception_v1")
    model = variant.create(aux_heads=False, num_classes=11)
    x = np.random.RandomState(0).standard_normal((2, 3, 3, 24)).astype(np.float32)
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (0, 0), (0, 0), (5, 5)))
    window = sum(squares[..., i : i + 24] for i in range(11))
    # lucent's pull request 51: depth_radius 5, bias 2, alpha 1e-4, beta 0.5; TensorFlow does not divide alpha.
    np.testing.assert_allclose(model._normalize(x), x / np.sqrt(2 + 1e-4 * window), rtol=1e-6)
    filed = {**arrays, "mixed3a/concat_dim": np.int32(3), "nn0/reshape/shape": np.array([-1, 1024], np.int32)}
    options = {"source": "inception5h", **NARROW}
    assert_same(import_weights("inception_v1", filed, **options), import_weights("inception_v1", arrays, **options))


@pytest.mark.parametrize(("source", "model"), EVERY)
def test_import_export_import_is_the_identity(source, model):
    variant, arrays = narrow_arrays(source, model)
    imported = import_variant(variant, arrays, **NARROW)
    assert imported.num_classes == 11 and imported.options["aux_heads"] is variant.aux_heads
    exported = export_weights(model, imported.variables, source=source, **NARROW)
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        assert exported[name].tobytes() == array.tobytes() and exported[name].shape == array.shape, name
    assert_same(import_weights(model, exported, source=source, **NARROW), imported.variables)


def test_keras_layers_may_be_numbered_from_anywhere():
    _, arrays = narrow_arrays("keras", "inception_v3")
    expected = import_weights("inception_v3", arrays, source="keras", **NARROW)

    def shifted(by, kinds):
        found = {}
        for name, array in arrays.items():
            layer, _, variable = name.rpartition("/")
            kind = next((kind for kind in kinds if layer.startswith(kind)), None)
            place = int(layer.removeprefix(kind).strip("_") or 0) if kind else 0
            found[f"{kinds[kind]}_{place + by}/{variable}" if kind else name] = array
        return found

    today = {"conv2d": "conv2d", "batch_normalization": "batch_normalization"}
    # The second model of a process; Keras 2 before 2.3, which counted from 1; the names of Keras 1. Files list their
    # layers in other orders, too.
    for filed in (
        shifted(94, today),
        shifted(1, today),
        shifted(1, {"conv2d": "convolution2d", "batch_normalization": "batchnormalization"}),
        dict(sorted(shifted(7, today).items())),
    ):
        assert filed.keys() != arrays.keys()
        assert_same(import_weights("inception_v3", filed, source="keras", **NARROW), expected)


def test_renumbering_leaves_named_layers_alone_and_closes_gaps():
    filed = {"conv2d_12/kernel": 3, "conv2d_9/kernel": 2, "conv2d_9/bias": 1, "block35_1_conv/kernel": 0}
    assert renumber(filed) == {"conv2d_1/kernel": 3, "conv2d/kernel": 2, "conv2d/bias": 1, "block35_1_conv/kernel": 0}


@pytest.mark.parametrize("name", ["conv2d_00/kernel", "convolution2d_1/kernel", "conv2d_0/kernel", "conv2d_03/kernel"])
def test_an_array_that_renumbering_would_hide_is_left_over(name):
    _, arrays = narrow_arrays("keras", "inception_v3")
    arrays[name] = arrays["conv2d/kernel"] + 1
    with pytest.raises(UserError, match=f"unexpected: .*{name}"):
        import_weights("inception_v3", arrays, source="keras", **NARROW)


def test_a_keras_file_without_a_layer_is_refused():
    _, arrays = narrow_arrays("keras", "inception_v3")
    lacking = {name: array for name, array in arrays.items() if not name.startswith("conv2d_3/")}
    # The layers after it move up by one: the last number is missing, or shapes do not fit.
    with pytest.raises(UserError, match="conv2d_93/kernel"):
        import_weights("inception_v3", lacking, source="keras", **NARROW)


def test_caffes_blobs_of_before_2015_have_four_dimensions():
    _, arrays = narrow_arrays("caffe", "inception_v1")
    old = {name: array.reshape((1,) * (4 - array.ndim) + array.shape) for name, array in arrays.items()}
    assert old["loss1/fc/0"].ndim == old["loss3/classifier/1"].ndim == 4
    options = {"source": "caffe", **NARROW}
    assert_same(import_weights("inception_v1", old, **options), import_weights("inception_v1", arrays, **options))


@pytest.mark.parametrize(
    "name",
    [
        "global_step",
        "InceptionV3/Conv2d_1a_3x3/weights/ExponentialMovingAverage",
        "InceptionV3/Conv2d_1a_3x3/weights/RMSProp_1",
    ],
)
def test_what_slims_trainers_keep_beside_the_weights_is_left_alone(name):
    variant, arrays = narrow_arrays("slim", "inception_v3")
    filed = {**arrays, name: np.ones(3, np.float32)}
    assert variant.naming.apply(filed).keys() == arrays.keys()
    assert_same(
        import_weights("inception_v3", filed, source="slim", **NARROW),
        import_weights("inception_v3", arrays, source="slim", **NARROW),
    )


@pytest.mark.parametrize(
    ("source", "model", "path"),
    [
        ("slim", "inception_v4", "params/mixed_6b/conv_3x3/kernel"),
        ("slim", "inception_v3", "params/mixed_5b/conv_1x1/bn/mean"),
        ("keras", "inception_v3", "params/aux/classifier/kernel"),
        ("keras", "inception_resnet_v2", "params/block8_10/up/bn/bias"),  # a layer without batch norm
        ("caffe", "inception_v1", "params/conv1/bn/bias"),
        ("onnx", "inception_v1", "params/aux1/fc/kernel"),
        ("inception5h", "inception_v1", "params/norm1/kernel"),
        ("facenet", "inception_resnet_v1", "params/mixed_5b/conv_1x1/kernel"),
    ],
)
def test_what_the_publisher_never_had_has_no_name(source, model, path):
    with pytest.raises(UserError, match=f"{source}'s {model} has no array for {path}"):
        registry.get_variant(model, source).source_array(path, (8,))
