"""Every published count of the family, to the unit: parameters and multiply-adds, without and with auxiliary heads."""

import functools

import jax
import pytest

from inception_jax.models.cost import count_cost
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import create_model, get_spec, model_names

SLIM_V1 = {
    "five_by_five": 3,
    "pool4_window": 2,
    "conv1_padding": "same",
    "pool_rounding": "same",
    "bn_scale": False,
    "aux_heads": False,
}
SLIM_V2 = {"stem_batch_norm": False, "bn_scale": False, "aux_heads": False}
CAFFE_V2 = {"conv1_padding": "caffe", "reduction_padding": "caffe", "pool_rounding": "caffe", "count_include_pad": True}
CADENE_V2 = CAFFE_V2 | {"table": "paper", "stem": "dense", "conv_bias": True, "bn_epsilon": 1e-5, "aux_heads": False}
FACENET = {"bottleneck": 512, "extra_block8": True, "aux_heads": False}
FID = {"last_pool": "max", "aux_heads": False}

# (network, classes, pixels, switches) -> parameters, with heads, MACs, with heads; None: not published.
# Counted from executed definitions: BVLC's prototxt, torchvision, slim, timm, Cadene, Keras, facenet, lucent; "paper"
# is what the papers' tables and figures give when they are taken at their word.
ROWS = {
    "GoogLeNet of Caffe": ("inception_v1", 1000, 224, {}, 6_998_552, 13_378_280, 1_582_671_872, 1_591_044_096),
    "GoogLeNet, 1001": ("inception_v1", 1001, 224, {}, 6_999_577, 13_381_355, 1_582_672_896, 1_591_047_168),
    "GoogLeNet without conv2's reduction, often quoted": (
        "inception_v1", 1000, 224, {"conv2_reduce": False}, 6_994_392, 13_374_120, None, None,
    ),
    "GoogLeNet, batch norm": ("inception_v1_bn", 1000, 224, {}, 7_005_832, 13_385_816, 1_582_671_872, 1_591_044_096),
    "torchvision googlenet": (
        "inception_v1_bn", 1000, 224, {"five_by_five": 3, "pool4_window": 2, "aux_pool": "adaptive"},
        6_624_904, 13_004_888, 1_498_376_192, 1_506_748_416,
    ),
    "slim v1": ("inception_v1_bn", 1000, 224, SLIM_V1, 6_617_624, None, 1_498_376_192, None),
    "slim v1, 1001": ("inception_v1_bn", 1001, 224, SLIM_V1, 6_618_649, None, None, None),
    "inception5h": (
        "inception_v1", 1008, 224, {"table": "inception5h"}, 7_066_380, 13_461_996, 1_584_881_536, 1_593_261_952,
    ),
    "inception5h, 1000": (
        "inception_v1", 1000, 224, {"table": "inception5h"}, 7_058_180, 13_437_396, 1_584_873_344, None,
    ),
    "BN-Inception, paper": (
        "inception_v2", 1000, 224, {"table": "paper", "aux_heads": False}, 11_278_528, None, 1_948_605_440, None,
    ),
    "slim v2": (
        "inception_v2", 1000, 224, SLIM_V2, 11_178_336, None, 1_934_857_216, None,
    ),
    "slim v2, 1001": ("inception_v2", 1001, 224, SLIM_V2, 11_179_361, None, 1_934_858_240, None),
    "Cadene bninception": ("inception_v2", 1000, 224, CADENE_V2, 11_295_240, None, 2_032_600_064, None),
    "caffe-googlenet-bn": (
        "inception_v2", 1000, 224, CAFFE_V2 | {"stem": "dense", "aux_heads": False},
        11_194_984, None, 2_018_851_840, None,
    ),
    "torchvision v3": ("inception_v3", 1000, 299, {}, 23_834_568, 27_161_264, 5_713_216_096, 5_718_899_296),
    "Keras v3": (
        "inception_v3", 1000, 299, {"bn_scale": False}, 23_817_352, 27_143_152, 5_713_216_096, 5_718_899_296,
    ),
    "slim v3, 1001": (
        "inception_v3", 1001, 299, {"bn_scale": False}, 23_819_401, 27_145_970, 5_713_218_144, 5_718_902_112,
    ),
    # With the 1008 classes of the file: 8 more of 2048 weights and a bias.
    "FID": ("inception_v3", 1008, 299, FID, 23_834_568 + 8 * 2049, None, 5_713_216_096 + 8 * 2048, None),
    "timm v4": ("inception_v4", 1000, 299, {}, 42_679_816, 46_039_280, 12_253_974_624, 12_260_477_024),
    "timm v4, 1001": ("inception_v4", 1001, 299, {}, 42_681_353, 46_041_586, None, None),
    "slim v4": ("inception_v4", 1000, 299, {"bn_scale": False}, 42_648_232, 46_006_800, None, None),
    "slim v4, 1001": ("inception_v4", 1001, 299, {"bn_scale": False}, 42_649_769, 46_009_106, None, None),
    "Inception-ResNet-v1": (
        "inception_resnet_v1", 1000, 299, {}, 22_756_328, 26_099_408, 6_206_361_696, 6_212_454_496,
    ),
    "Inception-ResNet-v1, no factor": (
        "inception_resnet_v1", 1000, 299, {"bn_scale": False}, 22_742_808, 26_084_992, 6_206_361_696, 6_212_454_496,
    ),
    "pytorchcv v1": (
        "inception_resnet_v1", 1000, 299, FACENET, 23_995_624, 23_995_624, 6_308_235_360, 6_308_235_360,
    ),
    "timm IR-v2": ("inception_resnet_v2", 1000, 299, {}, 55_843_464, 59_211_120, 13_155_794_016, 13_162_501_216),
    "timm IR-v2, 1001": (
        "inception_resnet_v2", 1001, 299, {}, 55_845_001, 59_213_426, 13_155_795_552, 13_162_503_520,
    ),
    "slim IR-v2": (
        "inception_resnet_v2", 1000, 299, {"bn_scale": False}, 55_813_192, 59_179_952, 13_155_794_016, 13_162_501_216,
    ),
    "slim IR-v2, 1001": (
        "inception_resnet_v2", 1001, 299, {"bn_scale": False}, 55_814_729, 59_182_258, 13_155_795_552, 13_162_503_520,
    ),
    "IR-v2, paper": (
        "inception_resnet_v2", 1000, 299, {"form": "paper"}, 32_433_928, 35_809_776, 9_257_953_632, 9_264_865_632,
    ),
    "Xception": ("xception", 1000, 299, {}, 22_855_952, 22_855_952, 8_357_403_496, 8_357_403_496),
}  # fmt: skip


