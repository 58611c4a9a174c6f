"""Random erasing, mixup and CutMix: against loops over single images, their distributions, and the step with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from inception_jax.models.outputs import InceptionOutput
from inception_jax.training import device_augmentation, losses
from inception_jax.training.device_augmentation import DeviceAugmentation, Erasing, Labels
from inception_jax.training.mixing import Mixing
from inception_jax.training.step import example_keys

from . import test_step

HEIGHT, WIDTH = 20, 14


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Nearly all the time of this file is XLA's."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def images(count=8, seed=0):
    return np.random.default_rng(seed).integers(1, 256, (count, HEIGHT, WIDTH, 3), np.uint8)


@functools.cache
def augmenter(augmentation):
    def run(pixels, labels, mask, keys):
        return device_augmentation.augment(pixels, labels, mask, keys, augmentation, mean=(7.0, 8.0, 9.0))

    return jax.jit(run)


def augment(augmentation, pixels, mask=None, step=3, first=0):
    rows = first + jnp.arange(len(pixels), dtype=jnp.int32)
    mask = np.ones(len(pixels), bool) if mask is None else mask
    pixels, labels = augmenter(augmentation)(pixels, rows, mask, example_keys(5, jnp.int32(step), rows))
    return np.asarray(pixels), jax.device_get(labels)


def rectangles(changed):
    """(top, bottom, left, right) of each image's changed pixels; None where there are none or they are no rectangle."""
    found = []
    for one in changed:
        rows, columns = np.flatnonzero(one.any(1)), np.flatnonzero(one.any(0))
        if len(rows) and one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all():
            found.append((rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        else:
            found.append(None)
    return found


def erased_by_hand(numbers, erasing):
    """The rectangle of an image by the paper's algorithm 1, one attempt after the other."""
    for attempt in range(10):
        u_area, u_aspect = numbers[2 + 2 * attempt : 4 + 2 * attempt]
        area = HEIGHT * WIDTH * (erasing.area[0] + (erasing.area[1] - erasing.area[0]) * u_area)
        aspect = erasing.aspect[0] + (erasing.aspect[1] - erasing.aspect[0]) * u_aspect
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if h < HEIGHT and w < WIDTH:
            top, left = int(numbers[0] * (HEIGHT - h + 1)), int(numbers[1] * (WIDTH - w + 1))
            return top, top + h, left, left + w
    return 0, 0, 0, 0


def test_erased_rectangles_are_those_of_the_algorithm():
    """And with a range of areas that seldom fits, where the attempts end."""
    numbers = np.random.default_rng(0).uniform(size=(400, 22)).astype(np.float32)
    for erasing in (Erasing(1.0), Erasing(1.0, area=(0.8, 1.0), aspect=(0.3, 3.0))):
        found = np.stack(device_augmentation._rectangle(jnp.asarray(numbers), HEIGHT, WIDTH, erasing), axis=1)
        expected = np.array([erased_by_hand(row.tolist(), erasing) for row in numbers])
        found[found[:, 0] == found[:, 1]] = 0
        assert (found == expected).all(axis=1).mean() > 0.99  # float32 may round a side the other way
        assert (found[:, 1] <= HEIGHT).all() and (found[:, 3] <= WIDTH).all() and (found >= 0).all()
    assert (expected[:, 1] == 0).any() and (expected[:, 1] > 0).any()


def test_erasing_has_its_probability_area_position_and_fill():
    """2,000 images, fixed seeds: within five standard deviations."""
    pixels = np.zeros((2000, HEIGHT, WIDTH, 3), np.uint8)
    out, labels = augment(DeviceAugmentation(erasing=Erasing(0.3, fill="zero")), pixels)
    assert isinstance(labels, np.ndarray)
    changed = (out != 0).any(-1)
    assert (out[changed] == [7, 8, 9]).all()
    found = [one for one in rectangles(changed) if one]
    assert len(found) == changed.any((1, 2)).sum()
    assert abs(len(found) - 600) < 5 * np.sqrt(2000 * 0.3 * 0.7)
    top, bottom, left, right = np.array(found).T
    area = (bottom - top) * (right - left) / (HEIGHT * WIDTH)
    assert 0.01 < area.min() < 0.03 and 0.36 < area.max() < 0.43
    free_y, free_x = HEIGHT - (bottom - top), WIDTH - (right - left)
    for place, free in ((top, free_y), (left, free_x)):
        assert abs(np.mean((place - free / 2) / np.sqrt(free * (free + 2) / 12))) < 5 / np.sqrt(len(found))

    out, _ = augment(DeviceAugmentation(erasing=Erasing(1.0, area=(0.3, 0.4), aspect=(1.0, 1.0))), pixels[:200])
    noise = out[(out != 0).any(-1)]
    assert (
        len(noise) > 10_000 and abs(noise.mean() - 127.5) < 1.5 and abs(noise.std() - 73.9) < 1 and noise.max() == 255
    )


def test_mixup_mixes_neighbours_and_their_labels():
    pixels = images()
    out, labels = augment(DeviceAugmentation(mixing=Mixing(mixup_alpha=0.4)), pixels)
    assert labels.first.tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and labels.second.tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    for row, partner in enumerate(labels.second):
        weight = labels.weight[row]
        np.testing.assert_allclose(
            out[row], weight * pixels[row] + (1 - weight) * pixels[partner].astype(float), rtol=1e-5
        )
    assert len(set(labels.weight.tolist())) == 8


def test_cutmix_pastes_a_box_and_weighs_by_what_is_left():
    pixels = np.concatenate([np.full((1000, HEIGHT, WIDTH, 3), value, np.uint8) for value in (10, 200)])
    pixels = pixels.reshape(2, 1000, HEIGHT, WIDTH, 3).swapaxes(0, 1).reshape(2000, HEIGHT, WIDTH, 3)
    out, labels = augment(DeviceAugmentation(mixing=Mixing(cutmix_alpha=1.0)), pixels)
    assert set(np.unique(out)) == {10, 200}
    changed = (out != pixels).any(-1)
    np.testing.assert_allclose(labels.weight, 1 - changed.mean((1, 2)), atol=1e-6)
    found = rectangles(changed)
    assert sum(one is None for one in found) == (labels.weight == 1).sum() < 70  # boxes of no pixel: 2 %
    # By hand, from the same numbers: the box of Beta(1, 1), which is uniform, clipped at the edges.
    keys = device_augmentation._keys(example_keys(5, jnp.int32(3), jnp.arange(2000, dtype=jnp.int32)), 4 + (1 << 20))
    fold = jax.vmap(jax.random.fold_in, (0, None))
    numbers = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (4,)))(fold(keys, 0)))
    betas = np.asarray(jax.vmap(jax.random.uniform)(fold(keys, 2)))
    same = 0
    for one, number, beta in zip(found, numbers, betas, strict=True):
        (y, height), (x, width) = (
            (int(n * s), int(s * (1 - beta) ** 0.5)) for n, s in zip(number[2:], (HEIGHT, WIDTH), strict=True)
        )
        box = max(y - height // 2, 0), min(y + height // 2, HEIGHT), max(x - width // 2, 0), min(x + width // 2, WIDTH)
        same += one == box or (one is None and (height < 2 or width < 2))
    assert same > 1980
    centers = numbers[:, 2:]
    assert np.abs(centers.mean(0) - 0.5).max() < 5 / np.sqrt(12 * 2000)


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_have_the_beta_distribution(alpha):
    """The first moments of 4,000 draws, and the largest distance from the distribution function where it is known."""
    weights = augment(DeviceAugmentation(mixing=Mixing(mixup_alpha=alpha)), np.zeros((4000, 1, 1, 3), np.uint8))[
        1
    ].weight
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(weights.mean() - 0.5) < 5 * np.sqrt(variance / 4000)
    assert weights.var() == pytest.approx(variance, rel=0.1)
    if alpha == 1.0:  # Kolmogorov-Smirnov, at 0.1 %
        assert np.abs(np.sort(weights) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / np.sqrt(4000)


def test_both_are_chosen_equally_often_with_their_probability():
    pixels = images(2000)
    out, labels = augment(DeviceAugmentation(mixing=Mixing(0.8, 1.0, probability=0.5)), pixels)
    mixed = labels.weight < 1
    assert abs(mixed.mean() - 0.5) < 0.06
    assert (out[~mixed] == pixels[~mixed]).all()
    cut = (out == np.rint(out)).all((1, 2, 3)) & mixed
    assert abs(cut.sum() / mixed.sum() - 0.5) < 0.08


def test_an_image_that_is_masked_is_not_mixed_into_its_partner():
    mask = np.arange(8) != 1
    pixels = images()
    out, labels = augment(DeviceAugmentation(mixing=Mixing(mixup_alpha=0.4)), pixels, mask)
    assert labels.weight[0] == labels.weight[1] == 1 and (labels.weight[2:] < 1).all()
    assert (out[:2] == pixels[:2]).all()


def test_augmentations_are_functions_of_seed_step_and_row():
    everything = DeviceAugmentation("slim", 0.1, Erasing(0.5), Mixing(0.3, 1.0))
    pixels = images()
    whole, labels = augment(everything, pixels)
    again, _ = augment(everything, pixels)
    assert (whole == again).all()
    shifted, shifted_labels = augment(everything, np.roll(pixels, -4, axis=0), first=4)
    assert (shifted[:4] == whole[4:]).all() and (shifted_labels.weight[:4] == labels.weight[4:]).all()
    later, _ = augment(everything, pixels, step=4)
    assert np.abs(later - whole).max() > 50
    assert np.abs(whole[0] - pixels[0]).max() > 5


def soft_targets(labels, classes, smoothing=0.1):
    eye = np.eye(classes)
    mixed = labels.weight[:, None] * eye[labels.first] + (1 - labels.weight[:, None]) * eye[labels.second]
    return (1 - smoothing) * mixed + smoothing / classes


def test_losses_of_mixed_labels_are_those_of_soft_targets(x64):
    """In every head, smoothed; and accuracy is the weight of the labels that are right."""
    random = np.random.default_rng(0)
    logits, aux = random.normal(size=(2, 6, 5))
    labels = Labels(np.array([0, 1, 2, 3, 4, 0]), np.array([1, 0, 2, 4, 3, 0]), random.uniform(size=6))
    output = InceptionOutput(jnp.asarray(logits), (jnp.asarray(aux),), {})
    given = Labels(*map(jnp.asarray, labels))
    total, heads = losses.inception_loss(output, given, (0.3,), 0.1)
    target = soft_targets(labels, 5)
    np.testing.assert_allclose(heads["main"], optax.softmax_cross_entropy(logits, target), rtol=1e-12)
    np.testing.assert_allclose(heads["aux1"], optax.softmax_cross_entropy(aux, target), rtol=1e-12)
    np.testing.assert_allclose(total, heads["main"] + 0.3 * heads["aux1"], rtol=1e-12)
    weights = np.array([0.5, 1.0, 2.0, 3.0, 0.0])
    weighted, _ = losses.inception_loss(output, given, (0.3,), 0.1, weights.tolist())
    parts = [losses.inception_loss(output, label, (0.3,), 0.1)[0] for label in given[:2]]
    by_hand = labels.weight * weights[labels.first] * parts[0] + (1 - labels.weight) * weights[labels.second] * parts[1]
    np.testing.assert_allclose(weighted, by_hand, rtol=1e-12)
    best = logits.argmax(1)
    right = labels.weight * (best == labels.first) + (1 - labels.weight) * (best == labels.second)
    np.testing.assert_allclose(losses.top_k_accuracy(output.logits, given, 1), right, rtol=1e-12)


EVERYTHING = DeviceAugmentation("howard", 0.1, Erasing(0.5, fill="zero"), Mixing(0.3, 1.0))


@pytest.mark.parametrize(("devices", "mode", "accumulation"), [(2, "jit", 2), (4, "pmap", 1)])
def test_the_step_is_the_same_on_any_devices_and_micro_batches(x64, devices, mode, accumulation):
    one, log = test_step.reference(augmentation=EVERYTHING, steps=2)
    other, other_log = test_step.run(devices, mode, accumulation=accumulation, augmentation=EVERYTHING, steps=2)
    assert test_step.difference(one.params, other.params) < 1e-10
    for a, b in zip(log, other_log, strict=True):
        assert {name: pytest.approx(float(value), rel=1e-9) for name, value in a.items()} == b


def test_the_step_trains_on_the_mixed_batch(x64):
    """Its loss is that of the augmented images with their soft labels, computed outside the step."""
    batch = test_step.batch()
    _, log = test_step.reference(augmentation=EVERYTHING, steps=2)
    keys = example_keys(3, jnp.int32(0), jnp.arange(16, dtype=jnp.int32))
    given = [jnp.asarray(batch[name]) for name in ("image", "label", "mask")]
    augment = functools.partial(device_augmentation.augment, mean=(127.5,) * 3, dtype=jnp.float64)
    pixels, labels = jax.jit(augment, static_argnums=4)(*given, keys, EVERYTHING)
    assert np.abs(np.asarray(pixels) - batch["image"]).max() > 50
    model = test_step.Small()
    params = test_step.initial(False, jnp.float64)
    output = model.apply(params, pixels / 127.5 - 1, train=True, example_keys=keys)
    target = soft_targets(jax.device_get(labels), test_step.CLASSES)
    assert float(log[0]["loss_main"]) == pytest.approx(
        float(optax.softmax_cross_entropy(output.logits, target).sum()), rel=1e-9
    )
