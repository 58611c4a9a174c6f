"""Atomic writing: a file appears when it is complete, and replaces an older one only then."""

import os

import pytest

from inception_jax.errors import UserError
from inception_jax.weight_files.atomic_write import atomic_write


def test_a_file_comes_when_it_is_whole(tmp_path):
    path = tmp_path / "network.bin"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as part:
        part.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["network.bin"]
    with pytest.raises(UserError, match=r"cannot write .*network\.bin: No space"), atomic_write(path) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["network.bin"]
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["network.bin"]


def test_nowhere(tmp_path):
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "no folder" / "x") as part:
        part.write_text("new")
