"""The Inception-ResNets: counts of every published form, trees, switches, precisions; values are in tests/parity."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.models.blocks import _rectified_sum
from inception_jax.models.cost import count_cost
from inception_jax.models.initialization import init_variables
from inception_jax.models.platforms import TRACED_FOR
from inception_jax.models.registry import ModelError, create_model

from .traced import shapes

KEY = jax.random.key(0)
FACENET = {"extra_block8": True, "bottleneck": 512, "aux_heads": False}
FEW = {"block35_count": 1, "block17_count": 1, "block8_count": 2}  # blocks, where a few show as much as all

# At 299 pixels; blocks of one kind together: output, numbers in the kernels, biases, channels that are normalized,
# multiply-adds. Counted from facenet's inception_resnet_v1.py and the paper's figures, ...
V1 = """
conv2d_1a_3x3  149 149 32       864     0   32   19181664
conv2d_2a_3x3  147 147 32      9216     0   32  199148544
conv2d_2b_3x3  147 147 64     18432     0   64  398297088
maxpool_3a      73  73 64         0     0    0          0
conv2d_3b_1x1   73  73 80      5120     0   80   27284480
conv2d_4a_3x3   71  71 192   138240     0  192  696867840
conv2d_4b_3x3   35  35 256   442368     0  256  541900800
block35         35  35 256   384000  1280  960  470400000
mixed_6a        17  17 896  1708032     0 1024  850169856
block17         17  17 896  6881280  8960 5120 1988689920
aux              1   1 1000 3340288  1000  896    6092800
mixed_7a         8   8 1792 3342336     0 1920  501448704
block8           8   8 1792 7987200  8960 3840  511180800
global_pool      1   1 1792       0     0    0          0
classifier       1   1 1000 1792000  1000    0    1792000
"""
# ... from slim's inception_resnet_v2.py, ...
V2 = """
conv2d_1a_3x3  149 149 32        864     0    32   19181664
conv2d_2a_3x3  147 147 32       9216     0    32  199148544
conv2d_2b_3x3  147 147 64      18432     0    64  398297088
maxpool_3a      73  73 64          0     0     0          0
conv2d_3b_1x1   73  73 80       5120     0    80   27284480
conv2d_4a_3x3   71  71 192    138240     0   192  696867840
maxpool_5a      35  35 192         0     0     0          0
mixed_5b        35  35 320    267264     0   528  327398400
block35         35  35 320   1223680  3200  2400 1499008000
mixed_6a        17  17 1088  2662400     0  1280 1398185984
block17         17  17 1088 22487040 21760 13440 6498754560
aux              1   1 1000  3364864  1000   896    6707200
mixed_7a         8   8 2080  3876864     0  2048  585424896
block8           8   8 2080 20316160 20800  8640 1300234240
conv2d_7b_1x1    8   8 1536  3194880     0  1536  204472320
global_pool      1   1 1536        0     0     0          0
classifier       1   1 1000  1536000  1000     0    1536000
"""
# ... and from the paper's figures, read literally.
V2_PAPER = """
conv2d_1a_3x3  149 149 32        864     0   32   19181664
conv2d_2a_3x3  147 147 32       9216     0   32  199148544
conv2d_2b_3x3  147 147 64      18432     0   64  398297088
mixed_3a        73  73 160     55296     0   96  294672384
mixed_4a        71  71 192    188416     0  448  972218368
mixed_5a        35  35 384    331776     0  192  406425600
block35         35  35 384    683520  1920 1200  837312000
mixed_6a        17  17 1152  2899968     0 1280 1482178560
block17         17  17 1152 11694080 11520 6720 3379589120
aux              1   1 1000  3373056  1000  896    6912000
mixed_7a         8   8 2144  3926016     0 2048  599629824
block8           8   8 2144 10424320 10720 4320  667156480
global_pool      1   1 2144        0     0    0          0
classifier       1   1 1000  2144000  1000    0    2144000
"""


@functools.cache
def counted(name, size=299, **options):
    return count_cost(create_model(name, **options), size)


@pytest.mark.parametrize(
    ("name", "options", "table"),
    [
        ("inception_resnet_v1", {}, V1),
        ("inception_resnet_v2", {}, V2),
        ("inception_resnet_v2", {"form": "paper"}, V2_PAPER),
    ],
    ids=["v1", "v2", "v2_paper"],
)
def test_every_block(name, options, table):
    ours = {}
    for block in counted(name, **options).blocks:
        kind = block.name.rpartition("_")[0] if block.name.startswith("block") else block.name
        parameters, macs = ours.get(kind, (0, 0, 0))[1:]
        ours[kind] = (block.output, parameters + block.parameters, macs + block.macs)
    expected = {}
    for kind, *numbers in map(str.split, table.strip().splitlines()):
        *output, kernels, biases, channels, macs = map(int, numbers)
        expected[kind] = (tuple(output), kernels + biases + 2 * channels, macs)
    assert ours == expected
    assert list(ours) == list(expected)  # in the order in which they run


def kernels(unit):
    return {
        name.removesuffix("/kernel"): leaf.shape
        for name, leaf in flatten_dict(unit, sep="/").items()
        if name.endswith("kernel")
    }


STEM = {"conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3", "conv2d_3b_1x1", "conv2d_4a_3x3"}


def blocks(*counts):
    return {
        f"{kind}_{i + 1}"
        for kind, count in zip(("block35", "block17", "block8"), counts, strict=True)
        for i in range(count)
    }


def test_the_output_and_the_tree_of_version_2():
    output, variables = shapes(create_model("inception_resnet_v2", num_classes=7), 107, 75, train=True)
    assert output.logits.shape == (2, 7)
    assert [head.shape for head in output.aux_logits] == [(2, 7)]
    assert output.endpoints["block17_20"].shape == (2, 5, 3, 1088)
    assert output.endpoints["global_pool"].shape == (2, 1536)
    params = variables["params"]
    others = {"mixed_5b", "mixed_6a", "mixed_7a", "conv2d_7b_1x1", "aux", "classifier"}
    assert set(params) == STEM | blocks(10, 20, 10) | others
    assert set(params["aux"]) == {"conv_1x1", "conv_5x5", "classifier"}
    assert set(params["block17_1"]["up"]) == {"kernel", "bias"}
    assert set(variables["batch_stats"]["block17_1"]) == {"conv_1x1", "conv_7x7_reduce", "conv_1x7", "conv_7x1"}
    assert kernels(params["block35_1"]) == {
        "conv_1x1": (1, 1, 320, 32),
        "conv_3x3_reduce": (1, 1, 320, 32),
        "conv_3x3": (3, 3, 32, 32),
        "double_3x3_reduce": (1, 1, 320, 32),
        "double_3x3_1": (3, 3, 32, 48),
        "double_3x3_2": (3, 3, 48, 64),
        "up": (1, 1, 128, 320),
    }
    assert kernels(params["block17_1"]) == {
        "conv_1x1": (1, 1, 1088, 192),
        "conv_7x7_reduce": (1, 1, 1088, 128),
        "conv_1x7": (1, 7, 128, 160),
        "conv_7x1": (7, 1, 160, 192),
        "up": (1, 1, 384, 1088),
    }
    assert kernels(params["block8_10"]) == {
        "conv_1x1": (1, 1, 2080, 192),
        "conv_3x3_reduce": (1, 1, 2080, 192),
        "conv_1x3": (1, 3, 192, 224),
        "conv_3x1": (3, 1, 224, 256),
        "up": (1, 1, 448, 2080),
    }
    assert kernels(params["mixed_7a"]) == {
        "conv_3x3_1_reduce": (1, 1, 1088, 256),
        "conv_3x3_1": (3, 3, 256, 384),
        "conv_3x3_2_reduce": (1, 1, 1088, 256),
        "conv_3x3_2": (3, 3, 256, 288),
        "double_3x3_reduce": (1, 1, 1088, 256),
        "double_3x3_1": (3, 3, 256, 288),
        "double_3x3_2": (3, 3, 288, 320),
    }


def test_the_trees_of_the_papers_version_2_and_of_version_1():
    params = shapes(create_model("inception_resnet_v2", form="paper"), 75)[1]["params"]
    stem = {"conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3", "mixed_3a", "mixed_4a", "mixed_5a"}
    assert set(params) == stem | blocks(5, 10, 5) | {"mixed_6a", "mixed_7a", "aux", "classifier"}
    params = shapes(create_model("inception_resnet_v1"), 75)[1]["params"]
    trunk = STEM | {"conv2d_4b_3x3", "mixed_6a", "mixed_7a"}
    assert set(params) == trunk | blocks(5, 10, 5) | {"aux", "classifier"}
    params = shapes(create_model("inception_resnet_v1", **FACENET), 75)[1]["params"]
    assert set(params) == trunk | blocks(5, 10, 6) | {"bottleneck", "classifier"}
    assert set(params["bottleneck"]) == {"kernel", "bn"}
    assert params["bottleneck"]["kernel"].shape == (1792, 512)
    assert params["classifier"]["kernel"].shape == (512, 1000)


def test_the_counts_of_blocks_are_switches():
    params = shapes(create_model("inception_resnet_v2", block17_count=3), 75)[1]["params"]
    assert {name for name in params if name.startswith("block")} == blocks(10, 3, 10)
    output = shapes(create_model("inception_resnet_v1", extra_block8=True, **FEW), 75)[0]
    assert {name for name in output.endpoints if name.startswith("block")} == blocks(1, 1, 3)


@pytest.mark.parametrize("options", [{}, {"form": "paper"}, {"align_feature_maps": True}])
def test_the_variables_do_not_depend_on_the_image(options):
    model = create_model("inception_resnet_v2", num_classes=7, **FEW, **options)
    assert shapes(model, 75, 331)[1] == shapes(model, 299)[1]


def test_aligned_maps_have_a_pixel_for_every_stride():
    endpoints = shapes(create_model("inception_resnet_v2", align_feature_maps=True, **FEW), 321)[0].endpoints
    names = ("conv2d_2b_3x3", "conv2d_4a_3x3", "mixed_5b", "mixed_6a", "mixed_7a")
    sides = [endpoints[name].shape[1] for name in names]
    assert sides == [161, 81, 41, 21, 11]


# slim's end_points and facenet's, with the sides and channels at 299 pixels that their comments give.
V1_NAMES = """
Conv2d_1a_3x3 149 32 | Conv2d_2a_3x3 147 32 | Conv2d_2b_3x3 147 64 | MaxPool_3a_3x3 73 64 | Conv2d_3b_1x1 73 80 |
Conv2d_4a_3x3 71 192 | Conv2d_4b_3x3 35 256 | Mixed_5a 35 256 | Mixed_6a 17 896 | Mixed_6b 17 896 |
PreAuxLogits 17 896 | Mixed_7a 8 1792 | Mixed_8a 8 1792 | PrePool 8 1792 | PreLogitsFlatten 1 1792
"""
V2_NAMES = """
Conv2d_1a_3x3 149 32 | Conv2d_2a_3x3 147 32 | Conv2d_2b_3x3 147 64 | MaxPool_3a_3x3 73 64 | Conv2d_3b_1x1 73 80 |
Conv2d_4a_3x3 71 192 | MaxPool_5a_3x3 35 192 | Mixed_5b 35 320 | Mixed_6a 17 1088 | PreAuxLogits 17 1088 |
Mixed_7a 8 2080 | Conv2d_7b_1x1 8 1536 | PrePool 8 1536 | PreLogitsFlatten 1 1536
"""


@pytest.mark.parametrize(
    ("name", "options", "names", "led_to"),
    [
        ("inception_resnet_v1", FEW, V1_NAMES, {"Mixed_8a": "block8_2", "PrePool": "block8_2"}),
        (
            "inception_resnet_v1",
            FEW | FACENET,
            V1_NAMES + "| Mixed_8b 8 1792 | Bottleneck 1 512",
            {"Mixed_8a": "block8_2", "Mixed_8b": "block8_3", "PrePool": "block8_3", "Bottleneck": "embedding"},
        ),
        ("inception_resnet_v2", FEW, V2_NAMES, {"PreAuxLogits": "block17_1", "PrePool": "conv2d_7b_1x1"}),
    ],
)
def test_slims_and_facenets_names(name, options, names, led_to):
    output = shapes(create_model(name, **options), 299)[0]
    expected = {row[0]: (int(row[1]), int(row[2])) for row in map(str.split, names.split("|"))}
    found = {alias: output.endpoint(alias).shape for alias in output.aliases}
    assert {alias: (s[1] if len(s) == 4 else 1, s[-1]) for alias, s in found.items()} == expected
    assert {alias: output.aliases[alias] for alias in led_to} == led_to


def test_float64_throughout(x64):
    model = create_model(
        "inception_resnet_v1",
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        bn_scale=False,
        **FEW,
        extra_block8=True,
        bottleneck=8,
    )
    output, variables = shapes(model, 75, dtype=jnp.float64, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float64)}
    assert set(variables["params"]["bottleneck"]["bn"]) == {"bias"}


def test_bfloat16_maps_and_float32_logits():
    scale = {"block35_scale": np.float64(0.2)}  # a number of NumPy's is a number, not an array
    for name, options in (("inception_resnet_v1", {"bottleneck": 8}), ("inception_resnet_v2", scale)):
        output, variables = shapes(create_model(name, dtype="bfloat16", **FEW, **options), 75, train=True)
        assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
        assert {x.dtype for x in (output.logits, *output.aux_logits)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_the_width_multiplier_leaves_the_embedding_and_the_sums_alone():
    model = create_model("inception_resnet_v1", width_multiplier=0.5, **FEW, bottleneck=100)
    output, variables = shapes(model, 107)
    assert output.endpoints["embedding"].shape == (2, 100)
    assert output.endpoints["block35_1"].shape[-1] == output.endpoints["conv2d_4b_3x3"].shape[-1] == 128
    assert variables["params"]["block17_1"]["up"]["kernel"].shape == (1, 1, 128, 448)


def test_without_batch_norm_every_layer_has_a_bias():
    variables = shapes(create_model("inception_resnet_v1", batch_norm=False, **FEW, bottleneck=8), 75)[1]
    assert set(variables) == {"params"}
    names = flatten_dict(variables["params"], sep="/")
    assert {name.rpartition("/")[2] for name in names} == {"kernel", "bias"}
    assert all(name.replace("kernel", "bias") in names for name in names)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inception_resnet_v2", {"form": "papers"}, "form = 'papers': it must be one of 'code', 'paper'; did you mean"),
        ("inception_resnet_v2", {"block35_count": -1}, "block35_count: -1 is not a number of blocks up to 1000, or 0"),
        ("inception_resnet_v1", {"bottleneck": -5}, "bottleneck: -5 is not a number of features, or 0 for none"),
        ("inception_resnet_v1", {"extra_block8": 1}, "extra_block8: 1 is not True or False"),
        ("inception_resnet_v1", {"form": "code"}, "unknown option 'form' of inception_resnet_v1"),
        ("inception_resnet_v2", {"block17_scale": "0.1"}, "block17_scale: '0.1' is not a number"),
        ("inception_resnet_v1", {"block8_scale": float("nan")}, "block8_scale: nan is not a finite float32"),
    ],
)
def test_mistakes(name, options, message):
    with pytest.raises(ModelError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize("name", ["inception_resnet_v1", "inception_resnet_v2"])
def test_small_images_are_refused(name):
    with pytest.raises(ModelError, match=f"too few for {name}: at least 75x75"):
        shapes(create_model(name, **FEW), 74, 107)


# --- By values -------------------------------------------------------------------------------------------------------


def tiny(name, **options):
    return create_model(name, num_classes=5, width_multiplier=0.01, min_width=4, **FEW | options)


def make_images():
    return jax.random.normal(KEY, (2, 75, 75, 3))


def test_a_scale_of_zero_leaves_the_trunk_as_it_is():
    """Each of the three scales acts on its own blocks, and in version 2 not on the last one."""
    model = tiny("inception_resnet_v2", block35_scale=0.0, block8_scale=0.0)
    variables = init_variables(model, KEY, 75)
    ends = jax.jit(model.apply)(variables, make_images()).endpoints
    assert np.array_equal(ends["block35_1"], ends["mixed_5b"])
    assert not np.allclose(ends["block17_1"], ends["mixed_6a"])
    assert np.array_equal(ends["block8_1"], ends["mixed_7a"])
    assert not np.allclose(ends["block8_2"], ends["block8_1"])
    assert (np.asarray(ends["block8_2"]) < 0).any()  # no ReLU
    assert (np.asarray(ends["block17_1"]) >= 0).all()


def test_the_embedding_is_what_the_classifier_reads_and_dropout_comes_before():
    model = tiny("inception_resnet_v1", bottleneck=6, aux_heads=False, dropout_rate=0.5, bn_frozen=("bottleneck/bn",))
    variables = init_variables(model, KEY, 75)
    bn = {"scale": jnp.arange(1.0, 7.0), "bias": jnp.arange(6.0) / 8 - 1}
    stats = {"mean": jnp.arange(6.0) / 10, "var": jnp.arange(1.0, 7.0)}
    variables["params"]["bottleneck"]["bn"], variables["batch_stats"]["bottleneck"]["bn"] = bn, stats
    keys = jax.random.split(jax.random.key(1), 2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(train):
        return model.apply(variables, make_images(), train=train, example_keys=keys, mutable=["batch_stats"])[0]

    def embedded(pooled):
        features = np.asarray(pooled) @ variables["params"]["bottleneck"]["kernel"]
        return (features - stats["mean"]) / np.sqrt(stats["var"] + 1e-3) * bn["scale"] + bn["bias"]

    out = run(False)
    np.testing.assert_allclose(out.endpoints["embedding"], embedded(out.endpoints["global_pool"]), rtol=1e-4, atol=1e-5)
    assert (np.asarray(out.endpoints["embedding"]) < 0).any()
    last = variables["params"]["classifier"]
    np.testing.assert_allclose(out.logits, out.endpoints["embedding"] @ last["kernel"], rtol=1e-4, atol=1e-5)
    trained = run(True)
    ends = trained.endpoints
    assert not np.allclose(ends["embedding"], embedded(ends["global_pool"]))  # dropout stands between the two ...
    np.testing.assert_allclose(trained.logits, ends["embedding"] @ last["kernel"], rtol=1e-4, atol=1e-5)  # ... alone


def training_loss(model):
    keys = jax.random.split(KEY, 2)

    def loss(params, statistics):
        given = {"params": params, "batch_stats": statistics}
        out, state = model.apply(given, make_images(), train=True, example_keys=keys, mutable=["batch_stats"])
        return out.logits.sum() + out.aux_logits[0].sum(), state

    return loss


def test_remat_reaches_every_module():
    counts = []
    for remat in (False, True):
        model = tiny("inception_resnet_v2", remat=remat)
        variables = shapes(model, 75)[1]
        graph = jax.make_jaxpr(training_loss(model))(variables["params"], variables["batch_stats"])
        counts.append(sum("remat" in str(equation.primitive) for equation in graph.jaxpr.eqns))
    assert counts == [0, 7]  # mixed_5b, block35_1, mixed_6a, block17_1, mixed_7a, block8_1, block8_2


@pytest.mark.slow
def test_remat_changes_no_number():
    plain, again = (tiny("inception_resnet_v2", remat=remat) for remat in (False, True))
    variables = init_variables(plain, KEY, 75)
    results = [
        jax.jit(jax.value_and_grad(training_loss(model), has_aux=True))(variables["params"], variables["batch_stats"])
        for model in (plain, again)
    ]
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * max(1e-3, float(np.abs(one).max())))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inception_resnet_v1", {"extra_block8": True, "bottleneck": 16}),
        ("inception_resnet_v2", {}),
        ("inception_resnet_v2", {"form": "paper"}),
    ],
)
def test_every_parameter_learns(name, options):
    model = create_model(name, width_multiplier=0.125, num_classes=5, **options)
    variables = init_variables(model, KEY, 107)
    images, keys = jax.random.normal(KEY, (4, 107, 107, 3)), jax.random.split(KEY, 4)

    def loss(params):
        given = variables | {"params": params}
        output, _ = model.apply(given, images, train=True, example_keys=keys, mutable=["batch_stats"])
        heads = jnp.stack([output.logits, *output.aux_logits])
        return jnp.sum(jax.nn.logsumexp(heads, -1) - heads[..., 0])

    for path, leaf in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(variables["params"])):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_the_rectified_sum_is_that_of_relu():
    x = jnp.array([-jnp.inf, -1.0, -0.0, 0.0, 1e-30, 2.0, jnp.inf, jnp.nan])
    for dtype in (jnp.float32, jnp.bfloat16):
        values = x.astype(dtype)
        found, expected = (f(values).astype(jnp.float32) for f in (_rectified_sum, nn.relu))
        np.testing.assert_array_equal(found, expected)
        gradients = [jax.grad(lambda v, f=f: f(v)[:-1].sum())(values) for f in (_rectified_sum, nn.relu)]
        np.testing.assert_array_equal(gradients[0][:-1], gradients[1][:-1])


def test_no_block_reads_what_the_blocks_before_it_computed():
    """XLA for CPUs would add up the residuals of all blocks before it in every block."""
    model = create_model("inception_resnet_v2", num_classes=3, width_multiplier=0.125)
    x = jax.ShapeDtypeStruct((1, 107, 107, 3), jnp.float32)
    with TRACED_FOR("cpu"):
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype), train=False))
        program = jax.jit(lambda variables, x: model.apply(variables, x, train=False).logits).lower(variables, x)
    fusions = re.findall(r" = f32\[1,\d+,\d+,\d+\]\S* fusion\(([^)]*)\)", program.compile().as_text())
    # A concatenation of four branches with their batch norm has 25 operands, the sum of 20 blocks would have 41.
    assert len(fusions) > 40 and max(operands.count("%") for operands in fusions) < 30
