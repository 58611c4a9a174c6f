"""Several labels per example: from lists, tars, arrays, objects and data sets that TFDS prepared; and what has none."""

import json
import pickle

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inception_jax.data import datasets, index_files, prepare
from inception_jax.data.datasets import load, load_splits
from inception_jax.data.label_sets import LabelSets, digest_parts
from inception_jax.data.pipeline import EvalPipeline, TrainPipeline
from inception_jax.data.records import label_counts, sha256
from inception_jax.errors import UserError
from inception_jax.runs import data_record

from .test_webdatasets import pack

SETS = [("cat", "dog"), (), ("dog",), ("cat", "eel"), ("dog", "cat")]
TABLE = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 0]]


def rows(data):
    return [data.record(i)[1].tolist() for i in range(data.num_examples)]


def multi(name, split="train", **options):
    return load(name, split, labels="multi", **options)


@pytest.fixture
def folder(tmp_path, encoded_image):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encoded_image(number, 4, 4))
    return tmp_path


def write(folder, text, name="list.csv"):
    (folder / name).write_text(text)
    return f"list:{folder / name}"


def test_label_sets():
    sets = LabelSets.pack([[2, 0, 2], [], [1]], 3)
    assert [sets.row(i).tolist() for i in range(3)] == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert sets.counts().tolist() == [1, 1, 1] and sets.row(-1).tolist() == [0, 1, 0]
    table = LabelSets.from_table(np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]))
    assert table.ends.tolist() == sets.ends.tolist() and table.classes.tolist() == sets.classes.tolist()
    wider = LabelSets.pack([[2, 0, 2], [], [1]], 4)  # a class that no example has
    assert sha256(*digest_parts(wider)) != sha256(*digest_parts(sets)) == sha256(*digest_parts(table))
    joined = LabelSets.join([sets.select(1, 3), sets.select(0, 1), sets.select(2, 2)])
    assert [joined.row(i).tolist() for i in range(len(joined))] == [[0, 0, 0], [0, 1, 0], [1, 0, 1]]


def test_lists(folder):
    text = "path,label\n" + "".join(f"{i}.png,{' | '.join(labels)}\n" for i, labels in enumerate(SETS))
    data = multi(write(folder, text))
    assert data.class_names == ["cat", "dog", "eel"] and rows(data) == TABLE
    assert data.label_columns == 3 and label_counts(data.source, 3) == [3, 3, 1]
    assert data.account[:4] == ("  class  train", "  cat        3", "  dog        3", "  eel        1")
    columns = "path,cat,dog,eel\n" + "".join(f"{i}.png,{','.join(map(str, row))}\n" for i, row in enumerate(TABLE))
    table = write(folder, columns, "columns.csv")
    wide = multi(table, label_key="*")
    assert wide.class_names == data.class_names and wide.source.digest() == data.source.digest()
    paths = [f"{i}.png" for i in range(5)]
    pyarrow.parquet.write_table(pyarrow.table({"path": paths, "label": [[*s] for s in SETS]}), folder / "l.parquet")
    assert multi(f"list:{folder}/l.parquet").source.digest() == data.source.digest()
    values = {"path": paths} | {name: [row[k] for row in TABLE] for k, name in enumerate(data.class_names)}
    pyarrow.parquet.write_table(pyarrow.table(values), folder / "wide.parquet")
    assert rows(multi(f"list:{folder}/wide.parquet", label_key="*")) == TABLE

    classes = folder / "classes.txt"
    classes.write_text("eel\ncat\ndog\nfox\n")
    named = multi(table, label_key="*", class_names=str(classes))
    assert named.class_names == ["eel", "cat", "dog", "fox"] and rows(named)[3] == [1, 1, 0, 0]
    numbers = multi(write(folder, "path,label\n0.png,2|0\n1.png,\n2.png,1\n", "numbers.csv"))
    assert rows(numbers) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]

    part, whole = multi(table, "train[:40%]", label_key="*"), multi(table, "train[3:]+train[:1]", label_key="*")
    assert rows(part) == TABLE[:2] and rows(whole) == [*TABLE[3:], TABLE[0]]
    assert label_counts(whole.source, 3) == [3, 2, 1] and part.source.digest() != whole.source.digest()
    single = load(write(folder, "path,label\n" + "".join(f"{i}.png,{i % 3}\n" for i in range(5)), "s.csv"), "train")
    same = multi(f"list:{folder}/s.csv")
    assert single.source.digest() != same.source.digest()  # the form of the labels is in it
    assert data_record.describe_split(same)["class_counts"] == data_record.describe_split(single)["class_counts"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("path,label\n0.png,cat||dog\n", {}, "line 2: label ''; a name or an integer"),
        ("path,label\n0.png,\n", {}, "no image has a label; data.class_names=FILE names the classes"),
        ("path,cat\n0.png,2\n", {"label_key": "*"}, "line 2: '2' of the class 'cat'; 0 or 1 is needed"),
        ("path,cat\n0.png,\n", {"label_key": "*"}, "line 2: '' of the class 'cat'"),
        ("path,cat,cat\n0.png,1,1\n", {"label_key": "*"}, "two of one name; each column is a class"),
        ("path,label\n0.png,cat\n0.png,cat|dog\n", {}, "another label in line 2; the labels of an image stand in one"),
        ("path,label\n0.png,1\n1.png,0;2\n", {}, "line 3: label '0;2': the labels of an image stand in one cell"),
        ('path,label\n0.png,cat\n1.png,"cat, dog"\n', {}, "them, 'cat|dog', with config.data.labels = 'multi'"),
        ("path,label,split\n0.png,cat,train\n1.png,cat|cta,test\n", {"split": "test"}, "'cta' is not among the 1 of"),
    ],
)
def test_lists_that_are_wrong(folder, text, options, message):
    with pytest.raises(UserError, match=message.replace("|", r"\|").replace("(", r"\(").replace("*", r"\*")):
        multi(write(folder, text), **options)


