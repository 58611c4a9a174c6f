"""`datasets.load(…, labels="none")`: the images of every kind of data set, whose labels may be missing or wrong."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pytest

import inception_jax
from inception_jax.data import index_files
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError

from .test_example_records import EXPECTED, GOLDEN
from .test_huggingface import table, write
from .test_webdatasets import pack


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)


def images_of(name, split="test", **options):
    data = load(str(name), split, labels="none", **options)
    assert (
        data.label_kind == "none" and data.label_columns is None and data.labels().tolist() == [-1] * len(data.source)
    )
    assert data.class_counts().sum() == 0 and len(data.source.digest()) == 64
    found = [pickle.loads(pickle.dumps(data)).record(index) for index in range(data.num_examples)]
    assert {label for _, label in found} == {-1}
    return [image for image, _ in found]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "columns", [{"label": None}, {"label": [-1] * 4}, {"label": [0, None, 7, 1]}, {"label": [[0], [], [9], None]}]
)
def test_parquet_and_arrow_files(tmp_path, columns, suffix):
    write(tmp_path / f"test.{suffix}", table(features={"image": {"_type": "Image"}}, **columns))
    assert images_of(f"huggingface:{tmp_path}") == [b"image0", b"image1", b"image2", b"image3"]
    assert images_of(f"huggingface:{tmp_path}", "test[1:3]") == [b"image1", b"image2"]
    with pytest.raises(UserError):
        load(f"huggingface:{tmp_path}", "test")


def test_parquet_beside_a_training_split_that_is_not_read(tmp_path):
    write(tmp_path / "test.parquet", table(label=None))
    (tmp_path / "train.parquet").write_bytes(b"damaged")
    assert images_of(f"huggingface:{tmp_path}", label_key="absent", class_names="absent") == [
        b"image%d" % number for number in range(4)
    ]
    twice = pa.table({"a": [b"x"], "b": [b"y"]})
    write(tmp_path / "test.parquet", twice)
    assert images_of(f"huggingface:{tmp_path}", image_key="b") == [b"y"]
    with pytest.raises(UserError, match=r"2 columns of images; name one, --config.data.image_key=…: 'a', 'b'"):
        images_of(f"huggingface:{tmp_path}")


def test_tars(tmp_path):
    members = [("0.jpg", b"a"), ("0.cls", b"cat"), ("1.jpg", b"b"), ("2.jpg", b"c"), ("3.cls", b"1"), ("2.json", b"{")]
    pack(tmp_path / "x-test-0.tar", members)
    (tmp_path / "x-train-0.tar").write_bytes(b"damaged")
    name = f"webdataset:{tmp_path}/x-{{split}}-*.tar"
    for _ in range(2):  # the second time by the index
        assert images_of(name) == [b"a", b"b", b"c"]
    with pytest.raises(UserError, match=r"'3' has a label, but no image"):
        load(name, "test")
    assert images_of(name, "test[1:]") == [b"b", b"c"]
    pack(tmp_path / "x-test-0.tar", [("0.jpg", b"a"), ("0.cls", b"1"), ("1.jpg", b"b"), ("1.cls", b"0")])
    pack(tmp_path / "x-train-0.tar", [("0.jpg", b"a"), ("0.cls", b"1"), ("1.jpg", b"b"), ("1.cls", b"0")])
    for _ in range(2):  # neither reads the index of the other
        assert [load(name, "test").record(index)[1] for index in range(2)] == [1, 0]
        assert images_of(name) == [b"a", b"b"]


def test_lists(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    (tmp_path / "images.csv").write_text("path,split\na.png,test\nb.png,train\nc.png,test\n")
    assert images_of(f"list:{tmp_path}/images.csv") == [b"a", b"c"]
    (tmp_path / "images.csv").write_text("file,label\na.png,\nb.png,one\nc.png,3\na.png,x\n")
    assert images_of(f"list:{tmp_path}/images.csv", "train", image_key="file", label_key="*") == [
        b"a",
        b"b",
        b"c",
        b"a",
    ]
    pa.parquet.write_table(pa.table({"path": ["b.png", "d.png"], "split": ["test", "train"]}), tmp_path / "i.parquet")
    assert images_of(f"list:{tmp_path}/i.parquet") == [b"b"]
    with pytest.raises(UserError, match=r"i.parquet, row 1: .*d.png: no such file"):
        images_of(f"list:{tmp_path}/i.parquet", "train")


def test_folders(image_folder, encoded_image):
    (image_folder / "test" / "gnu").mkdir()
    (image_folder / "test" / "gnu" / "x.png").write_bytes(b"x")
    (image_folder / "val").mkdir()
    for name in ("10.png", "9.JPG", "b.txt", ".hidden.png"):
        (image_folder / "val" / name).write_bytes(name.encode())
    assert len(images_of(f"folder:{image_folder}")) == 8  # a class that training does not have is none here
    for split in ("val", "validation"):
        assert images_of(f"folder:{image_folder}", split) == [b"10.png", b"9.JPG"]
    assert images_of(f"folder:{image_folder}", "val[1:]") == [b"9.JPG"]
    with pytest.raises(UserError, match=r"val: 2 images without class folders: they have no labels"):
        load(f"folder:{image_folder}", "val")
    (image_folder / "val" / "10.png").unlink()
    (image_folder / "val" / "10.png").symlink_to("absent")
    with pytest.raises(UserError, match=r"val/10.png: No such file"):
        images_of(f"folder:{image_folder}", "val")


@pytest.mark.parametrize("file_format", ["tfrecord", "parquet"])
def test_prepared_sets(file_format):
    root = str(GOLDEN / file_format)
    for split in EXPECTED:
        found = images_of("shapes/flags", split, data_dir=root)
        assert [hashlib.sha256(image).hexdigest() for image in found] == [digest for _, _, digest in EXPECTED[split]]
    with pytest.raises(UserError, match=r"one image and one class label are needed"):
        load("shapes/flags", "train", root)


def test_embedded_and_registered_sets():
    assert len(images_of("digits", "test[:7]")) == 7 and len(images_of("synthetic:10:8", "test[:2]")) == 2
    images = np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3)
    splits = {"test": (images, np.array([1, 0]))}
    inception_jax.register_dataset("images_only", splits, class_names=["a", "b"])
    assert (np.stack(images_of("images_only")) == images).all()


def test_batches_have_no_labels(tmp_path, encoded_image):
    rows = {"image": [encoded_image(seed) for seed in range(3)]}
    write(tmp_path / "test.parquet", pa.table(rows))
    data = load(f"huggingface:{tmp_path}", "test", labels="none")
    batches = list(EvalPipeline(data, batch_size=2, image_size=8).batches())
    assert [batch["label"].tolist() for batch in batches] == [[-1, -1], [-1, 0]]
    assert [batch["mask"].tolist() for batch in batches] == [[True, True], [True, False]]
