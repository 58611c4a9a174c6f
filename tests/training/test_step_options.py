"""Options of a step: frozen parameters, frozen batch norm, batch norm over N examples."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import tree_paths
from inception_jax.errors import UserError
from inception_jax.models.base import BaseNetwork
from inception_jax.models.heads import classifier
from inception_jax.models.initialization import init_variables, slim_variance_scaling
from inception_jax.models.layers import ConvUnit
from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import freezing, optimizers, parallel, preprocess, state, step
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.gradient_transformations import global_norm

CLASSES, SIZE, BATCH = 5, 6, 16


class SmallNetwork(BaseNetwork):
    """Two convolutions, batch-normalized, and a classifier."""

    num_classes: int = CLASSES
    bn_momentum: float = 0.9

    @nn.compact
    def __call__(self, images, *, train=False, example_keys=None):
        options = self.layer_options(slim_variance_scaling, slim_variance_scaling)
        x = ConvUnit(6, (3, 3), options, name="conv1")(images, train=train)
        x = ConvUnit(7, (3, 3), options, name="conv2")(x, train=train)
        return InceptionOutput(classifier(self.num_classes, options)(x.mean((1, 2))), (), {})


def batch(seed, size=BATCH):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }


def prepare(
    devices=1,
    *,
    dtype=jnp.float64,
    freeze=(),
    frozen_batch_norm="running",
    accumulation=1,
    batch_norm="local",
    size=BATCH,
    **options,
):
    """(devices, one device's step, state on the devices, first batch there), not yet compiled."""
    groups = BatchNormGroups.parse(batch_norm).model_options(devices, size // devices // accumulation)
    model = SmallNetwork(dtype=dtype, param_dtype=dtype, **groups)
    variables = init_variables(model, jax.random.key(0), SIZE)
    frozen = freezing.find_frozen(freeze, variables, frozen_batch_norm) if freeze else freezing.Freezing()
    model = model.clone(bn_frozen=frozen.frozen_statistics)
    optimizer = frozen.optimizer(optimizers.specify("sgd").build(0.1))
    objective = step.Objective(
        preprocess.get_normalization("inception"), dtype, (), accumulation=accumulation, freezing=frozen, **options
    )
    mesh = parallel.Devices("jit", devices)
    current = mesh.replicate(state.create(variables, optimizer, keep_ema="ema_decay" in options))
    return mesh, step.make_train_step(model, optimizer, objective, devices=devices), current, mesh.put(batch(0, size))


def compiled(devices=1, **options):
    """(the step, compiled quickly; the state before it, on the devices; how a batch gets there)."""
    mesh, train_step, current, first = prepare(devices, **options)
    sharded = jax.jit(mesh._shard(train_step, out=(jax.P(), jax.P())))
    return sharded.lower(current, first).compile({"xla_backend_optimization_level": 0}), current, mesh.put


def run(devices=1, **options):
    """(the state before, the state after two steps, the metrics of the last), on the host."""
    train_step, current, put = compiled(devices, **options)
    before = jax.device_get(current)
    for seed in range(2):
        current, metrics = train_step(current, put(batch(seed)))
    return before, jax.device_get(current), jax.device_get(metrics)


def difference(a, b):
    """The largest difference of any leaf, in terms of the leaf's largest value."""
    return max(
        float(np.max(np.abs(x - y)) / (np.max(np.abs(x)) + 1e-12))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def leaves(tree, *prefixes):
    return {path: leaf for path, leaf in tree_paths.flatten(tree).items() if path.startswith(prefixes)}


def assert_same_bits(one, other):
    assert one.keys() == other.keys() and one
    for path, leaf in one.items():
        assert np.asarray(leaf).tobytes() == np.asarray(other[path]).tobytes(), path


def test_what_is_frozen_keeps_its_bits_and_the_rest_trains():
    # Momentum, averages, parts, and three devices: a sum of three equal numbers, over three, is not always that number.
    frozen, size = ("conv1/", "conv2/bn/bias"), 18
    train_step, current, put = compiled(
        3, dtype=jnp.float32, freeze=("^conv1/", "^conv2/bn/bias"), accumulation=2, size=size, ema_decay=0.5
    )
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(current.opt_state)]
    assert any("conv2" in name for name in names) and not any("conv1" in name for name in names)
    odd = np.random.default_rng(0).uniform(0.1, 1, 6).astype(np.float32)
    for tree in (current.batch_stats, current.ema["batch_stats"]):
        tree["conv1"]["bn"]["var"] = jax.device_put(odd, current.step.sharding)
    before = jax.device_get(current)
    current, metrics = train_step(current, put(batch(0, size)))
    # The velocity starts at nothing: the first update is the gradient times the rate, of what trains alone.
    moved = jax.tree.map(lambda old, new: (old - new) / 0.1, before.params, jax.device_get(current.params))
    assert float(metrics["gradient_norm"]) == pytest.approx(float(global_norm(moved)), rel=1e-4)
    after = jax.device_get(train_step(current, put(batch(1, size)))[0])

    for tree in (after.params, after.ema["params"]):
        assert_same_bits(leaves(before.params, *frozen), leaves(tree, *frozen))
    trained = {path: leaf for path, leaf in leaves(after.params, "").items() if not path.startswith(frozen)}
    assert set(trained) == {"conv2/kernel", "conv2/bn/scale", "classifier/kernel", "classifier/bias"}
    for path, leaf in trained.items():
        assert not np.array_equal(leaf, leaves(before.params, path)[path]), path
    # conv1's batch norm is frozen; conv2's, of which only the offset is frozen, goes on.
    for tree in (after.batch_stats, after.ema["batch_stats"]):
        assert_same_bits(leaves(before.batch_stats, "conv1"), leaves(tree, "conv1"))
        assert not np.array_equal(tree["conv2"]["bn"]["mean"], before.batch_stats["conv2"]["bn"]["mean"])


def test_the_backward_pass_of_frozen_layers_is_not_computed():
    def convolutions(freeze):
        mesh, train_step, current, first = prepare(dtype=jnp.float32, freeze=freeze)
        shard = jax.jit(mesh._shard(train_step, out=(jax.P(), jax.P())))
        return len(re.findall(r"stablehlo\.convolution|stablehlo\.dot_general", shard.lower(current, first).as_text()))

    # Of the second convolution only the gradient of its kernel is left; of the first and its input, none.
    assert convolutions(()) - convolutions(("^conv1/",)) >= 2


def test_a_frozen_batch_norm_normalizes_by_its_running_statistics(x64):
    """With every batch norm frozen, a step in two micro-batches is the step in one: no example sees another."""
    one, split = (run(freeze=("/bn/",), accumulation=parts) for parts in (1, 2))
    assert difference(one, split) < 1e-12
    # "batch" takes the batch's statistics, and moves the running ones, though the parameters stay.
    before, after, metrics = run(freeze=("/bn/",), frozen_batch_norm="batch")
    assert_same_bits(leaves(before.params, "conv1/bn"), leaves(after.params, "conv1/bn"))
    assert not np.array_equal(before.batch_stats["conv1"]["bn"]["mean"], after.batch_stats["conv1"]["bn"]["mean"])
    assert abs(metrics["loss"] - one[2]["loss"]) > 1e-3


def test_what_trains_is_told():
    params = {"conv1": {"kernel": np.zeros((3, 3)), "bias": np.zeros(3)}, "classifier": {"kernel": np.zeros(5)}}
    frozen = freezing.find_frozen(("^conv1",), {"params": params}, "running")
    assert freezing.format_lines(frozen, params, (("kernel", 0.5),)) == [
        "5 of 17 parameters train; frozen: conv1",
        "learning rate × 0.5 for 5 parameters ('kernel')",
    ]
    assert freezing.format_lines(freezing.Freezing(), params, ()) == []


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("^conv1/", "^conv_2/"), r"config\.optimizer\.freeze: '\^conv_2/' matches no path; did you mean 'conv2'"),
        (("(",), r"config\.optimizer\.freeze: '\(' is not a regular expression"),
        (("",), r"config\.optimizer\.freeze = \('',\): every parameter is frozen; nothing is left to train"),
    ],
)
def test_patterns_that_cannot_be_meant(patterns, message):
    shapes = jax.eval_shape(SmallNetwork().init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    with pytest.raises(UserError, match=message):
        freezing.find_frozen(patterns, shapes, "running")


def test_batch_norm_over_examples_is_the_same_on_any_number_of_devices(x64):
    """Four of 16 examples: within the per-device batch of 1 or 2 devices, that of each of 4, those of 2 of 8."""
    reference = run(batch_norm="examples:4")
    for devices in (2, 4, 8):
        assert difference(reference, run(devices, batch_norm="examples:4")) < 1e-12, devices


def test_the_options_of_batch_norm_over_examples():
    def options(value, *arguments):
        return BatchNormGroups.parse(value).model_options(*arguments)

    assert options("examples:4", 2, 8) == {"bn_group_size": 4}
    assert options("examples:8", 2, 8) == {}
    assert options("examples:16", 4, 8) == {"bn_axis_name": "data", "bn_axis_index_groups": ((0, 1), (2, 3))}
    for size in (3, 24):  # neither parts of a share of 8, nor whole shares that divide four devices
        with pytest.raises(
            UserError,
            match=r"'examples:\d+': 4 devices with 8 examples each do not divide into "
            r"groups of \d+; sizes that do: 1, 2, 4, 8, 16, 32$",
        ):
            options(f"examples:{size}", 4, 8)
