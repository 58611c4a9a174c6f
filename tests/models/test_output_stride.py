"""Output stride: dilated layers beside loops, and every network's dense maps beside its own ordinary ones."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from inception_jax.models import inception_v3, inception_v4, xception
from inception_jax.models.atrous import atrous, dilation_schedule, stride_32_pixels
from inception_jax.models.blocks import AvgPool, Conv, MaxPool, ParallelConvs
from inception_jax.models.convolution import conv2d
from inception_jax.models.cost import count_cost
from inception_jax.models.depthwise import depthwise_conv2d
from inception_jax.models.initialization import init_variables, variable_shapes
from inception_jax.models.pooling import avg_pool, max_pool
from inception_jax.models.registry import ModelError, create_model, get_spec

NETWORKS = ("inception_v3", "inception_v4", "inception_resnet_v1", "inception_resnet_v2", "xception")
KEY = jax.random.key(0)


# --- Layers ----------------------------------------------------------------------------------------------------------


def windows(size, window, stride, padding, dilation):
    """The pixels of each window along an axis; those below 0 or from `size` on are padding."""
    reach = (window - 1) * dilation + 1
    if padding == "SAME":
        count = -(-size // stride)
        low = max((count - 1) * stride + reach - size, 0) // 2
    else:
        low = 0 if padding == "VALID" else padding
        count = (size + 2 * low - reach) // stride + 1
    return [[i * stride - low + tap * dilation for tap in range(window)] for i in range(count)]


POOLS = [
    (3, 1, "SAME", 2), (3, 1, "SAME", 4), (3, 1, "VALID", 2), (2, 1, "SAME", 3), (3, 1, 2, 2), (3, 2, "SAME", 2),
    (3, 2, "VALID", 3), (2, 3, "VALID", 2), (4, 2, 3, 2),
]  # fmt: skip


@pytest.mark.parametrize(("window", "stride", "padding", "dilation"), POOLS)
def test_a_dilated_max_pool_beside_loops(window, stride, padding, dilation, x64):
    x = np.random.default_rng(0).integers(0, 6, (2, 9, 8, 2)).astype(np.float64)  # many ties
    rows, columns = (windows(size, window, stride, padding, dilation) for size in x.shape[1:3])
    weights = np.random.default_rng(1).normal(size=(2, len(rows), len(columns), 2))
    expected, towards_x = np.empty(weights.shape), np.zeros_like(x)
    for b, i, j, c in np.ndindex(weights.shape):
        inside = [(r, s) for r, s in itertools.product(rows[i], columns[j]) if 0 <= r < 9 and 0 <= s < 8]
        place = max(inside, key=lambda at, b=b, c=c: x[b, *at, c])  # the first of the largest
        expected[b, i, j, c] = x[b, *place, c]
        towards_x[b, *place, c] += weights[b, i, j, c]

    def pooled(x):
        return max_pool(x, window, stride, padding, dilation)

    out = jax.jit(pooled)(x)
    assert np.array_equal(out, expected)
    gradient = jax.jit(jax.grad(lambda x: (pooled(x) * weights).sum()))(x)
    np.testing.assert_allclose(gradient, towards_x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("include_pad", [False, True])
@pytest.mark.parametrize(("window", "stride", "padding", "dilation"), POOLS)
def test_a_dilated_average_pool_beside_loops(window, stride, padding, dilation, include_pad, x64):
    x = np.random.default_rng(0).normal(size=(1, 9, 8, 2))
    rows, columns = (windows(size, window, stride, padding, dilation) for size in x.shape[1:3])
    expected = np.empty((1, len(rows), len(columns), 2))
    for i, j in np.ndindex(len(rows), len(columns)):
        inside = [x[:, r, s] for r, s in itertools.product(rows[i], columns[j]) if 0 <= r < 9 and 0 <= s < 8]
        # Counted padding ends where as much of it as before the map has passed, or where the last window does.
        ends = [max(size + max(0, -of[0][0]), of[-1][-1] + 1) for size, of in ((9, rows), (8, columns))]
        counted = sum(r < ends[0] and s < ends[1] for r, s in itertools.product(rows[i], columns[j]))
        expected[:, i, j] = sum(inside) / (counted if include_pad else len(inside))
    out = jax.jit(lambda x: avg_pool(x, window, stride, padding, include_pad, dilation))(x)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)


def test_a_window_of_padding_alone_is_refused():
    with pytest.raises(ValueError, match="2 pixels: a window of 2 with dilation 6 covers none of them"):
        max_pool(jnp.ones((1, 9, 2, 1)), 2, 1, "SAME", 6)
    with pytest.raises(ValueError, match="covers none of them"):
        avg_pool(jnp.ones((1, 9, 2, 1)), 2, 1, "SAME", dilation=6)
    with pytest.raises(ValueError, match="4 pixels are too few for a window of 5"):
        max_pool(jnp.ones((1, 9, 4, 1)), 3, 1, "VALID", 2)


def spread(kernel, dilation):
    """The kernel with zeros between its taps."""
    height, width = ((taps - 1) * dilation + 1 for taps in kernel.shape[:2])
    wide = np.zeros((height, width, *kernel.shape[2:]), kernel.dtype)
    wide[::dilation, ::dilation] = kernel
    return wide


@pytest.mark.parametrize("function", [conv2d, depthwise_conv2d])
@pytest.mark.parametrize(
    ("taps", "stride", "padding", "dilation"),
    [
        ((3, 3), 1, "SAME", 2),
        ((1, 7), 1, "SAME", 4),
        ((3, 3), 1, "VALID", 2),
        ((3, 3), 2, "SAME", 3),
        ((3, 3), 1, 2, 2),
    ],
)
def test_a_dilated_convolution_is_one_with_zeros_between_its_taps(function, taps, stride, padding, dilation, x64):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(*taps, 3, 4))

    def both(x, kernel, dilation):
        out, pull = jax.vjp(lambda x, kernel: function(x, kernel, stride, padding, dilation), x, kernel)
        return out, *pull(jnp.cos(out))

    both = jax.jit(both, static_argnums=2)
    ours = both(x, kernel, dilation)
    out, towards_x, towards_kernel = both(x, spread(kernel, dilation), 1)
    expected = (out, towards_x, towards_kernel[::dilation, ::dilation])
    for mine, wanted in zip(ours, expected, strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-12, atol=1e-12)


def test_a_dilated_convolution_in_bfloat16_rounds_once():
    x, kernel = (jax.random.normal(KEY, shape, jnp.bfloat16) for shape in ((1, 9, 9, 64), (3, 3, 64, 8)))
    out = conv2d(x, kernel, dilation=2)
    assert out.dtype == jnp.bfloat16
    exact = conv2d(x.astype(jnp.float32), kernel.astype(jnp.float32), dilation=2)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-4)


def test_the_kernels_gradient_is_summed_over_the_devices():
    """As `conv2d` promises for every kernel: the gradient of a replicated kernel inside shard_map is the whole one."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    x, kernel = jax.random.normal(KEY, (4, 6, 6, 2)), jax.random.normal(KEY, (3, 3, 2, 3))

    def gradient(kernel, x):
        return jax.grad(lambda kernel: jnp.square(conv2d(x, kernel, dilation=2)).sum())(kernel)

    specs = {"mesh": mesh, "in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec()}
    both = jax.jit(jax.shard_map(gradient, **specs))(kernel, x)
    np.testing.assert_allclose(both, gradient(kernel, x), rtol=1e-4)


# --- Tables ----------------------------------------------------------------------------------------------------------


def test_strides_beyond_the_output_stride_become_rates():
    strides = {"a": 2, "b": 1, "c": 2, "d": 2, "e": 2, "f": 1, "g": 2, "h": 1}
    assert dilation_schedule(strides, 32) == {name: (stride, 1) for name, stride in strides.items()}
    assert dilation_schedule(strides, 16) == {**{n: (s, 1) for n, s in strides.items()}, "g": (1, 1), "h": (1, 2)}
    dense = {**{n: (s, 1) for n, s in strides.items()}, "e": (1, 1), "f": (1, 2), "g": (1, 2), "h": (1, 4)}
    assert dilation_schedule(strides, 8) == dense


def test_every_kind_of_step_is_dilated():
    blocks = {
        "conv": Conv("conv", 8, (3, 3), 8, "VALID"),
        "reduction": (
            (Conv("a", 8, (1, 1)), Conv("b", 8, (3, 3), 2, 1), Conv("c", 8, (1, 3))),
            (MaxPool(3, 2, "VALID"),),
        ),
        "mixed": (
            (Conv("d", 8, (1, 1)), ParallelConvs((Conv("e", 8, (1, 3)), Conv("f", 8, (1, 1))))),
            (AvgPool(3, 1, "SAME", True), Conv("g", 8, (1, 1))),
        ),
        "pool": MaxPool(3, 2, 1),
        "last": Conv("last", 8, (3, 3)),
    }
    assert atrous(blocks, 32) == blocks
    assert atrous(blocks, 8) == {
        "conv": Conv("conv", 8, (3, 3), 8, "VALID"),
        "reduction": (
            # What follows the stride inside the branch is dilated, too.
            (Conv("a", 8, (1, 1)), Conv("b", 8, (3, 3), 1, 1), Conv("c", 8, (1, 3), dilation=2)),
            (MaxPool(3, 1, "VALID"),),
        ),
        "mixed": (
            (Conv("d", 8, (1, 1)), ParallelConvs((Conv("e", 8, (1, 3), dilation=2), Conv("f", 8, (1, 1))))),
            (AvgPool(3, 1, "SAME", True, dilation=2), Conv("g", 8, (1, 1))),
        ),
        "pool": MaxPool(3, 1, 2, dilation=2),
        "last": Conv("last", 8, (3, 3), dilation=4),
    }


# --- Networks --------------------------------------------------------------------------------------------------------


def step_between_ordinary_pixels(endpoint, output_stride):
    """How many pixels of a dense map make one of the ordinary map."""
    number = {"block17": "6", "block8": "7", "block13": "7", "block14": "7"}.get(endpoint.partition("_")[0])
    entry = {"block2": "3", "block3": "4", "block4": "6", **{f"block{i}": "6" for i in range(5, 13)}}.get(endpoint)
    stage = number or entry or endpoint.removeprefix("conv2d_").removeprefix("mixed_")[0]
    return max(1, {"6": 16, "7": 32}.get(stage, 8) // output_stride)


@pytest.fixture
def short(monkeypatch):
    """Networks of few modules: a kind of each is enough, and is compiled in seconds."""
    for module, name, dropped in (
        (
            inception_v4,
            "MODULES",
            (
                "mixed_5c",
                "mixed_5d",
                "mixed_5e",
                "mixed_6c",
                "mixed_6d",
                "mixed_6e",
                "mixed_6f",
                "mixed_6g",
                "mixed_7c",
                "mixed_7d",
            ),
        ),
        (xception, "BLOCKS", [f"block{i}" for i in range(6, 13)]),
    ):
        monkeypatch.setattr(module, name, {k: v for k, v in getattr(module, name).items() if k not in dropped})
    everything = inception_v3.blocks
    monkeypatch.setattr(
        inception_v3,
        "blocks",
        lambda *switches: {
            k: v for k, v in everything(*switches).items() if k not in ("mixed_5c", "mixed_5d", "mixed_6c", "mixed_6d")
        },
    )


def small(name, **options):
    if name.startswith("inception_resnet"):
        options = {"block35_count": 1, "block17_count": 1, "block8_count": 2} | options
    return create_model(
        name,
        num_classes=3,
        width_multiplier=0.01,
        min_width=3,
        dropout_rate=0.0,
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **options,
    )


def variables_of(model):
    """Every leaf at random, from its name."""
    shapes = variable_shapes(model, 107)

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        if "kernel" in path[-1].key:
            return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.uniform(0.5, 1.5, leaf.shape) if path[-1].key in ("scale", "var") else rng.normal(size=leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def compare(name, sizes, *output_strides, train=False, **options):
    """[ordinary output, dense outputs ...], after a check that the dense networks' maps hold the ordinary network's."""
    models = [small(name, output_stride=stride, **options) for stride in (32, *output_strides)]
    variables = variables_of(models[0])
    images = np.random.default_rng(0).normal(size=(1, *sizes, 3))
    plain, *dense = (jax.jit(functools.partial(model.apply, train=train))(variables, images) for model in models)
    for stride, more in zip(output_strides, dense, strict=True):
        steps = set()
        for endpoint, expected in plain.endpoints.items():
            if expected.ndim != 4:
                continue
            step = step_between_ordinary_pixels(endpoint, stride)
            ours, scale = more.endpoints[endpoint][:, ::step, ::step], np.abs(expected).max()
            assert scale > 1e-3, endpoint
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-11 * scale, err_msg=endpoint)
            assert step == 1 or more.endpoints[endpoint].shape[1] > expected.shape[1], endpoint
            steps.add(step)
        assert steps == ({1, 2} if stride == 16 else {1, 2, 4})
    return [plain, *dense]


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
def test_dense_maps_hold_the_ordinary_ones(name, x64):
    # Heights and widths even and odd, on which VALID leaves pixels over here and none there; Xception's "same" pools
    # hold on odd maps.
    sizes = (107, 75) if name == "xception" else (107, 98)
    plain, *dense = compare(name, sizes, 16, 8)
    for more in dense:
        assert not np.allclose(plain.logits, more.logits)  # the mean is over more pixels


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inception_v3", {"count_include_pad": True, "last_pool": "max"}),
        ("inception_resnet_v2", {"form": "paper"}),
        ("inception_resnet_v1", {"extra_block8": True, "bottleneck": 4}),
    ],
)
def test_heads_read_what_they_always_read(name, options, x64):
    """Without batch norm training is as exact as evaluation: the auxiliary logits are the ordinary network's."""
    plain, more = compare(name, (98, 107), 8, train=True, batch_norm=False, **options)
    assert np.abs(plain.aux_logits[0]).max() > 1e-3
    np.testing.assert_allclose(more.aux_logits[0], plain.aux_logits[0], rtol=1e-10)