def test_names_with_commas_are_classes(folder):
    """Two of ImageNet's; with several labels where a bar shows that it is known."""
    text = 'path,label\n0.png,maillot\n1.png,"maillot, tank suit"\n'
    names = ["maillot", "maillot, tank suit"]
    assert load(f"list:{write(folder, text).removeprefix('list:')}", "train").class_names == names
    assert multi(write(folder, text + '2.png,"maillot|maillot, tank suit"\n')).class_names == names


def test_columns_of_classes_need_several_labels(folder):
    with pytest.raises(UserError, match=r"set --config.data.labels=multi, or name the column of the label"):
        load(write(folder, "path,cat\n0.png,1\n"), "train", label_key="*")


def test_tars(tmp_path, encoded_image, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)
    members = []
    for number, labels in enumerate([[2, 0, 2], [], [1]]):
        content = json.dumps({"label": labels, "other": 5}).encode()
        members += [
            (f"{number}.png", encoded_image(number, 4, 4)),
            (f"{number}.json", content),
            (f"{number}.cls", b"0"),
        ]
    pack(tmp_path / "a-train.tar", members)
    name = f"webdataset:{tmp_path}/a-{{split}}.tar"
    data = multi(name)
    assert rows(data) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and data.class_names == ["0", "1", "2"]
    assert rows(multi(name)) == rows(data)  # from the index
    again = pickle.loads(pickle.dumps(data))
    assert again.record(0)[1].tolist() == [1, 0, 1]
    assert load(name, "train").labels().tolist() == [0, 0, 0]  # of .cls, by an index of its own
    assert load(name, "train").source.digest() != data.source.digest()
    classes = tmp_path / "classes.txt"
    classes.write_text("2\tfox\n1\tant\n0\tbee\n")
    assert rows(multi(name, class_names=str(classes))) == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    classes.write_text("2\tfox\n0\tbee\n")
    with pytest.raises(UserError, match=r"'2' of .*a-train.tar: label 1 is not among the 2"):
        multi(name, class_names=str(classes))
    assert load(name, "train", label_key="other").class_names[5] == "5"  # its index is not that of several labels
    with pytest.raises(UserError, match=r"'other' = 5; with config.data.labels = 'multi' a list of integers"):
        multi(name, label_key="other")
    with pytest.raises(UserError, match=r"has no label: .json with a list or a dict 'none' is needed"):
        multi(name, label_key="none")


def pack_fields(file, examples):
    members = [(f"{file.stem}{n}.json", json.dumps(fields).encode()) for n, fields in enumerate(examples)]
    pack(file, [one for name, content in members for one in ((name.replace("json", "png"), b"image"), (name, content))])


