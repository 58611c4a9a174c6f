"""data.json: what a run knows of its data, and in which words other data is refused."""

import json

import numpy as np
import pytest

from inception_jax.data import digits
from inception_jax.data.datasets import load, load_splits
from inception_jax.data.example_records import ArrayRecords, FileInstruction
from inception_jax.data.records import MemoryRecords
from inception_jax.errors import UserError
from inception_jax.runs import data_record


@pytest.fixture
def pets(tmp_path):
    """A function that writes images of the classes as {class: number}, and describes the data."""

    def make(train=None, test=None):
        for split, counts in (("train", train or {"cat": 3, "dog": 2}), ("test", test or {"cat": 1, "dog": 1})):
            for name, count in counts.items():
                (tmp_path / "pets" / split / name).mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    (tmp_path / "pets" / split / name / f"{index}.png").write_bytes(b"1234")
        return data_record.describe(*load_splits(f"folder:{tmp_path / 'pets'}", ["train", "test"]))

    return make


@pytest.fixture
def run(tmp_path, pets):
    """The workdir of a run on cats and dogs."""
    (tmp_path / "run").mkdir()
    data_record.write(tmp_path / "run", pets())
    return tmp_path / "run"


def test_what_is_recorded(run):
    content = json.loads((run / "data.json").read_text())
    assert content["classes"] == ["cat", "dog"] and content["dataset"].startswith("folder:")
    assert {name: content["train_split"][name] for name in ("split", "examples", "class_counts")} == {
        "split": "train",
        "examples": 5,
        "class_counts": [3, 2],
    }
    assert len(content["eval_split"]["digest"]) == 64
    assert json.loads((run / "classes.json").read_text())["names"] == ["cat", "dog"]


def test_the_same_data_goes_on(run, pets):
    assert data_record.refuse_changed(run, pets()) == []


def test_other_classes_are_refused_in_words_of_classes(run, pets, tmp_path):
    (tmp_path / "pets" / "train" / "dog").rename(tmp_path / "pets" / "train" / "ant")
    (tmp_path / "pets" / "test" / "dog").rename(tmp_path / "pets" / "test" / "ant")
    message = (
        "the run was trained on 'cat', 'dog'; the data has 'ant', 'cat'; put the data back as it was, or choose another"
    )
    with pytest.raises(UserError, match=message) as caught:
        data_record.refuse_changed(
            run, data_record.describe(*load_splits(f"folder:{tmp_path / 'pets'}", ["train"] * 2))
        )
    assert "opt_state" not in str(caught.value) and "\n" not in str(caught.value)
    (run / "data.json").unlink()  # classes.json alone, as earlier versions wrote it, is enough
    with pytest.raises(UserError, match=message):
        data_record.refuse_changed(
            run, data_record.describe(*load_splits(f"folder:{tmp_path / 'pets'}", ["train"] * 2))
        )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            {"cat": 3, "dog": 4},
            None,
            r"training split 'train': 7 examples, and 5 when the run began \('dog' 4, was 2\); ",
        ),
        (None, {"cat": 2}, r"evaluation split 'test': 3 examples, and 2 when the run began \('cat' 2, was 1\); "),
    ],
)
def test_other_examples_are_refused_in_words_of_examples(train, test, message, run, pets):
    with pytest.raises(UserError, match=message + r".*remove .*data\.json"):
        data_record.refuse_changed(run, pets(train, test))


def test_another_file_of_the_same_number_is_noticed_by_name_and_size_but_not_by_content(run, pets, tmp_path):
    file = tmp_path / "pets" / "train" / "cat" / "0.png"
    file.write_bytes(b"4321")
    assert data_record.refuse_changed(run, pets({"cat": 0, "dog": 0}, {"cat": 0, "dog": 0})) == []
    file.write_bytes(b"12345")
    message = "training split 'train': 5 examples as before, but other names or sizes of their files"
    with pytest.raises(UserError, match=message):
        data_record.refuse_changed(run, pets({"cat": 0, "dog": 0}, {"cat": 0, "dog": 0}))
    file.write_bytes(b"4321")
    file.rename(file.with_name("9.png"))
    with pytest.raises(UserError, match=message):
        data_record.refuse_changed(run, pets({"cat": 0, "dog": 0}, {"cat": 0, "dog": 0}))


