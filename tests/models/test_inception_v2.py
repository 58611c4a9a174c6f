"""BN-Inception: counts of every published form, the tree, precisions, switches; values are held in tests/parity."""

import functools

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.models.cost import count_cost
from inception_jax.models.inception_v2 import PAPER_MODULES, TABLES, CeilPoolBesideConv
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import ModelError, create_model, get_spec

from .traced import shapes

KEY = jax.random.key(0)
# Three modules of ten: both kinds, the max-pooled one, and a head.
FEW = {name: PAPER_MODULES[name] for name in ("3a", "3c", "5b")}
HALVING = {name: PAPER_MODULES[name] for name in ("3c", "4e")}  # with both heads
SLIM = {"stem_batch_norm": False, "bn_scale": False, "aux_heads": False}
CAFFE = {"conv1_padding": "caffe", "reduction_padding": "caffe", "pool_rounding": "caffe", "count_include_pad": True}
CADENE = CAFFE | {"table": "paper", "stem": "dense", "conv_bias": True, "bn_epsilon": 1e-5, "aux_heads": False}

# slim's network at 224 pixels: block, output, numbers in the kernels, channels that are normalized, multiply-adds.
CODE = """
conv1         112 112 64      2712   64  34019328
pool1          56  56 64         0    0         0
conv2_reduce   56  56 64      4096   64  12845056
conv2          56  56 192   110592  192 346816512
pool2          28  28 192        0    0         0
inception_3a   28  28 256   218112  480 170999808
inception_3b   28  28 320   259072  544 203112448
inception_3c   14  14 576   384000  544 143904768
inception_4a   14  14 576   608256  864 119218176
inception_4b   14  14 576   663552  896 130056192
inception_4c   14  14 576   893952  992 175214592
inception_4d   14  14 576  1105920 1056 216760320
inception_4e    7   7 1024 1437696 1024 162570240
inception_5a    7   7 1024 2179072 1600 106774528
inception_5b    7   7 1024 2276352 1632 111541248
global_pool     1   1 1024       0    0         0
classifier      1   1 1000 1025000    0   1024000
"""
# The rows that are others in the paper's table read literally, and with a dense stem.
PAPER = """
inception_4c   14  14 608   912384 1024 178827264
inception_4d   14  14 608  1140736 1088 223584256
inception_4e    7   7 1056 1447936 1024 164577280
inception_5a    7   7 1024 2205696 1600 108079104
"""
DENSE = "conv1 112 112 64 9408 64 118013952"


def rows(table):
    for line in table.strip().splitlines():
        name, *numbers = line.split()
        yield name, tuple(map(int, numbers))


@functools.cache
def counted(**options):
    return count_cost(create_model("inception_v2", **options), 224)


@pytest.mark.parametrize(
    ("options", "others", "per_channel"),
    [
        ({}, "", 2),
        ({"bn_scale": False}, "", 1),
        ({"table": "paper"}, PAPER, 2),
        ({"stem": "dense"}, DENSE, 2),
        ({"table": "paper", "stem": "dense", "conv_bias": True}, PAPER + DENSE, 3),
    ],
)
def test_every_block(options, others, per_channel):
    table = dict(rows(CODE)) | dict(rows(others))
    expected = [(name, (*out, w + per_channel * bn, macs)) for name, (*out, w, bn, macs) in table.items()]
    blocks = counted(**options, aux_heads=False).blocks
    assert [(b.name, (*b.output, b.parameters, b.macs)) for b in blocks] == expected


def test_the_heads():
    total, spec = counted(), get_spec("inception_v2")
    heads = {b.name: (b.parameters, b.macs) for b in total.blocks if b.auxiliary}
    # Kernels and two numbers per normalized channel of convolution and hidden layer, then the classifier with biases.
    assert heads == {
        "aux1": (576 * 128 + 256 + 2048 * 1024 + 2048 + 1_025_000, 16 * 576 * 128 + 2048 * 1024 + 1_024_000),
        "aux2": (1024 * 128 + 256 + 512 * 1024 + 2048 + 1_025_000, 4 * 1024 * 128 + 512 * 1024 + 1_024_000),
    }
    assert [b.name for b in total.blocks].index("aux1") == 1 + [b.name for b in total.blocks].index("inception_3c")
    assert total.parameters_with_aux == spec.parameters_with_aux == 11_188_288 + sum(p for p, _ in heads.values())
    assert spec.aux_weights == (0.3, 0.3)


