"""Batch norm folded into kernels and biases: the same numbers, the plain network's tree."""

import jax
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.exports.batch_norm import fold_batch_norm
from inception_jax.models.inception_v2 import PAPER_MODULES
from inception_jax.models.initialization import variable_shapes
from inception_jax.models.registry import get_spec, model_names

# An average pool, a stride of 2 beside a max pool, a max pool before a projection.
FEW = {name: PAPER_MODULES[name] for name in ("3b", "3c", "5b")}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inception_v1_bn", {"bn_epsilon": 0.1}),
        ("inception_v2", {"bn_scale": False, "modules": FEW}),
        ("inception_v2", {"bn_scale": False, "stem_batch_norm": False}),  # slim's
        ("inception_v2", {"conv_bias": True, "stem": "dense", "table": "paper", "bn_epsilon": 1e-5}),  # Cadene's
        pytest.param("xception", {}, marks=pytest.mark.slow),
        pytest.param("inception_resnet_v1", {"bottleneck": 24, "extra_block8": True}, marks=pytest.mark.slow),
    ],
)
def test_the_same_logits_and_endpoints_in_float64(name, options, network_of, make_images, difference, x64):
    model, variables = network_of(name, np.float64, dtype="float64", param_dtype="float64", min_width=4, **options)
    plain, folded = fold_batch_norm(model, variables)
    size = get_spec(name).min_image_size + 10
    images = make_images(2, size, size, np.float64)
    apply = lambda model, variables: jax.jit(lambda v, x: model.apply(v, x))(variables, images)  # noqa: E731
    ours, theirs = apply(plain, folded), apply(model, variables)
    assert difference(ours.logits, theirs.logits) < 1e-12
    assert {end: bool(difference(ours.endpoints[end], theirs.endpoints[end]) < 1e-12) for end in ours.endpoints} == (
        dict.fromkeys(theirs.endpoints, True)
    )
    assert set(folded) == {"params"}
    assert not plain.batch_norm


@pytest.mark.parametrize("name", model_names())
def test_every_networks_tree(name, network_of):
    model, variables = network_of(name, aux_heads=True)
    plain, folded = fold_batch_norm(model, variables)
    wanted = variable_shapes(plain, get_spec(name).min_image_size)
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, wanted)


def test_heads_that_are_not_there_are_not_missed(network_of):
    model, variables = network_of("inception_v3")
    _, folded = fold_batch_norm(model.clone(aux_heads=True), variables)
    assert "aux" not in folded["params"]


def test_what_is_refused(network_of):
    model, variables = network_of("inception_v3")
    with pytest.raises(UserError, match="conv2d_1a_3x3 has batch norm but no params/conv2d_1a_3x3/bn/bias"):
        params = {**variables["params"], "conv2d_1a_3x3": {"kernel": np.zeros((3, 3, 3, 16), np.float32)}}
        fold_batch_norm(model, {**variables, "params": params})
