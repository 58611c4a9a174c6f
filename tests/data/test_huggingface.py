"""Hugging Face data sets: files that the package `datasets` wrote, layouts of repositories, labels, faults."""

import hashlib
import json
import pickle
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from inception_jax.data import huggingface, index_files, parquet_values, prepare, tables
from inception_jax.data.datasets import load, load_splits
from inception_jax.data.label_sets import Wanted
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError

WRITTEN = Path(__file__).with_name("huggingface_by_datasets")  # make_huggingface_sets.py
EXPECTED = json.loads((WRITTEN / "expected.json").read_text())
CLASSES = ["round", "square", "flat"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}


@pytest.fixture
def golden(tmp_path):
    """A copy of what the package wrote, beside which indices may be kept."""
    return Path(shutil.copytree(WRITTEN, tmp_path / "golden"))


def described(data):
    records = [data.record(index) for index in range(data.num_examples)]
    return [(label, hashlib.sha256(image).hexdigest()) for image, label in records]


def table(count=4, features=FEATURES, start=0, content=b"image", **columns):
    """Rows with images `image0`, `image1`, … and labels 0 and 1 in turn, as `datasets` describes them."""
    numbers = range(start, start + count)
    columns = {
        "image": [{"bytes": content + b"%d" % number, "path": f"{number}.png"} for number in numbers],
        "label": [number % 2 for number in range(count)],
    } | columns
    rows = pa.table({name: values for name, values in columns.items() if values is not None})
    described = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return rows.replace_schema_metadata(described)


def write(path, rows, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pa.parquet.write_table(rows, path, **options)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows, **options)


@pytest.mark.parametrize("kind", ["hub", "disk"])
def test_what_the_package_wrote_is_read(kind, golden):
    name = f"huggingface:{golden / kind}"
    train, validation = load_splits(name, ["train", "val"])
    for data, split in ((train, "train"), (validation, "validation")):
        assert described(data) == [(label, digest) for label, _, digest in EXPECTED[split]]
        assert data.class_names == CLASSES and data.labels().tolist() == [row[0] for row in EXPECTED[split]]
    assert described(load(name, "train[2:4]+validation")) == described(train)[2:4] + described(validation)
    assert train.source.file_name(5) == "005.jpg"
    suffix = "hub/data/train-00001-of-00002.parquet" if kind == "hub" else "disk/train/data-00001-of-00002.arrow"
    assert train.record_name(5) == f"{name} [train], '005.jpg', row 1 of {golden / suffix}"
    assert train.account[0] == "  class   train  validation"
    copy = pickle.loads(pickle.dumps(train))
    assert described(copy) == described(train) and copy.source.digest() == train.source.digest()
    tags = load(name, "train", label_key="tags", labels="multi")
    rows = [np.flatnonzero(tags.record(index)[1]).tolist() for index in range(7)]
    assert rows == [tag for _, tag, _ in EXPECTED["train"]] and tags.class_names == ["small", "old"]
    with pytest.raises(
        UserError, match=r"'test' of .*row 0 of .*test.*: no label; no other row has one; another split: .*=validation$"
    ):
        load(name, "test")


def test_batches_are_those_of_the_prepared_set(tmp_path, golden):
    arguments = ["huggingface", "--name=shapes", f"--source={golden / 'hub'}", f"--data_dir={tmp_path}"]
    assert prepare.main([*arguments, "--num_shards=2"]) == 0
    options = {"batch_size": 3, "image_size": 8, "seed": 0, "augmentation": {}}
    expected = [TrainPipeline(load("shapes", "train", str(tmp_path)), **options).batch(number) for number in range(5)]
    for kind in ("hub", "disk"):
        pipeline = TrainPipeline(load(f"huggingface:{golden / kind}", "train"), **options)
        for number, batch in enumerate(expected):
            found = pipeline.batch(number)
            assert all(np.array_equal(found[key], batch[key]) for key in batch) and len(found) == len(batch)
    assert load("shapes", "train", str(tmp_path)).source.file_name(5) == "005.jpg"
    arguments[1] = "--name=tags"
    assert prepare.main([*arguments, "--label_key=tags", "--labels=multi", "--resize=5", "--quality=raw"]) == 0
    tags = load("tags/resize_5_raw", "train", str(tmp_path), labels="multi")
    assert [np.flatnonzero(tags.record(i)[1]).tolist() for i in range(7)] == [tag for _, tag, _ in EXPECTED["train"]]
    assert tags.record(0)[0][:2] == b"BM"