def test_tars_with_a_bool_for_each_class(tmp_path):
    """In a dict, as celeb_a of TFDS has it, or beside other fields; the classes are sorted, as in features.json."""
    for split, table in (("train", TABLE[:3]), ("train2", TABLE[3:]), ("test", TABLE[:1])):
        fields = [dict(zip(["eel", "cat", "dog"], map(bool, [row[2], *row[:2]]), strict=True)) for row in table]
        numbers = [{name: int(one) for name, one in row.items()} for row in fields]
        examples = zip(fields, numbers, strict=True)
        pack_fields(
            tmp_path / f"a-{split}.tar", [{"id": 1, "label": row, "numbers": n, "x": 2, **row} for row, n in examples]
        )
    pack_fields(tmp_path / "a-train3.tar", [])
    for key in (None, "numbers", "*"):
        data = multi(f"webdataset:{tmp_path}/a-train*.tar", label_key=key)
        assert data.class_names == ["cat", "dog", "eel"] and rows(data) == TABLE
        assert rows(multi(f"webdataset:{tmp_path}/a-train*.tar", label_key=key)) == TABLE  # from the index
        train, test = load_splits(
            f"webdataset:{tmp_path}/a-{{split}}.tar", ["train", "test"], label_key=key, labels="multi"
        )
        assert rows(train) == TABLE[:3] and rows(test) == TABLE[:1] and test.class_names == data.class_names
    classes = tmp_path / "classes.txt"
    classes.write_text("eel\ncat\tCat\ndog\n")
    chosen = multi(f"webdataset:{tmp_path}/a-train*.tar", label_key="*", class_names=str(classes))
    assert chosen.class_names == ["eel", "Cat", "dog"] and rows(chosen)[0] == [0, 1, 1]
    classes.write_text("eel\ndog\n")
    with pytest.raises(UserError, match=r"'a-train0' of .*a-train.tar: label 'cat' is not among the 2 of .*classes"):
        multi(f"webdataset:{tmp_path}/a-{{split}}.tar", class_names=str(classes))
    with pytest.raises(UserError, match=r"label \{'eel': False.* \(several labels .*labels=multi\); an integer"):
        load(f"webdataset:{tmp_path}/a-{{split}}.tar", "train")
    with pytest.raises(UserError, match=r"fields of classes are several labels per image; set --config.data.labels=mu"):
        load(f"webdataset:{tmp_path}/a-{{split}}.tar", "train", label_key="*")


@pytest.mark.parametrize(
    ("second", "label_key", "message"),
    [
        ({"cat": True}, "*", r"x1.json: no class 'dog', which .*x0.json has; all examples need the same classes"),
        ({"cat": True, "dog": 1, "eel": True}, "*", r"x1.json: class 'eel', which .*x0.json does not have"),
        ({"cat": True, "dog": 2}, "*", r"x1.json: 2 of the class 'dog'; 0 or 1 is needed"),
        ({"cat": True, "dog": None}, "*", r"x1.json: None of the class 'dog'; 0 or 1 is needed"),
        ({"label": [0]}, None, r"x1.json: no class 'cat', which .*x0.json has"),
        ({"label": {}}, None, r"x1.json: 'label' = \{\}; .* or a dict of 0 and 1, one for each class, is needed"),
        ({"label": {"cat": 0, "": 1}}, None, r"x1.json: 'label' = .* one for each class, is needed"),
        ({"label": {"cat": 0, "dog": 0.5}}, None, r"x1.json: 0.5 of the class 'dog'; 0 or 1 is needed"),
        ({"id": 5}, "*", r"'x1' has no label: .json with a bool for each class is needed beside it"),
    ],
)
def test_tars_whose_classes_are_wrong(tmp_path, second, label_key, message):
    first = {"cat": True, "dog": False, "label": {"cat": True, "dog": False}}
    pack_fields(tmp_path / "x.tar", [first, second])
    with pytest.raises(UserError, match=message):
        multi(f"webdataset:{tmp_path}/x.tar", label_key=label_key)


@pytest.mark.parametrize("other", [{"label": [1]}, {"label": {"cat": True, "eel": True}}])
def test_tars_and_splits_with_other_classes(tmp_path, other):
    pack_fields(tmp_path / "train.tar", [{"label": {"cat": True}}])
    pack_fields(tmp_path / "val.tar", [other])
    for name, split, where in (("*", "train", r"val.tar"), ("{split}", "validation", "val")):
        with pytest.raises(UserError, match=rf"{where}: (no )?class '(cat|eel)', which .*train.* all examples need"):
            multi(f"webdataset:{tmp_path}/{name}.tar", split)
    assert rows(multi(f"webdataset:{tmp_path}/{{split}}.tar")) == [[1]]


