"""Decoding of what images come as, and the crops: their statistics, their pixels, their errors."""

import base64
import io
import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from inception_jax.data import image_headers, images, sampling
from inception_jax.errors import UserError

# 8 x 8 pixels of cyan 0, magenta 255, yellow 255, black 0 (pure red), a JPEG with four components as Adobe's programs
# write it. OpenCV cannot write such a file.
CMYK = base64.b85decode(
    "|JeWT01iQ9Z(?NtWB>pF0095n07C!+0s;d90s{jB0|WyD1O*5M1q1{I3I_)U2n-4g3=0Yi3k?nu5Dg9y4hstq77!5=6crT}3=bC=78Do~6crTzzyK5o0"
    "0;mG1Va%3O%VWD5dcdO0RO}Q6aWDL000000000000000000U9!~hf!0RR910000000000000000RP$m4g^C0O#oQ{O8@{r093_Lsw!{)*#"
)


@pytest.fixture
def gradient():
    """A smooth image, 48 x 64, red first: red grows downward, green to the right, blue is 200."""
    rows, columns = np.mgrid[0:48, 0:64]
    return np.stack([rows * 5, columns * 4, np.full_like(rows, 200)], axis=-1).astype(np.uint8)


def encode(image: np.ndarray, suffix: str, *options: int) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image, list(options))[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg", ".gif"])
def test_decodes_colour_red_first(gradient, suffix):
    options = (cv2.IMWRITE_WEBP_QUALITY, 101) if suffix == ".webp" else ()  # 101: without loss
    decoded = images.decode(encode(gradient, suffix, *options))
    assert decoded.shape == gradient.shape and decoded.dtype == np.uint8
    tolerance = {".jpg": 4, ".gif": 30}.get(suffix, 0)  # a GIF has 256 colours, and dithers
    assert np.abs(decoded.astype(int) - gradient).mean() <= tolerance


def test_decodes_grey_as_three_equal_channels(gradient):
    for suffix in (".png", ".jpg"):
        decoded = images.decode(encode(gradient[..., 0], suffix))
        assert decoded.shape == (48, 64, 3)
        assert np.array_equal(decoded[..., 0], decoded[..., 2])
        assert np.abs(decoded[..., 0].astype(int) - gradient[..., 0]).max() <= 4


def test_decodes_cmyk():
    decoded = images.decode(CMYK)
    assert decoded.shape == (8, 8, 3)
    assert (decoded[..., 0] > 250).all() and (decoded[..., 1:] < 5).all()


def test_decodes_alpha_and_16_bits(gradient):
    alpha = np.concatenate([gradient[..., ::-1], np.full((48, 64, 1), 7, np.uint8)], axis=-1)
    assert np.array_equal(images.decode(cv2.imencode(".png", alpha)[1].tobytes()), gradient)
    wide = gradient[..., ::-1].astype(np.uint16) * 257
    assert np.array_equal(images.decode(cv2.imencode(".png", wide)[1].tobytes()), gradient)


def test_decodes_progressive_jpeg_and_png_named_jpeg(gradient, tmp_path):
    plain = images.decode(encode(gradient, ".jpg"))
    assert np.array_equal(images.decode(encode(gradient, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)), plain)
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(gradient, ".png"))
    assert np.array_equal(images.decode_image_file(path), gradient)