def test_what_prepare_refuses(tmp_path, capsys):
    write(tmp_path / "pairs.parquet", table(other=[0, 1, 0, 1], features={**FEATURES, "other": FEATURES["label"]}))
    write(tmp_path / "plain.parquet", table())
    for source, flags, expected in (
        ("pairs.parquet", [], "2 columns of labels; name one, --label_key=…: 'label', 'other'"),
        ("pairs.parquet", ["--label_key=lable"], "no column 'lable'; did you mean 'label'?; name one, --label_key="),
        ("plain.parquet", ["--labels=multi"], "has one label per row: --labels=single"),
    ):
        arguments = ["huggingface", "--name=pairs", f"--source={tmp_path / source}", f"--data_dir={tmp_path / 'out'}"]
        assert prepare.main([*arguments, *flags]) == 2 and expected in capsys.readouterr().err
    assert prepare.main(["folder", "--name=a", f"--source={tmp_path}", "--label_key=x"]) == 2
    assert "--label_key: only with `huggingface`" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "names",
    [
        {"data/train-00000-of-00002": 3, "data/train-00001-of-00002": 1, "data/test-00000-of-00001": 2},
        {"train-00000-of-00001-0123456789abcdef": 4, "test-00000-of-00001-fedcba9876543210": 2},
        {"default/train/0000": 1, "default/train/0001": 3, "default/test/0000": 2},
        {"pets-train": 4, "pets-test": 2},
        {"pets-train-00000-of-00002": 2, "pets-train-00001-of-00002": 2, "pets-test": 2},
        {"Training/a": 2, "Training/b": 2, "test/a": 2},
    ],
)
def test_splits_are_known_by_their_names(tmp_path, names, suffix):
    number = 0
    for name, count in names.items():
        write(tmp_path / f"{name}.{suffix}", table(count, start=number))
        number += count
    train, test = load_splits(f"huggingface:{tmp_path}", ["train", "test"])
    images = [data.record(i)[0] for data in (train, test) for i in range(data.num_examples)]
    assert images == [b"image%d" % i for i in range(6)] and (train.num_examples, test.num_examples) == (4, 2)


def test_files_beside_a_split_are_train(tmp_path):
    write(tmp_path / "one.parquet", table(2))
    write(tmp_path / "two.parquet", table(2, start=2))
    assert load(f"huggingface:{tmp_path}", "train").num_examples == 4
    assert load(f"huggingface:{tmp_path}/two.parquet", "train").record(1) == (b"image3", 1)
    assert load(f"huggingface:{tmp_path}/*.parquet", "train[1:]").record(0) == (b"image1", 1)
    write(tmp_path / "more.arrow", table(2))
    with pytest.raises(UserError, match=r"files \.arrow, \.parquet; all \.parquet or all \.arrow are needed"):
        load(f"huggingface:{tmp_path}", "train")


README = """---
license: mit
configs:
- config_name: plain
  data_files:
  - split: train
    path: plain/part-*
  - split: test
    path: [plain/late.parquet]
- config_name: fine
  data_dir: fine
- config_name: list
  data_files: ["plain/part-1.parquet"]
- config_name: elsewhere
  data_files: "*.jsonl"
---
# A data set
"""


def test_configs_are_those_of_the_description(tmp_path):
    (tmp_path / "README.md").write_text(README)
    for number, name in enumerate(["plain/part-0", "plain/part-1", "plain/late", "fine/validation-00000-of-00001"]):
        write(tmp_path / f"{name}.parquet", table(1 + number, start=10 * number))
    name = f"huggingface:{tmp_path}"
    assert load(f"{name}:plain", "train").num_examples == 3 and load(f"{name}:plain", "test").num_examples == 3
    assert load(f"{name}:fine", "val").record(0)[0] == b"image30" and load(f"{name}:list", "train").num_examples == 2
    for wrong, expected in (
        (
            name,
            r"several configs; name one, huggingface:PATH:CONFIG: plain, fine, list, elsewhere; or name files, such as",
        ),
        (f"{name}:plian", r"no config 'plian'; did you mean 'plain'\?"),
    ):
        with pytest.raises(UserError, match=expected):
            load(wrong, "train")
    (tmp_path / "README.md").write_text(README.replace("fine\n", "default\n", 1))
    assert load(name, "validation").num_examples == 4  # the config "default"
    (tmp_path / "README.md").write_text(README.replace("config_name: list\n", "config_name: list\n  default: true\n"))
    assert load(name, "train").num_examples == 2  # the one that says so
    (tmp_path / "README.md").write_text("# No header\n")  # by the names of folders and files
    assert load(name, "validation").num_examples == 4


def test_a_repository_in_the_cache_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--org--pets"
    for revision, count in (("old", 2), ("new", 4)):
        write(folder / "blobs" / f"{revision}.parquet", table(count))
        link = folder / "snapshots" / revision / "data" / "train-00000-of-00001.parquet"
        link.parent.mkdir(parents=True)
        link.symlink_to(folder / "blobs" / f"{revision}.parquet")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new\n")
    assert load("huggingface:org/pets", "train").num_examples == 4
    (folder / "refs" / "main").unlink()
    with pytest.raises(UserError, match=r"no such repository in .*/hub; run: hf download --repo-type dataset org/pets"):
        load("huggingface:org/pets", "train")  # two revisions, and none is named
    shutil.rmtree(folder / "snapshots" / "new")
    assert load("huggingface:org/pets", "train").num_examples == 2
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert load("huggingface:org/pets", "train").num_examples == 2


