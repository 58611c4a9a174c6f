"""Archives that grow by rows: NumPy reads them, and nothing half is ever seen."""

import resource

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.features.archive import RowArchive


def test_rows_in_order(tmp_path):
    parts = [np.arange(24, dtype=np.float16).reshape(4, 3, 2), np.ones((1, 3, 2), np.float16)]
    with RowArchive(tmp_path / "a.npz") as archive:
        for part in parts:
            archive.add({"maps": part.transpose(0, 1, 2), "index": np.arange(len(part))})
        archive.add({"maps": parts[0][::2, ::-1]})  # not contiguous
        archive.close(count=9)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as found:
        assert sorted(found) == ["count", "index", "maps"]
        np.testing.assert_array_equal(found["maps"], np.concatenate([*parts, parts[0][::2, ::-1]]))
        assert found["maps"].dtype == np.float16
        assert found["index"].tolist() == [0, 1, 2, 3, 0]
        assert found["count"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_what_ends_early_leaves_what_was_there(tmp_path):
    np.savez(tmp_path / "a.npz", old=np.ones(2))
    with pytest.raises(ZeroDivisionError), RowArchive(tmp_path / "a.npz") as archive:
        archive.add({"x": np.ones((2, 2))})
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="x: rows of"), RowArchive(tmp_path / "a.npz") as archive:
        archive.add({"x": np.ones((2, 2))})
        archive.add({"x": np.ones((2, 3))})
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz") as found:
        assert list(found) == ["old"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    """What is left in a file's buffer fails once more when it is closed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write .*a\.npz: "), RowArchive(tmp_path / "a.npz") as archive:
            for _ in range(1000):
                archive.add({"x": np.ones((1, 9))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not [*tmp_path.iterdir()]


def test_names_and_places(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.npz"):
        RowArchive(tmp_path / "a.npy")
    with pytest.raises(UserError, match="cannot write"):
        RowArchive(tmp_path / "no" / "a.npz")
