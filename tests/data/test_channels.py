"""Images of one, three and other numbers of channels: files, arrays, crops, and what is refused."""

import cv2
import numpy as np
import pytest

from inception_jax.data import channels, datasets, images, pipeline, sampling
from inception_jax.data.eval_protocols import get_protocol
from inception_jax.data.policies import Policy
from inception_jax.data.resampling import RESIZES
from inception_jax.errors import UserError

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (30, 40, 6), dtype=np.uint8)


def encode(image, suffix=".png"):
    return cv2.imencode(suffix, image)[1].tobytes()


def test_files_of_grey_and_of_four_channels():
    grey, colour, alpha = NOISE[..., 0], NOISE[..., :3], NOISE[..., :4]
    equal = np.repeat(grey[..., None], 3, axis=2)
    wide = grey.astype(np.uint16) * 256 + NOISE[..., 1]
    for encoded in (encode(grey), encode(equal), encode(wide), encode(np.dstack([equal, alpha[..., 3]]))):
        found = images.decode(encoded, channels=1)
        np.testing.assert_array_equal(found, grey[..., None])
        np.testing.assert_array_equal(images.decode(encoded), equal)  # as it is by default
    for suffix in (".jpg", ".webp", ".tif"):
        encoded = encode(grey, suffix)
        np.testing.assert_array_equal(images.decode(encoded, channels=1), images.decode(encoded)[..., :1])
    np.testing.assert_array_equal(images.decode(encode(alpha), channels=4), alpha[..., [2, 1, 0, 3]])
    np.testing.assert_array_equal(images.decode(encode(alpha)), colour[..., ::-1])


@pytest.mark.parametrize(
    "image, wanted, message",
    [
        (NOISE[..., :3], 1, "a.png: a colour image; config.model.in_channels = 1 takes grey images, or colour ones"),
        (NOISE[..., 0], 4, "a.png: an image of 1 channel; config.model.in_channels = 4 takes images of 4 channels"),
        (NOISE[..., :3], 4, "an image of 3 channels; config.model.in_channels = 4 takes images of 4 channels"),
        (NOISE[..., :3], 6, "an image of 3 channels; config.model.in_channels = 6 takes images of 6 channels"),
    ],
)
def test_files_of_other_channels_are_refused(image, wanted, message):
    with pytest.raises(channels.OtherChannels, match=message):
        images.decode(encode(image), "a.png", channels=wanted)


def test_arrays_of_other_channels_are_refused():
    for found, wanted in ((6, 3), (6, 1), (4, 3), (2, 3)):
        with pytest.raises(channels.OtherChannels, match=f"item: an image of {found} channels"):
            channels.fit(NOISE[..., :found], wanted, "item")
    assert channels.fit(NOISE, 6, "item") is NOISE
    assert channels.to_rgb(NOISE[..., :2]).shape == channels.to_rgb(NOISE).shape == (30, 40, 3)
    np.testing.assert_array_equal(channels.to_rgb(NOISE), NOISE[..., :3])


def test_crops_of_one_channel_are_those_of_three():
    """Every rule, interpolation and protocol, bit for bit."""
    grey, numbers = NOISE[..., :1], sampling.uniforms(0, 0, 6)
    repeated = np.repeat(grey, 3, axis=2)
    rules = [images.Augmentation(interpolation=name) for name in (*images.INTERPOLATIONS, "random")]
    rules.append(images.Augmentation("random_crop", resize=36))
    for rule in rules:
        for row in numbers:
            one, three = (images.augment(image, 24, row, rule) for image in (grey, repeated))
            np.testing.assert_array_equal(one, three[..., :1], strict=True)
    for name in RESIZES:
        for crop in ("center", "squash", "central_fraction"):
            one, three = (images.center_crop(i, 24, images.EvalCrop(crop, 0.9, name)) for i in (grey, repeated))
            np.testing.assert_array_equal(one, three[..., :1], strict=True)
    protocol, out = get_protocol("12-crop"), [np.zeros((12, 24, 24, c), np.uint8) for c in (1, 3)]
    for image, crops in zip((grey, repeated), out, strict=True):
        protocol.cut(image, 24, images.CENTER_CROP, crops)
    np.testing.assert_array_equal(out[0], out[1][..., :1])


def test_crops_of_six_channels_are_those_of_each():
    for interpolation in ("bilinear", "area", "nearest"):
        rule = images.Augmentation(interpolation=interpolation)
        for row in sampling.uniforms(0, 0, 4):
            together = images.augment(NOISE, 24, row, rule)
            alone = [images.augment(NOISE[..., c : c + 1], 24, row, rule) for c in range(6)]
            np.testing.assert_array_equal(together, np.concatenate(alone, axis=2))


def test_the_upper_rows_of_a_grey_jpeg_are_those_of_the_whole(monkeypatch):
    image = cv2.resize(RANDOM.integers(0, 256, (12, 16), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
    rule, encoded = images.Augmentation(area=(0.08, 0.2)), encode(image, ".jpg")
    whole, decoded = images.decode(encoded, channels=1), []
    monkeypatch.setattr(images, "decode", lambda *a, **b: decoded.append(a) or whole)
    for row in sampling.uniforms(0, 0, 12):
        found = images.decode_and_augment(encoded, 32, row, rule, np.zeros((32, 32, 1), np.uint8))
        np.testing.assert_array_equal(found, images.augment(whole, 32, row, rule))
    assert len(decoded) < 6  # most crops need not all rows


def batches(name, count, **options):
    data = datasets.load(name, "train")
    return pipeline.TrainPipeline(
        data, batch_size=4, image_size=12, seed=1, augmentation={}, threads=1, workers=0, channels=count, **options
    )


def test_a_pipeline_of_one_channel(registrations):
    one, three = (batches("digits", count).batch(3)["image"] for count in (1, 3))
    assert one.shape == (4, 12, 12, 1) and one.any()
    np.testing.assert_array_equal(np.repeat(one, 3, axis=3), three)
    # Arrays of the user: grey, of one channel, of six, and items of an object.
    labels = np.array([0, 1] * 4)
    many = RANDOM.integers(0, 256, (8, 16, 16, 6), dtype=np.uint8)
    for key, data in {
        "grey": (many[..., 0], labels), "six": (many, labels), "items": list(zip(many, labels, strict=True)),
    }.items():  # fmt: skip
        datasets.add(key, lambda data=data: {"train": data}, ["a", "b"])
    assert batches("six", 6).batch(0)["image"].shape == batches("items", 6).batch(0)["image"].shape == (4, 12, 12, 6)
    np.testing.assert_array_equal(batches("grey", 1).batch(0)["image"], batches("grey", 3).batch(0)["image"][..., :1])
    for name in ("six", "items"):
        with pytest.raises(channels.OtherChannels, match=rf"{name} \[train\], (record|item) 0: an image of 6 channels"):
            batches(name, 4, skip_corrupt=True)  # no such image is left out: refused when the pipeline is made
    assert batches("synthetic:3:20:5", 5).batch(0)["image"].shape[3] == 5
    with pytest.raises(UserError, match=r"config.augmentation.policy = 'randaugment': it is defined for colours"):
        batches("digits", 1, policy=Policy("randaugment"))
    with pytest.raises(UserError, match=r"data.decode: 'scaled' is for colours; with model.in_channels = 1"):
        batches("digits", 1, decode="scaled")