def test_labels_without_named_classes(tmp_path):
    write(tmp_path / "train.parquet", table(features=None, label=["dog", "cat", "dog", "eel"]))
    write(tmp_path / "test.parquet", table(2, features=None, label=["eel", "eel"]))
    data = load(f"huggingface:{tmp_path}", "test")
    assert data.class_names == ["cat", "dog", "eel"] and data.labels().tolist() == [2, 2]
    (tmp_path / "names").write_text("eel\tAn eel\ndog\ncat\n")
    data = load(f"huggingface:{tmp_path}", "train", class_names=str(tmp_path / "names"))
    assert data.class_names == ["An eel", "dog", "cat"] and data.labels().tolist() == [1, 2, 1, 0]
    write(tmp_path / "test.parquet", table(2, features=None, label=["eel", "dgo"]))
    with pytest.raises(
        UserError, match=r"row 1 of .*test\.parquet: label 'dgo' .* 3 classes; did you mean 'dog'\?; data"
    ):
        load(f"huggingface:{tmp_path}", "test")
    assert load(f"huggingface:{tmp_path}", "train").num_examples == 4
    for name, rows in (("train", [0, 2, 0, 2]), ("test", [2, 1])):
        write(tmp_path / f"{name}.parquet", table(len(rows), features=None, label=rows))
    with pytest.raises(UserError, match=r"row 1 of .*: label 1 is not among the 3 classes; data.class_names=FILE"):
        load(f"huggingface:{tmp_path}", "test")
    assert load(f"huggingface:{tmp_path}", "train").class_names == ["0", "1", "2"]
    (tmp_path / "names").write_text("a\nb\nc\n")
    assert load(f"huggingface:{tmp_path}", "test", class_names=str(tmp_path / "names")).labels().tolist() == [2, 1]
    shutil.copy(tmp_path / "train.parquet", tmp_path / "kept")
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"its classes are those of train: .*train.parquet: cannot be read as Parquet"):
        load(f"huggingface:{tmp_path}", "test")
    assert load(f"huggingface:{tmp_path}", "test", class_names=str(tmp_path / "names")).num_examples == 2


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())])
def test_types_of_texts(tmp_path, type_):
    labels = pa.array(["b", "a", "b", "c"]).cast(type_)
    images = pa.array([b"0", b"1", b"2", b"3"], pa.large_binary())
    write(tmp_path / "train.arrow", pa.table({"image": images, "label": labels}))
    data = load(f"huggingface:{tmp_path}", "train")
    assert data.labels().tolist() == [1, 0, 1, 2] and data.record(2)[0] == b"2"
    assert data.record_name(2).endswith(f"[train], row 2 of {tmp_path}/train.arrow")


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"label": [0, 1, 2, 0]}, {}, r"row 2 of .*: label 2 is not among the 2 classes$"),
        ({"label": [0, None, 1, 0]}, {}, r"row 1 of .*: no label$"),
        ({"label": [0, -1, 1, 0]}, {}, r"row 1 of .*: label -1 is not among the 2 classes$"),
        ({"label": [None] * 4}, {}, r"'label' has null; labels are integers or texts"),
        ({"label": [0.5] * 4}, {}, r"'label' has double; labels are integers or texts"),
        ({"label": None}, {}, r"no column of labels that is known as one; name one, --config.data.label_key=…: 'ima"),
        ({"image": ["a.png"] * 4}, {}, r"column 'image' has string; bytes of image files are needed"),
        ({"label": [[0], [1], [0, 1], []]}, {}, r"column 'label' has lists of labels: --config.data.labels=multi"),
        ({}, {"labels": "multi"}, r"column 'label' has one label per row: --config.data.labels=single"),
        ({}, {"image_key": "imag"}, r"no column 'imag'; did you mean 'image'\?; name one, --config.data.image_key"),
        ({"x": [0, 1, 0, 1]}, {"label_key": "x", "labels": "multi"}, r"'x' has one label per row: --config.data.label"),
        ({"x": [[0]] * 4}, {"label_key": "x"}, r"'x' has lists of labels: --config.data.labels=multi"),
        ({}, {"image_key": "label"}, r"column 'label' has int64; bytes of image files are needed"),
        ({}, {"class_names": "names"}, r"has its own class names and order; leave it out"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_used(tmp_path, columns, options, expected):
    write(tmp_path / "train.parquet", table(**columns))
    with pytest.raises(UserError, match=expected):
        load(f"huggingface:{tmp_path}", "train", **options)


def test_only_the_splits_in_use_are_read(tmp_path, monkeypatch):
    opened = []
    opens = huggingface.open_tables
    monkeypatch.setattr(
        huggingface, "open_tables", lambda files: opened.extend(Path(file).stem for file in files) or opens(files)
    )
    for split in ("train", "test", "validation"):
        write(tmp_path / "named" / f"{split}.parquet", table())
        write(tmp_path / "unnamed" / f"{split}.parquet", table(features=None))
    for folder, splits, expected in (
        ("named", ["test[:50%]"], ["test"]),
        ("named", ["train", "val"], ["train", "validation"]),
        ("unnamed", ["test"], ["test", "train"]),
    ):
        opened.clear()
        load_splits(f"huggingface:{tmp_path / folder}", splits)
        assert opened == expected
    with pytest.raises(
        UserError, match=r"unknown split 'tset' .*did you mean 'test'\?; splits: train .4., test .4., v"
    ):
        load(f"huggingface:{tmp_path / 'named'}", "tset")


def test_faults_of_files(tmp_path, golden):
    hub, disk = tmp_path / "hub", tmp_path / "disk"
    shutil.copytree(golden / "hub", hub)
    shutil.copytree(golden / "disk", disk)
    part = hub / "data" / "train-00001-of-00002.parquet"
    content = part.read_bytes()
    for damaged, expected in (
        (content[:-9], r"train-00001-of-00002\.parquet: cannot be read as Parquet .*: copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"a pointer of Git LFS: run git lfs pull"),
        (None, r"data: train-: 1 shard of 2 missing, the first is train-00001-of-00002; download the data set again"),
    ):
        part.write_bytes(damaged) if damaged else part.unlink()
        with pytest.raises(UserError, match=expected):
            load(f"huggingface:{hub}", "train")
        assert load(f"huggingface:{hub}", "validation").num_examples == 3
    part.write_bytes(content)
    for other in ("train-00000-of-00003", "train-00000-of-00002-0123456789abcdef", "train-00002-of-00002"):
        shutil.copy(part, hub / "data" / f"{other}.parquet")
        with pytest.raises(UserError, match=r"data: train-: shards of several revisions beside .*; remove the older"):
            load(f"huggingface:{hub}", "train")
        (hub / "data" / f"{other}.parquet").unlink()
    part = disk / "train" / "data-00001-of-00002.arrow"
    content = part.read_bytes()
    for damaged, expected in ((content[:700], r"cannot be read as Arrow"), (None, r"data-00001.*: no such file")):
        part.write_bytes(damaged) if damaged else part.unlink()
        with pytest.raises(UserError, match=expected):
            load(f"huggingface:{disk}", "train")
    shutil.rmtree(disk / "validation")
    with pytest.raises(UserError, match=r"/disk/validation: no such folder; dataset_dict.json names it: copy it again"):
        load(f"huggingface:{disk}", "validation")
    (disk / "dataset_dict.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset_dict.json: cannot be read: no object; copy the data set again"):
        load(f"huggingface:{disk}", "test")


def test_files_of_other_columns_or_classes(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", table())
    for rows in (
        table(features={**FEATURES, "label": {"names": ["b", "a"], "_type": "ClassLabel"}}),
        table().rename_columns(["picture", "label"]),
    ):
        write(tmp_path / "train-00001-of-00002.parquet", rows)
        with pytest.raises(UserError, match=r"train-00001-of-00002.*: columns .*, or classes, that are not those of"):
            load(f"huggingface:{tmp_path}", "train")


def test_images_that_are_not_in_the_file(tmp_path):
    images = [
        {"bytes": b"", "path": "/a/0.png"},
        {"bytes": None, "path": "/a/1.png"},
        None,
        {"bytes": b"x", "path": None},
    ]
    write(tmp_path / "train.arrow", table(image=images))
    data = load(f"huggingface:{tmp_path}", "train")
    for row, name in ((0, "'/a/0.png', "), (1, "'/a/1.png', "), (2, "")):
        with pytest.raises(UserError, match=rf"^{name}row {row} of .*train.arrow: no bytes of an image; `save"):
            data.record(row)
    assert data.record(3) == (b"x", 1)


def test_row_groups_are_read_once_and_within_a_limit(tmp_path, monkeypatch):
    rows = table(40, content=b"." * 1000)
    write(tmp_path / "train.parquet", rows, row_group_size=10)
    monkeypatch.setattr(huggingface, "KEPT_BYTES", 1000)
    data = load(f"huggingface:{tmp_path}", "train")
    assert any("up to 10 rows of 0 MB; faster in random order is a copy: python -m" in line for line in data.account)
    monkeypatch.setattr(tables, "KEPT_BYTES", 15_000)
    read = []
    reads = pa.parquet.ParquetFile.read_row_group
    monkeypatch.setattr(
        pa.parquet.ParquetFile, "read_row_group", lambda self, i, **k: read.append(i) or reads(self, i, **k)
    )
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(data.record, [*range(10)] * 4)]
    assert [image for image, _ in found[:10]] == [b"." * 1000 + b"%d" % i for i in range(10)] and read == [0]
    data.record(10)
    data.record(0)
    assert read == [0, 1, 0]  # two groups are above the limit


def random_bytes(rng):
    return [rng.bytes(int(rng.choice([0, 1, 10, 1000, 5000]))) for _ in range(300)]


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("page", [{"data_page_size": 100}, {"data_page_size": 20_000, "write_page_checksum": True}])
@pytest.mark.parametrize("row_group_size", [7, 1000])
@pytest.mark.parametrize("kind", ["bytes", "not null", "structs"])
def test_images_are_found_in_uncompressed_files(tmp_path, version, page, row_group_size, kind):
    contents = random_bytes(np.random.default_rng(0))
    images = contents if kind != "structs" else [{"bytes": content, "path": "a"} for content in contents]
    field = pa.field("image", pa.binary(), nullable=False) if kind == "not null" else None
    rows = pa.table({"label": range(300), "image": images})
    rows = rows.set_column(1, field, pa.array(images, pa.binary())) if field else rows
    options = {"compression": "none", "use_dictionary": False, "row_group_size": row_group_size}
    write(tmp_path / "train.parquet", rows, data_page_version=version, **page, **options)
    files = tables.ParquetTables([str(tmp_path / "train.parquet")])
    assert files.find_bytes("image", "bytes" if kind == "structs" else None) == [True]
    assert [files.read(0, row, "image") for row in range(300)] == contents
    copy = pickle.loads(pickle.dumps(files))
    assert copy.read(0, 299, "image") == contents[299] and not copy._cached_groups


@pytest.mark.parametrize(
    ("options", "changes"),
    [
        ({"compression": "none"}, {}),  # a dictionary
        ({"compression": "snappy", "use_dictionary": False}, {}),
        ({"compression": "none", "use_dictionary": False, "write_statistics": False}, {}),  # nulls are not known
        ({"compression": "none", "use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}, {}),
        ({"compression": "none", "use_dictionary": False}, {"image": [b"0", None, b"2", b"3"]}),
    ],
)
def test_of_other_files_row_groups_are_read(tmp_path, options, changes):
    images = [b"0", b"1", b"2", b"3"]
    write(tmp_path / "train.parquet", pa.table({"image": images, "label": [0, 1, 0, 1]} | changes), **options)
    data = load(f"huggingface:{tmp_path}", "train")
    assert data.source.tables._values == {"image": [None]} and data.record(2) == (b"2", 0)


def test_the_index_of_images_is_made_once_and_checked(golden, monkeypatch):
    made = []
    finds = parquet_values._find_values
    monkeypatch.setattr(parquet_values, "_find_values", lambda file, *rest: made.append(file) or finds(file, *rest))
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)
    expected = described(load(f"huggingface:{golden}/hub", "train"))
    assert described(load(f"huggingface:{golden}/hub", "train")) == expected and len(made) == 2
    kept = sorted((golden / "hub" / "data" / ".inception_jax_offsets").iterdir())
    assert len(kept) == 2
    arrays = index_files.read_arrays(kept[0])
    for count, (name, values) in enumerate(
        [
            ("offsets", arrays["offsets"] + 10**6),
            ("sizes", arrays["sizes"] - 10**6),
            ("offsets", arrays["offsets"][1:]),
        ],
        3,
    ):
        index_files.write_arrays([kept[0]], arrays | {name: values})
        assert described(load(f"huggingface:{golden}/hub", "train")) == expected and len(made) == count
    index_files.write_arrays([kept[0]], arrays | {"offsets": arrays["offsets"] + 1})
    data = load(f"huggingface:{golden}/hub", "train")
    with pytest.raises(UserError, match=r"train-00000-of-00002.parquet: it has changed since its images were found"):
        data.record(0)


def test_the_lengths_of_a_page_add_up_to_it(tmp_path):
    write(tmp_path / "a.parquet", pa.table({"image": [b"abcdefgh"] * 4}), compression="none", use_dictionary=False)
    content = (tmp_path / "a.parquet").read_bytes()
    assert tables.ParquetTables([str(tmp_path / "a.parquet")]).find_bytes("image", None) == [True]
    last = [found.start() for found in re.finditer(rb"(?<=\x08\0\0\0)abcdefgh", content)][3]
    for wrong in (0, 7, 9, 100, 2**31):
        damaged = content[: last - 4] + wrong.to_bytes(4, "little") + content[last:]
        (tmp_path / "b.parquet").write_bytes(damaged)
        assert tables.ParquetTables([str(tmp_path / "b.parquet")]).find_bytes("image", None) == [False]


def test_pages_that_are_not_as_the_file_says(golden):
    """Every bit of a page's header, of its levels and of the first length: images, or an error of one line."""
    file, seen = golden / "hub" / "data" / "train-00000-of-00002.parquet", 0
    content, expected = bytearray(file.read_bytes()), described(load(f"huggingface:{golden}/hub", "train"))
    for place in range(4, 60):
        for bit in range(8):
            content[place] ^= 1 << bit
            file.write_bytes(content)
            content[place] ^= 1 << bit
            data = load(f"huggingface:{golden}/hub", "train")
            assert data.labels().tolist() == [label for label, _ in expected]
            try:
                seen += described(data) == expected
            except UserError as error:
                assert "\n" not in str(error)
    assert seen > 56  # bits of what is not read, as the sizes before compression


def test_names_that_are_nowhere(tmp_path, golden):
    (tmp_path / "images").mkdir()
    for name, expected in (
        ("", r"huggingface:PATH or huggingface:ORGANIZATION/NAME is needed; is a variable of the shell unset\?"),
        (f"{tmp_path}/image", r"no such folder; did you mean 'images'\?"),
        (f"{tmp_path}/images", r"no \.parquet and no \.arrow files in .*; download them, .* folder:PATH"),
        (f"{tmp_path}/*.parquet", r"no such files"),
        ("gs://bucket/data", r"mount the storage as one, or download the set"),
        (f"{golden}/disk:plain", r"what save_to_disk has written has no configs; leave out ':plain'"),
        (f"{golden}/hub:plain", r"no config 'plain'; name one"),
        (f"{golden}/hub/data/*.json", r"no such files"),
        (f"{golden}/expected.json", r"files \.json; all \.parquet or all \.arrow are needed"),
    ):
        with pytest.raises(UserError, match=expected):
            load(f"huggingface:{name}", "train")


def test_who_names_it_as_something_else_is_told(tmp_path, golden):
    (tmp_path / "README.md").write_text(README)
    write(tmp_path / "plain" / "part-0.parquet", table())
    for folder in (golden / "hub", golden / "hub" / "data", golden / "disk", golden / "disk" / "train", tmp_path):
        with pytest.raises(
            UserError, match=rf"^folder:.*: a Hugging Face data set\? Then huggingface:{folder}; as class"
        ):
            load(f"folder:{folder}", "train")
    with pytest.raises(UserError, match=f"a Hugging Face data set; name it huggingface:{golden}/hub$"):
        load(str(golden / "hub"), "train", str(tmp_path))
    file = tmp_path / "plain" / "part-0.parquet"
    with pytest.raises(UserError, match=rf"no column 'path' of paths, but one with images: .*=huggingface:{file}$"):
        load(f"list:{file}", "train")
    for name in ("org/pets", "the-org/pets"):
        with pytest.raises(UserError, match=f"; on Hugging Face's hub\\? Then huggingface:{name}"):
            load(name, "train", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"test/part/0": 1, "train/part/0": 2}, {"train": 2, "test": 1}),
        ({"data/test/en/0": 1, "data/train/en/0": 2}, {"train": 2, "test": 1}),
        ({"default/partial-train/0000": 2, "default/test/0000": 1}, {"train": 2, "test": 1}),
        ({"my_train/0": 2, "my_test/0": 1}, {"train": 2, "test": 1}),
        ({"data/train-00000-of-00001": 2, "default/train/0000": 1, "data/extra": 3}, {"train": 2}),
        ({"train": 2, "test": 1, "a": 3}, {"train": 2, "test": 1}),
        ({"train/0": 2, "test": 1}, {"train": 2}),
        ({"trian": 1, "tets": 2}, {"train": 3}),
        ({"part-00000-of-00002": 1, "part-00001-of-00002": 2}, {"train": 3}),
        ({"data/train.full-00000-of-00001": 2, "data/train-00000-of-00001": 1}, {"train": 1, "train_full": 2}),
        ({"data/train-000000-of-000001": 2}, {"train": 2}),
        ({".cache/huggingface/train": 1, "__MACOSX/train": 1, "train": 2}, {"train": 2}),
        ({"pets-train": 2, "cache-0123456789abcdef": 1}, {"train": 2}),
    ],
)
def test_splits_are_those_of_the_package(tmp_path, files, expected):
    """What `datasets` 5.2.0 gave when it was run on these layouts; its train.full is train_full here."""
    start = 0
    for name, count in files.items():
        write(tmp_path / f"{name}.{'arrow' if 'cache-' in name or name == 'pets-train' else 'parquet'}", table(count))
        start += count
    found, _ = huggingface.scan(str(tmp_path), None, Wanted())
    assert {split: len(part.labels) for split, part in found.splits.items()} == expected
    assert load(f"huggingface:{tmp_path}", "all").num_examples == sum(expected.values())
    left = sum(files.values()) - sum(expected.values())
    hidden = any(name.startswith((".", "__")) or "cache-" in name for name in files)
    assert any("left out: " in note for note in found.notes) == (left > 0 and not hidden)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("data_dir: x", {"train": 3, "test": 4}),
        ("data_files: [{split: train, path: [x/en/train-*, x/fr/train-*]}]", {"train": 3}),
        ("data_files: [{split: train, path: 'y/train-0000[0-1]*'}]", {"train": 3}),
        ("data_files: [{split: train, path: y/train-*}]", r"y: train-: 1 shard of 3 missing, the first is train-00002"),
        ("data_files: '**/test-*'", {"train": 4}),
        ("data_files: [{split: train, path: z/*}]", r"README.md, config one: no .parquet file z/\*; download the data"),
        ("data_files: [{split: a, path: x/*}, {split: a, path: y/*}]", "data_files names a split twice; correct it"),
        ("data_files: [{split: a, path: x/*}, y/*]", r"names no files; a pattern, or a list of them, is needed"),
        ("data_files: [{split: a}]", "each of data_files needs split and path; correct it"),
        ("data_files: {train: x/*}", "names no files; a pattern, or a list of them"),
        ("data_files: 5", "names no files"),
        ("data_files: [{split: train, path: 3}]", "3 names no files"),
        ("data_files: [{split: train, path: }]", "None names no files"),
        ("data_dir: nowhere", r"config one: no .parquet files in .*nowhere; download"),
        ("data_dir: 2020-13-45", r"README.md: its header cannot be read: month must be in 1..12; correct it"),
        ("data_dir: [", r"README.md: its header cannot be read: while parsing"),
    ],
)
def test_what_a_description_says_is_read_or_refused(tmp_path, entry, expected):
    (tmp_path / "README.md").write_text(f"\ufeff---\nconfigs:\n- config_name: one\n  {entry}\n---\n", encoding="utf-8")
    parts = {"x/en/train-00000-of-00001": 1, "x/fr/train-00000-of-00001": 2, "x/fr/test-00000-of-00001": 4}
    parts |= {"y/train-00000-of-00003": 1, "y/train-00001-of-00003": 2, "__MACOSX/test-0": 1}
    for name, count in parts.items():
        write(tmp_path / f"{name}.parquet", table(count))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            load(f"huggingface:{tmp_path}", "train")
    else:
        found, _ = huggingface.scan(str(tmp_path), None, Wanted())
        assert {split: len(part.labels) for split, part in found.splits.items()} == expected


