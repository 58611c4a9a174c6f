"""Data sets that TFDS prepared as TFRecord and Parquet: the records, their order, their index, and damaged files.

`prepared_by_tfds` was written by TFDS and TensorFlow (`make_prepared_sets.py`), which read `expected.json` from it.
"""

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inception_jax.data import example_records, file_index, index_files, open_files, tables, tfrecords
from inception_jax.data.datasets import load
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.errors import UserError

GOLDEN = Path(__file__).with_name("prepared_by_tfds")
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
NAME = "shapes/plain:1.2.0"
FORMATS = ("tfrecord", "parquet")


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """A copy of the golden that is old enough for an index, and a cache directory of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)
    return Path(shutil.copytree(GOLDEN, tmp_path / "sets"))


def shard(golden: Path, number: int = 0, split: str = "train", file_format: str = "tfrecord") -> Path:
    return golden / file_format / "shapes" / "plain" / "1.2.0" / f"shapes-{split}.{file_format}-0000{number}-of-00002"


def described(data) -> list[tuple[int, str]]:
    found = [data.record(i) for i in range(data.num_examples)]
    return [(label, hashlib.sha256(image).hexdigest()) for image, label in found]


@pytest.mark.parametrize("file_format", FORMATS)
def test_records_are_those_that_tensorflow_reads(golden, file_format):
    for split, examples in EXPECTED.items():
        expected = [(label, digest) for label, _, digest in examples]
        data = load(NAME, split, str(golden / file_format))
        assert data.class_names == ["round", "square", "flat"] and described(data) == expected
        assert described(pickle.loads(pickle.dumps(data))) == expected
        np.testing.assert_array_equal(data.labels(), [label for label, _ in expected])
    train = [(label, digest) for label, _, digest in EXPECTED["train"]]
    test = [(label, digest) for label, _, digest in EXPECTED["test"]]
    root = str(golden / file_format)
    assert described(load("shapes", "train[25%:75%]", root)) == train[2:6]  # the default config, the newest version
    assert described(load("shapes/plain", "test+train[-1:]", root)) == test + train[-1:]
    assert described(load(f"folder:{root}/shapes/plain/1.2.0", "train[:1shard]", root)) == train[:4]
    with pytest.raises(
        UserError, match=rf"the folder above a prepared data set; .*folder:{root}/shapes/plain/1\.2\.0$"
    ):
        load(f"folder:{root}/shapes/plain", "train")
    assert "record 1 of " in load("shapes:1.*.*", "train[5:]", root).record_name(0)


def test_converted_to_array_record_it_is_the_same_set(golden, run, capsys):
    out = golden / "converted"
    for file_format in FORMATS:
        assert run("convert", NAME, f"--data_dir={golden / file_format}", f"--output={out / file_format}") == 0
        before, after = (load("shapes", "train", str(root / file_format)) for root in (golden, out))
        assert described(before) == described(after) and after.class_names == before.class_names
        assert type(after.source) is example_records.ArrayRecords and after.source.digest() != before.source.digest()
        messages = [[data.source.read_message(i) for i in range(8)] for data in (before, after)]
        assert messages[0] == messages[1]
        batches = [
            TrainPipeline(data, batch_size=4, image_size=8, seed=3, augmentation={}).batch(5)
            for data in (before, after)
        ]
        assert all(np.array_equal(batches[0][key], batches[1][key]) for key in batches[0])
    folder = out / "tfrecord" / "shapes" / "plain"
    assert os.listdir(folder) == ["1.2.0"] and len([*(folder / "1.2.0").glob("*array_record*")]) == 6
    assert "array_record" in (folder / "1.2.0" / "dataset_info.json").read_text()
    capsys.readouterr()
    assert run("convert", NAME, f"--data_dir={golden / 'tfrecord'}", f"--output={out / 'tfrecord'}") == 0
    assert "already there" in capsys.readouterr().err
    shutil.move(folder / "1.2.0", folder / "incomplete.1.2.0")  # as after a kill before the last rename …
    (lost,) = (folder / "incomplete.1.2.0").glob("*validation*00001*")
    lost.unlink()
    assert run("convert", NAME, f"--data_dir={golden / 'tfrecord'}", f"--output={out / 'tfrecord'}") == 0
    assert described(load("shapes", "validation", str(out / "tfrecord"))) == described(
        load("shapes", "validation", str(golden / "tfrecord"))
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "the name of a prepared data set and --output=FOLDER are needed"),
        (["convert", "shapes"], "--output=FOLDER are needed"),
        (["digits", "shapes"], "'shapes': only with `convert`"),
        (["digits", "--output=a"], "--output: only with `convert`"),
        (["convert", "shapes", "--output=a", "--threads=2"], "--threads: has no effect with `convert`"),
        (["convert", "shapes", "--output=a", "--check=full"], "--check: has no effect"),
        (["convert", "shapes", "--output=a", "--name=b"], "--name: not with `convert`"),
        (["convert", "shapes", "--output=a", "--data_dir=none"], "unknown data set 'shapes'"),
    ],
)
def test_convert_refuses_what_it_cannot_use(arguments, message, run, capsys):
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_convert_refuses_its_own_output(golden, run, capsys):
    root = golden / "tfrecord"
    assert run("convert", NAME, f"--data_dir={root}", f"--output={root}") == 2
    assert "another folder is needed" in capsys.readouterr().err
    assert run("convert", NAME, f"--data_dir={root}", f"--output={golden / 'out'}") == 0
    assert run("convert", NAME, f"--data_dir={golden / 'out'}", f"--output={golden / 'more'}") == 2
    assert "ArrayRecord already" in capsys.readouterr().err


@pytest.fixture
def walks(monkeypatch):
    """The files whose records were looked for, in order."""
    found, walk = [], tfrecords._find_records
    monkeypatch.setattr(tfrecords, "_find_records", lambda path: found.append(Path(path).name) or walk(path))
    return found


def test_the_index_is_made_once_and_noticed_when_stale(golden, walks):
    root, file = str(golden / "tfrecord"), shard(golden)
    load(NAME, "train[:2]", root)
    assert walks == [file.name]  # only the shard that is needed
    kept = file.parent / file_index.FOLDER / f"{file.name}.npz"
    assert kept.is_file()
    load(NAME, "train", root)
    assert len(walks) == 2  # the other one
    load(NAME, "train", root)
    assert len(walks) == 2
    os.utime(file, (1e9, 1e9))
    expected = described(load(NAME, "train", root))
    assert len(walks) == 3
    arrays = index_files.read_arrays(kept)
    overflowing = arrays["offsets"].copy()
    overflowing[1:3] = 2**63 - 1, -(2**63) + 10**6  # every difference is positive in 64 bits
    for damaged in (
        {"offsets": arrays["offsets"][:-1]},
        {"offsets": arrays["offsets"][::-1].copy()},
        {"offsets": overflowing},
        {},
    ):
        index_files.write_arrays([kept], {"stamp": arrays["stamp"], **damaged})
        assert described(load(NAME, "train", root)) == expected
    kept.write_bytes(b"PK damaged")
    assert described(load(NAME, "train", root)) == expected and len(walks) == 8
    shifted = arrays["offsets"].copy()
    shifted[1] += 1  # an index of the right form that is wrong: the record's own checksums tell
    index_files.write_arrays([kept], {**arrays, "offsets": shifted})
    with pytest.raises(UserError, match=r"record 0 of .*: damaged .*its length is not that of the index"):
        load(NAME, "train", root).record(0)


def test_the_index_of_read_only_data_is_in_the_cache(golden, walks, tmp_path, monkeypatch):
    root, file = str(golden / "tfrecord"), shard(golden, split="test")
    (file.parent / file_index.FOLDER).write_text("in the way")  # the tests may run as a user who can write anywhere
    load(NAME, "test[:1]", root)
    assert len([*(tmp_path / "cache").rglob("*.npz")]) == 1 and len(walks) == 1
    load(NAME, "test[:1]", root)
    assert len(walks) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))  # nowhere to write
    load(NAME, "test[:1]", root)
    assert len(walks) == 2
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", 3600.0)  # a file that has just changed
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    load(NAME, "test[:1]", root)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], r"record 3, at byte [\d,]+ of [\d,]+: truncated, 1 bytes are missing; copy"),
        (lambda content: content[:-500] + content[-490:], r"record 3, .*: truncated, 10 bytes are missing"),
        (
            lambda content: content + b"12",
            r"record 4, .*: truncated; copy the file again, or prepare the data set again",
        ),
        (
            lambda content: bytes([content[0] ^ 1]) + content[1:],
            r"record 0, at byte 0 .*checksum of its length is wrong",
        ),
        (lambda content: b"\x1f\x8b" + content, "a compressed TFRecord file has no random access; gunzip it"),
        (lambda content: b"", r"0 records; dataset_info\.json says 4: truncated, or another file"),
        (None, r"shapes-train\.tfrecord-00000-of-00002: this file of the prepared data set is missing; prepare it"),
    ],
)
def test_damaged_shards_are_named(golden, damage, message):
    file = shard(golden)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        load(NAME, "train", str(golden / "tfrecord"))
    assert file.name in str(caught.value) and "\n" not in str(caught.value)
    assert load(NAME, "test", str(golden / "tfrecord")).num_examples == 2  # the other splits can be read


def test_a_damaged_record_is_named_and_the_others_are_read(golden):
    file = shard(golden)
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)
    data = load(NAME, "train", str(golden / "tfrecord"))
    with pytest.raises(
        UserError, match=r"record 0 of .*00000-of-00002: damaged .*checksum is wrong.*; prepare it again"
    ):
        data.record(0)
    assert data.record(1)[1] == EXPECTED["train"][1][0] and data.labels()[0] == -1
    batch = EvalPipeline(data, batch_size=8, image_size=8, skip_corrupt=True).batch(0)
    assert batch["mask"].tolist() == [False] + [True] * 7


def test_a_file_that_is_cut_while_it_is_read(golden):
    data = load(NAME, "train", str(golden / "tfrecord"))
    data.record(0)
    os.truncate(shard(golden), 100)
    with pytest.raises(UserError, match=r"record 3 of .*truncated"):
        data.record(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-6], "cannot be read as Parquet"),
        (lambda content: b"", "cannot be read as Parquet"),
        (None, "this file of the prepared data set is missing"),
    ],
)
def test_damaged_parquet_files_are_named(golden, damage, message):
    file = shard(golden, file_format="parquet")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{file.name}: {message}"):
        load(NAME, "train", str(golden / "parquet"))


def test_other_parquet_files_are_refused(golden):
    import pyarrow
    import pyarrow.parquet

    file = shard(golden, file_format="parquet")
    pyarrow.parquet.write_table(pyarrow.table({"image": [b""]}), file)
    with pytest.raises(UserError, match=r"columns \['image'\]; TFDS writes one, 'data'"):
        load(NAME, "train", str(golden / "parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"data": [b"", b"", b""]}), file)
    with pytest.raises(UserError, match=r"3 records; dataset_info\.json says 4"):
        load(NAME, "train", str(golden / "parquet"))


def test_row_groups_are_kept_within_a_limit(golden, monkeypatch):
    data = load(NAME, "train", str(golden / "parquet"))
    monkeypatch.setattr(tables, "KEPT_BYTES", 1)
    expected = [data.record(i) for i in (0, 7, 0, 7)]
    assert expected[:2] == expected[2:] and len(data.source._tables._cached_groups) == 1


def test_few_files_are_open_at_a_time(golden, monkeypatch):
    monkeypatch.setattr(open_files, "MAX_OPEN", 1)
    data = load(NAME, "train", str(golden / "tfrecord"))
    before = len(os.listdir("/proc/self/fd"))
    assert described(data) == [(label, digest) for label, _, digest in EXPECTED["train"]]
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_reading_imports_no_tensorflow(golden):
    code = (
        "import sys\n"
        "from inception_jax.data.datasets import load\n"
        f"for name in {FORMATS}:\n"
        f"    load({NAME!r}, 'train', {str(golden)!r} + '/' + name).record(0)\n"
        "from inception_jax.data import conversion\n"
        "found = {'tensorflow', 'jax', 'apache_beam'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_of_several_images_and_labels(golden):
    root = str(golden / "tfrecord")
    with pytest.raises(UserError) as caught:
        load("shapes/pairs", "train", root)
    assert str(caught.value) == (
        "data set 'shapes/pairs': images 'image', 'other', 'second/view'; choose one: --config.data.image_key=image"
    )
    with pytest.raises(
        UserError, match=r"labels 'coarse', 'label', 'second/size'; choose .*--config\.data\.label_key="
    ):
        load("shapes/pairs", "train", root, image_key="image")
    plain = load(NAME, "train", root)
    chosen = load("shapes/pairs", "train", root, image_key="image", label_key="label")
    assert described(chosen) == described(plain)
    nested = load("shapes/pairs", "train", root, image_key="second/view", label_key="second/size")
    assert nested.class_names == ["small", "large"]
    assert nested.labels().tolist() == [number % 2 for _, number, _ in EXPECTED["train"]]
    assert nested.source.digest() != chosen.source.digest()
    images_of = [hashlib.sha256(data.record(0)[0]).hexdigest() for data in (chosen, nested)]
    assert images_of[0] != images_of[1]
    for keys, message in (
        ({"image_key": "imag"}, "config.data.image_key = 'imag': no feature; did you mean 'image'"),
        ({"image_key": "image", "label_key": "number"}, "config.data.label_key = 'number': a feature Tensor"),
        ({"image_key": "image", "label_key": "tags"}, "config.data.label_key = 'tags': a feature "),
    ):
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            load("shapes/pairs", "train", root, **keys)
    for name in ("digits", "synthetic", f"folder:{golden}"):
        with pytest.raises(
            UserError,
            match=r"data\.label_key = 'label': .* only data sets that TFDS has prepared, lists and tars take it",
        ):
            load(name, "train", label_key="label")
