"""WebDataset tars: keys, labels, splits, the index, and what is wrong with them."""

import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest

from inception_jax.data import file_index, index_files, tar_index
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
    with pytest.raises(UserError, match=r"'a/0002' of .*000\.tar: label 2 is not among the 2 of .*names;"):
        load(name, "train", class_names=str(tmp_path / "names"))


def test_the_index_is_made_once(tars, monkeypatch):
    walked, find = [], tar_index._find_examples
    monkeypatch.setattr(tar_index, "_find_examples", lambda file, *keys: walked.append(file) or find(file, *keys))
    name = f"webdataset:{tars}/pets-train-*.tar"
    first = load(name, "train").source.digest()
    assert len(walked) == 2 and len([*(tars / file_index.FOLDER).iterdir()]) == 2
    assert load(name, "train").source.digest() == first and len(walked) == 2
    load(name, "train", label_key="fine")
    assert len(walked) == 4  # another field has another index
    assert load(name, "train").source.digest() == first and load(name, "train", label_key="fine")
    assert len(walked) == 4
    kept = tars / file_index.FOLDER / "pets-train-000.tar.npz"
    arrays = index_files.read_arrays(kept)
    wrong = {"sizes": arrays["sizes"] + 10**6, "offsets": arrays["offsets"] - 2**62, "labels": arrays["labels"] + 10**6}
    wrong["overflow"] = arrays["sizes"] + (2**63 - 1 - int(arrays["sizes"].max()))
    for count, (column, values) in enumerate(wrong.items(), 5):
        index_files.write_arrays([kept], {**arrays, "sizes" if column == "overflow" else column: values})
        assert load(name, "train").source.digest() == first and len(walked) == count
    shutil.copy(tars / "pets-val-000.tar", tars / "pets-train-000.tar")
    assert load(name, "train").num_examples == 4 and len(walked) == 9


def test_only_the_tars_of_the_splits_in_use_are_read(tars, monkeypatch, tmp_path):
    """Of training where its labels are the classes; of no other split where a file names the classes."""
    read, load_index = [], tar_index.load

    def load_and_tell(files, *keys):
        read.extend(Path(file).name.split("-")[1] for file in files)
        return load_index(files, *keys)

    monkeypatch.setattr(tar_index, "load", load_and_tell)
    shutil.copy(tars / "pets-val-000.tar", tars / "pets-test-000.tar")
    name = f"webdataset:{tars}/pets-{{split}}-*.tar"
    (tmp_path / "names").write_text("a\nb\nc\n")
    for splits, classes, expected in (
        (["test"], None, ["train", "train", "test"]),
        (["validation[:50%]"], None, ["train", "train", "val"]),
        (["train", "val"], None, ["train", "train", "val"]),
        (["test+val"], str(tmp_path / "names"), ["test", "val"]),
        (["train[:2]"], str(tmp_path / "names"), ["train", "train"]),
    ):
        read.clear()
        found = load_splits(name, splits, class_names=classes)
        assert read == expected and found[0].class_names == (["a", "b", "c"] if classes else ["0", "1", "2"])
    with pytest.raises(
        UserError, match=r"unknown split 'tset' .*did you mean 'test'\?; splits: train .5., test .2., v"
    ):
        load(name, "tset")
    (tars / "pets-train-000.tar").unlink()
    (tars / "pets-train-001.tar").unlink()
    assert load(name, "val").num_examples == 2  # without training, the classes are those of all splits


