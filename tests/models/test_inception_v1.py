"""GoogLeNet as a whole: what comes out, in which precision, what learns, and what a row may depend on.

Values are held beside an independent network in tests/parity; shapes and counts in test_cost.py.
"""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models.inception_v1 import MODULES, POOL_PADDINGS, InceptionV1
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import ModelError, create_model

from .traced import shapes

KEY = jax.random.key(0)
# Three modules of nine: every kind of layer and both heads, traced in a third of the time.
FEW = {name: MODULES[name] for name in ("3a", "4a", "4d")}
ENDPOINTS = [
    "conv1", "pool1", "norm1", "conv2_reduce", "conv2", "norm2", "pool2", "inception_3a", "inception_3b", "pool3",
    "inception_4a", "inception_4b", "inception_4c", "inception_4d", "inception_4e", "pool4", "inception_5a",
    "inception_5b", "pool5",
]  # fmt: skip


def make_images(batch, height, width=None, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((batch, height, width or height, 3), dtype)


def jaxpr_dtypes(jaxpr):
    """The dtypes of every intermediate value, those inside nested functions included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.dtype for variable in equation.outvars if hasattr(variable.aval, "dtype"))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from jaxpr_dtypes(inner)


def test_the_output():
    model = create_model("inception_v1", num_classes=7)
    seen = []

    def run(x):
        output, variables = model.init_with_output(KEY, x)
        seen.extend(output.endpoints)
        return output, variables

    output, variables = jax.eval_shape(run, make_images(2, 96, 64))
    assert seen == ENDPOINTS
    assert output.logits.shape == (2, 7)
    assert output.aux_logits == ()
    assert output.endpoints["inception_4a"].shape == (2, 6, 4, 512)
    assert output.endpoints["pool5"].shape == (2, 1024)
    assert list(variables) == ["params"]
    modules = {f"inception_{name}" for name in MODULES}
    assert set(variables["params"]) == {"conv1", "conv2_reduce", "conv2", "classifier", "aux1", "aux2"} | modules
    assert set(variables["params"]["inception_3a"]) == {
        "conv_1x1",
        "conv_3x3_reduce",
        "conv_3x3",
        "conv_5x5_reduce",
        "conv_5x5",
        "pool_proj",
    }
    assert set(variables["params"]["aux1"]) == {"conv", "fc", "classifier"}
    trained, _ = shapes(model, 96, 64, train=True)
    assert [head.shape for head in trained.aux_logits] == [(2, 7), (2, 7)]


def test_the_variables_do_not_depend_on_the_image():
    model = create_model("inception_v1", num_classes=7)
    _, expected = shapes(model, 224, batch=1)
    assert shapes(model, 32, batch=1)[1] == expected
    assert shapes(model, 33, 71, batch=3, train=True)[1] == expected


def test_without_heads():
    model = create_model("inception_v1", aux_heads=False, modules=FEW)
    output, variables = shapes(model, 64, train=True)
    assert output.aux_logits == ()
    assert not {"aux1", "aux2"} & set(variables["params"])


def test_batch_norm_for_biases():
    _, variables = shapes(create_model("inception_v1_bn", modules=FEW), 32, batch=1)
    unit = variables["params"]["inception_4d"]["conv_5x5"]
    assert set(unit) == {"kernel", "bn"}
    assert set(unit["bn"]) == {"scale", "bias"}
    assert set(variables["params"]["aux1"]["conv"]) == {"kernel", "bn"}
    assert set(variables["params"]["aux1"]["fc"]) == {"kernel", "bias"}
    assert set(variables["batch_stats"]["inception_4d"]["conv_5x5"]["bn"]) == {"mean", "var"}
    _, plain = shapes(create_model("inception_v1_bn", bn_scale=False, modules=FEW), 32, batch=1)
    assert set(plain["params"]["conv1"]["bn"]) == {"bias"}


def test_switches_change_what_they_say():
    def build(size, **options):
        return shapes(create_model("inception_v1", **{"modules": FEW, "aux_heads": False} | options), size, batch=1)

    def kernel(block, layer, **options):
        return build(64, **options)[1]["params"][block][layer]["kernel"].shape

    assert kernel("inception_3a", "conv_5x5") == (5, 5, 16, 32)
    assert kernel("inception_3a", "conv_5x5", five_by_five=3) == (3, 3, 16, 32)
    assert kernel("inception_3a", "conv_5x5", module="naive") == (5, 5, 192, 32)
    assert kernel("inception_4a", "conv_5x5", module="naive", five_by_five=3) == (3, 3, 416, 48)
    assert kernel("inception_4a", "conv_3x3", modules=FEW | {"4a": (192, 96, 204, 16, 48, 64)}) == (3, 3, 96, 204)
    assert kernel("inception_3a", "conv_1x1", width_multiplier=0.5) == (1, 1, 96, 32)
    assert kernel("inception_3a", "conv_5x5_reduce", width_multiplier=0.25, min_width=2) == (1, 1, 48, 4)

    def side(endpoint, size, **options):
        return build(size, **options)[0].endpoints[endpoint].shape[1]

    assert side("conv1", 225) == side("conv1", 225, conv1_padding="same") == 113
    assert side("pool1", 225) == 56  # Caffe: ceil((113 - 3) / 2) + 1
    assert side("pool1", 225, pool_rounding="same") == 57
    assert [side("pool1", size, pool_rounding="pad1") for size in (224, 225)] == [56, 57]  # MaxPool2d(3, 2, padding=1)
    assert "norm1" not in build(64, lrn=False)[0].endpoints
    assert "conv2_reduce" not in build(64, conv2_reduce=False)[0].endpoints


@pytest.mark.parametrize("size", [7, 8])
def test_pad1_pools_are_those_of_pytorch_code_in_circulation(size):
    """Windows of rows and columns 2i - 1 to 2i + 1, the map's edge cut off; on even maps no other rounding gives it."""
    x = np.random.default_rng(0).normal(size=(1, size, size, 2)).astype(np.float32)
    starts = range(0, size, 2)
    expected = [[x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].max((1, 2)) for j in starts] for i in starts]
    pools = {name: InceptionV1(pool_rounding=name)._pool(jnp.asarray(x), 3) for name in POOL_PADDINGS}
    np.testing.assert_array_equal(pools["pad1"], np.moveaxis(np.asarray(expected), 2, 0))
    assert np.array_equal(pools["pad1"], pools["same"]) == (size % 2 == 1)


