"""Xception: counts block by block, the tree, precisions, switches; values beside NumPy. See also test_output_stride."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.models import xception
from inception_jax.models.cost import count_cost
from inception_jax.models.initialization import init_variables, variable_shapes
from inception_jax.models.registry import ModelError, create_model

from . import numpy_networks
from .traced import shapes

KEY = jax.random.key(0)
NARROW = {"num_classes": 5, "width_multiplier": 0.01, "min_width": 4}

# Keras's xception.py at 299 pixels: block, output, numbers in the kernels (and the classifier's biases), channels that
# are normalized, multiply-adds.
XCEPTION = """
block1_conv1  149 149 32       864    32   19181664
block1_conv2  147 147 64     18432    64  398297088
block2         74  74 128    34496   384  613262528
block3         37  37 256   134528   768  602097152
block4         19  19 728   911576  2184 1060088600
{middle}
block13        10  10 1024 2034032  2776  539717360
block14        10  10 2048 4741632  3584  474163200
global_pool     1   1 2048       0     0          0
classifier      1   1 1000 2049000     0    2048000
""".format(middle="\n".join(f"block{n} 19 19 728 1609608 2184 581068488" for n in range(5, 13)))


def random_variables(model, size):
    """Values of every leaf away from where it starts: shifts that matter, variances that are none."""
    rng = np.random.default_rng(0)
    tree = variable_shapes(model, size)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape))
        if kind in ("bias", "mean"):
            return jnp.asarray(rng.normal(0, 0.2, leaf.shape))
        fan_in = np.prod(leaf.shape[:-2]) if kind == "depthwise_kernel" else np.prod(leaf.shape[:-1])
        return jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), leaf.shape))

    return jax.tree_util.tree_map_with_path(draw, tree)


@pytest.mark.parametrize(("options", "per_channel"), [({}, 2), ({"bn_scale": False}, 1)])
def test_every_block(options, per_channel):
    expected = []
    for name, *numbers in map(str.split, XCEPTION.strip().splitlines()):
        *output, kernels, channels, macs = map(int, numbers)
        expected.append((name, (*output, kernels + per_channel * channels, macs)))
    blocks = count_cost(create_model("xception", **options), 299).blocks
    assert [(b.name, (*b.output, b.parameters, b.macs)) for b in blocks] == expected


def test_the_output_and_the_tree():
    model = create_model("xception", num_classes=7)
    output, variables = shapes(model, 107, 75, train=True)
    assert output.logits.shape == (2, 7)
    assert output.aux_logits == ()
    blocks = ["block1_conv1", "block1_conv2", *(f"block{n}" for n in range(2, 15))]
    assert list(output.endpoints) == sorted([*blocks, "global_pool"])  # a dict that leaves a trace is sorted
    assert output.endpoints["block13"].shape == (2, 4, 3, 1024)
    params = variables["params"]
    assert set(params) == {*blocks, "classifier"}
    units = {name: set(params[name]) for name in blocks[2:]}
    assert units == {
        **{f"block{n}": {"sepconv1", "sepconv2", "shortcut"} for n in (2, 3, 4, 13)},
        **{f"block{n}": {"sepconv1", "sepconv2", "sepconv3"} for n in range(5, 13)},
        "block14": {"sepconv1", "sepconv2"},
    }
    leaves = {name: leaf.shape for name, leaf in params["block13"]["sepconv2"].items() if name != "bn"}
    assert leaves == {"depthwise_kernel": (3, 3, 728, 1), "pointwise_kernel": (1, 1, 728, 1024)}
    assert params["block13"]["shortcut"]["kernel"].shape == (1, 1, 728, 1024)


def test_the_variables_do_not_depend_on_the_image_nor_on_heads():
    model = create_model("xception", num_classes=7)
    assert shapes(model, 71, 331)[1] == shapes(model, 299)[1]
    assert shapes(create_model("xception", num_classes=7, aux_heads=False), 71)[1] == shapes(model, 71)[1]


def test_float64_throughout(x64):
    model = create_model("xception", dtype=jnp.float64, param_dtype=jnp.float64)
    leaves = jax.tree.leaves(shapes(model, 71, dtype=jnp.float64, train=True))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float64)}


def test_bfloat16_maps_and_float32_logits():
    output, variables = shapes(create_model("xception", dtype="bfloat16"), 71, train=True)
    assert {x.dtype for x in output.endpoints.values()} == {jnp.dtype(jnp.bfloat16)}
    assert output.logits.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


# At 71 pixels every map that is pooled is odd, and the two paddings are one; at 75 one of 18 pixels is not.
@pytest.mark.parametrize(("size", "pool"), [(71, "same"), (75, "same"), (75, "torch")])
def test_the_logits_are_numpys(size, pool, x64):
    model = create_model("xception", dtype=jnp.float64, param_dtype=jnp.float64, pool_padding=pool, **NARROW)
    variables = random_variables(model, size)
    images = np.random.default_rng(1).normal(size=(2, size, size, 3))
    ours = jax.jit(lambda v, x: model.apply(v, x).logits)(variables, jnp.asarray(images))
    np.testing.assert_allclose(ours, numpy_networks.xception(variables, images, pool), rtol=1e-9, atol=1e-9)
    other = numpy_networks.xception(variables, images, "torch" if pool == "same" else "same")
    assert np.allclose(ours, other, rtol=1e-6) == (size == 71)


@pytest.mark.slow
def test_rematerialization_changes_no_gradient(x64, monkeypatch):
    blocks = {name: xception.BLOCKS[name] for name in ("block2", "block5", "block14")}  # one of every kind
    blocks["block5"] = blocks["block5"]._replace(features=(128,) * 3)  # as many as it is given
    monkeypatch.setattr(xception, "BLOCKS", blocks)
    images, key = jnp.asarray(np.random.default_rng(0).normal(size=(2, 71, 71, 3))), jax.random.split(KEY, 2)
    options = {"dtype": jnp.float64, "param_dtype": jnp.float64, **NARROW}
    variables = random_variables(create_model("xception", **options), 71)
    gradients, checkpoints = [], []
    for remat in (False, True):
        model = create_model("xception", remat=remat, **options)

        def loss(params, model=model):
            given = {"params": params, "batch_stats": variables["batch_stats"]}
            output, _ = model.apply(given, images, train=True, example_keys=key, mutable=["batch_stats"])
            return jnp.sum(output.logits**2)

        gradient = jax.jit(jax.grad(loss))
        checkpoints.append(str(jax.make_jaxpr(gradient)(variables["params"])).count("remat2["))
        gradients.append(gradient(variables["params"]))
    assert checkpoints[0] == 0
    assert checkpoints[1] >= len(blocks)
    for path, plain in jax.tree.leaves_with_path(gradients[0]):
        again = gradients[1]
        for step in path:
            again = again[step.key]
        np.testing.assert_allclose(again, plain, rtol=1e-6, atol=1e-9 * np.abs(plain).max(), err_msg=str(path))
        assert np.abs(plain).max() > 0, path


def test_dropout_stands_before_the_classifier():
    model = create_model("xception", **NARROW)
    assert model.dropout_rate == 0.5  # the paper's, section 4.2
    variables = init_variables(model, KEY, 71)
    with pytest.raises(ModelError, match="needs keys"):
        jax.eval_shape(lambda: model.apply(variables, jnp.zeros((1, 71, 71, 3)), train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_padding": "torhc"}, "pool_padding = 'torhc': it must be one of 'same', 'torch'; did you mean 'torch'"),
        ({"output_stride": 4}, "output_stride = 4: it must be one of 32, 16, 8"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        create_model("xception", **options)


def test_images_that_are_too_small():
    with pytest.raises(ModelError, match="xception: at least 71x71"):
        shapes(create_model("xception"), 71, 70)
