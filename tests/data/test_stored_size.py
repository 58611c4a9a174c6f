"""`data.prepare --resize`: smaller images, in a config of their own."""

import cv2
import numpy as np

from inception_jax.data import images, pipeline
from inception_jax.data.datasets import load
from inception_jax.data.stored_size import StoredSize

RANDOM = np.random.default_rng(0)


def photograph(height, width):
    return cv2.resize(RANDOM.integers(0, 256, (6, 8, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def fill(root):
    """Class folders; {name of the file below its split: bytes of its BGR pixels}."""
    kept = {}
    for split, label, name, image in (
        ("train", "a", "tall.png", photograph(96, 48)), ("train", "a", "wide.png", photograph(48, 72)),
        ("train", "b", "small.jpg", photograph(10, 16)),
        ("train", "b", "grey.png", np.repeat(photograph(48, 48)[..., :1], 3, axis=2)),
        ("test", "a", "alpha.png", np.dstack([photograph(48, 48), np.full((48, 48), 9, np.uint8)])),
        ("test", "b", "wide.jpg", photograph(60, 90)),
    ):  # fmt: skip
        path = root / split / label / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image)
        kept[f"{split}/{label}/{name}"] = path
    return kept


def means(image, by):
    """The mean of each square of pixels, not rounded."""
    height, width, channels = image.shape
    squares = image.reshape(height // by, by, width // by, by, channels).astype(float)
    return squares.mean((1, 3))


def test_images_are_stored_with_a_shorter_side(tmp_path, run, capsys):
    files = fill(tmp_path / "images")
    common = ["folder", "--name=mine", f"--source={tmp_path / 'images'}", f"--data_dir={tmp_path}", "--resize=12"]
    assert run(*common, "--quality=raw") == 0 and run(*common) == 0 and run(*common, "--quality=30") == 0
    said = capsys.readouterr().err
    for coding in ("raw", "jpeg95", "jpeg30"):
        assert f"--config=RECIPE --config.data.name=mine/resize_12_{coding} --config.data.data_dir={tmp_path}\n" in said
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "resize_12_jpeg30", "resize_12_jpeg95", "resize_12_raw",
    ]  # fmt: skip
    sizes = {}
    for config in ("raw", "jpeg95", "jpeg30"):
        data = load(f"mine/resize_12_{config}", "train", str(tmp_path))
        found = [data.record(index)[0] for index in range(data.num_examples)]
        small = files["train/b/small.jpg"].read_bytes()
        assert small in found  # no larger than 12: byte for byte
        decoded = [images.decode(encoded) for encoded in found if encoded != small]
        assert sorted(image.shape for image in decoded) == [(12, 12, 3), (12, 18, 3), (24, 12, 3)]
        sizes[config] = sum(map(len, found))
        for name in ("train/a/tall.png", "train/a/wide.png", "train/b/grey.png"):
            expected = means(images.decode(files[name].read_bytes()), 4)
            (stored,) = (image for image in decoded if image.shape == expected.shape)
            difference = np.abs(stored - expected)
            assert difference.max() <= 0.5 if config == "raw" else difference.mean() < 40, (name, config)
        if config == "raw":
            (grey,) = (encoded for encoded in found if cv2.imdecode(np.frombuffer(encoded, np.uint8), -1).ndim == 2)
            assert grey.startswith(b"BM")
        batches = pipeline.TrainPipeline(
            data, batch_size=2, image_size=16, seed=0, augmentation={}, threads=1, workers=0
        )
        assert batches.batch(0)["mask"].all()
    assert sizes["raw"] > sizes["jpeg95"] > sizes["jpeg30"]
    # The other image sizes are another data set: none takes the place of the original.
    assert run("folder", "--name=mine", f"--source={tmp_path / 'images'}", f"--data_dir={tmp_path}") == 0
    whole = load("mine:1.0.0", "train", str(tmp_path))
    assert files["train/a/tall.png"].read_bytes() in [whole.record(index)[0] for index in range(4)]
    capsys.readouterr()
    for arguments, message in (
        (
            ["digits", "--resize=4"],
            "--resize: only with folder, huggingface and imagenet2012; images of digits are small",
        ),
        ([*common[:-1], "--quality=90"], "--quality: only with --resize=N"),
        ([*common[:-1], "--resize=0"], "--resize: 0; it must be"),
        (["convert", "x", "--output=y", "--resize=4"], "--resize: has no effect with `convert`"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err


def test_the_estimate_is_of_the_resized_image():
    """Photographs of 500 x 375: sizes of the table in the data package's README."""
    for side, quality, measured in ((320, 95, 52_000), (256, 95, 35_000), (256, 90, 24_000), (256, None, 262_000)):
        found = StoredSize(side, quality).estimate_bytes(109_000)
        assert 0.8 * measured < found < 1.25 * measured, (side, quality, found)
    assert StoredSize(256, None).estimate_bytes(3_000_000) == 3 * (256 * 256 * 4 // 3)  # a large file is resized, too
    assert StoredSize(256, 95).estimate_bytes(900) == 900  # an icon stays as it is
    sizes = [StoredSize(256, quality).estimate_bytes(1 << 30) for quality in range(1, 101)]
    assert sizes == sorted(sizes)