@pytest.mark.parametrize("name", ["inception_v1", "inception_v1_bn"])
def test_float64_throughout(name, x64):
    rates = {"dropout_rate": 0.0, "aux_dropout_rate": 0.0}
    model = create_model(name, dtype=jnp.float64, param_dtype=jnp.float64, modules=FEW, **rates)
    images = make_images(1, 64, dtype=jnp.float64)
    output, variables = shapes(model, 64, dtype=jnp.float64, batch=1, train=True)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, variables))} == {jnp.dtype(jnp.float64)}
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(variables, images)
    assert not {str(d) for d in jaxpr_dtypes(traced.jaxpr)} & {"float32", "bfloat16", "float16"}


def test_bfloat16_maps_and_float32_logits():
    model = create_model("inception_v1_bn", dtype=jnp.bfloat16, modules=FEW)
    output, variables = shapes(model, 64, batch=1, train=True, example_keys=jax.random.split(KEY, 1))
    assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in (output.logits, *output.aux_logits)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_keys_for_dropout():
    model = create_model("inception_v1", num_classes=3, modules=FEW)
    _, variables = shapes(model, 32)

    def run(**arguments):
        return jax.eval_shape(lambda v, x: model.apply(v, x, **arguments).logits, variables, make_images(2, 32))

    assert run(train=True, rngs={"dropout": KEY}).shape == (2, 3)
    assert run(train=True, example_keys=jax.random.split(KEY, 2)).shape == (2, 3)
    assert run(train=False).shape == (2, 3)
    with pytest.raises(ModelError, match="train=True with dropout needs keys"):
        run(train=True)
    with pytest.raises(ModelError, match="expected 2 typed PRNG keys"):
        run(train=True, example_keys=jax.random.split(KEY, 3))
    with pytest.raises(ModelError, match=r"example_keys: uint32 of shape \(2, 2\)"):
        run(train=True, example_keys=jnp.zeros((2, 2), jnp.uint32))