def test_does_not_turn_images_by_their_exif(gradient):
    """An EXIF orientation of 6 (turn right) would make 64 x 48 of 48 x 64."""
    jpeg = encode(gradient, ".jpg")
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    segment = b"Exif\0\0" + tiff
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (64, 48, 3)  # the file is as meant
    assert np.array_equal(images.decode(turned), images.decode(jpeg))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_names_an_image_that_is_cut_short(gradient, suffix, tmp_path):
    encoded = encode(np.tile(gradient, (4, 4, 1)), suffix)
    with pytest.raises(UserError, match=r"record 7: not a readable image .* truncated"):
        images.decode(encoded[: len(encoded) // 2], "record 7")
    path = tmp_path / f"half{suffix}"
    path.write_bytes(encoded[: len(encoded) // 2])
    with pytest.raises(UserError, match=f"half{suffix}"):
        images.decode_image_file(path)


def test_names_what_is_no_image(tmp_path):
    for junk in (b"", b"hello", b"\xff\xd8"):
        with pytest.raises(UserError, match="not a readable image"):
            images.decode(junk)
    with pytest.raises(UserError, match=r"none.png: No such file"):
        images.decode_image_file(tmp_path / "none.png")
    with pytest.raises(UserError, match="Is a directory"):
        images.decode_image_file(tmp_path)


def kolmogorov(values: np.ndarray, low: float, high: float) -> float:
    """Largest distance of a sample's distribution from the uniform one on [low, high]."""
    ordered = np.sort((values - low) / (high - low))
    ranks = np.arange(1, len(ordered) + 1) / len(ordered)
    return max(np.abs(ranks - ordered).max(), np.abs(ranks - 1 / len(ordered) - ordered).max())


def windows(count: int, height: int, width: int, **fields) -> np.ndarray:
    augmentation = images.Augmentation(**fields)
    numbers = sampling.uniforms(11, 0, count)
    return np.array([images.random_window(height, width, row, augmentation) for row in numbers])


def test_window_area_ratio_and_place_are_spread_evenly():
    """On a square with areas up to 1/2 every first attempt fits, so the rule holds exactly, up to whole pixels."""
    count = 20_000
    critical = 1.95 / np.sqrt(count)  # the Kolmogorov test's 0.1 % level
    top, left, height, width = windows(count, 2000, 2000, area=(0.08, 0.5)).T
    assert kolmogorov(height * width / 2000**2, 0.08, 0.5) < critical
    assert kolmogorov(np.log(width / height), np.log(3 / 4), np.log(4 / 3)) < critical
    assert kolmogorov(top / (2000 - height), 0, 1) < critical
    assert kolmogorov(left / (2000 - width), 0, 1) < critical


def test_window_stands_in_every_place_equally_often():
    """6 x 6 in 12 x 12: seven places each way, the last one among them."""
    top, left, height, width = windows(7000, 12, 12, area=(0.25, 0.25), aspect=(1.0, 1.0)).T
    assert (height == 6).all() and (width == 6).all()
    for place in (top, left):
        counts = np.bincount(place, minlength=7)
        assert len(counts) == 7 and np.abs(counts - 1000).max() < 120


def test_windows_fit_and_obey_the_ranges():
    for height, width in ((300, 400), (37, 500), (224, 224)):
        top, left, h, w = windows(3000, height, width).T
        assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
        assert (top + h <= height).all() and (left + w <= width).all()
        ratio = w / h
        assert (ratio > 0.72).all() and (ratio < 1.39).all()  # whole pixels leave the range by a little


def test_window_that_never_fits_falls_back_to_the_middle():
    assert windows(1, 100, 1000, area=(1.0, 1.0)).tolist() == [[0, 433, 100, 133]]
    assert windows(1, 1000, 100, area=(1.0, 1.0)).tolist() == [[433, 0, 133, 100]]
    assert windows(1, 100, 100, area=(1.0, 1.0), aspect=(2.0, 2.0)).tolist() == [[25, 0, 50, 100]]


def view(gradient, image_size, number=0, **fields):
    augmentation = images.Augmentation(**fields)
    return images.augment(gradient, image_size, sampling.uniforms(0, number, 1)[0], augmentation)


def test_flip_mirrors_every_second_view(gradient):
    flips = 0
    for number in range(400):
        plain = view(gradient, 32, number, flip=False)
        flipped = view(gradient, 32, number, flip=True)
        is_flipped = not np.array_equal(plain, flipped)
        flips += is_flipped
        assert np.array_equal(flipped, plain[:, ::-1] if is_flipped else plain)
        assert (plain[:, -1, 1] > plain[:, 0, 1]).all() and (plain[-1, :, 0] > plain[0, :, 0]).all()
    assert 160 < flips < 240


def test_view_is_the_window_resized(gradient):
    """Nearest neighbours of an image whose values are its coordinates: they all lie in the window, and fill it."""
    fields = {"interpolation": "nearest", "flip": False, "area": (0.3, 0.9)}
    for number in range(50):
        numbers = sampling.uniforms(0, number, 1)[0]
        top, left, height, width = images.random_window(48, 64, numbers, images.Augmentation(**fields))
        got = view(gradient, 40, number, **fields)
        rows, columns = got[..., 0] // 5, got[..., 1] // 4
        assert rows.min() >= top and rows.max() < top + height and columns.min() >= left
        assert columns.max() < left + width
        assert rows.max() - rows.min() >= height - 3 and columns.max() - columns.min() >= width - 3


def test_random_crop_is_a_square_of_the_resized_image(gradient):
    fields = {"rule": "random_crop", "resize": 48, "flip": False}
    seen = set()
    for number in range(300):
        got = view(gradient, 40, number, **fields)
        top, left = got[0, 0, 0] // 5, got[0, 0, 1] // 4
        assert np.array_equal(got, gradient[top : top + 40, left : left + 40])  # 48 is its height: no resizing
        seen.add((top, left))
    assert {top for top, _ in seen} == set(range(9)) and {left for _, left in seen} == set(range(25))


def test_random_interpolation_is_each_in_turn(gradient):
    counts = dict.fromkeys(images.INTERPOLATIONS, 0)
    for number in range(400):
        got = view(gradient, 37, number, interpolation="random", area=(0.5, 0.9))
        for name in counts:
            if np.array_equal(got, view(gradient, 37, number, interpolation=name, area=(0.5, 0.9))):
                counts[name] += 1
                break
    assert sum(counts.values()) == 400
    assert all(60 < count < 140 for count in counts.values()), counts


def test_small_images_are_enlarged_before_the_window_is_chosen():
    """Otherwise an 8 x 8 image would have a handful of different views."""
    digit = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    fields = {"area": (0.6, 1.0), "flip": False}
    assert len({view(digit, 64, number, **fields).tobytes() for number in range(100)}) > 95


def test_center_crop_of_the_short_side(gradient):
    """256 for 224, as in the papers: here 64 for 56, and the image is 64 pixels already."""
    image = cv2.copyMakeBorder(gradient, 8, 8, 10, 0, cv2.BORDER_REPLICATE)  # 64 x 74
    got = images.center_crop(image, 56, images.EvalCrop(fraction=0.875))
    assert np.array_equal(got, image[4:60, 9:65])
    small = images.center_crop(np.repeat(np.repeat(image, 2, 0), 2, 1), 56, images.EvalCrop(interpolation="area"))
    assert np.array_equal(small, got)  # halving by areas undoes the doubling


def test_central_fraction_cuts_each_side_and_ignores_the_ratio():
    """TF's offsets: int((side - side * 0.875) / 2)."""
    rows, columns = np.mgrid[0:257, 0:128]
    image = np.stack([rows % 256, columns, rows // 256], axis=-1).astype(np.uint8)
    crop = images.EvalCrop(rule="central_fraction", interpolation="nearest")
    got = images.center_crop(image, 450, crop)
    assert got.shape == (450, 450, 3)
    assert got[0, 0].tolist() == [16, 8, 0] and got[-1, -1].tolist() == [240, 119, 0]


def test_crop_fraction_of_one_is_the_whole_image(gradient):
    square = gradient[:, :48]
    assert np.array_equal(images.center_crop(square, 48, images.EvalCrop(fraction=1.0)), square)
    assert images.center_crop(gradient, 100).shape == (100, 100, 3)
    assert images.center_crop(gradient[:1, :1], 3).shape == (3, 3, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rule": "area_aspekt"}, "augmentation.rule: 'area_aspekt'; did you mean 'area_aspect'"),
        ({"area": (0.0, 1.0)}, "augmentation.area"),
        ({"area": (0.5, 1.5)}, "augmentation.area"),
        ({"area": (0.9, 0.5)}, "augmentation.area"),
        ({"area": 0.5}, "augmentation.area"),
        ({"aspect": (-1, 2)}, "augmentation.aspect"),
        ({"aspect": (1.0, float("inf"))}, "augmentation.aspect"),
        ({"attempts": 0}, "augmentation.attempts"),
        ({"attempts": 16}, "augmentation.attempts"),
        ({"flip": 1}, "augmentation.flip"),
        ({"interpolation": "bicubic"}, "augmentation.interpolation: 'bicubic'; did you mean 'cubic'"),
        ({"rule": "random_crop", "resize": 0}, "augmentation.resize"),
        ({"rule": "random_crop", "area": (0.1, 1.0)}, "augmentation.area: has no meaning with rule 'random_crop'"),
        ({"resize": 300}, "augmentation.resize: has no meaning with rule 'area_aspect'"),
        ({"flips": True}, "unknown field augmentation.flips; did you mean 'flip'"),
    ],
)
def test_refuses_augmentations_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        images.from_fields(images.Augmentation, fields, "augmentation")


@pytest.mark.parametrize(
    "fields", [{"rule": "middle"}, {"fraction": 0}, {"fraction": 1.1}, {"interpolation": "random"}]
)
def test_refuses_crops_that_cannot_be(fields):
    with pytest.raises(UserError, match=f"crop.{next(iter(fields))}"):
        images.from_fields(images.EvalCrop, fields, "crop")


@pytest.mark.parametrize(
    "suffix",
    ["jpg", "png", "webp", "bmp", "tif", "jp2", "avif", "gif", "ppm", "pgm", "pbm", "pam", "pfm", "ras", "hdr"],
)
def test_the_size_is_read_from_the_header_of_every_format(suffix):
    image = np.random.RandomState(0).randint(0, 256, (97, 131, 3), np.uint8)
    given = {"pfm": np.float32(image), "hdr": np.float32(image), "pgm": image[..., 0], "pbm": image[..., 0]}
    try:
        written, data = cv2.imencode(f".{suffix}", given.get(suffix, image))
    except cv2.error:
        written = False
    if not written:
        pytest.skip(f"this OpenCV does not write {suffix}")
    encoded = data.tobytes()
    assert image_headers.read_size(encoded) == (131, 97)
    # A damaged header is a size, none, or one of another format: never an error of another kind.
    random = np.random.RandomState(1)
    for _ in range(200):
        damaged = bytearray(encoded[: random.randint(1, len(encoded))])
        damaged[random.randint(len(damaged))] = random.randint(256)
        found = image_headers.read_size(bytes(damaged))
        assert found is None or (len(found) == 2 and min(found) >= 0)


@pytest.mark.parametrize(
    ("header", "dtype", "message"),
    [
        ("P5 2 2 255\n", "u1", None),
        ("P6\n# by hand\n2 2\n65535\n", ">u2", None),
        ("P5\n2 2\n4095\n", ">u2", "white is 4095 (Netpbm's maxval), not 255 or 65535; save it with 8 or 16 bits"),
        ("P6 2 # 255\n2 100\n", "u1", "white is 100 "),
        ("P7\nWIDTH 2\nHEIGHT 2\nDEPTH 1\nMAXVAL 15\nTUPLTYPE GRAYSCALE\nENDHDR\n", "u1", "white is 15 "),
        ("Pf 2 2 -1.0\n", "<f4", "pixels of float32"),
    ],
)
def test_refuses_values_of_another_range_than_8_or_16_bits(header, dtype, message):
    encoded = header.encode() + np.full(12, 1, dtype).tobytes()
    if message is None:
        assert images.decode(encoded, "a.pgm").shape == (2, 2, 3)
    else:
        with pytest.raises(images.UndecodableImage, match=re.escape(f"a.pgm: {message}")):
            images.decode(encoded, "a.pgm")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("encoded", [b"P2 2 1 15\n15 0\n", b"P3 2 1 4\n4 4 4 0 0 0\n"])
def test_decodes_netpbm_text_of_fewer_bits_up_to_white(encoded, channels):
    assert images.decode(encoded, "a.pgm", channels=channels).tolist() == [[[255] * channels, [0] * channels]]


@pytest.mark.parametrize("kind", ["VP8L", "VP8X", "MM", "CMYK"])
def test_the_size_in_other_forms_of_a_format(kind):
    stream, image = io.BytesIO(), Image.new("RGB", (300, 41))
    if kind == "VP8L":
        image.save(stream, "webp", lossless=True)
    elif kind == "VP8X":
        image.save(stream, "webp", save_all=True, append_images=[Image.new("RGB", (300, 41), "red")])
    elif kind == "MM":
        image.save(stream, "tiff", big_tiff=True)
    else:
        image.convert("CMYK").save(stream, "jpeg", comment=b"\xff" * 500)
    assert image_headers.read_size(stream.getvalue()) == (300, 41)
