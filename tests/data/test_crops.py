"""The crops of evaluation against what the publishers' own code makes of the same images (crops.npz)."""

import importlib.util
import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from inception_jax.data import images, resampling
from inception_jax.data.crops import EvalCrop, center_crop
from inception_jax.errors import UserError

_spec = importlib.util.spec_from_file_location("make_crops", Path(__file__).parent / "make_crops.py")
make_crops = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_crops)


@pytest.fixture(scope="module")
def goldens():
    with np.load(make_crops.FILE, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("resize", [27, 28])
@pytest.mark.parametrize("size", make_crops.SIZES)
def test_torchvisions_images_to_the_bit(goldens, size, resize):
    crop = EvalCrop("torchvision", interpolation="pil_bilinear", resize=resize)
    found = center_crop(make_crops.sample_image(*size), make_crops.CROP, crop)
    np.testing.assert_array_equal(found, goldens[f"torchvision/{resize}/{size[0]}x{size[1]}"])


@pytest.mark.parametrize(("fraction", "resize"), [(0.875, 27), (0.8975, 26)])
@pytest.mark.parametrize("size", make_crops.SIZES)
def test_timms_images_to_the_bit(goldens, size, fraction, resize):
    crop = EvalCrop("torchvision", interpolation="pil_bicubic", resize=resize)
    found = center_crop(make_crops.sample_image(*size), make_crops.CROP, crop)
    np.testing.assert_array_equal(found, goldens[f"timm/{fraction}/{size[0]}x{size[1]}"])


@pytest.mark.parametrize("size", make_crops.SIZES)
def test_slims_images_up_to_the_rounding_to_bytes(goldens, size):
    crop = EvalCrop("central_fraction", interpolation="tf_bilinear")
    found = center_crop(make_crops.sample_image(*size), make_crops.CROP, crop).astype(np.float64)
    theirs = goldens[f"slim/0.875/{size[0]}x{size[1]}"]
    # Not 0.5: TensorFlow's pixels went through a division by 255, which moves an exact half to either side.
    assert np.abs(found - theirs).max() < 0.5 + 1e-4


def test_tf_bilinear_keeps_an_image_of_the_size_and_repeats_the_last_pixel():
    image = make_crops.sample_image(9, 7)
    assert np.array_equal(resampling.tf_bilinear(image, 9, 7), image)
    ramp = np.repeat(np.array([0, 100], np.uint8)[None, :, None], 3, axis=2)
    # Without half-pixel centers: 0, 1/2, 1, 3/2 of a pixel, and nothing after the last.
    assert resampling.tf_bilinear(ramp, 1, 4)[0, :, 0].tolist() == [0, 50, 100, 100]


def test_squash_is_caffes_way():
    """cv::resize of both sides, then the middle with offsets rounded down; 27 - 24 is odd."""
    image = make_crops.sample_image(37, 53)
    found = center_crop(image, 24, EvalCrop("squash", resize=27))
    assert np.array_equal(found, cv2.resize(image, (27, 27), interpolation=cv2.INTER_LINEAR)[1:25, 1:25])
    assert np.array_equal(center_crop(image, 24, EvalCrop("squash", resize=24)), cv2.resize(image, (24, 24)))


def test_center_and_torchvision_differ_in_how_halves_are_rounded():
    """3 pixels too many: the first leaves out 1 at the top, the second 2."""
    image = make_crops.sample_image(27, 27)
    assert np.array_equal(center_crop(image, 24, EvalCrop("center", resize=27)), image[1:25, 1:25])
    assert np.array_equal(center_crop(image, 24, EvalCrop("torchvision", resize=27)), image[2:26, 2:26])
    assert np.array_equal(center_crop(image, 26, EvalCrop("torchvision", resize=27)), image[:26, :26])


def test_a_side_in_pixels_takes_the_place_of_the_fraction():
    image = make_crops.sample_image(100, 83)
    by_fraction = center_crop(image, 24, EvalCrop(fraction=0.75))
    assert np.array_equal(by_fraction, center_crop(image, 24, EvalCrop(resize=32)))
    assert not np.array_equal(by_fraction, center_crop(image, 24, EvalCrop(resize=33)))


def test_writes_where_it_is_told_and_leaves_the_image():
    for interpolation in resampling.RESIZES:
        for rule in ("center", "torchvision", "squash", "central_fraction"):
            image = make_crops.sample_image(37, 53)
            out = np.zeros((24, 24, 3), np.uint8)
            assert center_crop(image, 24, EvalCrop(rule, interpolation=interpolation), out) is out
            assert out.any() and np.array_equal(image, make_crops.sample_image(37, 53))


def test_both_decoders_give_the_same_pixels():
    """The publishers decode with Pillow, this package with OpenCV: both with libjpeg-turbo."""
    for subsampling in (0, 2):
        file = io.BytesIO()
        Image.fromarray(make_crops.sample_image(100, 83)).save(file, "JPEG", quality=90, subsampling=subsampling)
        theirs = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
        assert np.array_equal(images.decode(file.getvalue()), theirs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "torch_vision"}, "crop.rule: 'torch_vision'; did you mean 'torchvision'"),
        ({"interpolation": "pil_cubic"}, "crop.interpolation: 'pil_cubic'; did you mean 'pil_bicubic'"),
        ({"resize": 0}, "crop.resize: 0; a whole number"),
        ({"resize": True}, "crop.resize: True; a whole number"),
        ({"resize": 256.0}, "crop.resize: 256.0; a whole number"),
        ({"rule": "central_fraction", "resize": 256}, "crop.resize: has no meaning with rule 'central_fraction'"),
        ({"resize": 256, "fraction": 0.9}, "crop.fraction: 0.9 has no meaning where crop.resize is set"),
    ],
)
def test_refuses_crops_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        EvalCrop(**fields)


def test_refuses_a_side_below_the_crop():
    with pytest.raises(UserError, match=r"crop\.resize: 20; at least the image size, 24"):
        center_crop(make_crops.sample_image(37, 53), 24, EvalCrop(resize=20))


def test_a_crop_in_words():
    """What a person is told who writes the crop for another program."""
    assert EvalCrop(fraction=1.0).summary(64) == (
        "shorter side resized to 64 pixels (OpenCV's INTER_LINEAR, the longer one rounded down), center crop of 64 "
        "(half pixels rounded down)"
    )
    assert EvalCrop("squash", interpolation="pil_bicubic", resize=256).summary(224) == (
        "both sides resized to 256 pixels (Pillow's BICUBIC), center crop of 224 (half pixels rounded down)"
    )
    assert EvalCrop("central_fraction", interpolation="tf_bilinear").summary(299) == (
        "the central 87.5 % of each side, both sides resized to 299 pixels (TensorFlow 1's resize_bilinear)"
    )