def test_a_stream_of_keys_gives_each_row_its_own():
    model = create_model("inception_v1")
    keys = model.bind({}, rngs={"dropout": KEY}).dropout_keys(True, None, 4)
    assert keys.shape == (4,)
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 4
    assert model.bind({}, rngs={"dropout": KEY}).dropout_keys(False, None, 4) is None


@pytest.fixture(scope="module")
def training():
    """A compiled function of (images, keys): all logits, and the gradient of the sum of all heads' losses."""
    model = create_model("inception_v1", width_multiplier=0.25, num_classes=5)
    params = init_variables(model, KEY, 64)["params"]

    def loss(params, images, keys):
        output = model.apply({"params": params}, images, train=True, example_keys=keys)
        heads = jnp.stack([output.logits, *output.aux_logits])
        return jnp.sum(jax.nn.logsumexp(heads, -1) - heads[..., 0]), heads

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    images, keys = jax.random.normal(KEY, (4, 64, 64, 3)), jax.random.split(KEY, 4)
    # One call or two of a big program: unoptimized code is ready sooner than it is slower.
    compiled = gradient.lower(params, images, keys).compile({"xla_backend_optimization_level": 0})
    return lambda images, keys: compiled(params, images, keys), images, keys


def test_every_parameter_learns(training):
    run, images, keys = training
    gradient, _ = run(images, keys)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        leaf = np.asarray(leaf)
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 1e-6, path


def test_an_examples_output_depends_on_neither_its_row_nor_its_company(training):
    run, images, keys = training
    _, heads = run(images, keys)
    order = np.array([2, 0, 3, 1])
    _, moved = run(images[order], keys[order])
    np.testing.assert_allclose(moved, heads[:, order], rtol=1e-4, atol=1e-5)
    # Two of the four among other images, as on another device.
    others = jnp.concatenate([images[:2] * 0.5, images[2:]])
    _, company = run(others, keys)
    np.testing.assert_allclose(company[:, 2:], heads[:, 2:], rtol=1e-4, atol=1e-5)
    # The masks do matter: other keys, other logits in all three heads.
    _, other = run(images, jax.random.split(jax.random.key(1), 4))
    assert (np.abs(np.asarray(other - heads)).max((1, 2)) > 1e-2).all()


def test_the_table_of_the_released_graph_and_the_adaptive_pool_of_torchvision():
    """inception5h: 4a has 204 filters of 3x3 and so 508 channels, 5a reduces to 48 before its 5x5."""
    model = create_model("inception_v1", table="inception5h")
    output, variables = shapes(model, 224, batch=1)
    assert output.endpoints["inception_4a"].shape == (1, 14, 14, 508)
    assert variables["params"]["inception_5a"]["conv_5x5_reduce"]["kernel"].shape == (1, 1, 832, 48)
    with pytest.raises(ModelError, match="table: 'inception5h' has no effect: modules are given"):
        create_model("inception_v1", table="inception5h", modules=FEW)
    with pytest.raises(ModelError, match=r"table = .inception5.: it must be one of .*did you mean .inception5h."):
        create_model("inception_v1", table="inception5")

    # The two pools give other logits from the same parameters.
    few = {
        "modules": {"4a": MODULES["4a"]},
        "width_multiplier": 0.05,
        "min_width": 4,
        "num_classes": 3,
        "aux_dropout_rate": 0.0,
        "dropout_rate": 0.0,
        "lrn": False,
    }
    paper, adaptive = (create_model("inception_v1", aux_pool=pool, **few) for pool in ("paper", "adaptive"))
    x = jax.random.normal(jax.random.key(1), (1, 96, 96, 3))
    variables = init_variables(paper, jax.random.key(0), 96)
    (first,), (second,) = (
        jax.jit(lambda v, m=m: m.apply(v, x, train=True).aux_logits)(variables) for m in (paper, adaptive)
    )
    assert float(jnp.abs(first - second).max()) > 1e-3 * float(jnp.abs(first).max())
