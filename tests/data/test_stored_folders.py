"""Class folders in object storage: the same examples as on disk, read object by object."""

import pickle

import cv2
import fsspec
import numpy as np
import pytest

from inception_jax.data import datasets, prepared_sets
from inception_jax.data.records import label_counts
from inception_jax.errors import UserError

ADDRESS = "memory://bucket/pets"


@pytest.fixture
def folder(tmp_path):
    """Class folders on disk and in fsspec's store in memory."""
    files = fsspec.filesystem("memory")
    encoded = cv2.imencode(".png", np.full((4, 5, 3), 90, np.uint8))[1].tobytes()
    for path in ("train/cat/1.png", "train/cat/more/2.png", "train/dog/3.png", "train/dog/.hidden.png",
                 "train/dog/notes.txt", "Test/cat/4.png", "Test/dog/5.png", "other/6.png"):  # fmt: skip
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(encoded)
        files.pipe_file(f"/bucket/pets/{path}", encoded)
    yield tmp_path
    files.rm("/bucket", recursive=True)


def test_the_same_examples_as_on_disk(folder):
    for split in ("train", "test", "train[:50%]"):
        local, stored = (datasets.load(f"folder:{place}", split) for place in (folder, ADDRESS))
        assert stored.source.digest() == local.source.digest() and stored.class_names == ["cat", "dog"]
        assert [stored.record(i) for i in range(len(stored.source))] == [
            local.record(i) for i in range(len(local.source))
        ]
    assert label_counts(datasets.load(f"folder:{ADDRESS}/", "train").source, 2) == [2, 1]
    assert [line.replace(str(folder), ADDRESS) for line in datasets.load(f"folder:{folder}", "train").account] == [
        *datasets.load(f"folder:{ADDRESS}", "train").account
    ]
    source = pickle.loads(pickle.dumps(datasets.load(f"folder:{ADDRESS}", "train"))).source
    assert source.record_name(0).startswith(f"{ADDRESS}/train/") and len(source[0][0]) > 50


def test_what_is_not_there_is_one_line(folder):
    source = datasets.load(f"folder:{ADDRESS}", "train").source
    fsspec.filesystem("memory").rm("/bucket/pets/train/dog/3.png")
    with pytest.raises(UserError, match=rf"^{ADDRESS}/train/dog/3\.png: FileNotFoundError"):
        [source[i] for i in range(3)]
    with pytest.raises(UserError, match=r"^memory://bucket/none: no such folder$"):
        datasets.load("folder:memory://bucket/none", "train")
    with pytest.raises(UserError, match=r"^s3://bucket/none: Install s3fs to access S3$"):
        datasets.load("folder:s3://bucket/none", "train")


def test_prepared_data_sets_are_refused(folder):
    with pytest.raises(
        UserError, match=r"data\.data_dir = 'gs://b/sets': prepared data sets are read from a file system"
    ):
        prepared_sets.default_data_dir("gs://b/sets")
    fsspec.filesystem("memory").pipe_file("/bucket/pets/dataset_info.json", b"{}")
    with pytest.raises(UserError, match=f"{ADDRESS}: a prepared data set; these are read from a file system"):
        datasets.load(f"folder:{ADDRESS}", "train")
