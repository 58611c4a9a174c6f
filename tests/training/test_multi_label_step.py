"""The loss of several labels per image, alone, in the step and in the evaluation step, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import crop_averaging, losses, optimizers, preprocess, state, step
from inception_jax.training.device_augmentation import DeviceAugmentation, augment
from inception_jax.training.mixing import Mixing, partners
from inception_jax.training.parallel import Devices

from .test_step import BATCH, SIZE, Small, batch, initial, quick_compilation  # noqa: F401  # the last for all tests


def by_hand(logits, targets, smoothing=0.0, weights=1.0):
    """From the definition, through the probabilities."""
    p = 1 / (1 + np.exp(-logits))
    y = (1 - smoothing) * targets + smoothing / 2
    return (-(y * np.log(p) + (1 - y) * np.log(1 - p)) * weights).mean(axis=-1)


def test_the_loss_is_that_of_the_definition(x64):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(7, 5)), (rng.random((7, 5)) < 0.4).astype(np.uint8)
    weights = [1.0, 2.0, 0.5, 0.0, 3.0]
    for options in ({}, {"label_smoothing": 0.1}, {"label_smoothing": 0.2, "class_weights": weights}):
        found = losses.sigmoid_cross_entropy(jnp.asarray(logits), jnp.asarray(targets), **options)
        smoothing, factors = options.get("label_smoothing", 0.0), np.array(options.get("class_weights", 1.0))
        np.testing.assert_allclose(found, by_hand(logits, targets, smoothing, factors), rtol=1e-13)
    gradient = jax.grad(lambda x: losses.sigmoid_cross_entropy(x, jnp.asarray(targets)).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-logits)) - targets) / 5, rtol=1e-12)
    heads = InceptionOutput(jnp.asarray(logits), (jnp.asarray(2 * logits), jnp.asarray(-logits)), {})
    total, each = losses.inception_loss(heads, jnp.asarray(targets), (0.3, 0.5), 0.1, weights, multi_label=True)
    expected = [by_hand(factor * logits, targets, 0.1, weights) for factor in (1, 2, -1)]
    np.testing.assert_allclose(total, expected[0] + 0.3 * expected[1] + 0.5 * expected[2], rtol=1e-13)
    np.testing.assert_allclose(each["aux2"], expected[2], rtol=1e-13)
    with pytest.raises(UserError, match=r"label_smoothing\) = 1"):
        losses.sigmoid_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((1, 2)), 1.0)


def test_extreme_logits_and_16_bits():
    logits = jnp.array([[200.0, -200.0, 0.0]], jnp.bfloat16)
    right = losses.sigmoid_cross_entropy(logits, jnp.array([[1, 0, 1]], jnp.uint8))
    wrong = losses.sigmoid_cross_entropy(logits, jnp.array([[0, 1, 1]], jnp.uint8))
    assert right.dtype == jnp.float32
    np.testing.assert_allclose([right[0], wrong[0]], [np.log(2) / 3, (400 + np.log(2)) / 3], rtol=1e-6)


def test_crops_are_averaged_as_probabilities(x64):
    logits = np.random.default_rng(1).normal(size=(3, 4, 5)) * 5
    found = crop_averaging.classify_crops(lambda images: images.reshape(-1, 5), jnp.asarray(logits)[..., None], True)
    mean = (1 / (1 + np.exp(-logits))).mean(axis=1)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(found))), mean, rtol=1e-12)


def test_mixed_images_have_the_mean_of_their_labels():
    labels = jnp.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], jnp.uint8)
    keys = jax.vmap(jax.random.key)(jnp.arange(4))
    mask = jnp.array([True, True, True, False])
    images = jnp.arange(4 * 2 * 2 * 3, dtype=jnp.uint8).reshape(4, 2, 2, 3)
    augmentation = DeviceAugmentation(mixing=Mixing(mixup_alpha=1.0))
    options = {"mean": (0.0, 0.0, 0.0)}
    pixels, mixed = augment(images, labels, mask, keys, augmentation, **options)
    same, single = augment(images, jnp.arange(4), mask, keys, augmentation, **options)
    np.testing.assert_array_equal(pixels, same)
    weight = np.asarray(single.weight)[:, None]
    assert weight[2] == 1 and 0 < weight[0] < 1
    np.testing.assert_allclose(
        mixed, weight * np.asarray(labels) + (1 - weight) * np.asarray(partners(labels)), rtol=1e-6
    )


def trained(devices, mode, accumulation):
    """Two steps and an evaluation: (metrics of both steps, sums, rows)."""
    model = Small()
    several = batch() | {"label": (np.random.default_rng(2).random((BATCH, 5)) < 0.4).astype(np.uint8)}
    several["mask"][11] = False
    normalization = preprocess.get_normalization("inception")
    objective = step.Objective(
        normalization, jnp.float64, (0.3,), 0.1, [1.0, 2.0, 1.0, 0.5, 1.0], accumulation=accumulation,
        augmentation=DeviceAugmentation(mixing=Mixing(mixup_alpha=0.4)),
    )  # fmt: skip
    optimizer = optimizers.specify("sgd").build(0.01)
    place = Devices(mode, devices)
    start = state.create(initial(False, jnp.float64), optimizer, keep_ema=False)
    now, shape = place.replicate(start), place.abstract_batch(BATCH, SIZE, label_columns=5)
    train_step = step.make_train_step(model, optimizer, objective, devices=place.count)
    compiled = place.compile_train(train_step, now, shape)
    found = []
    for _ in range(2):
        now, metrics = compiled(now, place.put(several))
        found.append(jax.device_get(metrics))
    evaluate = step.make_eval_step(model, normalization, jnp.float64, devices=place.count)
    sums, rows = place.compile_eval(evaluate, now.variables(), shape)(now.variables(), place.put(several))
    return found, jax.device_get(sums), place.get(rows)


@pytest.mark.parametrize(("devices", "mode", "accumulation"), [(2, "pmap", 2), (8, "jit", 1)])
def test_a_step_is_the_same_on_any_devices(x64, devices, mode, accumulation):
    first, sums, rows = trained(1, "jit", 1)
    assert {*first[0]} == {"loss", "loss_main", "loss_aux1", "count", "gradient_norm"}
    assert first[1]["count"] == 15 and {*sums} == {"loss", "count"}
    assert rows["every_class"].shape == (16, 5) and (rows["every_class"] < 0).all()
    assert first[1]["loss"] < first[0]["loss"]
    again, other_sums, other_rows = trained(devices, mode, accumulation)
    for metrics, others in zip(first, again, strict=True):
        for name, value in metrics.items():
            np.testing.assert_allclose(np.ravel(others[name])[0], value, rtol=1e-11, err_msg=name)
    np.testing.assert_allclose(np.ravel(other_sums["loss"])[0], sums["loss"], rtol=1e-11)
    np.testing.assert_allclose(other_rows["every_class"], rows["every_class"], rtol=1e-10)