PNG = ("a.png", b"image")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [PNG, ("a.json", b'{"label": "cat"}'), ("a.cls", b"1"), ("b.cls", b"1")],
            "'b' has a label, but no image that can",
        ),
        (
            [("a.tga", b""), ("a.cls", b"0")],
            r"'a' has a label, but no image .*; the suffixes .*: 'tga' .1., 'cls' .1.$",
        ),
        ([PNG, ("a.cls", b"1"), ("a.cls", b"2")], r"two \.cls have the key 'a'; keys must be unique$"),
        ([PNG, ("a.cls", b"1_0")], r"a\.cls: label b'1_0'; an integer from 0 to"),
        ([PNG, ("a.cls", b"1000000")], r"a\.cls: label 1000000; an integer from 0 to 999,999"),
        ([PNG], r"x\.tar: 'a' has no label: \.cls, or \.json with 'label', is needed beside it"),
        ([PNG, ("a.json", b'{"other": 1}')], "'a' has no label"),
        ([PNG, ("a.cls", b"cat")], r"x\.tar: a\.cls: label b'cat'; an integer from 0 to"),
        ([PNG, ("a.json", b'{"label": "cat"}')], r"a\.json: label 'cat'; an integer from 0"),
        ([PNG, ("a.json", b'{"label": true}')], r"a\.json: label True"),
        ([PNG, ("a.json", b'{"label"')], r"a\.json: label b'{\"label\"'"),
        ([PNG, ("a.cls", b"-1")], r"a\.cls: label -1"),
        (
            [PNG, ("a.cls", b"1"), PNG],
            r"two images have the key 'a'; keys must be unique, or --config.data.image_key=png",
        ),
        ([PNG, ("a.cls", b"1" * 2_000_000)], r"a\.cls: 2,000,000 bytes; at most"),
        ([("a.txt", b"")], "has no examples$"),
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
    pack(
        tmp_path / "y.tar",
        [("a.left.png", b"1"), ("a.cls", b"0"), ("b.left.jpeg", b"2"), ("b.cls", b"0"), (".c.cls", b"")],
    )
    with pytest.raises(
        UserError,
        match=r"'b' has a label, but no image with the suffix of data\.image_key=left\.png .*'left\.jpeg' .1.",
    ):
        load(f"webdataset:{tmp_path}/y.tar", "train", image_key="left.png")


def test_a_cls_counts_before_a_json(tmp_path):
    """Whichever is first in the tar; the `.json` is not even looked at."""
    pack(tmp_path / "x.tar", [("a.json", b'{"label": "cat"}'), PNG, ("a.cls", b"1"), ("meta.json", b"{}")])
    assert load(f"webdataset:{tmp_path}/x.tar", "train").labels().tolist() == [1]


def test_a_tar_that_ends_early_is_refused(tmp_path):
    """`tarfile` reports nothing in these cases: it would give the examples before."""
    pack(tmp_path / "x.tar", [(f"{key}.{suffix}", b"1") for key in "abc" for suffix in ("cls", "png")])
    name, content = f"webdataset:{tmp_path}/x.tar", (tmp_path / "x.tar").read_bytes()
    assert load(name, "train").num_examples == 3
    third, end = 2 * 1024, 6 * 1024
    cases = {
        content[:third] + b"x" + content[third + 1 :]: "truncated or damaged at byte 2,048",
        content[:third] + bytes(512) + content[third + 512 :]: "truncated or damaged at byte 2,048",
        content[:third]: r"truncated at byte 2,048, where two blocks of zeros .*`truncate -s \+1024 FILE` adds it",
        content[: third + 100]: "truncated or damaged at byte 2,048",
        content[: end + 1023]: "truncated at byte 6,144",
        content[: end - 1]: "no complete, uncompressed tar .unexpected end of data",
        content + content: "truncated or damaged at byte 6,144, or tars that were joined",
    }
    for damaged, message in cases.items():
        (tmp_path / "x.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"x\.tar: {message}"):
            load(name, "train")
    for whole in (content[: end + 1024], content[:end] + bytes(100_000)):
        (tmp_path / "x.tar").write_bytes(whole)
        assert load(name, "train").num_examples == 3


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **fields) -> bytes:
    about = tarfile.TarInfo(name)
    about.type, about.size = kind, size
    for field, value in fields.items():
        setattr(about, field, value)
    return about.tobuf(tarfile.PAX_FORMAT if fields else tarfile.GNU_FORMAT)


NEGATIVE = r"(damaged at byte {0}|truncated or damaged at byte {0}|no complete, uncompressed tar .invalid offset)"
# of the size in a header; the second and the third are of Python 3.13


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (header("a.png", tarfile.SYMTYPE), r"a\.png: a symbolic link, which is not read; pack the tar again"),
        (header("a.png", tarfile.LNKTYPE), r"a\.png: a hard link"),
        (header("a.cls", tarfile.SYMTYPE), r"a\.cls: a symbolic link"),
        (header("a.png", tarfile.GNUTYPE_SPARSE), r"a\.png: a sparse file"),
        (header("a.png", tarfile.FIFOTYPE), r"a\.png: no regular file"),
        (header("a.png", size=-512), NEGATIVE.format(0)),
        (header("b.txt") + header("a.png", size=-1024), NEGATIVE.format(512)),
        (header("a.cls", size=-1), NEGATIVE.format(0)),
        (
            (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 1) + b"n".ljust(512, b"\0")) * 1500 + header("a.png"),
            "no complete, uncompressed tar .maximum recursion depth",
        ),
        (header("a.png", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}), "no complete, uncompressed"),
        (header("a.png", pax_headers={"GNU.sparse.map": "x,y"}), "no complete, uncompressed tar .*invalid literal"),
    ],
)
def test_members_that_are_no_plain_files(tmp_path, headers, message):
    (tmp_path / "x.tar").write_bytes(headers + bytes(10240))
    with pytest.raises(UserError, match=rf"x\.tar: {message}") as caught:
        load(f"webdataset:{tmp_path}/x.tar", "train")
    assert "\n" not in str(caught.value)


