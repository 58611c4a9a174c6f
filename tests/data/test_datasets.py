"""Data sets by name: what is found, in which order, and what is said when it is not."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from inception_jax.data import datasets, folder_files, prepared_sets
from inception_jax.data.datasets import load
from inception_jax.errors import UserError


def test_importing_and_reading_digits_imports_neither_jax_nor_tensorflow():
    """Workers import the package again: what it imports, each of them pays for."""
    code = (
        "import sys\n"
        "from inception_jax.data import pipeline, datasets, prepare\n"
        "data = datasets.load('digits', 'train')\n"
        "pipeline.TrainPipeline(data, batch_size=2, image_size=8, seed=0, augmentation={}).batch(0)\n"
        "found = {'jax', 'flax', 'orbax', 'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules)\n"
        "assert not found, found\n"
        "from inception_jax.data import builders, imagenet2012, shards\n"
        "found = {'jax', 'flax', 'orbax', 'tensorflow', 'grain'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_digits_need_no_preparation(tmp_path):
    for split, count in (("train", 1437), ("test", 360)):
        data = load("digits", split, str(tmp_path))
        assert (data.name, data.split, data.num_examples, data.num_classes) == ("digits", split, count, 10)
        assert data.class_names == [str(i) for i in range(10)]
        image, label = data.record(0)
        assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() > 200 and 0 <= label < 10
        assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])


def labels(data) -> list[int]:
    return [data.record(i)[1] for i in range(data.num_examples)]


def test_slices_and_sums_of_splits():
    train, test = labels(load("digits", "train")), labels(load("digits", "test"))
    assert labels(load("digits", "train[:90%]")) == train[:1293]
    assert labels(load("digits", "train[90%:]")) == train[1293:]
    assert labels(load("digits", "train[10:20]")) == train[10:20]
    assert labels(load("digits", "train[-5:]+test")) == train[-5:] + test
    joined = load("digits", "train[-5:]+test[3:]")
    assert joined.record_name(5).endswith("record 3")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "unknown split 'trian' of digits; did you mean 'train'.*train .1437., test .360."),
        ("validation", "unknown split 'validation' of digits; splits: train"),
        ("train[:200%]", "should be in .-100, 100"),
        ("train[", r"not a split such as train, train\[:80%\], train\[5000:\] or train\+test"),
        ("train[:0.8]", r"a part is given in percent; did you mean .train\[:80%\].\?; splits: train"),
        ("train[-.2:]+test", r"did you mean .train\[-20%:\]\+test."),
        ("train[5:5]", "has no examples"),
        ("", "split '' of digits"),
    ],
)
def test_refuses_splits_that_are_not_there(split, message):
    with pytest.raises(UserError, match=message):
        load("digits", split)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digitz", "unknown data set 'digitz'; did you mean 'digits'"),
        ("cifar", "unknown data set 'cifar'; did you mean 'cifar10'"),
        (
            "cifar10",
            r"run once, with tensorflow-cpu .*: python -c .*tfds.builder\(.cifar10., data_dir=.*download_and_prepare",
        ),
        ("fashion_mnist", "not prepared in .*; run: python -m inception_jax.data.prepare fashion_mnist --data_dir="),
        ("imagenet2012", "run: python -m inception_jax.data.prepare imagenet2012 --data_dir=.* --source="),
        ("synthetic:0", "synthetic:CLASSES"),
        ("synthetic:10:a", "synthetic:CLASSES"),
        ("folder:nowhere", "nowhere: no such folder"),
        ("no name/", "not a name, and there is no such path; .* files are folder:PATH, list:FILE"),
        ("nowhere/photos.csv", "nowhere/photos.csv is not there; a list .* with its kind: list:nowhere/photos.csv$"),
        ("shards-{0..3}.tar", "tars are named with their kind: webdataset:shards-{0..3}.tar$"),
        ("hugginface:a/b", "unknown kind 'hugginface'; did you mean 'huggingface'.; kinds: folder:PATH, list:FILE,"),
        ("hf:a/b", "unknown kind 'hf'; did you mean 'huggingface:a/b'."),
        ("Image-Folder:a", "unknown kind 'Image-Folder'; did you mean 'folder:a'."),
        ("csv:a.csv", "did you mean 'list:a.csv'."),
        ("Folder:a", "did you mean 'folder:a'."),
        ("x:y", "unknown kind 'x'; after a colon .* version.*; kinds: folder:PATH, list:FILE, webdataset:PATTERN, hug"),
        (
            "digits:test",
            "unknown kind 'digits'; after a colon stands a version, such as 1.2.3; a split is ",
        ),
        ("hf://datasets/a", "an address; a data set of Hugging Face's hub is read from the copy .*: huggingface:PATH"),
        ("", "data set '': no name; is a variable of the shell unset"),
        ("webdataset", "webdataset:PATTERN is needed"),
        ("list:", "data set 'list:': list:FILE is needed; is a variable of the shell unset"),
        ("mnist:experimental_latest", "data set 'mnist:experimental_latest'"),
        ("gs://bucket/a", "an address; class folders are named with their kind: folder:gs://bucket/a"),
        ("digits:3.0.0", "data set 'digits:3.0.0' is not prepared"),
        ("mnist:3.*.*", "data set 'mnist:3.*.*' is not prepared"),
    ],
)
def test_says_what_to_do_about_data_sets_that_are_not_there(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(name, "train", str(tmp_path))


def test_a_set_that_is_prepared_in_configs_alone_names_them(tmp_path):
    for config in ("resize_256_raw", "resize_256_jpeg95"):
        folder = tmp_path / "photos" / config / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"has photos/resize_256_jpeg95, photos/resize_256_raw$"):
        load("photos", "train", str(tmp_path))
    with pytest.raises(UserError, match=r"data sets: .*, photos/resize_256_raw, or any"):
        load("nothing_like_it", "train", str(tmp_path))


def test_data_dir_is_the_argument_then_the_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", "/from/environment")
    assert str(prepared_sets.default_data_dir(tmp_path)) == str(tmp_path)
    assert str(prepared_sets.default_data_dir()) == "/from/environment"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert str(prepared_sets.default_data_dir()) == "/home/of/mine/tensorflow_datasets"


def test_synthetic_images_differ_and_stay_the_same():
    data = load("synthetic:10:32", "train")
    assert data.num_classes == 10 and data.num_examples == 1_281_167
    first, label = data.record(3)
    assert first.shape == (32, 32, 3) and label == 3
    assert np.array_equal(first, load("synthetic:10:32", "train").record(3)[0])
    assert not np.array_equal(first, data.record(4)[0])
    assert load("synthetic", "validation").record(0)[0].shape == (256, 256, 3)


def test_folder_of_images(image_folder):
    data = load(f"folder:{image_folder}", "train")
    assert data.class_names == ["cat", "dog", "eel"] and data.num_examples == 14
    assert sorted(labels(data)) == [0] * 6 + [1] * 5 + [2] * 3
    assert load(f"folder:{image_folder}", "test").num_examples == 7
    for i in range(14):
        encoded, label = data.record(i)
        path = data.source.path(i)
        assert Path(path).read_bytes() == encoded and f"/train/{data.class_names[label]}/" in path
        assert path in data.record_name(i)


def test_folder_is_read_mixed_so_that_a_part_is_a_fair_sample(tmp_path, encoded_image):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(50):
            (tmp_path / name / f"{i}.png").write_bytes(encoded_image(i, 2, 2))
    drawn = labels(load(f"folder:{tmp_path}", "train[:50%]"))
    assert 15 < sum(drawn) < 35
    with pytest.raises(UserError, match=r"unknown split 'test'.*train .100."):
        load(f"folder:{tmp_path}", "test")


def test_folder_order_is_tfds_own():
    from tensorflow_datasets.core import hashing

    keys = [f"cat/{i}.jpg" for i in range(50)] + list(range(20))
    hasher = hashing.Hasher("train")
    assert folder_files.hash_order(keys, "train") == sorted(range(70), key=lambda i: hasher.hash_key(keys[i]))


def test_refuses_folders_that_are_no_data_set(image_folder, tmp_path, encoded_image):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no class folders"):
        load(f"folder:{tmp_path / 'empty'}", "train")
    (image_folder / "test" / "cow").mkdir()
    assert load(f"folder:{image_folder}", "train").num_examples == 14  # what is wrong with "test" does not concern it
    with pytest.raises(UserError, match=r"cow: a class folder without images|class 'cow' is not in"):
        load(f"folder:{image_folder}", "test")
    (image_folder / "test" / "cow" / "1.png").write_bytes(encoded_image())
    with pytest.raises(UserError, match=r"test/cow: class 'cow' is not in .*/train"):
        load(f"folder:{image_folder}", "test")


def test_a_file_that_has_gone_is_named(image_folder):
    data = load(f"folder:{image_folder}", "train")
    (image_folder / "train" / "cat" / "0.png").unlink()
    index = next(i for i in range(14) if data.source.path(i).endswith("train/cat/0.png"))
    with pytest.raises(UserError, match=r"train/cat/0.png: No such file"):
        data.record(index)


def test_a_label_that_is_no_class_is_named():
    data = load("digits", "train")
    wrong = datasets.Dataset("digits", "train", data.class_names[:5], data.source)
    index = labels(data).index(7)
    with pytest.raises(UserError, match=rf"digits \[train\], record {index}: label 7; the classes are 0 to 4"):
        wrong.record(index)


@pytest.mark.parametrize("name", ["digits", "synthetic:10:16", "folder"])
def test_data_sets_pickle(name, image_folder):
    data = load(f"folder:{image_folder}" if name == "folder" else name, "train")
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(np.frombuffer(again.record(5)[0], np.uint8), np.frombuffer(data.record(5)[0], np.uint8))
