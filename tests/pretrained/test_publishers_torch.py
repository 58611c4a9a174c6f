"""The PyTorch publishers' name maps against the names and shapes that their own networks have, and there and back."""

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
from inception_jax.pretrained.publishers.torch_units import ModuleNames
from inception_jax.pretrained.variants import CONV_OIHW, DEPTHWISE_O1HW, LINEAR_OI, FileArrays, linear_chw

PUBLISHERS = ("torchvision", "timm", "cadene", "pytorchcv", "facenet-pytorch", "pytorch-fid")
NAMES = Path(__file__).with_name("names") / "torch.txt.gz"


def published():
    """{(source, model): (classes, {name: shape})}, as names/make_names.py found them."""
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
every_variant = pytest.mark.parametrize(("source", "model"), list(PUBLISHED))


def test_every_form_has_its_publishers_names():
    assert {
        (variant.source, variant.model) for variant in registry.all_variants() if variant.source in PUBLISHERS
    } == set(PUBLISHED)


@every_variant
def test_names_and_shapes_are_the_publishers_and_all_of_them(source, model):
    variant = registry.get_variant(model, source)
    classes, theirs = PUBLISHED[source, model]
    assert variant.num_classes == classes
    ours = [
        (found.name, found.layout.shape(shape), found.optional)
        for path, shape in variant.leaves(aux_heads=True, num_classes=classes).items()
        for found in [variant.source_array(path, shape)]
    ]
    # A list, since two leaves may not share an array.
    weights = {name: shape for name, shape in theirs.items() if not name.endswith(".num_batches_tracked")}
    assert sorted(ours) == sorted((name, shape, False) for name, shape in weights.items())
    assert variant.naming.apply(theirs) == weights
    arrays = FileArrays({name: np.broadcast_to(np.float32(0), shape) for name, shape in weights.items()})
    assert identification.bound(variant, arrays) == identification.score(variant, arrays) == 1


# What the publishers print or their own code counts, with the heads that they have.
COUNTS = {
    ("torchvision", "inception_v1_bn"): 13_004_888,
    ("torchvision", "inception_v3"): 27_161_264,
    ("timm", "inception_v3"): 27_161_264,
    ("timm", "inception_v4"): 42_679_816,
    ("timm", "inception_resnet_v2"): 55_843_464,
    ("timm", "xception"): 22_855_952,
    ("cadene", "inception_v2"): 11_295_240,
    ("cadene", "inception_v4"): 42_681_353,
    ("cadene", "inception_resnet_v2"): 55_845_001,
    ("cadene", "xception"): 22_855_952,
    ("pytorchcv", "inception_v2"): 11_295_240,
    ("pytorchcv", "inception_v3"): 23_834_568,
    ("pytorchcv", "inception_v4"): 42_679_816,
    ("pytorchcv", "inception_resnet_v1"): 23_995_624,
    ("pytorchcv", "inception_resnet_v2"): 55_843_464,
    ("pytorchcv", "xception"): 22_855_952,
    ("facenet-pytorch", "inception_resnet_v1"): 23_482_624 + 513 * 8631,  # the trunk, and the classifier on 512
    ("pytorch-fid", "inception_v3"): 23_834_568 + 2049 * 8,  # eight classes more than ImageNet
}


@every_variant
def test_parameters_are_as_many_as_published(source, model):
    variant = registry.get_variant(model, source)
    leaves = variant.leaves(aux_heads=True, num_classes=variant.num_classes)
    found = sum(math.prod(shape) for path, shape in leaves.items() if path.startswith("params/"))
    assert found == COUNTS[source, model]


@every_variant
def test_import_export_import_is_the_identity(source, model):
    variant = registry.get_variant(model, source)
    # Every array of the variant, at a tenth of its width.
    narrow = {"width_multiplier": 0.1, "min_width": 4}
    arrays = seeded_arrays(variant, aux_heads=True, dtype=np.float32, num_classes=11, **narrow)
    imported = import_variant(variant, arrays, **narrow)
    assert imported.num_classes == 11 and imported.options["aux_heads"] is variant.aux_heads
    first = flatten_dict(imported.variables, sep="/")
    assert {path: leaf.shape for path, leaf in first.items()} == variant.leaves(
        aux_heads=imported.options["aux_heads"], num_classes=11, **narrow
    )
    exported = export_weights(model, imported.variables, source=source, **narrow)
    assert exported.keys() == arrays.keys()
    for name, array in arrays.items():
        assert exported[name].dtype == np.float32 and exported[name].flags.c_contiguous
        assert exported[name].tobytes() == array.tobytes() and exported[name].shape == array.shape, name
    again = flatten_dict(import_weights(model, exported, source=source, **narrow), sep="/")
    assert again.keys() == first.keys()
    assert all(again[path].tobytes() == first[path].tobytes() for path in first)


