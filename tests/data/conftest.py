"""Small data sets, written by the tests themselves."""

import contextlib
import gzip
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from inception_jax.data import builders, images, prepare, raw_files
from inception_jax.data.datasets import load


@pytest.fixture
def encoded_image():
    """A function that makes an encoded image: `encoded_image(seed, height, width, suffix)`."""

    def make(seed: int = 0, height: int = 20, width: int = 24, suffix: str = ".png") -> bytes:
        image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return cv2.imencode(suffix, image)[1].tobytes()

    return make


@pytest.fixture
def image_folder(tmp_path, encoded_image):
    """A folder of 3 classes: 14 images for training, 7 for testing; one file is no image and is to be left out."""
    root = tmp_path / "images"
    number = 0
    for split, counts in (("train", {"cat": 6, "dog": 5, "eel": 3}), ("test", {"cat": 3, "dog": 2, "eel": 2})):
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                suffix = ".jpg" if i % 2 else ".png"
                (folder / f"{i}{suffix}").write_bytes(encoded_image(number, suffix=suffix))
                number += 1
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    return root


@pytest.fixture
def idx_folder(tmp_path):
    """A function that writes the four files of a small Fashion-MNIST and returns folder and arrays."""

    def make(train: int = 60, test: int = 10, zipped: bool = True) -> tuple[Path, dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)
        arrays = {}
        for prefix, count in (("train", train), ("t10k", test)):
            arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(0, 10, (count,), dtype=np.uint8)
        folder = tmp_path / "idx"
        folder.mkdir()
        for stem, values in arrays.items():
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            content = header + values.tobytes()
            path = folder / (f"{stem}.gz" if zipped else stem)
            path.write_bytes(gzip.compress(content, 1) if zipped else content)
        return folder, arrays

    return make


@pytest.fixture
def small(monkeypatch, idx_folder):
    """Lets a Fashion-MNIST of 60 and 10 images pass for the whole one; gives its folder and arrays."""
    folder, arrays = idx_folder()
    monkeypatch.setattr(builders.FashionMnist, "EXPECTED", {"train": 60, "test": 10})
    sums = {stem: raw_files.read_idx(folder / f"{stem}.gz")[1] for stem in arrays}
    monkeypatch.setattr(builders.FashionMnist, "SHA256", sums)
    return folder, arrays


@pytest.fixture
def run():
    """The command, in this process: `run("digits", "--data_dir=…")` returns its exit code."""
    return lambda *arguments: prepare.main(list(arguments))


@pytest.fixture
def records():
    """A function that reads a whole split, decoded: `records(name, split, data_dir) -> [(image, label), …]`."""

    def read(name: str, split: str, data_dir: Path) -> list[tuple[np.ndarray, int]]:
        data = load(name, split, str(data_dir))
        return [(images.decode(data.record(i)[0]), data.record(i)[1]) for i in range(data.num_examples)]

    return read


@pytest.fixture
def stalled_file():
    """A function that puts a pipe without a writer in the place of a file: whoever opens it waits."""
    pipes = []

    def stall(path: Path) -> Path:
        path.unlink()
        os.mkfifo(path)
        pipes.append(path)
        return path

    yield stall
    for path in pipes:  # lets a thread go that still waits
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