def test_the_output_and_the_tree():
    model = create_model("inception_v2", num_classes=7)
    output, variables = shapes(model, 96, 64, train=True)
    assert output.logits.shape == (2, 7)
    assert [head.shape for head in output.aux_logits] == [(2, 7), (2, 7)]
    assert shapes(model, 32)[0].aux_logits == ()
    assert output.endpoints["inception_4d"].shape == (2, 6, 4, 576)
    assert output.endpoints["global_pool"].shape == (2, 1024)
    assert output.endpoint("Mixed_5a").shape == (2, 3, 2, 1024)  # the paper's 4e
    params = variables["params"]
    modules = {f"inception_{name}" for name in PAPER_MODULES}
    assert set(params) == {"conv1", "conv2_reduce", "conv2", "classifier", "aux1", "aux2"} | modules
    halving = {"conv_3x3_reduce", "conv_3x3", "double_3x3_reduce", "double_3x3_1", "double_3x3_2"}
    assert set(params["inception_3c"]) == set(params["inception_4e"]) == halving
    assert set(params["inception_4a"]) == halving | {"conv_1x1", "pool_proj"}
    leaves = {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}
    assert {path: shape for path, shape in leaves.items() if path.startswith("conv1")} == {
        "conv1/depthwise_kernel": (7, 7, 3, 8),
        "conv1/pointwise_kernel": (1, 1, 24, 64),
        "conv1/bn/scale": (64,),
        "conv1/bn/bias": (64,),
    }
    assert {path: shape for path, shape in leaves.items() if path.startswith("aux2")} == {
        "aux2/conv/kernel": (1, 1, 1024, 128),
        "aux2/conv/bn/scale": (128,),
        "aux2/conv/bn/bias": (128,),
        "aux2/fc/kernel": (2 * 2 * 128, 1024),
        "aux2/fc/bn/scale": (1024,),
        "aux2/fc/bn/bias": (1024,),
        "aux2/classifier/kernel": (1024, 7),
        "aux2/classifier/bias": (7,),
    }
    assert leaves["aux1/fc/kernel"] == (4 * 4 * 128, 1024)


def test_the_variables_do_not_depend_on_the_image():
    for options in ({}, CAFFE):  # in Caffe's form odd maps, too: 33 and 71 pixels have them
        model = create_model("inception_v2", num_classes=7, modules=HALVING, **options)
        expected = shapes(model, 224)[1]
        assert shapes(model, 32)[1] == expected
        assert shapes(model, 33, 71, train=True)[1] == expected


def test_switches_change_the_tree_as_they_say():
    def leaves(**options):
        model = create_model("inception_v2", **{"modules": FEW, "aux_heads": False} | options)
        params = shapes(model, 64)[1]["params"]
        return {path: leaf.shape for path, leaf in flatten_dict(params, sep="/").items()}

    assert {p: s for p, s in leaves(stem_batch_norm=False).items() if p.startswith("conv1/")} == {
        "conv1/depthwise_kernel": (7, 7, 3, 8),
        "conv1/pointwise_kernel": (1, 1, 24, 64),
        "conv1/bias": (64,),
    }
    assert {p for p in leaves(stem="dense", stem_batch_norm=False) if p.startswith("conv1/")} == {
        "conv1/kernel",
        "conv1/bias",
    }
    biased = leaves(conv_bias=True)
    assert set(biased) - set(leaves()) == {p.replace("bn/scale", "bias") for p in biased if p.endswith("bn/scale")}
    assert "aux1/fc/bias" in leaves(conv_bias=True, aux_heads=True)
    # slim's rule for the maps between the two halves of conv1: a third of what comes out, at most 8 of each colour.
    assert leaves(width_multiplier=0.25)["conv1/depthwise_kernel"] == (7, 7, 3, 5)
    assert leaves(width_multiplier=0.01, min_width=1)["conv1/depthwise_kernel"] == (7, 7, 3, 1)
    assert leaves(width_multiplier=0.5, aux_heads=True)["aux1/fc/kernel"] == (4 * 4 * 64, 512)
    plain = leaves(batch_norm=False)
    assert not any("/bn/" in path for path in plain)
    assert "conv1/bias" in plain
    assert TABLES["code"]["4c"] == (160, 128, 160, 128, 160, 96)