@functools.cache
def counted(name, pixels, **options):
    return count_cost(create_model(name, **options), pixels)


@pytest.mark.parametrize("row", ROWS)
def test_the_published_counts(row):
    name, classes, pixels, switches, *expected = ROWS[row]
    total = counted(name, pixels, **switches if classes == 1000 else switches | {"num_classes": classes})
    found = (total.parameters, total.parameters_with_aux, total.macs, total.macs_with_aux)
    assert [n for n, wanted in zip(found, expected, strict=True) if wanted] == [n for n in expected if n]


@pytest.mark.parametrize("name", model_names())
def test_the_totals_are_the_registrys(name):
    spec = get_spec(name)
    total = counted(name, spec.image_size)
    found = (total.parameters, total.parameters_with_aux, total.macs)
    assert found == (spec.parameters, spec.parameters_with_aux, spec.macs)


# Facenet's trunk has no classifier (512 -> N): parameters with and without batch norm's factor, MACs at 160 pixels.
@pytest.mark.parametrize(("bn_scale", "parameters"), [(True, 23_482_624), (False, 23_467_824)])
def test_the_trunk_of_facenet(bn_scale, parameters):
    total = counted("inception_resnet_v1", 160, num_classes=10, bn_scale=bn_scale, **FACENET)
    assert total.parameters - (512 * 10 + 10) == parameters
    assert total.macs - 512 * 10 == 1_417_662_304


# Convolutions and fully connected layers of the trunk, a separable convolution as one.
@pytest.mark.parametrize(
    ("name", "switches", "layers"),
    [
        ("inception_v1", {}, 58),
        ("inception_v2", {}, 70),
        ("inception_v3", {}, 95),
        ("inception_v4", {}, 150),
        ("inception_resnet_v1", {}, 128),
        ("inception_resnet_v2", {}, 245),
        ("inception_resnet_v2", {"form": "paper"}, 133),
        # 36 convolutional layers (section 4.2 of the paper), 4 shortcuts and the classifier.
        ("xception", {}, 41),
    ],
)
def test_how_many_layers(name, switches, layers):
    found = counted(name, get_spec(name).image_size, **switches).layers
    assert sum(not layer.auxiliary and not layer.name.endswith("/depthwise") for layer in found) == layers


# Batch norm's running statistics, which are no parameters.
@pytest.mark.parametrize(
    ("name", "switches", "numbers"),
    [
        ("inception_v1_bn", SLIM_V1, 14_560),
        ("inception_v3", {"aux_heads": False}, 34_432),
        ("inception_v3", {}, 36_224),
        ("inception_v4", {"aux_heads": False}, 63_168),
        ("inception_resnet_v2", {"aux_heads": False}, 60_544),
        ("xception", {}, 54_528),
    ],
)
def test_how_many_statistics(name, switches, numbers):
    variables = variable_shapes(create_model(name, **switches), get_spec(name).min_image_size)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"])) == numbers


def test_the_totals_of_keras():
    """They count batch norm's statistics, too; the second is of a network without a classifier."""
    total = counted("xception", 299)
    assert total.parameters + 54_528 == 22_910_480
    assert total.parameters - total.blocks[-1].parameters + 54_528 == 20_861_480
