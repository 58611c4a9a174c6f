"""A normalization folded into the first convolution, in float64: the same logits from the other images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import create_model
from inception_jax.pretrained.folding import fold_input
from inception_jax.training.preprocess import get_normalization, preprocess

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALE, SHIFT = STD / 0.5, (MEAN - 0.5) / 0.5


@pytest.mark.parametrize(
    ("name", "conv"),
    [
        ("inception_resnet_v1", "conv2d_1a_3x3"),
        pytest.param("inception_v3", "conv2d_1a_3x3", marks=pytest.mark.slow),
        pytest.param("inception_v4", "conv2d_1a_3x3", marks=pytest.mark.slow),
        pytest.param("xception", "block1_conv1", marks=pytest.mark.slow),
    ],
)
def test_torchvisions_own_input_gives_the_same_logits(x64, name, conv):
    """transform_input, folded: images normalized by ImageNet's mean and deviation in place of [-1, 1]."""
    options = {"num_classes": 3, "width_multiplier": 0.125, "aux_heads": False}
    model = create_model(name, dtype=jnp.float64, param_dtype=jnp.float64, **options)
    variables = jax.tree.map(np.asarray, init_variables(model, jax.random.key(0), 75))
    random = np.random.default_rng(0)
    unit = variables["batch_stats"][conv]["bn"]
    unit["mean"] = random.normal(size=unit["mean"].shape)
    images = random.integers(0, 256, (2, 75, 75, 3), dtype=np.uint8)
    own, other = (
        preprocess(jnp.asarray(images), normalization=get_normalization(kind), dtype=jnp.float64)
        for kind in ("inception", "imagenet")
    )
    before = jax.tree.map(np.copy, variables)
    folded = fold_input(variables, SCALE, SHIFT, conv)
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    run = jax.jit(lambda variables, images: model.apply(variables, images, train=False).logits)
    wanted, found = run(variables, own), run(folded, other)
    largest = np.abs(wanted).max()
    assert np.abs(np.asarray(run(variables, other)) - wanted).max() > 0.05 * largest  # the images do differ
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-11 * largest)
    changed = [
        path
        for path, leaf in jax.tree_util.tree_leaves_with_path(folded)
        if not np.array_equal(leaf, _at(variables, path))
    ]
    assert {jax.tree_util.keystr(path, simple=True, separator="/") for path in changed} == {
        f"params/{conv}/kernel",
        f"batch_stats/{conv}/bn/mean",
    }


def _at(tree, path):
    for part in path:
        tree = tree[part.key]
    return tree


def test_the_shift_goes_into_a_bias_where_there_is_no_batch_norm():
    random = np.random.default_rng(0)
    kernel, bias = random.normal(size=(3, 3, 3, 2)), random.normal(size=2)
    tree = {"params": {"conv2d_1a_3x3": {"kernel": kernel, "bias": bias}}}
    folded = fold_input(tree, 2.0, (1.0, 2.0, 3.0))["params"]["conv2d_1a_3x3"]
    patch = random.normal(size=(3, 3, 3))
    wanted = np.einsum("hwi,hwio->o", patch * 2 + [1, 2, 3], kernel) + bias
    np.testing.assert_allclose(np.einsum("hwi,hwio->o", patch, folded["kernel"]) + folded["bias"], wanted, rtol=1e-12)


def test_refuses_what_it_could_not_do_exactly():
    kernel = np.zeros((3, 3, 3, 2), np.float32)
    tree = {"params": {"conv1": {"kernel": kernel}, "conv2d_1a_3x3": {"kernel": kernel}}}
    with pytest.raises(
        UserError, match=r"exact only for a convolution without padding .* BN-Inception's conv1 pads with zeros$"
    ):
        fold_input(tree, 1.0, 0.5, conv="conv1")
    with pytest.raises(UserError, match="there is no such convolution; did you mean 'conv2d_1a_3x3'"):
        fold_input(tree, 1.0, 0.5, conv="conv2d_1a")
    with pytest.raises(UserError, match="no params/block1_conv1/kernel"):
        fold_input(tree, 1.0, 0.5, conv="block1_conv1")
    with pytest.raises(UserError, match="neither batch_stats/conv2d_1a_3x3/bn/mean nor params/conv2d_1a_3x3/bias"):
        fold_input(tree, 1.0, 0.5)
    with pytest.raises(UserError, match=r"scale = \[1.0, 2.0\]: one finite number, or one for each of 3"):
        fold_input(tree, [1.0, 2.0], 0.5)
    with pytest.raises(UserError, match="shift = nan"):
        fold_input(tree, 1.0, float("nan"))
    with pytest.raises(UserError, match="reads 4 channels"):
        fold_input({"params": {"conv2d_1a_3x3": {"kernel": np.zeros((3, 3, 4, 2))}}}, 1.0, 0.5)