def test_paddings_change_the_sizes_of_odd_maps_alone():
    def sides(size, **options):
        model = create_model("inception_v2", aux_heads=False, modules=HALVING, **options)
        endpoints = shapes(model, size)[0].endpoints
        return [endpoints[name].shape[1] for name in ("conv1", "pool1", "pool2", "inception_3c", "inception_4e")]

    assert sides(224) == sides(224, **CAFFE) == [112, 56, 28, 14, 7]
    assert sides(225) == [113, 57, 29, 15, 8]
    assert sides(225, pool_rounding="caffe") == [113, 56, 28, 14, 7]  # Caffe: ceil((113 - 3) / 2) + 1
    assert sides(257, pool_rounding="caffe") == [129, 64, 32, 16, 8]
    assert sides(299, **CAFFE) == [150, 75, 37, 19, 10]  # 37: where Caffe's pool has 18 and its convolution 19


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 6), (7, 9), (1, 1), (2, 3)])
def test_the_pool_beside_a_padded_convolution(height, width):
    x = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    ours = CeilPoolBesideConv(3, 2, "CEIL")(jnp.asarray(x))
    starts = [range(-(size % 2), size - 1 + size % 2, 2) for size in (height, width)]
    assert ours.shape[1:3] == ((height + 1) // 2, (width + 1) // 2)  # what a 3x3/2 convolution with one pixel makes
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            window = x[:, max(top, 0) : top + 3, max(left, 0) : left + 3]
            np.testing.assert_array_equal(ours[:, i, j], window.max((1, 2)))


def jaxpr_dtypes(jaxpr):
    """The dtypes of every intermediate value, those inside nested functions included."""
    for equation in jaxpr.eqns:
        yield from (str(variable.aval.dtype) for variable in equation.outvars if hasattr(variable.aval, "dtype"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from jaxpr_dtypes(inner)


def test_float64_throughout(x64):
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, "dropout_rate": 0.0, "modules": FEW}
    model = create_model("inception_v2", **options, **CAFFE)
    images = jax.ShapeDtypeStruct((2, 33, 33, 3), jnp.float64)
    output, variables = shapes(model, 33, dtype=jnp.float64, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float64)}
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    assert not set(jaxpr_dtypes(traced.jaxpr)) & {"float32", "bfloat16", "float16"}


def test_bfloat16_maps_and_float32_logits():
    for options in ({}, CAFFE):
        model = create_model("inception_v2", dtype="bfloat16", modules=FEW, **options)
        output, variables = shapes(model, 65, train=True)
        assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
        assert {x.dtype for x in (output.logits, *output.aux_logits)} == {jnp.dtype(jnp.float32)}
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_where_it_starts():
    """slim's standard deviations before the cut: 1 in the stem, 0.09 reductions, 0.1 projections; the heads Caffe's."""
    model = create_model("inception_v2", num_classes=200, width_multiplier=0.5)
    params = jax.tree.map(np.asarray, init_variables(model, KEY, 32)["params"])
    for path, leaf in flatten_dict(params, sep="/").items():
        block, unit, name = ("/" + path).rsplit("/", 2)
        if not name.endswith("kernel"):
            assert (leaf == {"scale": 1, "bias": 0}[name]).all(), path
            continue
        stddev = np.sqrt(2.6 / np.prod(leaf.shape[:-1]))  # slim's variance scaling
        if unit == "conv1":
            stddev = 1.0
        elif unit in ("pool_proj", "conv2_reduce"):
            stddev = 0.1
        elif unit.endswith("_reduce"):
            stddev = 0.09
        bound, spread = 2 * stddev, 0.87962566 * stddev
        if block.startswith("/aux"):
            bound = np.sqrt(3 / np.prod(leaf.shape[:-1]))
            spread = bound / np.sqrt(3)
        assert 0.95 * bound < np.abs(leaf).max() <= bound * 1.00001, path
        assert leaf.std() == pytest.approx(spread, rel=4 / np.sqrt(leaf.size)), path


@pytest.fixture(scope="module")
def small():
    """A network of two modules in float64: (create, variables, images, keys)."""
    with jax.enable_x64(True):
        modules = {name: PAPER_MODULES[name] for name in ("3c", "5b")}
        options = {"modules": modules, "width_multiplier": 0.1, "min_width": 6, "num_classes": 5, "dtype": jnp.float64}
        create = functools.partial(create_model, "inception_v2", param_dtype=jnp.float64, **options)
        images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 40, 40, 3)))
        return create, init_variables(create(), KEY, 40), images, jax.random.split(KEY, 4)


