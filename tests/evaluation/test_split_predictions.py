"""Saved predictions, ensembles, lists of examples to leave out, and other labels, without a network."""

import dataclasses
import json

import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.evaluation import relabelling, split_predictions
from inception_jax.evaluation.split_predictions import SplitPredictions

PROBABILITIES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])


def predictions(names=None, **changes):
    about = {"dataset": "pets", "split": "val", "digest": "d", "members": [{"model": "inception_v3"}]}
    names = names or [f"/data/pets/val/{folder}/{i}.jpg" for i, folder in enumerate(("cat", "dog", "dog", "ant"))]
    labels = np.array([0, 2, 2, 1], np.int32)
    found = SplitPredictions(about, ["cat", "dog", "ant"], np.array(names), np.arange(4), labels, np.log(PROBABILITIES))
    return dataclasses.replace(found, **changes)


def ilsvrc(class_name=""):
    return predictions([f"/data/val/ILSVRC2012_val_0000000{number}{class_name}.JPEG" for number in (3, 1, 4, 2)])


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_metrics_are_those_of_the_probabilities():
    found = predictions().accumulate().result()
    assert (found["top1"], found["top5"], found["count"]) == (0.5, 1.0, 4)
    assert found["loss"] == pytest.approx(-np.log([0.6, 0.3, 0.7, 0.3]).mean())


def test_a_file_is_read_as_it_was_written(tmp_path):
    saved = predictions()
    saved.save(tmp_path / "a.npz")
    found = split_predictions.load(tmp_path / "a.npz")
    assert (found.about, found.class_names) == (saved.about, saved.class_names)
    for name in ("names", "index", "labels", "log_probabilities"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
    np.savez(tmp_path / "b.npz", x=1)
    for content in (None, b"no file of arrays", b""):
        if content is not None:
            (tmp_path / "b.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"b\.npz: not predictions of evaluate --save_predictions"):
            split_predictions.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"about": {**predictions().about, "split": "test"}}, "B: its split is 'test', that of A 'val'"),
        ({"about": {**predictions().about, "digest": "e"}}, "B: its digest is 'e'"),
        ({"class_names": ["dog", "cat", "ant"]}, "B: other classes than A: .*in another order"),
        ({"index": np.array([0, 1, 2, 4])}, "B: 4 examples that are not the 4 of A"),
        ({"labels": np.array([0, 1, 2, 1], np.int32)}, "or other labels"),
    ],
)
def test_what_does_not_belong_together_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        split_predictions.average([predictions(), predictions(**changes)], ["A", "B"])


def test_the_mean_is_of_probabilities():
    other = predictions(log_probabilities=np.log(PROBABILITIES[:, ::-1]))
    mean = split_predictions.average([predictions(), other, other], "ABC")
    np.testing.assert_allclose(np.exp(mean.log_probabilities), (PROBABILITIES + 2 * PROBABILITIES[:, ::-1]) / 3)
    assert len(mean.about["members"]) == 3


def test_images_are_left_out_by_name_and_by_number(tmp_path):
    listed = write(tmp_path / "list.txt", "# a comment\ncat/0.jpg\n\n2\n")
    with pytest.raises(UserError, match=r"line 4: number 2: the files of pets .* have no numbers of ILSVRC"):
        relabelling.exclude(predictions(), listed)
    found = relabelling.exclude(predictions(), write(tmp_path / "list.txt", "cat/0.jpg\ndog/2\n"))
    assert found.index.tolist() == [1, 3]
    lists = (
        "3\r\n4\r\n",
        "ILSVRC2012_val_00000003.JPEG\nval/ILSVRC2012_val_00000004",
    )  # the first with Windows's line ends
    for text in lists:
        for class_name in ("", "_n01440764"):  # as Hugging Face's copy has them
            found = relabelling.exclude(ilsvrc(class_name), write(tmp_path / "list.txt", text))
            assert found.index.tolist() == [1, 3]
    for line, message in (("5", "no image has the number 5"), ("cat/9.jpg", "no example has the name 'cat/9.jpg'")):
        with pytest.raises(UserError, match=f"list.txt, line 1: {message}"):
            relabelling.exclude(ilsvrc(), write(tmp_path / "list.txt", line))
    twice = predictions(["a/1.jpg", "b/1.jpg", "c/2.jpg", "d/3.jpg"])
    with pytest.raises(UserError, match=r"2 examples have the name '1.jpg'.*; give more of the path"):
        relabelling.exclude(twice, write(tmp_path / "list.txt", "1.jpg"))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        relabelling.exclude(twice, "nowhere.txt")


def test_several_right_labels(tmp_path):
    """As real.json: a list in the order of ILSVRC's numbers; the order of the split is another one."""
    content = [[0, 1], ["dog"], [], [2, 0]]  # images 1 to 4; the split has 3, 1, 4, 2
    found = relabelling.relabel(ilsvrc(), write(tmp_path / "real.json", content))
    assert found.index.tolist() == [1, 2, 3]
    assert found.labels.tolist() == [1, 2, 1]  # the most probable of 0 and 1; of 2 and 0; dog
    assert found.accumulate().result()["top1"] == pytest.approx(2 / 3)
    by_name = {"cat/0.jpg": "dog", "dog/1.jpg": [0, 2]}
    found = relabelling.relabel(predictions(), write(tmp_path / "named.json", by_name))
    assert (found.index.tolist(), found.labels.tolist()) == ([0, 1], [1, 2])


def test_a_part_of_the_classes(tmp_path):
    """As for sets with a part of ImageNet's classes: the others cannot be predicted."""
    content = {"classes": ["cat", "ant"], "labels": [0, 2, 2, 0]}
    found = relabelling.relabel(predictions(), write(tmp_path / "part.json", content))
    expected = PROBABILITIES[:, [0, 2]] / PROBABILITIES[:, [0, 2]].sum(1, keepdims=True)
    np.testing.assert_allclose(np.exp(found.log_probabilities[:, [0, 2]]), expected)
    assert found.accumulate().result()["top1"] == 0.75  # the second's dog is out, and ant is right


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2", "not JSON"),
        ("3", "a int; a list or an object"),
        ([1, 2], "2 entries; the split has 4 examples"),
        ([0, 0, 0, 0, 0], "5 entries; the split has 4 examples"),
        ([0, 0, 3, 0], "class 3; the classes are 0 to 2"),
        ([0, 0, "dgo", 0], "unknown class 'dgo'; did you mean 'dog'"),
        ([[], [], [], []], "no example has a label"),
        ({"cat/7.jpg": 0}, "no example has the name"),
        ({"classes": [], "labels": [0, 0, 0, 0]}, "'classes' is empty"),
        ({"classes": [1], "labels": [0, 1, 1, 1]}, "a class that is not one of 'classes'"),
    ],
)
def test_mistakes_in_a_file_of_labels(content, message, tmp_path):
    with pytest.raises(UserError, match=f"labels.json.*{message}"):
        relabelling.relabel(predictions(), write(tmp_path / "labels.json", content))
