"""Evaluation protocols: every crop of an image of 500x375 pixels beside numbers worked out by hand, and the errors."""

import itertools

import cv2
import numpy as np
import pytest

from inception_jax.data import datasets
from inception_jax.data.eval_protocols import PROTOCOLS, CropWindow, get_protocol, scale
from inception_jax.data.images import EvalCrop, center_crop
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError

# Of a 500x375 image for crops of 224 pixels. Shorter side: (height, width) resized; first columns of the left, center
# and right square; first row and column of the center crop inside a square.
BY_HAND = {
    256: ((256, 341), (0, 42, 85), 16),
    288: ((288, 384), (0, 48, 96), 32),
    320: ((320, 426), (0, 53, 106), 48),
    352: ((352, 469), (0, 58, 117), 64),
}


def by_hand(sides, squares, whole):
    rows = []
    for side in sides:
        (height, width), columns, center = BY_HAND[side]
        for column in columns if squares == 3 else columns[1:2]:
            rest = side - 224
            places = [(0, 0), (0, rest), (rest, 0), (rest, rest), (center, center)]
            windows = [(down, column + right, 224) for down, right in places] + [(0, column, side)] * whole
            rows += [(height, width, *window, mirror) for window in windows for mirror in (False, True)]
    return rows


@pytest.mark.parametrize(
    ("name", "sides", "squares", "whole", "crops"),
    [
        ("10-crop", [256], 1, False, 10),
        ("12-crop", [256], 1, True, 12),
        ("144-crop", [256, 288, 320, 352], 3, True, 144),
    ],
)
def test_every_crop_of_a_500x375_image(name, sides, squares, whole, crops):
    protocol = get_protocol(name)
    expected = by_hand(sides, squares, whole)
    assert [tuple(vars(window).values()) for window in protocol.list_windows(375, 500, 224)] == expected
    assert protocol.crops == crops == len(set(expected))
    # A portrait image has the same crops with rows and columns exchanged (corners in another order).
    turned = {
        CropWindow(w.width, w.height, w.left, w.top, w.side, w.mirror) for w in protocol.list_windows(500, 375, 224)
    }
    assert {tuple(vars(window).values()) for window in turned} == set(expected)

    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    found = np.zeros((crops, 224, 224, 3), np.uint8)
    protocol.cut(image, 224, EvalCrop(), found)
    for out, (height, width, top, left, side, mirror) in zip(found, expected, strict=True):
        part = cv2.resize(image, (width, height))[top : top + side, left : left + side]
        part = part if side == 224 else cv2.resize(part, (224, 224))
        np.testing.assert_array_equal(out, np.fliplr(part) if mirror else part)


def test_the_papers_sides_at_other_sizes():
    assert [scale(side, 299) for side in (256, 288, 320, 352)] == [342, 384, 427, 470]  # 341.7, 384.4, 427.1, 469.9
    assert [scale(side, 8) for side in (256, 288, 320, 352)] == [9, 10, 11, 13]  # 9.1, 10.3, 11.4, 12.6
    for protocol, size in itertools.product(list(PROTOCOLS.values())[2:], (1, 8, 75, 299)):
        for window in protocol.list_windows(7, 30, size):
            assert window.side >= size and window.top + window.side <= window.height
            assert window.left + window.side <= window.width


def test_single_is_the_runs_own_crop():
    crop = EvalCrop("central_fraction", 0.9)
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    found = np.zeros((16, 16, 3), np.uint8)
    get_protocol("single").cut(image, 16, crop, found)
    np.testing.assert_array_equal(found, center_crop(image, 16, crop))
    assert get_protocol("single").crops == 1
    both = np.zeros((2, 16, 16, 3), np.uint8)
    get_protocol("flip").cut(image, 16, crop, both)
    np.testing.assert_array_equal(both, [found, np.fliplr(found)])
    assert get_protocol("flip").crops == 2


def test_a_batch_has_all_crops_of_its_examples_and_each_image_is_decoded_once(monkeypatch):
    data, decoded = datasets.load("digits", "test[:5]"), []
    reading = type(data).record
    monkeypatch.setattr(type(data), "record", lambda self, index: decoded.append(index) or reading(self, index))
    protocol = get_protocol("12-crop")
    pipeline = EvalPipeline(data, batch_size=4, image_size=8, protocol=protocol, threads=1)
    with pipeline.batches() as batches:
        first, last = list(batches)
    assert sorted(decoded) == [0, 1, 2, 3, 4]
    assert first["image"].shape == (4, 12, 8, 8, 3) and first["mask"].all()
    assert last["mask"].tolist() == [True, False, False, False]
    expected = np.zeros((12, 8, 8, 3), np.uint8)
    protocol.cut(reading(data, 4)[0], 8, pipeline.crop, expected)
    np.testing.assert_array_equal(last["image"][0], expected)


@pytest.mark.parametrize(
    ("name", "hint"), [("singel", "; did you mean 'single'?"), ("144", "; did you mean '144-crop'?")]
)
def test_an_unknown_protocol_lists_those_that_there_are(name, hint):
    with pytest.raises(UserError) as error:
        get_protocol(name)
    names = ", ".join(map(repr, PROTOCOLS))
    assert str(error.value) == f"evaluation protocol {name!r}: it must be one of {names}{hint}"
