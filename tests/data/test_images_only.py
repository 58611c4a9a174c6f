"""`datasets.load(…, labels="none")`: the images of every kind of data set, whose labels may be missing or wrong."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pytest

import inception_jax
from inception_jax.data import datasets, index_files, records, tar_index
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


def test_tars(tmp_path, monkeypatch):
    members = [("0.jpg", b"a"), ("0.cls", b"cat"), ("1.jpg", b"b"), ("2.jpg", b"c"), ("3.cls", b"1"), ("2.json", b"{")]
    pack(tmp_path / "x-test-0.tar", members)
    (tmp_path / "x-train-0.tar").write_bytes(b"damaged")
    name = f"webdataset:{tmp_path}/x-{{split}}-*.tar"
    opened, read = [], tar_index.load
    monkeypatch.setattr(tar_index, "load", lambda files, *rest: opened.extend(files) or read(files, *rest))
    for _ in range(2):  # the second time by the index
        assert images_of(name) == [b"a", b"b", b"c"]
    assert {*opened} == {f"{tmp_path}/x-test-0.tar"}
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


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def test_folders(image_folder):
    expected = [load(f"folder:{image_folder}", "test").record(index)[0] for index in range(7)]
    assert images_of(f"folder:{image_folder}") == expected  # in the order that they have with labels
    fill(image_folder / "val", "10.png", "9.JPG", "b.txt", ".hidden.png")
    for split in ("val", "validation"):
        assert images_of(f"folder:{image_folder}", split) == [b"10.png", b"9.JPG"]
    assert images_of(f"folder:{image_folder}", "val[1:]") == [b"9.JPG"]
    with pytest.raises(UserError, match=r"val: 2 images without class folders: they have no labels"):
        load(f"folder:{image_folder}", "val")
    (image_folder / "val" / "11.png").symlink_to("absent")
    with pytest.raises(UserError, match=r"val/11.png: No such file"):
        images_of(f"folder:{image_folder}", "val")
    assert len(images_of(f"folder:{image_folder}", "train+test")) == 21  # the fault is of the other split


@pytest.mark.parametrize(
    ("given", "split", "expected"),
    [
        (["test/a/1.png", "test/z/2.png"], "test", ["a/1.png", "z/2.png"]),  # a class that training does not have
        (["test/1.png", "test/a/b/2.png", "test/0.png"], "test", ["0.png", "1.png", "a/b/2.png"]),  # none is left out
        (["test/1.png", "test/empty/note.txt"], "test", ["1.png"]),
        (["val/1.png"], "test", None),
    ],
)
def test_folders_beside_training_ones(tmp_path, given, split, expected):
    fill(tmp_path, "train/a/0.png", "train/b/0.png")
    for name in given:
        fill(tmp_path / name.split("/")[0], name.split("/", 1)[1])
    if expected is None:
        with pytest.raises(UserError, match=r"unknown split 'test' of [^;]*; splits: [^;]*$"):
            images_of(f"folder:{tmp_path}", split)
    else:
        assert sorted(images_of(f"folder:{tmp_path}", split)) == [name.encode() for name in expected]


def test_folders_of_images_alone(tmp_path):
    fill(tmp_path / "flat", "2.png", "1.png")
    assert images_of(f"folder:{tmp_path}/flat", "train") == [b"1.png", b"2.png"]
    fill(tmp_path / "splits" / "test", "1.png")
    fill(tmp_path / "splits" / "train", "0.png")
    assert images_of(f"folder:{tmp_path}/splits") == [b"1.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image in this folder"):
        images_of(f"folder:{tmp_path}/empty", "train")
    with pytest.raises(UserError, match=r"absent: no such folder"):
        images_of(f"folder:{tmp_path}/absent", "train")


def test_one_image_of_two_classes(tmp_path):
    fill(tmp_path / "train", "a/0.png", "b/1.png")
    (tmp_path / "train" / "b" / "2.png").symlink_to(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(UserError, match="another class"):
        load(f"folder:{tmp_path}", "train")
    assert images_of(f"folder:{tmp_path}", "train") == [b"a/0.png", b"b/1.png"]


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
    with pytest.raises(UserError, match=r"labels = 'None': it must be one of 'single', 'multi', 'none'"):
        load("digits", "test", labels="None")


class Items:
    def __init__(self, *items):
        self._items = items

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        return self._items[index]


def test_registered_sets():
    images = np.arange(2 * 12, dtype=np.uint8).reshape(2, 2, 2, 3)
    first = images[0]
    splits = {
        "table": (images, np.eye(2)),  # of several labels, beside which others have one
        "none": (images, None),
        "wrong": (images, np.array([-1, 7])),
        "items": Items((first, None), {"image": first}, first, (first, [0, 1]), {"image": first, "label": "a"}),
    }
    inception_jax.register_dataset("images_only", splits, class_names=["a", "b"])
    for split in ("table", "none", "wrong"):
        assert (np.stack(images_of("images_only", split)) == images).all()
    assert all((image == first).all() for image in images_of("images_only", "items"))
    for data in ((None, None), (5, None), (iter([1]), None)):
        inception_jax.register_dataset("no_images", {"test": data}, class_names=["a", "b"])
        with pytest.raises(UserError, match=r"no_images \[test\]: images .*; uint8 \[n, height, width, channels\]"):
            images_of("no_images")
        datasets._ADDED.pop("no_images")


def test_the_files_of_a_slice(image_folder):
    data = load(f"folder:{image_folder}", "train[:2]+train[1:3]+test[5:]", labels="none")
    assert records.files_of(data.source) == {data.source.record_name(index) for index in range(data.num_examples)}


def test_batches_have_no_labels(tmp_path, encoded_image):
    rows = {"image": [encoded_image(seed) for seed in range(3)]}
    write(tmp_path / "test.parquet", pa.table(rows))
    data = load(f"huggingface:{tmp_path}", "test", labels="none")
    batches = list(EvalPipeline(data, batch_size=2, image_size=8).batches())
    assert [batch["label"].tolist() for batch in batches] == [[-1, -1], [-1, 0]]
    assert [batch["mask"].tolist() for batch in batches] == [[True, True], [True, False]]
