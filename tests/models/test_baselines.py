"""AlexNet, VGG-16, Network in Network: counts layer by layer, the trees, precisions; values beside NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models.cost import count_cost
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import ModelError, create_model, get_spec

from . import numpy_networks
from .traced import shapes

KEY = jax.random.key(0)
NAMES = ("alexnet", "vgg16", "network_in_network")
NARROW = {"num_classes": 5, "width_multiplier": 0.02, "min_width": 6}

# Layer, side of its output, kernel side, channels in (of one tower) and out. Caffe's bvlc_alexnet at 227 pixels.
ALEXNET = """
conv1          55 11   3   96
conv2/tower_1  27  5  48  128
conv2/tower_2  27  5  48  128
conv3          13  3 256  384
conv4/tower_1  13  3 192  192
conv4/tower_2  13  3 192  192
conv5/tower_1  13  3 192  128
conv5/tower_2  13  3 192  128
fc6             1  1 9216 4096
fc7             1  1 4096 4096
classifier      1  1 4096 1000
"""
# Configuration D of Table 1 of arXiv:1409.1556 at 224 pixels.
VGG16 = """
block1/conv1 224 3   3  64
block1/conv2 224 3  64  64
block2/conv1 112 3  64 128
block2/conv2 112 3 128 128
block3/conv1  56 3 128 256
block3/conv2  56 3 256 256
block3/conv3  56 3 256 256
block4/conv1  28 3 256 512
block4/conv2  28 3 512 512
block4/conv3  28 3 512 512
block5/conv1  14 3 512 512
block5/conv2  14 3 512 512
block5/conv3  14 3 512 512
fc6            1 1 25088 4096
fc7            1 1 4096 4096
classifier     1 1 4096 1000
"""
# Caffe's nin_imagenet at 224 pixels.
NETWORK_IN_NETWORK = """
mlpconv1/conv  54 11    3   96
mlpconv1/cccp1 54  1   96   96
mlpconv1/cccp2 54  1   96   96
mlpconv2/conv  27  5   96  256
mlpconv2/cccp1 27  1  256  256
mlpconv2/cccp2 27  1  256  256
mlpconv3/conv  13  3  256  384
mlpconv3/cccp1 13  1  384  384
mlpconv3/cccp2 13  1  384  384
mlpconv4/conv   6  3  384 1024
mlpconv4/cccp1  6  1 1024 1024
classifier      6  1 1024 1000
"""
TABLES = {"alexnet": ALEXNET, "vgg16": VGG16, "network_in_network": NETWORK_IN_NETWORK}


def random_variables(model, size):
    """Kernels that keep the maps alive, biases that matter."""
    rng = np.random.default_rng(0)
    tree = shapes(model, size)[1]
    fan_in = lambda leaf: np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 50  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in(leaf)), leaf.shape)), tree)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer(name):
    expected, parameters, macs = [], 0, 0
    for layer, *numbers in map(str.split, TABLES[name].strip().splitlines()):
        side, kernel, taken, given = map(int, numbers)
        expected.append((layer, (side, side, given), (kernel, kernel, taken, given)))
        parameters += kernel**2 * taken * given + given
        macs += side**2 * kernel**2 * taken * given
    spec = get_spec(name)
    total = count_cost(create_model(name), spec.image_size)
    assert [(layer.name, layer.output, layer.kernel) for layer in total.layers] == expected
    assert (parameters, macs) == (spec.parameters, spec.macs)
    assert (total.parameters, total.parameters_with_aux, total.macs) == (parameters, parameters, macs)


# 60,965,224 is BVLC's AlexNet; 138,357,544 is what torchvision's and Keras's VGG-16 have.
@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("alexnet", 60_965_224, 724_406_816),
        ("vgg16", 138_357_544, 15_470_264_320),
        ("network_in_network", 7_595_176, 1_100_188_800),
    ],
)
def test_the_published_counts(name, parameters, macs):
    spec = get_spec(name)
    assert (spec.parameters, spec.parameters_with_aux, spec.macs, spec.aux_weights) == (
        parameters,
        parameters,
        macs,
        (),
    )


@pytest.mark.parametrize(
    ("name", "sizes", "endpoints"),
    [
        (
            "alexnet",
            (67, 80),
            ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "norm1", "norm2", "pool1", "pool2", "pool5"],
        ),
        (
            "vgg16",
            (32, 75),
            [
                "block1",
                "block2",
                "block3",
                "block4",
                "block5",
                "fc6",
                "fc7",
                "pool1",
                "pool2",
                "pool3",
                "pool4",
                "pool5",
            ],
        ),
        ("network_in_network", (67, 80), ["mlpconv1", "mlpconv2", "mlpconv3", "mlpconv4", "pool1", "pool2", "pool3"]),
    ],
)
def test_the_output_and_the_tree(name, sizes, endpoints):
    model = create_model(name, num_classes=7)
    output, variables = shapes(model, *sizes, train=True)
    assert output.logits.shape == (2, 7)
    assert output.aux_logits == ()
    assert sorted(output.endpoints) == endpoints
    assert set(variables) == {"params"}
    assert variables == shapes(model, get_spec(name).image_size)[1]  # whatever the image


@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_image(name):
    least = get_spec(name).min_image_size
    assert shapes(create_model(name, num_classes=3), least)[0].logits.shape == (2, 3)
    with pytest.raises(ModelError, match=f"{name}: at least {least}x{least}"):
        shapes(create_model(name), least, least - 1)


@pytest.mark.parametrize("name", NAMES)
def test_precisions(name, x64):
    output, variables = shapes(create_model(name, dtype="bfloat16"), 75, train=True)
    assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves((output.logits, variables))} == {jnp.dtype(jnp.float32)}
    double = shapes(create_model(name, dtype=jnp.float64, param_dtype=jnp.float64), 75, dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(double)} == {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize(
    ("name", "size"),
    [("alexnet", 227), ("alexnet", 83), ("vgg16", 224), ("vgg16", 75), ("network_in_network", 102)],
)
def test_the_logits_are_numpys(name, size, x64):
    model = create_model(name, dtype=jnp.float64, param_dtype=jnp.float64, **NARROW)
    variables = random_variables(model, size)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    ours = jax.jit(lambda v, x: model.apply(v, x).logits)(variables, jnp.asarray(images))
    theirs = getattr(numpy_networks, name)(variables, images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert np.ptp(theirs, axis=0).max() > 1e-3  # the images arrive at the logits


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 67), ("vgg16", 32), pytest.param("network_in_network", 67, marks=pytest.mark.slow)]
)
def test_gradients_with_and_without_rematerialization(name, size, x64):
    images, keys = jnp.asarray(np.random.default_rng(0).normal(size=(2, size, size, 3))), jax.random.split(KEY, 2)
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, **NARROW}
    params = random_variables(create_model(name, **options), size)
    gradients, checkpoints = [], []
    for remat in (False, True):
        model = create_model(name, remat=remat, dropout_rate=0.25, **options)
        gradient = jax.jit(
            jax.grad(lambda p, model=model: jnp.sum(model.apply(p, images, train=True, example_keys=keys).logits ** 2))
        )
        checkpoints.append("remat2[" in str(jax.make_jaxpr(gradient)(params)))
        gradients.append(gradient(params))
    assert checkpoints == [False, True]
    for plain, again in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(again, plain, rtol=1e-9, atol=1e-12 * np.abs(plain).max())
        assert np.abs(plain).max() > 0


@pytest.mark.parametrize("name", NAMES)
def test_dropout_needs_keys_and_has_them(name):
    model = create_model(name, **NARROW)
    assert model.dropout_rate == 0.5
    variables = init_variables(model, KEY, 67)
    images = jax.random.normal(KEY, (2, 67, 67, 3))
    with pytest.raises(ModelError, match="needs keys"):
        jax.eval_shape(lambda: model.apply(variables, images, train=True))
    run = jax.jit(lambda keys: model.apply(variables, images, train=True, example_keys=keys).logits)
    first, second = (run(jax.random.split(jax.random.key(seed), 2)) for seed in (1, 2))
    assert not np.allclose(first, second, rtol=1e-3, atol=0)


def test_the_two_wide_layers_drop_out_each_for_itself():
    """With layers that hand ones on as they are, a logit is what is left of two dropouts: 4, or 0."""
    model = create_model("vgg16", **NARROW | {"num_classes": 81})
    params = init_variables(model, KEY, 32)["params"]
    params |= {
        "fc6": {"kernel": jnp.zeros_like(params["fc6"]["kernel"]), "bias": jnp.ones(81)},
        "fc7": {"kernel": jnp.eye(81), "bias": jnp.zeros(81)},
        "classifier": {"kernel": jnp.eye(81), "bias": jnp.zeros(81)},
    }
    keys, images = jax.random.split(KEY, 8), jnp.zeros((8, 32, 32, 3))
    logits = np.asarray(model.apply({"params": params}, images, train=True, example_keys=keys).logits)
    assert set(np.unique(logits)) == {0, 4}
    assert np.mean(logits > 0) == pytest.approx(0.25, abs=0.05)


def test_network_in_network_drops_out_before_its_last_block():
    model = create_model("network_in_network", **NARROW)
    variables, images = random_variables(model, 67), jax.random.normal(KEY, (2, 67, 67, 3))
    keys = jax.random.split(KEY, 2)
    trained, evaluated = jax.jit(
        lambda: [model.apply(variables, images, train=train, example_keys=keys).endpoints for train in (True, False)]
    )()
    changed = [name for name, value in trained.items() if not np.allclose(value, evaluated[name], 1e-4, 1e-6)]
    assert changed == ["mlpconv4"]


def test_two_towers_need_two_channels():
    assert shapes(create_model("alexnet", width_multiplier=0.01, min_width=2), 67)[0].logits.shape == (2, 1000)
    with pytest.raises(ModelError, match="conv2: two towers need at least two input channels"):
        shapes(create_model("alexnet", width_multiplier=0.01, min_width=1), 67)


def test_batch_norm_takes_the_place_of_the_biases():
    for name, channels in (("alexnet", 1376), ("vgg16", 4224), ("network_in_network", 4256)):
        plain, normalized = (count_cost(create_model(name, batch_norm=on), 75) for on in (False, True))
        assert normalized.parameters - plain.parameters == channels
        assert "batch_stats" in shapes(create_model(name, batch_norm=True), 75, train=True)[1]


def test_where_parameters_start():
    model = create_model("alexnet", num_classes=9, width_multiplier=0.25)
    params = jax.tree.map(np.asarray, init_variables(model, KEY, 67)["params"])
    biases = {
        name: {
            float(leaf)
            for unit in (block, *block.values())
            if isinstance(unit, dict) and "bias" in unit
            for leaf in unit["bias"]
        }
        for name, block in params.items()
    }
    zero, tenth = {0.0}, {float(np.float32(0.1))}
    assert biases == {
        "conv1": zero,
        "conv2": tenth,
        "conv3": zero,
        "conv4": tenth,
        "conv5": tenth,
        "fc6": tenth,
        "fc7": tenth,
        "classifier": zero,
    }
    deviations = {
        "conv2": params["conv2"]["tower_2"],
        "fc6": params["fc6"],
        "classifier": params["classifier"],
    }
    for name, expected in (("conv2", 0.01), ("fc6", 0.005), ("classifier", 0.01)):
        assert np.std(deviations[name]["kernel"]) == pytest.approx(expected, rel=0.05)
    params = init_variables(create_model("network_in_network", num_classes=9, width_multiplier=0.25), KEY, 67)["params"]
    for block, unit, expected in (
        ("mlpconv1", "conv", 0.01),
        ("mlpconv1", "cccp1", 0.05),
        ("mlpconv2", "conv", 0.05),
        ("mlpconv3", "conv", 0.01),
        ("mlpconv4", "conv", 0.05),
    ):
        assert np.std(params[block][unit]["kernel"]) == pytest.approx(expected, rel=0.1)
    assert np.std(params["classifier"]["kernel"]) == pytest.approx(0.01, rel=0.1)
    params = init_variables(create_model("vgg16", num_classes=9, width_multiplier=0.25), KEY, 32)["params"]
    kernel = params["block3"]["conv1"]["kernel"]
    assert np.abs(kernel).max() == pytest.approx(np.sqrt(6 / (9 * (32 + 64))), rel=0.01)  # Glorot's bound