def test_aligned_maps_hold_at_32n_plus_1_pixels(x64):
    compare("inception_resnet_v2", (97, 129), 8, align_feature_maps=True)
    with pytest.raises(AssertionError, match="block17_1"):  # behind a reduction of 14 pixels a row
        compare("inception_resnet_v2", (97, 112), 8, align_feature_maps=True)


@pytest.mark.usefixtures("short")
def test_xceptions_torch_pools_hold_at_every_size(x64):
    sizes = (100, 91)  # even maps before the last pool, where "same" does not hold
    compare("xception", sizes, 8, pool_padding="torch")
    with pytest.raises(AssertionError, match="block"):
        compare("xception", sizes, 8)


SIDES = {  # of the last endpoint at 299 pixels, by output stride
    "inception_v3": (8, 15, 29),
    "inception_v4": (8, 15, 29),
    "inception_resnet_v1": (8, 15, 29),
    "inception_resnet_v2": (8, 15, 29),
    "xception": (10, 19, 37),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", NETWORKS)
def test_sides_and_parameters(name, x64):
    """At 299 pixels, and at the smallest size that a network takes."""
    trees, sides = [], []
    for stride in (32, 16, 8):
        model = small(name, output_stride=stride)
        blocks = count_cost(model, 299).blocks
        sides.append(next(block.output[0] for block in reversed(blocks) if block.output[0] > 1))
        trees.append(variable_shapes(model, get_spec(name).min_image_size))
    assert tuple(sides) == SIDES[name]
    assert trees[0] == trees[1] == trees[2]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stride", [4, 64, 12])
def test_other_strides_are_refused(name, stride):
    with pytest.raises(ModelError, match=rf"output_stride = {stride}: it must be one of 32, 16, 8"):
        create_model(name, output_stride=stride)


def test_ordinary_pixels():
    x = jnp.arange(49.0).reshape(1, 7, 7, 1)
    assert stride_32_pixels(x, 16, 32).shape == (1, 7, 7, 1)
    assert np.array_equal(stride_32_pixels(x, 16, 8)[0, :, :, 0], x[0, ::2, ::2, 0])
    assert np.array_equal(stride_32_pixels(x, 32, 8)[0, :, :, 0], x[0, ::4, ::4, 0])


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_every_parameter_learns_at_output_stride_8(remat):
    model = create_model(
        "inception_resnet_v2",
        width_multiplier=0.05,
        min_width=8,
        num_classes=5,
        output_stride=8,
        block35_count=1,
        block17_count=1,
        block8_count=2,
        remat=remat,
    )
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
