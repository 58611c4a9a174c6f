"""Preparing data sets: TFDS's form and order, checked, and whole whatever happens on the way."""

import os

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from inception_jax.data import builders, digits, example_records, images, prepare, records
from inception_jax.data.datasets import load
from inception_jax.errors import UserError


def assert_same(a: list[tuple[np.ndarray, int]], b: list[tuple[np.ndarray, int]]) -> None:
    assert [label for _, label in a] == [label for _, label in b]
    assert all(np.array_equal(x, y) for (x, _), (y, _) in zip(a, b, strict=True))


def test_prepared_digits_are_the_embedded_ones(tmp_path, run, records):
    assert run("digits", f"--data_dir={tmp_path}") == 0
    for split in ("train", "test"):
        embedded = load("digits", split)
        expected = [embedded.record(i) for i in range(embedded.num_examples)]
        assert_same(records("digits:1.0.0", split, tmp_path), expected)
    assert load("digits:1.0.0", "train", str(tmp_path)).class_names == digits.CLASS_NAMES
    assert load(f"folder:{tmp_path}/digits/1.0.0", "test").num_examples == 360


def test_the_labels_of_a_large_set_are_read_once(tmp_path, run, monkeypatch, capsys):
    assert run("digits", f"--data_dir={tmp_path}") == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(records, "_MANY", 300)
    capsys.readouterr()

    def labels(split="test"):
        return load("digits:1.0.0", split, str(tmp_path)).labels()

    first = labels()
    assert "reading the labels of 360 records" in capsys.readouterr().err
    np.testing.assert_array_equal(labels(), first)
    assert capsys.readouterr().err == "" and len([*(tmp_path / "cache").rglob("*.npy")]) == 1
    np.testing.assert_array_equal(labels("test[:350]"), first[:350])
    assert "reading the labels of 350 records" in capsys.readouterr().err  # other records of the same shards
    (shard,) = (tmp_path / "digits" / "1.0.0").glob("*test*")
    os.utime(shard, (1e9, 1e9))
    np.testing.assert_array_equal(labels(), first)
    assert "reading the labels of 360 records" in capsys.readouterr().err  # prepared anew: other times
    for file in (tmp_path / "cache").rglob("*.npy"):
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(labels(), first)
    monkeypatch.setattr(
        example_records.ArrayRecords, "__getitem__", lambda self, index: (_ for _ in ()).throw(UserError("gone"))
    )
    np.testing.assert_array_equal(labels(), first)
    assert (labels("test[:340]") == -1).all() and len([*(tmp_path / "cache").rglob("*.npy")]) == 3


def test_the_last_line_names_what_was_prepared(run, image_folder, tmp_path, capsys):
    def said(*arguments):
        assert run(*arguments, f"--data_dir={tmp_path}/tf") == 0
        return (
            capsys.readouterr().err.splitlines()[-1].removeprefix("next: python -m inception_jax.train --config=RECIPE")
        )

    where = f" --config.data.data_dir={tmp_path}/tf"
    assert said("folder", "--name=pets", f"--source={image_folder}") == f" --config.data.name=pets{where}"
    only = said("folder", "--name=cats", f"--source={image_folder}/train")
    assert only == f" --config.data.name=cats{where} --config.data.train_split='train[:90%]' " + (
        "--config.data.eval_split='train[90%:]'"
    )
    (image_folder / "test").rename(image_folder / "val")
    resized = said("folder", "--name=dogs", f"--source={image_folder}", "--resize=8")
    assert resized == f" --config.data.name=dogs/resize_8_jpeg95{where} --config.data.eval_split=val"
    assert said("digits") == f" --config.data.name=folder:{tmp_path}/tf/digits/1.0.0"  # digits are the embedded ones
    for name in ("digits", "synthetic", "folder"):
        assert run("folder", f"--name={name}", f"--source={image_folder}", f"--data_dir={tmp_path}/tf") == 2
        assert f"--name={name}: means another data set in a config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", "test", "validation"], {}),
        (["dev", "train", "validation"], {"eval_split": "validation"}),
        (["training", "val"], {"train_split": "training", "eval_split": "val"}),
        (["extra", "train"], {"train_split": "train[:90%]", "eval_split": "train[90%:]"}),
        (["test"], {}),
    ],
)
def test_the_splits_that_the_last_line_names(splits, expected):
    assert prepare._choose_splits(splits) == expected


def test_fashion_mnist_holds_the_original_arrays(small, tmp_path, capsys, run, records):
    folder, arrays = small
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}", "--num_shards=4") == 0
    for split, prefix in (("train", "train"), ("test", "t10k")):
        got = records("fashion_mnist", split, tmp_path)
        order = {image[..., 0].tobytes(): i for i, image in enumerate(arrays[f"{prefix}-images-idx3-ubyte"][..., None])}
        numbers = [order[image[..., 0].tobytes()] for image, _ in got]
        assert sorted(numbers) == list(range(len(order)))
        assert numbers != sorted(numbers)  # mixed, as TFDS does
        assert [label for _, label in got] == arrays[f"{prefix}-labels-idx1-ubyte"][numbers].tolist()
    data = load("fashion_mnist", "train", str(tmp_path))
    assert data.class_names[0] == "T-shirt/top" and len(data.source.parts) == 4
    assert "prepared, train 60, test 10" in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path / "fashion_mnist")) == ["3.0.1"]  # nothing passing is left behind
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}") == 0
    assert "already prepared" in capsys.readouterr().err


