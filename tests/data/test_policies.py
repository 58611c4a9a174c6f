"""RandAugment and TrivialAugment: torchvision's operations and magnitudes, other arithmetic, and what is drawn."""

from pathlib import Path

import numpy as np
import pytest

from inception_jax.data import policies, sampling
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.data.policies import Policy
from inception_jax.errors import UserError

from .make_policies import BINS, SIDES, sample_image

GOLDEN = np.load(Path(__file__).parent / "policies.npz")
METHODS = ("randaugment", "trivialaugment_wide")


def apply(name, magnitude, image=None):
    from PIL import Image

    return np.asarray(policies.OPERATIONS[name](Image.fromarray(sample_image() if image is None else image), magnitude))


@pytest.mark.parametrize("method", METHODS)
def test_operations_and_magnitudes_are_torchvisions(method):
    table = policies.magnitudes(method, *SIDES)
    names = [key.split("/")[2] for key in GOLDEN if key.startswith(f"{method}/magnitudes/")]
    assert names == list(policies.OPERATIONS) and set(table) == set(names)
    for name in names:
        theirs = GOLDEN[f"{method}/magnitudes/{name}"]
        np.testing.assert_allclose(table[name], theirs if theirs.ndim else [], rtol=1e-6, atol=1e-5)
        assert (name in policies._SIGNED) == GOLDEN[f"{method}/signed/{name}"]
        for place in BINS if theirs.ndim else ("",):
            for sign in (1, -1) if name in policies._SIGNED else (1,):
                magnitude = sign * table[name][place] if theirs.ndim else 0.0
                expected = GOLDEN[f"{method}/image/{name}/{place}/{sign}"]
                np.testing.assert_array_equal(apply(name, magnitude), expected, f"{name} {place} {sign}")


