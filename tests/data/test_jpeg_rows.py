"""The upper rows of a JPEG: the pixels of the whole image, or None where the whole image is to be decoded."""

import itertools
import struct

import cv2
import numpy as np
import pytest

from inception_jax.data import image_headers, images, jpeg_rows, sampling
from inception_jax.errors import UserError

_SAMPLINGS = {
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "4:2:2": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "4:4:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:1:1": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
}


def _noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(height).integers(0, 256, shape, np.uint8)


def _encode(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, options)[1].tobytes()


@pytest.mark.parametrize("sampling_name", _SAMPLINGS)
def test_every_number_of_rows_has_the_pixels_of_the_whole_image(sampling_name, capfd):
    encoded = _encode(_noise(83, 41), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, _SAMPLINGS[sampling_name])
    whole = images.decode(encoded)
    for rows in range(1, 66):
        upper = jpeg_rows.decode(encoded, rows, images.FLAGS)
        assert upper is not None and upper.shape[0] < 83
        assert np.array_equal(upper[:rows], whole[:rows]), rows
    assert jpeg_rows.decode(encoded, 66, images.FLAGS) is None  # not worth it
    assert capfd.readouterr().err == ""  # libjpeg takes nothing for damaged


@pytest.mark.parametrize(
    "encoded",
    [
        _encode(_noise(83, 41), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),  # each scan is the whole image
        _encode(_noise(83, 41), cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
        _encode(_noise(83, 41))[:-2],  # no end: all of it is decoded, and found to be truncated
        _encode(_noise(83, 41))[:-900],
        _encode(_noise(83, 41))[:300],
        *(_encode(_noise(83, 41))[:length] for length in (165, 170, 180, 610, 620, 625)),
        b"\xff\xd8",
        b"\xff\xd8\xff",
    ],
)
def test_other_files_are_decoded_as_a_whole(encoded):
    assert jpeg_rows.decode(encoded, 20, images.FLAGS) is None


def test_components_in_scans_of_their_own_are_decoded_as_a_whole(capfd):
    """A baseline file of three scans: each has all rows of one component, so the first rows are not in one place."""
    grey = _encode(_noise(83, 41, 1))
    frame, scan, end = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda"), len(grey) - 2
    header = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 83, 41, 3) + b"".join(bytes((n, 0x11, 0)) for n in (1, 2, 3))
    after_frame = frame + 2 + struct.unpack_from(">H", grey, frame + 2)[0]
    data = grey[scan + 10 : end]  # behind the header of a scan of one component
    scans = [b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, n, 0, 0, 63, 0) + data for n in (1, 2, 3)]
    encoded = grey[:frame] + header + grey[after_frame:scan] + b"".join(scans) + b"\xff\xd9"
    assert images.decode(encoded).shape == (83, 41, 3)
    assert jpeg_rows.decode(encoded, 20, images.FLAGS) is None
    assert capfd.readouterr().err == ""  # libjpeg does not come to a scan that it would take for damaged


@pytest.mark.parametrize("trailer", [b"\0" * 100, b"video", _encode(_noise(60, 30))], ids=["zeros", "video", "image"])
def test_what_stands_behind_the_image_is_not_read(trailer, capfd):
    """As phones write it: a video, or, announced in the header, another image, which ends as the first one does."""
    encoded = _encode(_noise(83, 41))
    whole, announced = images.decode(encoded), b"\xff\xe2\0\x06MPF\0"
    upper = jpeg_rows.decode(encoded[:2] + announced + encoded[2:] + trailer, 20, images.FLAGS)
    assert np.array_equal(upper[:20], whole[:20])
    assert capfd.readouterr().err == ""


def test_grey_is_decoded_to_colour():
    encoded = _encode(_noise(83, 41, channels=1))
    assert np.array_equal(jpeg_rows.decode(encoded, 30, images.FLAGS)[:30], images.decode(encoded)[:30])