INFO = """---
dataset_info:
  features:
  - {name: image, dtype: image}
  - {name: label, dtype: {class_label: {names: {'0': y, '1': n}}}}
---
"""


def test_classes_that_are_named_beside_the_files(tmp_path):
    """They are those of the package: before the files' own, and texts are looked up among them."""
    write(tmp_path / "hub" / "train.parquet", table(features=None, label=["n", "y", "n", "y"]))
    write(tmp_path / "hub" / "test.parquet", table(features=FEATURES))
    (tmp_path / "hub" / "README.md").write_text(INFO)
    data = load(f"huggingface:{tmp_path}/hub", "train")
    assert data.class_names == ["y", "n"] and data.labels().tolist() == [1, 0, 1, 0]
    data = load(f"huggingface:{tmp_path}/hub", "test")
    assert data.class_names == ["y", "n"] and data.labels().tolist() == [0, 1, 0, 1]
    several = INFO.replace("features", "config_name: other\n  features").replace(
        "dataset_info:\n  ", "dataset_info:\n- "
    )
    (tmp_path / "hub" / "README.md").write_text(several)
    assert load(f"huggingface:{tmp_path}/hub", "test").class_names == ["a", "b"]  # of another config
    shutil.copytree(WRITTEN / "disk", tmp_path / "disk")
    path = tmp_path / "disk" / "train" / "dataset_info.json"
    path.write_text(path.read_text().replace("round", "ring"))
    assert load(f"huggingface:{tmp_path}/disk", "validation").class_names == ["ring", "square", "flat"]


