"""WebDataset tars: keys, labels, splits, the index, and what is wrong with them."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

from inception_jax.data import file_index, index_files, webdatasets
from inception_jax.data.datasets import load, load_splits
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError


def pack(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path, encoded_image, monkeypatch):
    """Two tars of training images and one of validation images; returns their folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)
    root = tmp_path / "wds"
    number = 0
    for name, count in (("pets-train-000", 3), ("pets-train-001", 2), ("pets-val-000", 2)):
        members = []
        for _ in range(count):
            members += [
                (f"./a/{number:04d}.jpg", encoded_image(number, 6, 6, ".jpg")),
                (f"./a/{number:04d}.cls", b"%d\n" % (number % 3)),
                (f"./a/{number:04d}.json", json.dumps({"label": 9, "fine": number}).encode()),
            ]
            number += 1
        pack(root / f"{name}.tar", members)
    return root


def test_examples_labels_and_splits(tars, encoded_image):
    train, validation = load_splits(f"webdataset:{tars}/pets-{{split}}-*.tar", ["train", "validation"])
    assert train.class_names == ["0", "1", "2"] and train.labels().tolist() == [0, 1, 2, 0, 1]
    assert [train.record(i) for i in range(5)] == [(encoded_image(i, 6, 6, ".jpg"), i % 3) for i in range(5)]
    assert validation.num_examples == 2 and validation.record(1)[0] == encoded_image(6, 6, 6, ".jpg")
    assert train.record_name(3).endswith(f"'a/0003' of {tars}/pets-train-001.tar")
    assert train.account[0] == "  class  train  val" and pickle.loads(pickle.dumps(train)).record(4) == train.record(4)
    batch = TrainPipeline(train, batch_size=5, image_size=8, seed=0, augmentation={}).batch(0)
    assert sorted(batch["label"].tolist()) == [0, 0, 1, 1, 2] and batch["mask"].all()
    ranged = load(f"webdataset:{tars}/pets-train-{{000..001}}.tar", "train")
    assert ranged.source.digest() == train.source.digest() != validation.source.digest()
    assert load(f"webdataset:{tars}/pets-train-00?.tar", "train[3:]").labels().tolist() == [0, 1]
    assert load(f"webdataset:{tars}/pets-{{split}}-00[!1].tar", "train").num_examples == 3
    fine = load(f"webdataset:{tars}/pets-train-*.tar", "train", label_key="fine")
    assert fine.labels().tolist() == [0, 1, 2, 3, 4]  # of the .json, although there is a .cls


def test_class_names_come_from_a_file(tars, tmp_path):
    (tmp_path / "names").write_text("cat\ndog\neel\n")
    name = f"webdataset:{tars}/pets-train-*.tar"
    assert load(name, "train", class_names=str(tmp_path / "names")).class_names == ["cat", "dog", "eel"]
    (tmp_path / "names").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"'a/0002' of .*000\.tar: label 2; .*names has 2 classes, 0 to 1"):
        load(name, "train", class_names=str(tmp_path / "names"))


def test_the_index_is_made_once(tars, monkeypatch):
    walked, find = [], webdatasets._find_examples
    monkeypatch.setattr(webdatasets, "_find_examples", lambda file, *keys: walked.append(file) or find(file, *keys))
    name = f"webdataset:{tars}/pets-train-*.tar"
    first = load(name, "train").source.digest()
    assert len(walked) == 2 and len([*(tars / file_index.FOLDER).iterdir()]) == 2
    assert load(name, "train").source.digest() == first and len(walked) == 2
    load(name, "train", label_key="fine")
    assert len(walked) == 4  # another field
    load(name, "train")
    assert len(walked) == 6
    kept = tars / file_index.FOLDER / "pets-train-000.tar.npz"
    arrays = index_files.read_arrays(kept)
    index_files.write_arrays([kept], {**arrays, "sizes": arrays["sizes"] + 10**6})
    assert load(name, "train").source.digest() == first and len(walked) == 7
    shutil.copy(tars / "pets-val-000.tar", tars / "pets-train-000.tar")
    assert load(name, "train").num_examples == 4 and len(walked) == 8


PNG = ("a.png", b"image")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([PNG], r"x\.tar: 'a' has no label: \.cls, or \.json with 'label', is needed beside it"),
        ([PNG, ("a.json", b'{"other": 1}')], "'a' has no label"),
        ([PNG, ("a.cls", b"cat")], r"x\.tar: a\.cls: label b'cat'; an integer from 0 is needed"),
        ([PNG, ("a.json", b'{"label": "cat"}')], r"a\.json: label 'cat'; an integer from 0"),
        ([PNG, ("a.json", b'{"label": true}')], r"a\.json: label True"),
        ([PNG, ("a.json", b'{"label"')], r"a\.json: label b'{\"label\"'"),
        ([PNG, ("a.cls", b"-1")], r"a\.cls: label -1"),
        (
            [PNG, ("a.cls", b"1"), PNG],
            r"two images have the key 'a'; keys must be unique, or --config.data.image_key=png",
        ),
        ([PNG, ("a.cls", b"1" * 2_000_000)], r"a\.cls: 2,000,000 bytes; at most"),
        ([("a.txt", b"")], "has no examples"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, members, message):
    pack(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=message) as caught:
        load(f"webdataset:{tmp_path}/x.tar", "train")
    assert "\n" not in str(caught.value)


def test_several_images_of_one_key(tmp_path):
    pack(tmp_path / "x.tar", [("a.left.png", b"1"), ("a.right.png", b"2"), ("a.cls", b"0")])
    assert load(f"webdataset:{tmp_path}/x.tar", "train", image_key="right.png").record(0) == (b"2", 0)


def test_files_that_are_no_tars(tars, tmp_path):
    shutil.copy(tars / "pets-train-000.tar", tars / "pets-train-002.tar")
    with pytest.raises(UserError, match=r"'a/0000' of .*train-002\.tar is also in .*train-000\.tar"):
        load(f"webdataset:{tars}/pets-train-*.tar", "train")
    content = (tars / "pets-train-000.tar").read_bytes()
    for damaged in (b"\x1f\x8b" + content, content[:700]):
        (tars / "bad.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=r"bad\.tar: (no complete, uncompressed tar|truncated inside)"):
            load(f"webdataset:{tars}/bad.tar", "train")
    data = load(f"webdataset:{tars}/pets-val-000.tar", "train")
    (tars / "pets-val-000.tar").write_bytes(content[:600])
    with pytest.raises(UserError, match=r"'a/0006' of .*val-000\.tar: truncated"):
        data.record(1)
    for pattern, message in (
        ("", "webdataset:PATTERN is needed"),
        (f"{tars}/none-*.tar", "no such files"),
        (f"{tars}/pets-train-{{000..005}}.tar", "pets-train-003.tar: no such file"),
        (f"{tars}/{{9..1}}.tar", "a range of 0 files"),
        (f"{tars}/{{split}}/{{split}}.tar", "at most one {split}"),
        ("s3://bucket/a.tar", "tars are read from a file system"),
    ):
        with pytest.raises(UserError, match=message.replace("{", r"\{").replace(".", r"\.")):
            load(f"webdataset:{pattern}", "train")