def test_layouts_put_each_value_where_our_layers_read_it():
    random = np.random.RandomState(0)
    kernel = random.standard_normal((5, 4, 3, 2))  # out, in, height, width
    ours = CONV_OIHW.to_ours(kernel)
    assert all(ours[h, w, i, o] == kernel[o, i, h, w] for o, i, h, w in np.ndindex(kernel.shape))
    depthwise = random.standard_normal((5, 1, 3, 2))
    ours = DEPTHWISE_O1HW.to_ours(depthwise)
    assert ours.shape == (3, 2, 5, 1)
    assert all(ours[h, w, c, 0] == depthwise[c, 0, h, w] for c, _, h, w in np.ndindex(depthwise.shape))
    # Fully connected layers: the same product of the same map, flattened each in its own order.
    features = random.standard_normal(6)
    weight = random.standard_normal((5, 6))
    np.testing.assert_allclose(features @ LINEAR_OI.to_ours(weight), weight @ features, rtol=1e-12)
    features = random.standard_normal((7, 2, 3))  # channels, height, width
    weight = random.standard_normal((5, 42))
    layout = linear_chw(7, 2, 3)
    ours = features.transpose(1, 2, 0).ravel() @ layout.to_ours(weight)
    np.testing.assert_allclose(ours, weight @ features.ravel(), rtol=1e-12)
    for kind, theirs in ((CONV_OIHW, kernel), (DEPTHWISE_O1HW, depthwise), (layout, weight)):
        assert (kind.to_theirs(kind.to_ours(theirs)) == theirs).all()
        assert kind.shape(kind.to_ours(theirs).shape) == theirs.shape


@pytest.mark.parametrize(
    ("source", "model", "path"),
    [
        ("timm", "inception_v4", "params/aux/classifier/kernel"),  # a head that the publisher lacks
        ("timm", "inception_v4", "params/mixed_6b/conv_3x3/kernel"),  # a unit that the block lacks
        ("timm", "inception_v4", "params/mixed_6b/conv_1x1/bn/mean"),  # a statistic is no parameter
        ("timm", "inception_v4", "batch_stats/mixed_6b/conv_1x1/kernel"),
        ("timm", "inception_resnet_v2", "params/block8_11/up/kernel"),  # a block too many
        ("timm", "inception_resnet_v2", "params/block8_10/up/bn/scale"),  # a layer without batch norm
        ("timm", "xception", "params/block5/sepconv1/kernel"),  # a separable convolution has two
        ("timm", "xception", "params/block5/shortcut/kernel"),
        ("pytorch-fid", "inception_v3", "params/aux/classifier/bias"),
    ],
)
def test_what_the_publisher_never_had_has_no_name(source, model, path):
    with pytest.raises(UserError, match=f"{source}'s {model} has no array for {path}"):
        registry.get_variant(model, source).source_array(path, (8,))


def test_googlenets_heads_flatten_their_map_channels_first():
    variant = registry.get_variant("inception_v1_bn", "torchvision")
    for width in (128, 8):
        found = variant.source_array("params/aux2/fc/kernel", (16 * width, 1024))
        assert (found.name, found.layout) == ("aux2.fc1.weight", linear_chw(width, 4, 4))
    assert variant.source_array("params/aux2/classifier/kernel", (1024, 1000)).layout == LINEAR_OI


def test_layers_inside_a_block_keep_their_kind():
    layer = ModuleNames("a", "b", pointwise="c").under("block")
    assert layer == ModuleNames("block.a", "block.b", pointwise="block.c")
    assert ModuleNames("a", linear=True, flattened=4).under("block") == ModuleNames("block.a", linear=True, flattened=4)


def test_cadenes_xception_has_two_names_for_its_classifier():
    variant = registry.get_variant("xception", "cadene")
    options = {"num_classes": 3, "width_multiplier": 0.05, "min_width": 4}
    arrays = seeded_arrays(variant, aux_heads=False, dtype=np.float32, **options)
    filed = {name.replace("last_linear", "fc"): array for name, array in arrays.items()}
    assert "fc.weight" in filed
    narrow = {"width_multiplier": 0.05, "min_width": 4}
    ours = flatten_dict(import_weights("xception", arrays, source="cadene", **narrow), sep="/")
    for path, leaf in flatten_dict(import_weights("xception", filed, source="cadene", **narrow), sep="/").items():
        assert (leaf == ours[path]).all()
    with pytest.raises(UserError, match=r"unexpected: fc\.weight, fc\.bias"):
        import_weights("xception", {**arrays, **filed}, source="cadene", **narrow)