def test_damage_of_labels_is_seen(tmp_path, monkeypatch):
    """pyarrow returns a column with no rows, and no error, where the header of its page is damaged."""
    write(tmp_path / "train.parquet", table())
    reads = tables.ParquetTables._read_column
    monkeypatch.setattr(
        tables.ParquetTables,
        "_read_column",
        lambda self, file, path: reads(self, file, path)[: 0 if path == "label" else 4],
    )
    with pytest.raises(UserError, match=r"column 'label' has 0 rows, and the file 4: damaged; copy it again"):
        load(f"huggingface:{tmp_path}", "train")


def test_arrow_files_that_have_lost_rows(tmp_path):
    file = tmp_path / "train.arrow"
    write(file, table(6), max_chunksize=2)
    content, expected = file.read_bytes(), described(load(f"huggingface:{file}", "train"))
    assert len(expected) == 6
    for end in range(0, len(content), 8):  # record batches and their parts begin at multiples of 8
        for damaged in (content[:end], content[:end] + bytes(len(content) - end)):
            if damaged == content:
                continue
            file.write_bytes(damaged)
            with pytest.raises(UserError, match=r"train.arrow: cannot be read as Arrow \("):
                tables.ArrowTables([str(file)])
    file.write_bytes(content + content)
    with pytest.raises(UserError, match=r"it ends at byte [\d,]+ of [\d,]+, or without the mark of an end"):
        load(f"huggingface:{file}", "train")
    rows = table(6)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    assert described(load(f"huggingface:{file}", "train")) == expected


