"""Inception-v3: counts of every published form, the tree, precisions, switches; values are held in tests/parity."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax.models.cost import count_cost
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import ModelError, create_model

from .traced import shapes

KEY = jax.random.key(0)
FID = {"last_pool": "max", "num_classes": 1008, "aux_heads": False}

# slim's inception_v3.py at 299 pixels: block, output, numbers in the kernels (and the classifiers' biases), channels
# that are normalized, multiply-adds.
V3 = """
conv2d_1a_3x3  149 149 32      864   32  19181664
conv2d_2a_3x3  147 147 32     9216   32 199148544
conv2d_2b_3x3  147 147 64    18432   64 398297088
maxpool_3a      73  73 64        0    0         0
conv2d_3b_1x1   73  73 80     5120   80  27284480
conv2d_4a_3x3   71  71 192  138240  192 696867840
maxpool_5a      35  35 192       0    0         0
mixed_5b        35  35 256  254976  464 312345600
mixed_5c        35  35 288  276480  496 338688000
mixed_5d        35  35 288  284160  496 348096000
mixed_6a        17  17 768 1152000  640 401937408
mixed_6b        17  17 768 1294336 1536 374063104
mixed_6c        17  17 768 1687552 1728 487702528
mixed_6d        17  17 768 1687552 1728 487702528
mixed_6e        17  17 768 2138112 1920 617914368
aux              1   1 1000 3324904  896  5683200
mixed_7a         8   8 1280 1695744 1280 291004416
mixed_7b         8   8 2048 5038080 3264 322437120
mixed_7c         8   8 2048 6070272 3264 388497408
global_pool      1   1 2048       0    0         0
classifier       1   1 1000 2049000    0   2048000
"""


@functools.cache
def counted(**options):
    return count_cost(create_model("inception_v3", **options), 299)


@pytest.mark.parametrize(("options", "per_channel"), [({}, 2), ({"bn_scale": False}, 1)])
def test_every_block(options, per_channel):
    expected = []
    for name, *numbers in map(str.split, V3.strip().splitlines()):
        *output, kernels, channels, macs = map(int, numbers)
        expected.append((name, (*output, kernels + per_channel * channels, macs)))
    assert [(b.name, (*b.output, b.parameters, b.macs)) for b in counted(**options).blocks] == expected


def test_the_output_and_the_tree():
    model = create_model("inception_v3", num_classes=7)
    output, variables = shapes(model, 107, 75, train=True)
    assert output.logits.shape == (2, 7)
    assert [head.shape for head in output.aux_logits] == [(2, 7)]
    assert shapes(model, 75)[0].aux_logits == ()
    assert output.endpoint("Mixed_6e").shape == output.endpoints["mixed_6e"].shape == (2, 5, 3, 768)
    assert output.endpoint("PreLogits").shape == (2, 2048)
    params = variables["params"]
    stem = {"conv2d_1a_3x3", "conv2d_2a_3x3", "conv2d_2b_3x3", "conv2d_3b_1x1", "conv2d_4a_3x3"}
    mixed = {f"mixed_{grid}{module}" for grid, modules in ((5, "bcd"), (6, "abcde"), (7, "abc")) for module in modules}
    assert set(params) == stem | mixed | {"aux", "classifier"}
    kernels = {
        block: {name: unit["kernel"].shape for name, unit in params[block].items()}
        for block in ("mixed_5b", "mixed_6c", "mixed_7a", "mixed_7c", "aux")
    }
    assert kernels == {
        "mixed_5b": {
            "conv_1x1": (1, 1, 192, 64),
            "conv_5x5_reduce": (1, 1, 192, 48),
            "conv_5x5": (5, 5, 48, 64),
            "double_3x3_reduce": (1, 1, 192, 64),
            "double_3x3_1": (3, 3, 64, 96),
            "double_3x3_2": (3, 3, 96, 96),
            "pool_proj": (1, 1, 192, 32),
        },
        # 1x7 first in the short branch, 7x1 first in the long one.
        "mixed_6c": {
            "conv_1x1": (1, 1, 768, 192),
            "conv_7x7_reduce": (1, 1, 768, 160),
            "conv_1x7": (1, 7, 160, 160),
            "conv_7x1": (7, 1, 160, 192),
            "double_7x7_reduce": (1, 1, 768, 160),
            "double_7x1_1": (7, 1, 160, 160),
            "double_1x7_1": (1, 7, 160, 160),
            "double_7x1_2": (7, 1, 160, 160),
            "double_1x7_2": (1, 7, 160, 192),
            "pool_proj": (1, 1, 768, 192),
        },
        "mixed_7a": {
            "conv_3x3_reduce": (1, 1, 768, 192),
            "conv_3x3": (3, 3, 192, 320),
            "conv_7x7_reduce": (1, 1, 768, 192),
            "conv_1x7": (1, 7, 192, 192),
            "conv_7x1": (7, 1, 192, 192),
            "conv_7x7_3x3": (3, 3, 192, 192),
        },
        "mixed_7c": {
            "conv_1x1": (1, 1, 2048, 320),
            "conv_3x3_reduce": (1, 1, 2048, 384),
            "conv_1x3": (1, 3, 384, 384),
            "conv_3x1": (3, 1, 384, 384),
            "double_3x3_reduce": (1, 1, 2048, 448),
            "double_3x3": (3, 3, 448, 384),
            "double_1x3": (1, 3, 384, 384),
            "double_3x1": (3, 1, 384, 384),
            "pool_proj": (1, 1, 2048, 192),
        },
        "aux": {"conv_1x1": (1, 1, 768, 128), "conv_5x5": (5, 5, 128, 768), "classifier": (768, 7)},
    }


def test_the_maps_that_the_fid_is_measured_on():
    output, _ = shapes(create_model("inception_v3", **FID), 299)
    features = [output.endpoints[name].shape for name in ("maxpool_3a", "maxpool_5a", "mixed_6e", "global_pool")]
    assert features == [(2, 73, 73, 64), (2, 35, 35, 192), (2, 17, 17, 768), (2, 2048)]
    assert output.logits.shape == (2, 1008)


def test_the_variables_do_not_depend_on_the_image():
    model = create_model("inception_v3", num_classes=7)
    expected = shapes(model, 299)[1]
    assert shapes(model, 75, 448, train=True)[1] == expected
    for switches in ({"count_include_pad": True}, {"last_pool": "max"}):
        assert shapes(create_model("inception_v3", num_classes=7, **switches), 75)[1] == expected


def test_width_multiplier():
    params = shapes(create_model("inception_v3", width_multiplier=0.25, num_classes=3), 75)[1]["params"]
    assert params["conv2d_3b_1x1"]["kernel"].shape == (1, 1, 16, 20)
    assert params["aux"]["conv_5x5"]["kernel"].shape == (5, 5, 32, 192)  # heads are as narrow as the trunk
    assert params["classifier"]["kernel"].shape == (512, 3)


def test_float64_throughout(x64):
    model = create_model("inception_v3", dtype=jnp.float64, param_dtype=jnp.float64, bn_scale=False)
    output, variables = shapes(model, 75, dtype=jnp.float64, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float64)}
    assert set(variables["params"]["mixed_7c"]["conv_1x1"]["bn"]) == {"bias"}


def test_bfloat16_maps_and_float32_logits():
    output, variables = shapes(create_model("inception_v3", dtype="bfloat16", **FID), 75, train=True)
    assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in (output.logits, *output.aux_logits)} == {jnp.dtype(jnp.float32)}
    output, _ = shapes(create_model("inception_v3", dtype="bfloat16"), 75, train=True)
    assert output.aux_logits[0].dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_where_it_starts():
    """slim's variance scaling, the classifier's included (there it is a convolution); in the head 0.01 and 0.001."""
    model = create_model("inception_v3", num_classes=200, width_multiplier=0.25)
    params = jax.tree.map(np.asarray, init_variables(model, KEY, 75)["params"])
    own = {"aux/conv_5x5/kernel": 0.01, "aux/classifier/kernel": 0.001}
    for path, leaf in flatten_dict(params, sep="/").items():
        if not path.endswith("kernel"):
            assert (leaf == {"scale": 1, "bias": 0}[path.rpartition("/")[2]]).all(), path
            continue
        stddev = own.get(path, np.sqrt(2.6 / np.prod(leaf.shape[:-1])))
        assert 0.9 * 2 * stddev < np.abs(leaf).max() <= 2 * stddev * 1.00001, path
        assert leaf.std() == pytest.approx(0.87962566 * stddev, rel=4 / np.sqrt(leaf.size)), path


def test_remat_is_of_every_module():
    def marks(**options):
        model = create_model("inception_v3", width_multiplier=0.1, dropout_rate=0.0, **options)
        images = jnp.zeros((2, 75, 75, 3))
        variables = shapes(model, 75)[1]
        run = lambda v: model.apply(v, images, train=True, mutable=["batch_stats"])[0].logits.sum()  # noqa: E731
        jaxpr = jax.make_jaxpr(run)(variables).jaxpr
        return sum("remat" in equation.primitive.name for equation in jaxpr.eqns)

    assert marks() == 0
    assert marks(remat=True) == 11  # mixed_5b ... mixed_7c


def training_of(model, variables, images):
    """A compiled function of (parameters, keys): the logits of all heads, the gradient of the sum of their losses."""

    def loss(params, keys):
        both = variables | {"params": params}
        output, _ = model.apply(both, images, train=True, example_keys=keys, mutable=["batch_stats"])
        heads = jnp.stack([output.logits, *output.aux_logits])
        return jnp.sum(jax.nn.logsumexp(heads, -1) - heads[..., 0]), heads

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.slow
def test_every_parameter_learns_and_remat_changes_no_number(x64):
    options = {"width_multiplier": 0.05, "min_width": 6, "num_classes": 5, "dtype": jnp.float64}
    model = create_model("inception_v3", param_dtype=jnp.float64, **options)
    images, keys = jnp.asarray(np.random.default_rng(0).normal(size=(4, 107, 107, 3))), jax.random.split(KEY, 4)
    variables = init_variables(model, KEY, 107)
    run = training_of(model, variables, images)
    gradient, heads = run(variables["params"], keys)
    assert heads.shape == (2, 4, 5)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    again = training_of(model.clone(remat=True), variables, images)(variables["params"], keys)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), (gradient, heads), again)
    # Dropout is before the classifier alone: other keys, other logits there, and the same from the head.
    _, others = run(variables["params"], jax.random.split(jax.random.key(7), 4))
    assert np.abs(others[0] - heads[0]).max() > 1e-2
    np.testing.assert_array_equal(others[1:], heads[1:])


def test_keys_for_dropout():
    model = create_model("inception_v3", num_classes=3)
    images, (_, variables) = jax.ShapeDtypeStruct((2, 75, 75, 3), jnp.float32), shapes(model, 75)

    def run(**arguments):
        applied = lambda v, x: model.apply(v, x, mutable=["batch_stats"], **arguments)[0].logits  # noqa: E731
        return jax.eval_shape(applied, variables, images)

    assert run(train=True, example_keys=jax.random.split(KEY, 2)).shape == (2, 3)
    with pytest.raises(ModelError, match="train=True with dropout needs keys"):
        run(train=True)


def test_what_is_refused():
    with pytest.raises(ModelError, match="last_pool = 'mean': it must be one of 'avg', 'max'"):
        create_model("inception_v3", last_pool="mean")
    with pytest.raises(ModelError, match="count_include_pad: 1 is not True or False"):
        create_model("inception_v3", count_include_pad=1)
    with pytest.raises(ModelError, match="images: 75x74 pixels are too few for inception_v3: at least 75x75"):
        shapes(create_model("inception_v3"), 75, 74)
    output, _ = shapes(create_model("inception_v3"), 75)
    with pytest.raises(ModelError, match=r"no endpoint 'Mixed_6f'; did you mean 'Mixed_6\w'\?; endpoints: .*mixed_6e"):
        output.endpoint("Mixed_6f")
