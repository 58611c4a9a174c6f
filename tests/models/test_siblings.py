"""`fuse_siblings`: an Inception module whose 1x1 convolutions of the input run as one computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import create_model, init_variables
from inception_jax.models import blocks
from inception_jax.models.blocks import AvgPool, Conv, MaxPool, Mixed, Residual
from inception_jax.models.convolution import conv2d
from inception_jax.models.initialization import TruncatedNormal
from inception_jax.models.layers import LayerOptions
from inception_jax.models.normalization import BatchNormOptions

BRANCHES = (
    (Conv("conv_1x1", 5, (1, 1)),),
    (Conv("conv_3x3_reduce", 3, (1, 1)), Conv("conv_3x3", 4, (3, 3))),
    (MaxPool(3, 1, "SAME"), Conv("pool_proj", 3, (1, 1))),
    (AvgPool(3, 1, "SAME"), Conv("average_proj", 2, (1, 1))),
)


def options(fuse, batch_norm):
    norm = BatchNormOptions() if batch_norm else None
    init = TruncatedNormal(0.3)
    return LayerOptions(init, init, 0.1, norm, jnp.float64, jnp.float64, min_width=1, fuse_siblings=fuse)


@pytest.mark.parametrize("block", [Mixed, Residual])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_values_gradients_and_statistics_are_the_same(block, batch_norm):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, 6, 6, 7), jnp.float64)
        plain, fused = (block(BRANCHES, options(fuse, batch_norm)) for fuse in (False, True))
        variables = plain.init(jax.random.key(0), x, train=False)
        again = fused.init(jax.random.key(0), x, train=False)
        assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), variables, again))

        def loss(model, params, x):
            rest = {name: tree for name, tree in variables.items() if name != "params"}
            y, new = model.apply({"params": params, **rest}, x, train=True, mutable=["batch_stats"])
            return (y**2).sum(), new

        results = [
            jax.jit(jax.value_and_grad(lambda p, x, m=m: loss(m, p, x), (0, 1), has_aux=True))(variables["params"], x)
            for m in (plain, fused)
        ]
        for one, two in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-12)


def test_a_convolution_with_a_stride_is_no_sibling():
    branches = (
        (Conv("conv_1x1", 5, (1, 1), stride=2),),
        (Conv("conv_3x3_reduce", 3, (1, 1)), Conv("conv_3x3", 4, (3, 3), stride=2)),
        (Conv("conv_5x5_reduce", 2, (1, 1)), Conv("conv_5x5", 4, (3, 3), stride=2)),
    )
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(1), (2, 6, 6, 7), jnp.float64)
        plain, fused = (Mixed(branches, options(fuse, False)) for fuse in (False, True))
        variables = plain.init(jax.random.key(0), x, train=False)
        one, two = (model.apply(variables, x, train=False) for model in (plain, fused))
    np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "size", "fewer"), [("inception_v1", 32, 18), ("inception_v3", 75, 28)])
def test_a_network_runs_fewer_convolutions(name, size, fewer):
    """GoogLeNet: nine modules of three; Inception-v3: nine of four, with the projection of the average, one of two."""
    counts = []
    for fuse in (False, True):
        model = create_model(
            name, width_multiplier=0.1, min_width=2, num_classes=2, aux_heads=False, fuse_siblings=fuse
        )
        variables = jax.eval_shape(lambda key, model=model: init_variables(model, key, size), jax.random.key(0))
        images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
        run = jax.jit(lambda variables, x, model=model: model.apply(variables, x, train=False).logits)
        text = run.trace(variables, images).lower(lowering_platforms=("cuda",)).as_text()
        counts.append(text.count("stablehlo.convolution"))
    assert counts[0] - counts[1] == fewer


@pytest.mark.parametrize("algorithm", ["fast", "exact", "onednn"])
def test_it_is_computed_by_the_networks_algorithm(monkeypatch, algorithm):
    asked = []

    def conv(x, kernel, algorithm="default"):
        asked.append(algorithm)
        return conv2d(x, kernel)

    monkeypatch.setattr(blocks, "conv2d", conv)
    model = Mixed(BRANCHES, dataclasses.replace(options(True, False), convolution=algorithm))
    with jax.enable_x64(True):
        x = jnp.zeros((1, 6, 6, 7))
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
        jax.eval_shape(lambda variables: model.apply(variables, x, train=False), variables)
    assert asked == [algorithm]


def test_a_kernel_of_another_shape_is_still_an_error():
    model = Mixed(BRANCHES, options(True, False))
    with jax.enable_x64(True):
        x = jnp.zeros((1, 6, 6, 7))
        variables = model.init(jax.random.key(0), x, train=False)
        variables["params"]["conv_1x1"]["kernel"] = jnp.zeros((1, 1, 7, 6))
        with pytest.raises(Exception, match="conv_1x1"):
            model.apply(variables, x, train=False)
