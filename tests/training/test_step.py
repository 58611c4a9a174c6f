"""The training step on a small network with dropout: devices, modes and micro-batches must not change the numbers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inception_jax.models.normalization import BatchNorm, BatchNormOptions
from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import optimizers, parallel, preprocess, state, step
from inception_jax.training.batch_norm import BatchNormGroups
from inception_jax.training.gradient_transformations import LearningRateState

CLASSES, SIZE, BATCH = 5, 6, 16


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Half the time of this file is XLA's optimizer."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Small(nn.Module):
    """One convolution, per-example dropout, batch norm on request, a head and an auxiliary head.

    No bias before batch norm, as in the real networks: its gradient is zero but for rounding, of which training makes
    another value on any other number of devices.
    """

    batch_norm: bool = False
    bn_axis_name: str | None = None
    bn_axis_index_groups: tuple | None = None
    dtype: type = jnp.float64

    @nn.compact
    def __call__(self, x, *, train=False, example_keys=None):
        conv = nn.Conv(7, (3, 3), use_bias=not self.batch_norm, dtype=self.dtype, param_dtype=self.dtype)
        x = nn.relu(conv(x))
        if self.batch_norm:
            style = BatchNormOptions(
                momentum=0.9, axis_name=self.bn_axis_name, axis_index_groups=self.bn_axis_index_groups
            )
            x = BatchNorm(style, self.dtype)(x, train=train)
        x = x.mean((1, 2))
        options = {"dtype": self.dtype, "param_dtype": self.dtype}
        aux = nn.Dense(CLASSES, **options, name="aux")(x)
        if train:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, x.shape[1:]))(example_keys)
            x = jnp.where(keep, x / 0.7, 0)
        logits = nn.Dense(CLASSES, **options, name="main")(x)
        return InceptionOutput(logits=logits, aux_logits=(aux,) if train else (), endpoints={})


def batch(seed=0, size=BATCH):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, size, dtype=np.int32),
        "mask": np.ones(size, bool),
    }


@functools.cache
def initial(batch_norm, dtype):
    images = jnp.zeros((1, SIZE, SIZE, 3), dtype)
    return jax.device_get(jax.jit(Small(batch_norm=batch_norm, dtype=dtype).init)(jax.random.key(0), images))


def start(devices=1, mode="jit", batch_norm=None, dtype=jnp.float64, optimizer=None, ema=0.0, **objective):
    """(mesh, the state before the first step, the step, still to be compiled)."""
    options = BatchNormGroups.parse(batch_norm).model_options(devices, 1) if batch_norm else {}
    model = Small(batch_norm=batch_norm is not None, dtype=dtype, **options)
    optimizer = optimizer or optax.sgd(0.5, momentum=0.9)
    objective = step.Objective(
        preprocess.get_normalization("inception"),
        dtype,
        (0.3,),
        label_smoothing=0.1,
        seed=3,
        ema_decay=ema,
        **objective,
    )
    mesh = parallel.Devices(mode, devices)
    current = mesh.replicate(state.create(initial(batch_norm is not None, dtype), optimizer, keep_ema=ema > 0))
    return mesh, current, step.make_train_step(model, optimizer, objective, devices=devices)


def run(devices=1, mode="jit", batch_norm=None, accumulation=1, steps=3, ema=0.0, batches=None, **options):
    mesh, current, train_step = start(devices, mode, batch_norm, ema=ema, accumulation=accumulation, **options)
    batches = batches or [batch(seed) for seed in range(steps)]
    train_step = mesh.compile_train(train_step, current, mesh.put(batches[0]))
    log = []
    for one in batches:
        current, metrics = train_step(current, mesh.put(one))
        log.append(jax.device_get(metrics))
    return jax.device_get(current), log


def difference(a, b):
    return max(
        float(np.max(np.abs(x - y) / (np.max(np.abs(x)) + 1e-12)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_class_weights_are_weights_of_the_examples_in_a_mean_over_their_number(x64):
    """By hand: the weighted gradient is the sum of the classes' own gradients times their weights.

    Over micro-batches and devices with uneven masks, too: a mean over the sum of the weights would differ there.
    """
    weights = (0.0, 2.0, 0.5, 1.0, 3.0)
    one = batch()
    one["mask"][[0, 5, 6, 7]] = False
    mesh, before, train_step = start(optimizer=optax.sgd(1.0))
    train_step, before = mesh.compile_train(train_step, before, mesh.put(one)), jax.device_get(before)
    by_hand = jax.tree.map(np.zeros_like, before.params)
    for label, weight in enumerate(weights):
        part = {**one, "mask": one["mask"] & (one["label"] == label)}
        after, metrics = train_step(mesh.replicate(before), mesh.put(part))
        share = weight * float(metrics["count"]) / 12
        by_hand = jax.tree.map(
            lambda s, a, b, w=share: s + w * (a - np.asarray(b)), by_hand, before.params, after.params
        )
    for devices, accumulation in ((1, 1), (2, 2)):
        after, log = run(
            devices, accumulation=accumulation, batches=[one], optimizer=optax.sgd(1.0), class_weights=weights
        )
        change = jax.tree.map(np.subtract, before.params, after.params)
        assert difference(by_hand, change) < 1e-9
        assert log[0]["count"] == 12
        assert log[0]["loss"] == pytest.approx(log[0]["loss_main"] + 0.3 * log[0]["loss_aux1"], rel=1e-12)


reference = functools.cache(run)  # under x64 only


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("devices", [2, 8])
def test_same_numbers_on_any_number_of_devices_in_both_modes(x64, mode, devices):
    assert difference(reference(ema=0.9), run(devices, mode, ema=0.9)) < 1e-12


@pytest.mark.parametrize("batch_norm", [None, "global"])
@pytest.mark.parametrize(
    ("devices", "mode"),
    [
        (8, "jit"),
        *(
            pytest.param(devices, mode, marks=pytest.mark.slow)
            for devices, mode in [(1, "pmap"), (2, "jit"), (2, "pmap"), (4, "jit"), (4, "pmap"), (8, "pmap")]
        ),
    ],
)
def test_ten_steps_in_float32(devices, mode, batch_norm):
    options = {"steps": 10, "ema": 0.9, "dtype": jnp.float32, "optimizer": optax.sgd(0.05, momentum=0.9)}
    one = run(batch_norm=batch_norm and "local", **options)
    assert difference(one, run(devices, mode, batch_norm=batch_norm, **options)) < 1e-5


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_global_batch_norm_is_one_devices_batch_norm(x64, mode):
    one = reference(batch_norm="local")
    assert difference(one, reference(4, mode, batch_norm="global")) < 1e-12
    assert difference(one, run(4, mode, batch_norm="groups:4")) < 1e-12


@pytest.mark.parametrize("groups", ["local", "groups:2"])
def test_grouped_batch_norm_is_the_same_in_both_modes_but_not_global(x64, groups):
    one, other = run(4, "jit", batch_norm=groups), run(4, "pmap", batch_norm=groups)
    assert difference(one, other) < 1e-12
    assert difference(one, reference(4, "jit", batch_norm="global")) > 1e-4


@pytest.mark.parametrize("devices", [1, 2])
def test_accumulation_gives_the_update_of_the_large_batch(x64, devices):
    assert difference(reference(), run(devices, accumulation=4)) < 1e-12


def test_accumulated_batch_norm_normalizes_each_micro_batch_by_itself(x64):
    """A micro-batch is what a device is with local statistics; the running ones are updated once per micro-batch."""
    parts, log = run(accumulation=4, batch_norm="local")
    devices, devices_log = run(4, batch_norm="local")
    assert difference((parts.params, parts.opt_state, log), (devices.params, devices.opt_state, devices_log)) < 1e-12
    old, part, four = (
        tree["BatchNorm_0"]["mean"]
        for tree in (initial(True, jnp.float64)["batch_stats"], parts.batch_stats, devices.batch_stats)
    )
    assert not old.any()
    # A batch moves them 1 - 0.9^4 of the way to a part's statistics instead of 1 - 0.9: more than three times as far.
    assert np.linalg.norm(part) > 1.5 * np.linalg.norm(four)


def test_metrics_are_sums_over_the_global_batch(x64):
    (_, one), (_, four) = reference(), run(4, steps=1)
    metrics = one[0]
    assert metrics["count"] == BATCH == four[0]["count"]
    assert metrics["loss"] == pytest.approx(metrics["loss_main"] + 0.3 * metrics["loss_aux1"], rel=1e-12)
    assert set(metrics) == {
        "loss",
        "loss_main",
        "loss_aux1",
        "top1_main",
        "top1_aux1",
        "top5_main",
        "count",
        "gradient_norm",
    }
    assert 0 <= metrics["top1_main"] <= metrics["top5_main"] == BATCH  # five classes: the label is always among five


def test_masked_rows_count_for_nothing(x64):
    """Padding must change neither the gradient nor the sums, whatever the padded rows hold."""
    half = batch(1, BATCH)
    half["mask"][BATCH // 2 :] = False
    other = {name: rows.copy() for name, rows in half.items()}
    other["image"][BATCH // 2 :] = 255
    other["label"][BATCH // 2 :] = 0
    one, two = run(2, batches=[half]), run(2, batches=[other])
    assert difference(one, two) == 0
    assert one[1][0]["count"] == BATCH // 2


def test_dropout_depends_on_step_and_row_only():
    keys = step.example_keys(7, jnp.int32(3), jnp.arange(8))
    again = step.example_keys(7, jnp.int32(3), jnp.arange(4, 8))
    data = jax.random.key_data
    np.testing.assert_array_equal(data(keys)[4:], data(again))
    assert len(np.unique(np.asarray(data(keys)), axis=0)) == 8
    assert not np.array_equal(data(keys), data(step.example_keys(7, jnp.int32(4), jnp.arange(8))))
    assert not np.array_equal(data(keys), data(step.example_keys(8, jnp.int32(3), jnp.arange(8))))


def test_gradients_travel_in_one_all_reduce_and_the_flag_with_them():
    mesh, current, train_step = start(4, dtype=jnp.float32)
    compiled = mesh.compile_train(train_step, current, mesh.abstract_batch(BATCH, SIZE, flag=True))
    text = compiled.call.as_text()
    assert sum(" all-reduce(" in line or " all-reduce-start(" in line for line in text.splitlines()) == 1
    current, metrics = compiled(current, mesh.put(batch()) | {"stop": mesh.flag(False)})
    assert metrics["stop"] == 0
    current, metrics = compiled(current, mesh.put(batch()) | {"stop": mesh.flag(True)})
    assert metrics["stop"] == 4
    assert metrics["stop"].dtype == jnp.float32
    some = mesh.put({"stop": np.array([False, False, True, False])})  # as when one process of four asks
    _, metrics = compiled(current, mesh.put(batch()) | some)
    assert metrics["stop"] == 1


def test_state_is_donated_and_no_other_shape_is_taken():
    mesh, current, train_step = start(dtype=jnp.float32)
    compiled = mesh.compile_train(train_step, current, mesh.put(batch()))
    following, _ = compiled(current, mesh.put(batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(current))
    with pytest.raises((TypeError, ValueError)):
        compiled(following, mesh.put(batch(size=8)))


def adam():
    return optimizers.specify("adamw", weight_decay=0.01).build(lambda count: 0.1 / (1.0 + count.astype(jnp.float32)))


def with_time(current, time):
    """The state at another time, untouched but for the step and the schedule's clock."""
    is_clock = lambda node: isinstance(node, LearningRateState)  # noqa: E731
    set_clock = lambda node: node._replace(count=jnp.int32(time)) if is_clock(node) else node  # noqa: E731
    opt_state = jax.tree.map(set_clock, current.opt_state, is_leaf=is_clock)
    return current.replace(step=jnp.int32(time), opt_state=opt_state)


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_step_above_the_limit_changes_nothing_but_the_time():
    options = {"devices": 2, "batch_norm": "local", "dtype": jnp.float32, "optimizer": adam(), "ema": 0.9}
    mesh, current, free = start(**options, skip_non_finite=True)
    free = mesh.compile_train(free, current, mesh.put(batch()))
    first, metrics = free(current, mesh.put(batch(0)))
    assert metrics["skipped"] == 0
    first = jax.device_get(first)
    losses = [float(free(mesh.replicate(first), mesh.put(batch(seed)))[1]["loss"]) for seed in (1, 2)]
    bad, good = (batch(1), batch(2)) if losses[0] > losses[1] else (batch(2), batch(1))

    limit = sum(losses) / 2 / BATCH
    _, current, limited = start(**options, skip_non_finite=True, loss_limit=limit)
    stop = {"stop": mesh.flag(True)}
    limited = mesh.compile_train(limited, current, mesh.put(good) | stop)
    second, metrics = limited(mesh.replicate(first), mesh.put(bad) | stop)
    assert jax.device_get(metrics) == {name: {"skipped": 1, "stop": 2}.get(name, 0) for name in metrics}
    assert_same_bits(second, with_time(first, 2))
    second, metrics = limited(mesh.replicate(first), mesh.put(good) | stop)
    assert (metrics["skipped"], metrics["count"], second.step) == (0, BATCH, 2)
    assert metrics["loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_step_that_is_not_finite_is_skipped():
    """Weights so large that the square of the gradient overflows (the loss is finite), or the loss itself does."""
    options = {"dtype": jnp.float32, "optimizer": adam(), "ema": 0.9}
    mesh, current, plain = start(**options)
    skipping = start(**options, skip_non_finite=True)[2]
    one = mesh.put(batch())
    plain, skipping = (mesh.compile_train(each, current, one) for each in (plain, skipping))
    for factor, finite_loss in ((1e30, True), (3e38, False)):
        large = jax.tree.map(lambda x, factor=factor: x * jnp.float32(factor), current.params["main"])
        before = jax.device_get(current.replace(params=current.params | {"main": large}))
        _, metrics = plain(mesh.replicate(before), one)
        assert not np.isfinite(metrics["gradient_norm"])
        assert np.isfinite(metrics["loss"]) == finite_loss
        after, metrics = skipping(mesh.replicate(before), one)
        assert metrics["skipped"] == 1
        assert metrics["loss"] == metrics["gradient_norm"] == metrics["count"] == 0
        assert_same_bits(after, with_time(before, 1))


def test_a_batch_of_padding_alone_has_no_gradient(x64):
    empty = batch()
    empty["mask"][:] = False
    after, log = run(batches=[empty])
    assert log[0]["gradient_norm"] == log[0]["count"] == 0
    assert_same_bits(after.params, initial(False, jnp.float64)["params"])


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_evaluation_counts_each_masked_example_once_and_keeps_row_order(x64, mode):
    model, variables = Small(), initial(False, jnp.float64)
    one = batch(5)
    one["mask"][-3:] = False
    results = []
    for devices in (1, 4):
        mesh = parallel.Devices(mode, devices)
        eval_step = step.make_eval_step(model, preprocess.get_normalization("inception"), jnp.float64, devices=devices)
        placed = mesh.replicate(variables)
        compiled = mesh.compile_eval(eval_step, placed, mesh.put(one))
        sums, rows = compiled(placed, mesh.put(one))
        results.append((jax.device_get(sums), mesh.get(rows)))
    assert difference(*results) < 1e-12
    sums, rows = results[0]
    assert sums["count"] == BATCH - 3
    correct = (rows["classes"][:, 0] == one["label"]) & one["mask"]
    assert sums["top1"] == correct.sum()
    assert rows["probabilities"].sum(axis=1) == pytest.approx(1.0)


def test_the_predicted_classes_are_those_that_the_accuracy_counts():
    """By the logits, whose probabilities are equal where they underflow to 0 or are rounded to 1."""

    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return InceptionOutput(logits=jnp.tile(jnp.array([0.0, 1e-9, 1e-8, -900.0, -800.0]), (x.shape[0], 1)))

    one = batch(size=1) | {"label": np.array([2], np.int32)}
    mesh = parallel.Devices("jit", 1)
    eval_step = step.make_eval_step(Constant(), preprocess.get_normalization("inception"), jnp.float32, devices=1)
    sums, rows = mesh.compile_eval(eval_step, {}, mesh.put(one))({}, mesh.put(one))
    assert mesh.get(rows)["classes"].tolist() == [[2, 1, 0, 4, 3]] and float(sums["top1"]) == 1