def test_arrays_and_objects(registrations):
    images, table = np.zeros((5, 4, 4, 3), np.uint8), np.array(TABLE)
    splits = {
        "train": (images, table),
        "bools": (images, table.astype(bool)),
        "items": [(image, row) for image, row in zip(images, TABLE, strict=True)],
        "single": (images, table[:, 0]),
        "two": (images, 2 * table),
        "narrow": (images, table[:, :2]),
        "wrong_items": [(images[0], [1, 0])],
    }
    for name, data in splits.items():
        datasets.add(name, lambda data=data: {"train": data}, ["cat", "dog", "eel"])
    assert rows(multi("train")) == rows(multi("bools")) == rows(multi("items")) == TABLE
    assert multi("train").source.digest() == multi("bools").source.digest()
    for name, message in (
        ("single", "single .train. has one label per example; several labels per example have lists"),
        ("two", "label 2 of example 0, class 0; with config.data.labels = 'multi' each is 0 or 1"),
        ("narrow", r"labels int64\[5, 2\]; with config.data.labels = 'multi' 0 and 1 \[5, 3\] are needed"),
    ):
        with pytest.raises(UserError, match=message):
            multi(name)
    with pytest.raises(UserError, match=r"wrong_items \[train\], item 0: ValueError: labels int64\[2\]; \[3\] of 0"):
        multi("wrong_items").record(0)
    with pytest.raises(UserError, match=r"several per example are for config.data.labels = 'multi'"):
        load("train", "train")

    options = {"batch_size": 4, "image_size": 4, "threads": 1}
    training = TrainPipeline(multi("train"), seed=0, augmentation={}, **options)
    batch = training.batch(0)
    assert batch["label"].shape == (4, 3) and batch["label"].dtype == np.uint8
    evaluation = EvalPipeline(multi("train"), **options)
    labels = np.concatenate([evaluation.batch(k)["label"] for k in range(2)])
    assert labels.tolist() == [*TABLE, *[[0, 0, 0]] * 3]
    with pytest.raises(UserError, match=r"config.data.sampling = 'balanced': an example with several labels"):
        TrainPipeline(multi("train"), seed=0, augmentation={}, sampling="balanced", **options)


@pytest.mark.parametrize("name", ["digits", "synthetic:4:8", "folder:{folder}"])
def test_data_with_one_label(name, image_folder):
    with pytest.raises(
        UserError, match=r"has one label per example; several labels per example have lists \(list:FILE\)"
    ):
        load_splits(name.format(folder=image_folder), ["train"], labels="multi")


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class LabelSetsOfThree(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        label = tfds.features.ClassLabel(names=["cat", "dog", "eel"])
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict({
                "image": tfds.features.Image(shape=(None, None, 3)),
                "labels": tfds.features.Sequence(label),
                "objects": tfds.features.Sequence({"label": label, "crowd": np.bool_}),
                "columns": tfds.features.Tensor(shape=(3,), dtype=np.uint8),
                "scores": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            }),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, labels in enumerate([[0, 1], [], [1], [0, 2], [1, 0, 1]]):
            columns = np.bincount(labels, minlength=3).clip(0, 1).astype(np.uint8)
            yield number, {
                "image": np.full((4, 5, 3), number, np.uint8), "labels": labels, "columns": columns,
                "objects": [{"label": label, "crowd": False} for label in labels],
                "scores": columns / np.float32(2),
            }
"""


def test_data_sets_of_tfds(tmp_path, capsys):
    file = tmp_path / "label_sets_of_three.py"
    file.write_text(BUILDER)
    assert prepare.main(["label_sets_of_three", f"--import={file}", f"--data_dir={tmp_path}"]) == 0
    name, options = "label_sets_of_three", {"data_dir": str(tmp_path)}
    by_image = lambda data: sorted((data.record(i)[0], data.record(i)[1].tolist()) for i in range(5))  # noqa: E731
    data = multi(name, label_key="labels", **options)
    assert data.class_names == ["cat", "dog", "eel"] and sorted(rows(data)) == sorted(TABLE)
    objects, columns = (multi(name, label_key=key, **options) for key in ("objects/label", "columns"))
    assert by_image(objects) == by_image(columns) == by_image(data) and columns.class_names == ["0", "1", "2"]
    assert len({one.source.digest() for one in (data, objects, columns)}) == 3
    with pytest.raises(UserError, match=r"labels? 'columns', 'labels', 'objects/label', 'scores'; choose one"):
        multi(name, **options)
    with pytest.raises(UserError, match=r"ValueError: label 0.5; with several labels per example each is 0 or 1"):
        [multi(name, label_key="scores", **options).record(i) for i in range(5)]
    source = type(data.source)(data.source.parts, "image", "none", data.source.label_form)
    with pytest.raises(UserError, match=r"ValueError: no feature 'none'"):  # not: an example without labels
        source[0]
    with pytest.raises(UserError, match=r"'image': a feature .* with config.data.labels = 'multi' a Sequence of"):
        multi(name, label_key="image", **options)
    with pytest.raises(
        UserError, match=r"several labels per example are read with --config.data.labels=multi: columns"
    ):
        load(name, "train", **options)