def test_a_run_of_an_earlier_version_gets_its_record_with_one_line(run, pets):
    (run / "data.json").unlink()
    (note,) = data_record.refuse_changed(run, pets())
    assert "did not record its data; recorded from now on in data.json: 2 classes, 5 training and 2 evaluation" in note
    (run / "classes.json").unlink()
    assert data_record.refuse_changed(run, pets()) == []  # a new run


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (["a", "b"], ["a", "b"], ""),
        (["a", "b"], ["b", "a"], "on 'a', 'b'; the data has 'b', 'a': in another order (class 0 was 'a' and is 'b')"),
        (["a", "b"], ["a", "b", "c"], "on 'a', 'b'; the data has 'a', 'b', 'c'"),
        (
            [str(i) for i in range(1000)],
            [str(i) for i in range(1, 1000)] + ["x"],
            "on 1,000 classes; the data has 1,000 classes (without '0', with 'x')",
        ),
    ],
)
def test_how_classes_differ(before, now, message):
    assert data_record.class_difference(before, now) == (message and f"the run was trained {message}")


def test_classes_with_numbers_for_names_are_not_known(run):
    (run / "classes.json").write_text(json.dumps({"dataset": "x", "names": ["class 0", "class 1"]}))
    assert data_record.read_class_names(run) is None
    data_record.refuse_other_classes(run, load("digits", "test"), "")


def test_evaluating_on_purpose_on_other_examples_is_a_note(run, pets, tmp_path):
    pets({"cat": 9, "dog": 9})
    train, test = load_splits(f"folder:{tmp_path / 'pets'}", ["train", "test"])
    (note,) = data_record.note_other_examples(run, train)
    assert note.startswith("note: training split 'train' of the run: 18 examples, and 5 when the run began")
    assert data_record.note_other_examples(run, test) == []
    assert data_record.note_other_examples(run, load(train.name, "train[:50%]")) == []
    with pytest.raises(UserError, match="the run was trained on 'cat', 'dog'; the data has 10 classes"):
        data_record.refuse_other_classes(run, load("digits", "test"), "")


def test_a_damaged_record_is_named(run, pets):
    (run / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json is damaged"):
        data_record.refuse_changed(run, pets())


def test_every_kind_of_data_has_a_digest(tmp_path):
    """Digits, their slices, noise, arrays and prepared files: the same data the same digest, other data another."""
    names = [("digits", "train"), ("digits", "test"), ("digits", "test[:9]"), ("digits", "test[1:10]"),
             ("digits", "test+train"), ("synthetic:10:8", "train"), ("synthetic:10:9", "train")]  # fmt: skip
    digests = [load(*name).source.digest() for name in names]
    assert len(set(digests)) == len(names) and digests == [load(*name).source.digest() for name in names]
    assert load("digits", "test[:100%]").source.digest() == digests[1]
    images = np.zeros((4, 2, 2, 3), np.uint8)
    assert MemoryRecords(images, np.arange(4)).digest() != MemoryRecords(images, np.zeros(4, int)).digest()
    for folder in ("a", "b"):  # moving prepared files changes nothing
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x-train.array_record-00000-of-00001").write_bytes(b"123")
    sources = [
        ArrayRecords(
            [FileInstruction(str(tmp_path / folder / "x-train.array_record-00000-of-00001"), 0, take, 9)], "", ""
        )
        for folder, take in (("a", 9), ("b", 9), ("b", 8))
    ]
    assert sources[0].digest() == sources[1].digest() != sources[2].digest()
    with pytest.raises(UserError, match="this file of the prepared data set is missing"):
        ArrayRecords([FileInstruction(str(tmp_path / "c"), 0, 1, 1)], "", "").digest()


def test_counts_of_classes_where_they_are_known():
    described = data_record.describe(load("digits", "train[:100]"), load("digits", "test"))
    images, labels, _ = digits.load("train")
    assert described["train_split"]["class_counts"] == np.bincount(labels[:100]).tolist() and len(images)


def test_the_kind_of_labels_is_that_of_a_run_or_of_a_folder_for_a_hub(tmp_path):
    several = {"data": {"labels": "multi"}}
    for content, kind in (({"data": {}}, "single"), (several, "multi"), ({"config": several}, "multi")):
        (tmp_path / "config.json").write_text(json.dumps(content))
        data_record.refuse_other_label_kind(tmp_path, kind)
        with pytest.raises(UserError, match=f"was trained with '{kind}'"):
            data_record.refuse_other_label_kind(tmp_path, {"single": "multi", "multi": "single"}[kind])