def training_of(model, variables, images):
    """A compiled function of (parameters, keys): the logits of all heads, the gradient of the sum of their losses."""

    def loss(params, keys):
        both = variables | {"params": params}
        output, _ = model.apply(both, images, train=True, example_keys=keys, mutable=["batch_stats"])
        heads = jnp.stack([output.logits, *output.aux_logits])
        return jnp.sum(jax.nn.logsumexp(heads, -1) - heads[..., 0]), heads

    return jax.jit(jax.grad(loss, has_aux=True))


def test_every_parameter_learns_and_remat_changes_no_number(small, x64):
    create, variables, images, keys = small
    run = training_of(create(), variables, images)
    gradient, heads = run(variables["params"], keys)
    assert heads.shape == (2, 4, 5)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-9, path
    again = training_of(create(remat=True), variables, images)(variables["params"], keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), (gradient, heads), again)
    # Dropout is before the classifier alone: other keys, other logits there, and the same from the heads.
    _, others = run(variables["params"], jax.random.split(jax.random.key(7), 4))
    assert np.abs(others[0] - heads[0]).max() > 1e-2
    np.testing.assert_array_equal(others[1:], heads[1:])


def test_keys_for_dropout():
    model = create_model("inception_v2", num_classes=3, modules=FEW)
    _, variables = shapes(model, 32)

    def run(**arguments):
        images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        applied = lambda v, x: model.apply(v, x, mutable=["batch_stats"], **arguments)[0].logits  # noqa: E731
        return jax.eval_shape(applied, variables, images)

    assert run(train=True, example_keys=jax.random.split(KEY, 2)).shape == (2, 3)
    assert run(train=False).shape == (2, 3)
    with pytest.raises(ModelError, match="train=True with dropout needs keys"):
        run(train=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "papers"}, r"table = 'papers': it must be one of 'code', 'paper'; did you mean 'paper'\?"),
        ({"stem": "full"}, "stem = 'full': it must be one of 'separable', 'dense'"),
        ({"conv1_padding": "valid"}, "conv1_padding = 'valid': it must be one of 'same', 'caffe'"),
        ({"reduction_padding": 1}, "reduction_padding = 1: it must be one of 'same', 'caffe'"),
        ({"pool_rounding": "ceil"}, "pool_rounding = 'ceil': it must be one of 'same', 'caffe'"),
        ({"count_include_pad": "no"}, "count_include_pad: 'no' is not True or False"),
        ({"modules": FEW, "table": "paper"}, "table: 'paper' has no effect: modules are given"),
        ({"batch_norm": False, "conv_bias": True}, "conv_bias: True has no effect: there is no batch norm"),
        ({"batch_norm": False, "stem_batch_norm": False}, "stem_batch_norm: False has no effect: there is no batch"),
        ({"lrn": True}, "unknown option 'lrn' of inception_v2"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        create_model("inception_v2", **options)