def test_a_compressed_arrow_file_is_refused(tmp_path):
    rows, options = table(4, content=bytes(10_000)), pa.ipc.IpcWriteOptions(compression="zstd")
    for new in (pa.ipc.new_stream, pa.ipc.new_file):
        with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, new(sink, rows.schema, options=options) as writer:
            writer.write_table(rows)
        with pytest.raises(
            UserError, match=r"compressed, so that no row can be read .*; write it without compression$"
        ):
            load(f"huggingface:{tmp_path}", "train")


def test_an_arrow_file_that_is_replaced(tmp_path):
    write(tmp_path / "train.arrow", table())
    source = pickle.dumps(load(f"huggingface:{tmp_path}", "train"))
    write(tmp_path / "train.arrow", table(start=10))
    with pytest.raises(UserError, match=r"train.arrow: it has changed since the start; start again"):
        pickle.loads(source).record(0)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image.bytes": pa.array([b"flat"] * 4)}, "columns with a dot in their names beside 'image'; rename them"),
        ({"label.id": pa.array([0] * 4)}, "columns with a dot in their names beside 'label'; rename them"),
        ({"label": pa.array([0] * 4)}, "two columns 'label'; rename one"),
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_names_of_columns_that_are_not_clear(tmp_path, columns, expected, suffix):
    rows = table()
    for name, values in columns.items():
        rows = rows.add_column(0, name, values)
    write(
        tmp_path / f"train.{suffix}",
        rows,
        **({"compression": "none", "use_dictionary": False} if suffix == "parquet" else {}),
    )
    with pytest.raises(UserError, match=expected):
        load(f"huggingface:{tmp_path}", "train")