def test_records_and_their_order_are_those_of_tfds_itself(small, tmp_path, run):
    """The same builder through TFDS's own writer: record for record the same."""
    folder, _ = small
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path / 'ours'}", "--num_shards=3") == 0
    builder = builders.FashionMnist(source=folder, data_dir=tmp_path / "theirs", file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    builders_by_side = {"theirs": builder, "ours": tfds.builder_from_directory(tmp_path / "ours/fashion_mnist/3.0.1")}
    for split in ("train", "test"):
        sides = [load("fashion_mnist", split, str(tmp_path / side)) for side in builders_by_side]
        theirs, ours = ([data.record(i) for i in range(data.num_examples)] for data in sides)
        assert theirs == ours
    ours = builders_by_side["ours"]
    assert ours.info.features.to_json() == builder.info.features.to_json()
    assert ours.info.supervised_keys == ("image", "label")


@pytest.mark.skipif(not builders.FashionMnist.DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debians_files_are_fashion_mnist(tmp_path):
    """The real files: their checksums and counts; a few hundred records are enough here."""
    builder = builders.FashionMnist(data_dir=tmp_path, file_format="array_record")
    builder.verify(lambda done, total: None)
    examples = builder.examples()
    assert {split: len(found.keys) for split, found in examples.items()} == builder.EXPECTED
    labels = [examples["train"].read(i)["label"] for i in range(8)]
    assert labels == [9, 0, 0, 3, 0, 2, 7, 2]  # as every tutorial shows them: ankle boot, T-shirt, T-shirt, dress …
    image = images.decode(examples["train"].read(0)["image"])
    assert image.shape == (28, 28, 3) and image[:3].max() == 0 and image[14].max() > 200


def test_counts_checksums_and_files_are_checked(small, tmp_path, monkeypatch, capsys, run):
    folder, _ = small
    arguments = ["fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path / 'out'}"]
    with monkeypatch.context() as patch:
        patch.setattr(builders.FashionMnist, "EXPECTED", {"train": 60_000, "test": 10_000})
        assert run(*arguments) == 2
        assert "{'train': 60, 'test': 10} examples; {'train': 60000" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(builders.FashionMnist.SHA256, "t10k-labels-idx1-ubyte", "0" * 64)
        assert run(*arguments) == 2
        assert "t10k-labels-idx1-ubyte.gz: SHA-256" in capsys.readouterr().err
    path = folder / "train-images-idx3-ubyte.gz"
    content = path.read_bytes()
    for broken, message in ((content[:500], "cannot be read"), (b"hello", "not an idx file")):
        path.write_bytes(broken)
        assert run(*arguments) == 2
        assert f"train-images-idx3-ubyte.gz: {message}" in capsys.readouterr().err
    path.unlink()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte is not in this folder" in error and "Traceback" not in error
    assert not (tmp_path / "out" / "fashion_mnist" / "3.0.1").exists()


def test_plain_idx_files_will_do(idx_folder, tmp_path, monkeypatch, run, records):
    folder, _ = idx_folder(zipped=False)
    monkeypatch.setattr(builders.FashionMnist, "EXPECTED", None)
    assert run("fashion_mnist", f"--source={folder}", f"--data_dir={tmp_path}", "--check=counts") == 0
    assert len(records("fashion_mnist", "test", tmp_path)) == 10


def test_folder_prepared_is_the_folder_read_directly(image_folder, tmp_path, run):
    assert run("folder", "--name=beasts", f"--source={image_folder}", f"--data_dir={tmp_path}", "--num_shards=2") == 0
    for split in ("train", "test"):
        direct = load(f"folder:{image_folder}", split)
        prepared = load("beasts", split, str(tmp_path))
        assert prepared.class_names == direct.class_names == ["cat", "dog", "eel"]
        assert [prepared.record(i) for i in range(prepared.num_examples)] == [
            direct.record(i) for i in range(direct.num_examples)
        ]
    train = load("beasts", "train[:50%]", str(tmp_path))
    assert train.num_examples == 7 and "beasts-train.array_record-0000" in train.record_name(0)
    with pytest.raises(UserError, match=r"unknown split 'val' of beasts; splits: train .14., test .7."):
        load("beasts", "val", str(tmp_path))
    with pytest.raises(UserError, match="did you mean 'beasts'"):
        load("beast", "train", str(tmp_path))


def test_unreadable_image_is_named_and_nothing_is_left_half(image_folder, tmp_path, capsys, run):
    broken = image_folder / "train" / "dog" / "1.jpg"
    content = broken.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    arguments = ["folder", "--name=beasts", f"--source={image_folder}", f"--data_dir={tmp_path}"]
    assert run(*arguments) == 2
    assert "error: beasts, train, dog/1.jpg: not a readable image" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown data set 'beasts'"):
        load("beasts", "train", str(tmp_path))
    broken.write_bytes(content)
    assert run(*arguments) == 0


def test_a_limit_of_pixels(image_folder, tmp_path, capsys, run):
    """The images are of 24 x 20 pixels."""
    arguments = ["folder", "--name=small", f"--source={image_folder}", f"--data_dir={tmp_path / 'out'}"]
    assert run(*arguments, "--max_pixels=479") == 2
    assert "an image of 24 x 20 pixels" in (error := capsys.readouterr().err) and "limit of 479 pixels" in error
    assert run(*arguments, "--max_pixels=480") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: NAME"),
        (["mnits"], "unknown data set 'mnits'"),
        (["fashion"], "did you mean 'fashion_mnist'"),
        (["digits", "--sauce=x"], "unknown argument '--sauce'; did you mean '--source'"),
        (["digits", "--source=x"], "digits are embedded"),
        (["digits", "--threads=0"], "--threads: 0"),
        (["digits", "--max_pixels=0"], "--max_pixels: 0; it must be at least 1"),
        (["digits", "--max_pixels=9", "--check=counts"], "--max_pixels: has no effect with --check=counts"),
        (["digits", "--name=a"], "--name=NAME: required with `folder`"),
        (["folder", "--source=x"], "--name=NAME: required with `folder`"),
        (["digits", "--class_names=x"], "--class_names: only with `folder`"),
        (["folder", "--name=a"], "--source=FOLDER and --name=NAME are needed"),
        (["folder", "--name=A b", "--source=x"], "a name consists of a-z, 0-9 and _"),
        (["fashion_mnist", "--source=nowhere"], "nowhere: no such folder"),
        (["imagenet2012"], "--source=FOLDER is needed: the folder of ILSVRC2012_img_train.tar"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys, run):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_unwritable_data_dir_is_one_line(tmp_path, capsys, run):
    (tmp_path / "file").write_text("")
    assert run("digits", f"--data_dir={tmp_path / 'file' / 'below'}") == 2
    assert "Not a directory" in capsys.readouterr().err


def test_wrong_file_format_is_said(tmp_path, monkeypatch, run):
    assert run("digits", f"--data_dir={tmp_path}") == 0
    info = tmp_path / "digits" / "1.0.0" / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace("array_record", "riegeli"))
    with pytest.raises(
        UserError, match="prepared as riegeli; array_record, tfrecord, parquet can be read: move it away"
    ):
        load("digits:1.0.0", "train", str(tmp_path))
    info.write_text(text.replace('"array_record"', '"riegeli", "alternativeFileFormats": ["array_record"]'))
    assert load("digits:1.0.0", "test", str(tmp_path)).num_examples == 360
    info.write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"digits-train\.tfrecord-00000-of-00001: this file .* is missing"):
        load("digits:1.0.0", "train", str(tmp_path))
    info.write_text("{")
    with pytest.raises(UserError, match="cannot be opened"):
        load("digits:1.0.0", "train", str(tmp_path))


