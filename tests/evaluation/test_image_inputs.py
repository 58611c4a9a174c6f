"""Images as users have them: of Pillow in any mode, bytes, arrays and paths give the same pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from inception_jax.errors import UserError
from inception_jax.evaluation import image_inputs, prediction

from .fake_network import FakeNetwork

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 8, 4), np.uint8)
COLOUR, ALPHA = Image.fromarray(PIXELS[..., :3]), Image.fromarray(PIXELS)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter
    return encoded(COLOUR, "JPEG", exif=exif.tobytes())


FILES = {
    "1": encoded(COLOUR.convert("1"), "PNG"),
    "L": encoded(COLOUR.convert("L"), "PNG"),
    "1 with a transparent value": encoded(COLOUR.convert("1"), "PNG", transparency=0),
    "L with a transparent value": encoded(COLOUR.convert("L"), "PNG", transparency=7),
    "LA": encoded(ALPHA.convert("LA"), "PNG"),
    "P": encoded(COLOUR.quantize(8), "PNG"),
    "P with alpha": encoded(ALPHA.quantize(8), "PNG"),
    "RGB": encoded(COLOUR, "PNG"),
    "RGB with a transparent colour": encoded(COLOUR, "PNG", transparency=(1, 2, 3)),
    "RGBA": encoded(ALPHA, "PNG"),
    "CMYK": encoded(COLOUR.convert("CMYK"), "TIFF"),
    "I;16": encoded(Image.fromarray(PIXELS.astype(np.uint16)[..., 0] * 257 - 3), "PNG"),
    "a turned JPEG": turned(),
}


# OpenCV adds a fourth channel to a CMYK file of TIFF, not to one of JPEG: Pillow's are refused.
CASES = [(mode, channels) for mode in FILES for channels in (1, 3, 4) if (mode, channels) != ("CMYK", 4)]


@pytest.mark.parametrize(("mode", "channels"), CASES)
def test_an_image_of_pillow_is_read_as_its_file(mode, channels, tmp_path):
    file = tmp_path / "image"
    file.write_bytes(FILES[mode])
    image = Image.open(file)
    assert image.mode == mode.partition(" ")[0] or mode == "a turned JPEG"
    given = [str(file), FILES[mode], image]
    try:
        expected = image_inputs.decode_one(0, file, channels=channels)
    except UserError as error:
        for position, one in enumerate(given[1:]):
            with pytest.raises(UserError, match=f"image {position}: {str(error).partition(': ')[2][:12]}"):
                image_inputs.decode_one(position, one, channels=channels)
        return
    for one in image_inputs.decode(given, channels=channels):
        assert one.dtype == np.uint8 and one.shape == (9, 8, channels)
        np.testing.assert_array_equal(one, expected)


def test_one_image_or_several():
    network = FakeNetwork()
    data = FILES["P"]
    for one in (
        COLOUR,
        ALPHA,
        data,
        bytearray(data),
        memoryview(data),
        PIXELS[..., :3],
        Image.open(io.BytesIO(FILES["RGB"])),
    ):
        assert prediction.predict(network, one, 1, 4)["classes"].shape == (1, 1)
        assert prediction.predict(network, [one, COLOUR], 1, 4)["classes"].shape == (2, 1)
        assert prediction.predict(network, (x for x in [one]), 1, 4)["classes"].shape == (1, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, r"image 0: int; an image is uint8 \[height, width, 3\], RGB, .* the bytes \(read\(\)\) of a file"),
        (io.BytesIO(FILES["RGB"]), r"image 0: BytesIO; .*read\(\)"),
        (COLOUR.convert("F"), r"image 0: an image of Pillow's mode F, of no fixed range; scale it to 8 bits"),
        (FILES["RGB"][:-30], r"image 0: not a readable image"),
        (Image.open(io.BytesIO(FILES["RGB"][:-30])), r"image 0: not a readable image"),
        (b"", r"image 0: not a readable image"),
        (Image.new("L", (100, 101)), r"image 0: 100 x 101 pixels, above the limit of 10,000 pixels"),
    ],
)
def test_what_is_no_image_is_named(given, message):
    with pytest.raises(UserError, match=message):
        list(image_inputs.decode(image_inputs.as_list(given), max_pixels=10_000))