def test_labels_of_other_lists_and_texts(tmp_path):
    sets = [[0, 1], [1, 1], [0, 0], [1, 0]]
    for number, type_ in enumerate([pa.list_(pa.int64(), 2), pa.large_list(pa.int8()), pa.list_view(pa.int64())]):
        rows = pa.table({"image": [b"0", b"1", b"2", b"3"], "labels": pa.array(sets, type_)})
        write(tmp_path / f"{number}.arrow", rows)
        data = load(f"huggingface:{tmp_path}/{number}.arrow", "train", labels="multi")
        assert [np.flatnonzero(data.record(i)[1]).tolist() for i in range(4)] == [[0, 1], [1], [0], [0, 1]]
    rows = pa.table({"image": [b"0", b"1"], "label": pa.array(["b", "a"], pa.string_view())})
    write(tmp_path / "view.arrow", rows)
    assert load(f"huggingface:{tmp_path}/view.arrow", "train").labels().tolist() == [1, 0]
    write(tmp_path / "empty.parquet", table(2, features=None, label=["", "a"]))
    with pytest.raises(UserError, match=r"row 0 of .*empty.parquet: no label$"):
        load(f"huggingface:{tmp_path}/empty.parquet", "train")


def test_without_a_training_split_all_decide_the_classes(tmp_path):
    write(tmp_path / "validation.parquet", table(2, features=None, label=["a", "y"]))
    write(tmp_path / "test.parquet", table(2, features=None, label=["x", "y"]))
    for split, labels in (("validation", [0, 2]), ("test", [1, 2])):
        data = load(f"huggingface:{tmp_path}", split)
        assert data.class_names == ["a", "x", "y"] and data.labels().tolist() == labels
    write(tmp_path / "validation.parquet", table(2, features=None, label=[2, 0]))
    write(tmp_path / "test.parquet", table(2, features=None, label=[-1, -1]))
    assert load(f"huggingface:{tmp_path}", "validation").class_names == ["0", "1", "2"]
    with pytest.raises(UserError, match=r"no label; no other row has one; another split: .*=validation"):
        load(f"huggingface:{tmp_path}", "test")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("dataset_dict.json", {"splits": None}, "dataset_dict.json: no splits; copy the data set again"),
        ("dataset_dict.json", {"splits": []}, "dataset_dict.json: no splits"),
        ("dataset_dict.json", {"splits": [1]}, "dataset_dict.json: no splits"),
        ("train/state.json", {"_data_files": None}, "state.json: no names of files; copy the data set again"),
        ("train/state.json", {"_data_files": "a"}, "state.json: no names of files"),
        ("train/state.json", {"_data_files": 5}, "state.json: no names of files"),
        ("train/state.json", {"_data_files": [{}]}, "state.json: no names of files"),
        ("train/state.json", {"_data_files": [{"filename": 3}]}, "state.json: no names of files"),
        (
            "train/state.json",
            {"_indices_data_files": [{"filename": "a"}]},
            "by an old version, with an order of its rows",
        ),
    ],
)
def test_notes_of_save_to_disk_that_cannot_be_used(golden, name, content, expected):
    (golden / "disk" / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        load(f"huggingface:{golden}/disk", "train")


def test_class_folders_beside_a_parquet_file_are_class_folders(image_folder):
    write(image_folder / "metadata.parquet", pa.table({"a": [1]}))
    (image_folder / "state.json").write_text("{}")
    assert load(f"folder:{image_folder}", "train").num_examples == 14
    assert load(f"folder:{image_folder}", "all").num_examples == 21
    assert load(f"folder:{image_folder}", "all+testing[:2]").num_examples == 23
    with pytest.raises(UserError, match=r"^unknown split 'tset'"):
        load(f"folder:{image_folder}", "tset")


@pytest.mark.parametrize("names", [["a\nx", "b"], [" a", "b"], ["", "b"], ["a", "a"]])
def test_class_names_that_cannot_be_kept_are_refused(tmp_path, capsys, names):
    features = FEATURES | {"label": {"names": names, "_type": "ClassLabel"}}
    write(tmp_path / "train.parquet", table(features=features))
    arguments = ["huggingface", "--name=pets", f"--source={tmp_path}", f"--data_dir={tmp_path}/out"]
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert ("names a class twice" if names[0] == "a" else "--class_names=FILE names the classes, or correct") in error
    assert not (tmp_path / "out").exists()


def test_a_split_without_examples_is_left_out(tmp_path, capsys, encoded_image):
    write(tmp_path / "train.parquet", table(image=[encoded_image(number) for number in range(4)]))
    write(tmp_path / "test.parquet", table(0, image=pa.array([], pa.binary()), label=pa.array([], pa.int64())))
    arguments = ["huggingface", "--name=pets", f"--source={tmp_path}", f"--data_dir={tmp_path}/out"]
    assert prepare.main(arguments) == 0 and "test: left out: no examples" in capsys.readouterr().err
    assert load("pets", "train", f"{tmp_path}/out").num_examples == 4