def test_damaged_files_give_what_the_whole_decoder_gives(capfd):
    """Bits flipped anywhere: the same pixels, or the same refusal, as with all rows."""
    encoded = _encode(_noise(96, 64), cv2.IMWRITE_JPEG_QUALITY, 60)
    rng = np.random.default_rng(0)
    partial = 0
    for _ in range(300):
        damaged = bytearray(encoded)
        for place in rng.integers(2, len(damaged) - 2, 3):
            damaged[place] ^= 1 << int(rng.integers(8))
        try:
            whole = images.decode(bytes(damaged))
        except UserError:
            whole = None
        upper = jpeg_rows.decode(bytes(damaged), 30, images.FLAGS)
        if upper is not None:
            assert whole is not None and np.array_equal(upper[:30], whole[:30])
            partial += 1
    assert 200 < partial < 300
    capfd.readouterr()


def test_a_crop_of_a_file_is_the_crop_of_its_pixels():
    """`decode_and_augment` against `decode` and `augment`, for files of every kind and crops of every size."""
    out = np.empty((32, 32, 3), np.uint8)
    files = [
        _encode(_noise(90, 120)),
        _encode(_noise(90, 120), cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        _encode(_noise(20, 120)),  # smaller than the crop: enlarged first
        cv2.imencode(".png", _noise(90, 120))[1].tobytes(),
    ]
    rules = [
        images.Augmentation(interpolation="random"),
        images.Augmentation(area=(0.05, 0.1), flip=False),
        images.Augmentation(rule="random_crop", resize=40),
    ]
    for encoded, rule in itertools.product(files, rules):
        for uniforms in sampling.uniforms(0, 0, 20):
            images.decode_and_augment(encoded, 32, uniforms, rule, out)
            assert np.array_equal(out, images.augment(images.decode(encoded), 32, uniforms, rule))
    with pytest.raises(
        images.UndecodableImage, match=r"^a\.jpg: an image of 120 x 90 pixels .* limit of 10,000 pixels"
    ):
        images.decode_and_augment(files[0], 32, sampling.uniforms(0, 0, 1)[0], rules[0], out, "a.jpg", 10_000)
    with pytest.raises(images.UndecodableImage, match=r"^b\.jpg: not a readable image"):
        images.decode_and_augment(files[0][:-9], 32, sampling.uniforms(0, 0, 1)[0], rules[0], out, lambda: "b.jpg")


def test_segments_are_found_in_order():
    encoded = _encode(_noise(20, 10))
    frame = image_headers.find_jpeg_segment(encoded, (0xC0,))
    assert struct.unpack_from(">HH", encoded, frame + 3) == (20, 10)
    assert image_headers.find_jpeg_segment(encoded, (0xDA,), frame) > frame
    with pytest.raises(struct.error):  # behind the last segment
        image_headers.find_jpeg_segment(encoded, (0xC2,))


@pytest.mark.parametrize(("side", "reduction"), [(32, 2), (16, 4), (8, 8), (33, 1)])
@pytest.mark.parametrize("progressive", [0, 1])
def test_scaled_decoding_is_close_to_averaging_and_does_not_depend_on_the_rows(side, reduction, progressive):
    smooth = cv2.GaussianBlur(_noise(120, 200), (0, 0), 12)
    image = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    encoded = _encode(image, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    area = 64 * 64 / (120 * 200)  # all windows have 64 x 64 pixels
    rule = images.Augmentation(area=(area, area), aspect=(1.0, 1.0), interpolation="area", flip=False)
    assert images._reduction((0, 0, 64, 64), side) == reduction
    out = np.empty((side, side, 3), np.uint8)
    for uniforms in sampling.uniforms(0, 0, 12):
        exact = images.augment(images.decode(encoded), side, uniforms, rule)
        images.decode_and_augment(encoded, side, uniforms, rule, out, scaled=True)
        assert (reduction > 1) != np.array_equal(out, exact)
        assert np.abs(out.astype(int) - exact).mean() < 8
        whole = images.decode(encoded, reduction=reduction)
        assert whole.shape == (-(-120 // reduction), -(-200 // reduction), 3)
        window = images._reduced(images.random_window(120, 200, uniforms, rule), reduction)
        view = whole[window[0] : window[0] + window[2], window[1] : window[1] + window[3]]
        assert np.array_equal(out, cv2.resize(view, (side, side), interpolation=cv2.INTER_AREA))