def test_operations_are_what_their_names_say():
    """By arithmetic of our own, where Pillow has a definition of its own."""
    image = sample_image()
    height, width = SIDES
    y, x = np.mgrid[0:height, 0:width]
    angle = np.deg2rad(20.0)
    center_x, center_y = width / 2, height / 2
    dx, dy = x + 0.5 - center_x, y + 0.5 - center_y
    for name, magnitude, source_x, source_y in (
        ("ShearX", 0.3, x + 0.5 + 0.3 * (y + 0.5), y + 0.5),
        ("ShearY", -0.2, x + 0.5, y + 0.5 - 0.2 * (x + 0.5)),
        ("TranslateX", 3.7, x + 0.5 - 3, y + 0.5),
        ("TranslateY", -2.2, x + 0.5, y + 0.5 + 2),
        (
            "Rotate",
            20.0,  # degrees, against the clock
            center_x + np.cos(angle) * dx - np.sin(angle) * dy,
            center_y + np.sin(angle) * dx + np.cos(angle) * dy,
        ),
    ):
        column, row = np.floor(source_x).astype(int), np.floor(source_y).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        expected = np.where(inside[..., None], image[row.clip(0, height - 1), column.clip(0, width - 1)], 0)
        np.testing.assert_array_equal(apply(name, magnitude), expected, name)
    grey = (image.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16
    for name, other in (
        ("Brightness", np.zeros_like(image)),
        ("Contrast", np.full_like(image, int(grey.mean() + 0.5))),
        ("Color", np.repeat(grey[..., None], 3, axis=2)),
    ):
        for magnitude in (0.9, -0.5):
            blend = other + (1 + magnitude) * (image.astype(float) - other)
            assert np.abs(apply(name, magnitude) - blend.clip(0, 255)).max() <= 1, name
    np.testing.assert_array_equal(apply("Posterize", 4.0), image & 0xF0)
    np.testing.assert_array_equal(apply("Solarize", 128.0), np.where(image < 128, image, 255 - image))
    low, high = image.min((0, 1)).astype(float), image.max((0, 1))
    assert np.abs(apply("AutoContrast", 0.0) - (image - low) * 255 / (high - low)).max() <= 1
    many = np.tile(image, (4, 4, 1))  # equalization does nothing where there are fewer pixels than values
    for channel, equal in zip(np.moveaxis(many, -1, 0), np.moveaxis(apply("Equalize", 0.0, many), -1, 0), strict=True):
        counts = np.bincount(channel.ravel(), minlength=256)
        step = (counts.sum() - counts[channel.max()]) // 255
        table = (np.concatenate([[0], np.cumsum(counts)[:-1]]) + step // 2) // step
        np.testing.assert_array_equal(equal, table.clip(0, 255)[channel])


def test_operations_signs_and_magnitudes_are_equally_likely():
    """Of 14,000 draws with a fixed seed, each count is within five standard deviations of its mean."""
    numbers = sampling.uniforms(0, 0, 7000, sampling.POLICY_STREAM)
    drawn = [Policy("randaugment", 2, 15).draw(row, 224, 160) for row in numbers]
    assert all(len(one) == 2 for one in drawn)
    flat = [one for two in drawn for one in two]
    for name in policies.OPERATIONS:
        values = np.array([value for other, value in flat if other == name])
        assert abs(len(values) - 1000) < 5 * np.sqrt(1000 * 13 / 14)
        if name in policies._SIGNED:
            assert set(np.abs(values)) == {policies.magnitudes("randaugment", 224, 160)[name][15]}
            assert abs((values < 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(len(values))
    wide = [
        value for row in numbers for name, value in Policy("trivialaugment_wide").draw(row, 9, 9) if name == "Rotate"
    ]
    bins = np.bincount(np.rint(np.abs(wide) / 4.5).astype(int), minlength=31)
    assert len(bins) == 31 and np.abs(bins - len(wide) / 31).max() < 5 * np.sqrt(len(wide) / 31)
    pairs = np.array([[list(policies.OPERATIONS).index(name) for name, _ in two] for two in drawn])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 5 / np.sqrt(len(pairs))  # the second does not depend on the first


def test_what_is_drawn_is_frozen_and_not_from_the_numbers_of_the_crop():
    """A run resumes with it in another version."""
    numbers = sampling.uniforms(0, 5, 2, sampling.POLICY_STREAM)
    drawn = [("TranslateX", 48.33837), ("ShearX", -0.2), ("Color", 0.6)]
    for (name, magnitude), (expected, strength) in zip(
        Policy("randaugment", 3, 20).draw(numbers[0], 224, 160), drawn, strict=True
    ):
        assert name == expected and magnitude == pytest.approx(strength, rel=1e-6)
    ((name, magnitude),) = Policy("trivialaugment_wide").draw(numbers[1], 224, 160)
    assert name == "Contrast" and magnitude == pytest.approx(0.561, rel=1e-6)
    assert not np.isin(numbers, sampling.uniforms(0, 0, 100)).any()


def test_a_batch_has_the_policy_after_its_crop_and_its_own_numbers():
    fields = {"batch_size": 6, "image_size": 20, "seed": 3, "augmentation": {"area": (0.5, 1.0)}, "threads": 1}
    data, policy = load("digits", "train", None), Policy("randaugment", 3, 20)
    plain, pipeline = TrainPipeline(data, **fields), TrainPipeline(data, policy=policy, **fields)
    batch, cropped = pipeline.batch(7), plain.batch(7)
    numbers = sampling.uniforms(3, 42, 6, sampling.POLICY_STREAM)
    for row in range(6):
        np.testing.assert_array_equal(batch["image"][row], policy(cropped["image"][row], numbers[row]))
    assert (batch["image"] != cropped["image"]).any()
    halves = [TrainPipeline(data, policy=policy, process_index=i, process_count=2, **fields).batch(7) for i in range(2)]
    for name in batch:
        np.testing.assert_array_equal(batch[name], np.concatenate([half[name] for half in halves]))
        np.testing.assert_array_equal(batch[name][:4], pipeline.batch(7, rows=4)[name])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("randaugmnet",), "augmentation.policy: 'randaugmnet'; did you mean 'randaugment'"),
        (("randaugment", 17), "augmentation.policy_operations: 17; a whole number from 1 to 16"),
        (("randaugment", 2, 31), "augmentation.policy_magnitude: 31; a whole number from 0 to 30"),
    ],
)
def test_other_values_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Policy(*fields)
