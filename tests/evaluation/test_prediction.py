"""Predictions of many files: in order, in batches of one size, in bounded memory, whatever some of the files are."""

import itertools
import os
import subprocess
import sys
import threading
import tracemalloc

import cv2
import numpy as np
import pytest

from inception_jax.data import image_files
from inception_jax.data.image_files import Unreadable
from inception_jax.errors import UserError
from inception_jax.evaluation import prediction

from ..conftest import ROOT
from .fake_network import FakeNetwork

COLOURS = ("red", "green", "blue")


def write(path, colour, side=20):
    image = np.zeros((side, side, 3), np.uint8)
    image[..., 2 - COLOURS.index(colour)] = 200
    assert cv2.imwrite(str(path), image)
    return str(path)


@pytest.fixture
def files(tmp_path):
    """23 images, of which number k has colour k modulo 3."""
    return [write(tmp_path / f"{k:02}.png", COLOURS[k % 3]) for k in range(23)]


def test_the_order_is_that_of_the_files_and_there_is_one_compilation(files, monkeypatch):
    """Whichever thread is the first: here later files are read sooner."""
    read_image, read = image_files.read_image, []

    def slow(path, *limit):
        if path == files[0]:
            while len(read) < 5:
                threading.Event().wait(0.001)
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(image_files, "read_image", slow)
    monkeypatch.setattr(prediction, "default_threads", lambda: 4)
    network = FakeNetwork()
    found = list(network.predict_files(files, top_k=2, batch_size=5))
    assert [one.path for one in found] == files and read != files
    assert [one.names[0] for one in found] == [COLOURS[k % 3] for k in range(23)]
    assert network.compiled == [(5, 3)] and network.batches == [5, 5, 5, 5, 3]
    assert all(one.classes.shape == (2,) and one.image is None and not one.error for one in found)
    assert found[4].probabilities[0] == pytest.approx(200 / 255) and found[4].probabilities[1] == 0


def test_few_files_make_a_small_batch_and_arrays_give_the_same(files):
    network = FakeNetwork()
    [one] = network.predict_files(files[2], keep_images=True)
    assert network.compiled == [(1, 3)] and one.names == ("blue", "red", "green")
    assert one.image.shape == (32, 32, 3) and one.image.dtype == np.uint8
    arrays = [cv2.imread(path)[..., ::-1] for path in files[:3]]
    for given in (arrays, files[:3], [files[0], *arrays[1:]]):
        assert prediction.predict(network, given, 1, 2)["classes"].tolist() == [[0], [1], [2]]
    with pytest.raises(UserError, match="image 1: float64"):
        prediction.predict(network, [arrays[0], np.zeros((3, 3, 3))], 1, 2)
    with pytest.raises(UserError, match=r"absent.png: No such file"):
        prediction.predict(network, [files[0], "absent.png"], 1, 2)
    assert list(network.predict_files(iter(()))) == []


def test_files_that_cannot_be_read_stand_in_their_places(files, tmp_path):
    """Also where there are more of them than a batch has rows, and nothing else."""
    (tmp_path / "torn.png").write_bytes(b"x")
    torn = str(tmp_path / "torn.png")
    given = [torn, files[0], Unreadable("shut", "Permission denied"), *files[1:4], "absent", *([torn] * 40), files[4]]
    network = FakeNetwork()
    found = list(network.predict_files(iter(given), batch_size=2))
    assert [one.path for one in found] == [one if isinstance(one, str) else one.path for one in given]
    reasons = {
        torn: "not a readable image (1 bytes): truncated, or of an unknown format",
        "absent": "No such file or directory",
    }
    assert [one.error for one in found] == [
        "" if one in files else reasons.get(one, "Permission denied") for one in given
    ]
    assert all(bool(one.names) != bool(one.error) for one in found) and network.batches == [2, 2, 1]
    endless = FakeNetwork().predict_files(itertools.repeat(torn), batch_size=2)
    assert next(endless).path == torn  # though no batch will ever be full
    endless.close()


def test_an_image_like_a_line_is_not_enlarged_to_gigabytes(tmp_path):
    assert cv2.imwrite(str(tmp_path / "line.png"), np.zeros((1, 200_000, 3), np.uint8))
    [one] = FakeNetwork().predict_files(tmp_path / "line.png")
    assert one.error == (
        "an image of 200,000 x 1 pixels would have 7,400,000 x 37 when its shorter side is resized to 37: too many"
    )


def test_folders_and_patterns(files, tmp_path):
    network = FakeNetwork()
    assert [one.path for one in network.predict_files(tmp_path)] == files
    assert [one.path for one in network.predict_files([f"{tmp_path}/0*.png", files[0]])] == files[:10]
    with pytest.raises(UserError, match="matches no image"):
        network.predict_files(f"{tmp_path}/*.jpg")  # at the call, not at the first file


def test_memory_does_not_grow_with_the_files(tmp_path, monkeypatch):
    """10 times more images of one megapixel (3 MB each); what NumPy holds at most is counted."""
    monkeypatch.setattr(prediction, "default_threads", lambda: 2)
    file = write(tmp_path / "large.bmp", "green", side=1000)

    def peak(count):
        tracemalloc.start()
        total = sum(1 for _ in FakeNetwork().predict_files(itertools.repeat(file, count), batch_size=4))
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert total == count
        return highest

    few, many = peak(8), peak(80)
    assert many < few + 9e6, (few, many)  # by chance, both threads hold a file and its image at once


def test_files_are_read_only_so_far_ahead_and_threads_end(files, monkeypatch):
    monkeypatch.setattr(prediction, "default_threads", lambda: 2)
    drawn = []
    before = threading.active_count()
    predictions = FakeNetwork().predict_files(
        (drawn.append(path) or path for path in itertools.cycle(files)), batch_size=3
    )
    next(predictions)
    for _ in range(50):
        threading.Event().wait(0.002)
    assert threading.active_count() == before + 2 and len(drawn) <= 3 * 5
    predictions.close()
    assert threading.active_count() == before


def test_a_read_that_hangs_does_not_keep_the_process(tmp_path):
    """A named pipe without a writer, as a file on a storage that does not answer."""
    os.mkfifo(tmp_path / "pipe.png")
    code = (
        "import sys; from tests.evaluation.fake_network import FakeNetwork\n"
        "predictions = FakeNetwork().predict_files([sys.argv[1], sys.argv[2]], batch_size=1)\n"
        "print(next(predictions).names[0], flush=True)\n"
    )
    file = write(tmp_path / "a.png", "blue")
    done = subprocess.run(
        [sys.executable, "-c", code, file, tmp_path / "pipe.png"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "blue\n"), done.stderr