def test_links_and_folders_that_are_no_image_are_left_out(tmp_path):
    content = header("link", tarfile.SYMTYPE) + header("a.png", tarfile.DIRTYPE) + header("a.png")
    (tmp_path / "x.tar").write_bytes(content + header("a.cls", size=1) + b"1".ljust(512, b"\0") + bytes(1024))
    assert load(f"webdataset:{tmp_path}/x.tar", "train").labels().tolist() == [1]


def test_a_fault_concerns_only_its_split(tmp_path):
    pack(tmp_path / "Training.tar", [PNG, ("a.cls", b"0"), ("b.png", b""), ("b.cls", b"2")])
    pack(tmp_path / "val.tar", [("c.png", b""), ("c.cls", b"3")])
    pack(tmp_path / "dev.tar", [("c.png", b""), ("c.cls", b"1")])
    pack(tmp_path / "test.tar", [("d.png", b"")])
    name = f"webdataset:{tmp_path}/{{split}}.tar"
    train = load(name, "train")
    assert train.class_names == ["0", "1", "2"] and train.labels().tolist() == [0, 2]
    assert not any("cannot be used" in line for line in train.account)  # nobody asks for the others
    for split, message in (
        ("val", "'c' of .*label 3 is not among the 2 of training; data.class_names=FILE"),
        ("dev", "label 1 is not among the 2 of training"),
        ("test", "'d' has no label"),
    ):
        with pytest.raises(UserError, match=f"split '{split}' of .*{message}"):
            load(name, split)
    (tmp_path / "names").write_text("2\tcat\n0\tdog\n3\teel\n")  # by value, where all lines are integers
    train, val = load_splits(name, ["train", "val"], class_names=str(tmp_path / "names"))
    assert train.class_names == ["cat", "dog", "eel"] and train.labels().tolist() == [1, 0] and val.record(0)[1] == 2
    (tmp_path / "Training.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"split 'dev' of .*: its classes are those of Training: .*Training\.tar: no"):
        load(name, "dev")


def test_tars_that_are_missing_in_a_range(tmp_path):
    for split, numbers in (("train", "0124"), ("val", "01")):
        for number in numbers:
            pack(tmp_path / f"{split}-0{number}.tar", [(f"{number}.png", b""), (f"{number}.cls", b"0")])
    name = f"webdataset:{tmp_path}/{{split}}-{{00..07}}.tar"
    with pytest.raises(
        UserError,
        match=r"split 'train' of .*train-03\.tar: no such file, but there is .*train-04\.tar \(1 tar of the range m",
    ):
        load(name, "train")
    pack(tmp_path / "train-03.tar", [("3.png", b""), ("3.cls", b"0")])
    train, val = load_splits(name, ["train", "val"])
    assert (train.num_examples, val.num_examples) == (5, 2)
    assert f"val: 2 of 8 tars of the range, up to {tmp_path}/val-01.tar" in train.account
    (tmp_path / "val-00.tar").unlink()
    assert load(name, "train").num_examples == 5
    with pytest.raises(UserError, match=r"split 'val' of .*val-00\.tar: no such file"):
        load(name, "val")
    with pytest.raises(UserError, match=r"v\?l-00\.tar: no such file"):
        load(f"webdataset:{tmp_path}/v?l-{{00..01}}.tar", "train")
    assert load(f"webdataset:{tmp_path}/t*-{{0..1}}{{0..4}}.tar", "train").num_examples == 5


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
        (f"{tars}/{{split}}-[z-a].tar", "no such files"),
        (f"{tars}/{{split}}/{{split}}.tar", "at most one {split}"),
        ("s3://bucket/a.tar", "tars are read from a file system"),
    ):
        with pytest.raises(UserError, match=message.replace("{", r"\{").replace(".", r"\.")):
            load(f"webdataset:{pattern}", "train")
