"""What is told of a training and an evaluation split that do not fit each other."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from inception_jax.data.datasets import load_splits
from inception_jax.training import log_header, split_checks
from inception_jax.training.setup import build
from inception_jax.training.state import TrainState

from .test_restore import config

PREPARED = Path(__file__).parents[1] / "data" / "prepared_by_tfds" / "tfrecord"


@pytest.fixture
def listed(tmp_path):
    """A list of 10 images sorted by class."""
    rows = ["path,label"]
    for index in range(10):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.full((9, 9, 3), index, np.uint8))
        rows.append(f"{index}.png,{'abc'[index // 4]}")
    (tmp_path / "all.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "all.csv"


@pytest.mark.parametrize(
    ("splits", "shared"),
    [
        (["train[:80%]", "train[80%:]"], 0),
        (["train", "test"], 0),
        (["train", "train[90%:]"], 144),
        (["train[:50%]+train[:60%]", "train[40%:]+test"], 287),
        (["train", "train"], 1437),
        (["test[:10]", "train+test"], 10),
    ],
)
def test_examples_in_both_splits_are_counted(splits, shared):
    train, evaluation = load_splits("digits", splits)
    assert split_checks.count_shared(train, evaluation) == shared
    lines = split_checks.compare_splits(train, evaluation)
    assert len(lines) == bool(shared)
    assert not shared or lines[0].startswith(f"{shared:,} of the {evaluation.num_examples:,} evaluation examples (")


def test_a_prepared_set_knows_its_ranges(tmp_path):
    shutil.copytree(PREPARED, tmp_path / "sets")
    splits = ["train[:6]", "train[4:]+test"]
    train, evaluation = load_splits("shapes/plain:1.2.0", splits, data_dir=str(tmp_path / "sets"))
    assert split_checks.count_shared(train, evaluation) == 2


def test_images_that_are_in_both_splits_of_a_list(listed):
    rows = ["0.png,a,train", "1.png,b,train", "1.png,b,test", "./1.png,b,test", "2.png,a,test"]
    listed.write_text("\n".join(["path,label,split", *rows]) + "\n")
    splits = load_splits(f"list:{listed}", ["train", "test"])
    assert split_checks.count_repeated(*splits) == 2 and split_checks.count_shared(*splits) == 0
    (line,) = split_checks.compare_splits(*splits)
    assert line.startswith("2 of the 3 evaluation examples (test)") and "remove the rows of their images" in line


def test_classes_that_training_never_sees(listed):
    train, evaluation = load_splits(f"list:{listed}", ["train[:80%]", "train[80%:]"])
    (line,) = split_checks.compare_splits(train, evaluation)
    assert line.startswith("train[:80%] has no examples of 'c', but 2 of the 2 examples of train[80%:] are of these")
    assert line.endswith("; are they sorted by class? Then bring them (the rows of a list) into random order")
    text = listed.read_text().splitlines()
    listed.write_text("\n".join([text[0], *text[:0:-1]]) + "\n")
    train, evaluation = load_splits(f"list:{listed}", ["train[50%:]", "train[:20%]"])
    assert "'c'" in split_checks.compare_splits(train, evaluation)[0]
    rows = [text[1 + index] for index in (0, 4, 8, 1, 5, 9, 2, 6, 3, 7)]
    listed.write_text("\n".join([text[0], *rows]) + "\n")
    assert split_checks.compare_splits(*load_splits(f"list:{listed}", ["train[:80%]", "train[80%:]"])) == []


def test_parts_of_a_sorted_list(listed):
    """Where training has all classes of the evaluation, and the evaluation lacks some."""
    (line,) = split_checks.compare_splits(*load_splits(f"list:{listed}", ["train[:60%]", "train[60%:80%]"]))
    assert line.startswith("train[:60%] and train[60%:80%] are sorted by class, and train[60%:80%] has no examples of")
    assert split_checks.compare_splits(*load_splits("digits", ["train[:1400]", "train[1400:1404]"])) == []


def test_classes_of_several_labels_that_training_never_sees(listed):
    """An example is counted once, however many of them it has."""
    rows = ["0.png,a,train", "1.png,a,train", "2.png,b|c|a,test", "3.png,b|d,test", "4.png,a,test", "5.png,,test"]
    listed.write_text("\n".join(["path,label,split", *rows]) + "\n")
    (listed.parent / "names").write_text("a\nb\nc\nd\n")
    names = str(listed.parent / "names")
    train, evaluation = load_splits(f"list:{listed}", ["train", "test"], class_names=names, labels="multi")
    (line,) = split_checks.compare_splits(train, evaluation)
    assert line.startswith("train has no examples of 'b', 'c', 'd', but 2 of the 4 examples of test are")


def test_the_log_tells_of_them(listed):
    fields = {"data.train_split": "train[:80%]", "data.eval_split": "train[80%:]", "data.name": f"list:{listed}"}
    header = log_header.format_header(build(config(**fields)), TrainState(0, {}, {}, (), None), 0)
    assert "warning: train[:80%] has no examples of 'c', but 2 of the 2" in header
