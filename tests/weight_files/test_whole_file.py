"""What the exports have in common: image sizes, and files that are there when they are whole."""

import os

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files.whole_file import height_and_width, whole_file


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (224, (224, 224)),
        (np.int64(75), (75, 75)),
        (np.array(75), (75, 75)),
        ((32, 48), (32, 48)),
        ([32, 48], (32, 48)),
        (np.array([32, 48]), (32, 48)),
    ],
)
def test_sizes(given, size):
    sides = height_and_width(given)
    assert sides == size and all(type(side) is int for side in sides)


@pytest.mark.parametrize("given", [0, -1, True, 2.5, "224", None, (32,), (32, 48, 3), (32, 0), (32.0, 48)])
def test_sizes_that_are_none(given):
    with pytest.raises(UserError, match=r"image_size: .* is no number of pixels"):
        height_and_width(given)


def test_a_file_comes_when_it_is_whole(tmp_path):
    path = tmp_path / "network.bin"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as part:
        part.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["network.bin"]
    with pytest.raises(UserError, match=r"network\.bin: cannot be written \(.*No space"), whole_file(path) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["network.bin"]
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["network.bin"]


def test_nowhere(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), whole_file(tmp_path / "no folder" / "x") as part:
        part.write_text("new")