def test_images_of_any_kind_pass_the_decoding_check(tmp_path, run, records):
    for name, image in (("grey/1.jpg", np.zeros((9, 9), np.uint8)), ("alpha/2.png", np.zeros((9, 9, 4), np.uint8))):
        (tmp_path / "images" / name).parent.mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "images" / name), image)
    arguments = ("folder", "--name=odd", f"--source={tmp_path / 'images'}", f"--data_dir={tmp_path}")
    assert run(*arguments) == 0
    assert len(records("odd", "train", tmp_path)) == 2


def test_a_folder_is_accounted_for_and_what_leaves_labels_open_is_refused(tmp_path, run, encoded_image, capsys):
    """An unlabelled test split is left out; a single class or an empty one ends the preparation."""
    source = tmp_path / "images"
    for name in ("train/cat/1.png", "train/dog/2.png", "test/3.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(encoded_image())
    arguments = ("folder", f"--source={source}", f"--data_dir={tmp_path}")
    assert run(*arguments, "--name=pets") == 0
    told = capsys.readouterr().err
    assert "split 'test' cannot be used: " in told and "prepared, train 2\n" in told and "  cat        1" in told
    (source / "train" / "eel").mkdir()
    assert run(*arguments, "--name=empty") == 2
    assert "train/eel: a class folder without images" in capsys.readouterr().err
    assert run("folder", "--name=one", f"--source={source / 'train' / 'cat'}", f"--data_dir={tmp_path}") == 2
    assert f"do you mean the folder above it, {source / 'train'}?" in capsys.readouterr().err
    (source / "train").rename(tmp_path / "deep")
    (tmp_path / "deep" / "eel").rmdir()
    (source / "all").mkdir()
    (tmp_path / "deep").rename(source / "all" / "pets")
    (source / "test" / "3.png").unlink()
    assert run(*arguments, "--name=one") == 2
    told = capsys.readouterr().err
    assert (
        "a single class, 'all'; two or more are needed; one level too high?" in told and "pets holds cat, dog" in told
    )
