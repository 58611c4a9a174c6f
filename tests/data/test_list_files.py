"""Lists of (path, label): columns, classes, splits, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inception_jax.data import file_index, folder_files
from inception_jax.data.datasets import load, load_splits
from inception_jax.diagnostics import recipe
from inception_jax.errors import UserError

ROWS = [("a/1.png", "dog", "train"), ("a/2.png", "cat", "train"), ("3.png", "cat", "val"), ("a/4.png", "dog", "train")]


@pytest.fixture
def listed(tmp_path, encoded_image):
    """A function that writes a list beside its four images, and returns the name of the data set."""
    (tmp_path / "a").mkdir()
    for number, (path, _, _) in enumerate(ROWS):
        (tmp_path / path).write_bytes(encoded_image(number, 4, 4))

    def write(text: str, name: str = "list.csv") -> str:
        (tmp_path / name).write_text(text)
        return f"list:{tmp_path / name}"

    return write


def lines(rows, header="path,label,split") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


def test_paths_labels_and_splits(listed, tmp_path):
    train, validation = load_splits(listed(lines(ROWS)), ["train", "validation"])  # by another spelling, as of folders
    assert train.class_names == ["cat", "dog"] and train.labels().tolist() == [1, 0, 1]
    assert [train.source.path(i) for i in range(3)] == [str(tmp_path / path) for path, _, s in ROWS if s == "train"]
    assert train.record(0) == ((tmp_path / "a/1.png").read_bytes(), 1)
    assert validation.num_examples == 1 and validation.labels().tolist() == [0]
    assert train.account[:2] == ("  class  train  val", "  cat        1    1")
    assert load(listed(lines(ROWS)), "train[1:]").labels().tolist() == [0, 1]
    parquet = tmp_path / "list.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table(dict(zip(("path", "label", "split"), zip(*ROWS, strict=True), strict=True))), parquet
    )
    tabs = listed(lines(ROWS).replace(",", "\t"), "list.tsv")
    absolute = listed(lines([(tmp_path / path, *rest) for path, *rest in ROWS]), "absolute.csv")
    for name in (f"list:{parquet}", tabs, absolute):
        again = load(name, "train")
        assert [again.record(i) for i in range(3)] == [train.record(i) for i in range(3)]
    assert (
        load(f"list:{parquet}", "train").source.digest() == load(tabs, "train").source.digest() == train.source.digest()
    )
    assert load(listed(lines([ROWS[1], ROWS[0], *ROWS[2:]])), "train").source.digest() != train.source.digest()


def test_without_a_column_of_splits_all_is_train(listed):
    name = listed(lines([row[:2] for row in ROWS], "path,label"))
    assert load(name, "train").num_examples == 4
    with pytest.raises(UserError, match=r"unknown split 'test' of list:.*; splits: train .4.; to hold out a part"):
        load(name, "test")


def test_integer_labels_and_a_file_of_class_names(listed, tmp_path):
    numbers = listed(lines([(path, 2 * (label == "dog"), split) for path, label, split in ROWS]))
    data = load(numbers, "train")
    assert data.class_names == ["0", "1", "2"] and data.labels().tolist() == [2, 0, 2]
    assert data.class_counts().tolist() == [1, 0, 2]
    (tmp_path / "names.txt").write_text("katze\nmaus\nhund\n")
    assert load(numbers, "train", class_names=str(tmp_path / "names.txt")).class_names == ["katze", "maus", "hund"]
    (tmp_path / "names.txt").write_text("katze\n")
    with pytest.raises(UserError, match=r"line 2: label '2' is not among the 1 of .*names\.txt"):
        load(numbers, "train", class_names=str(tmp_path / "names.txt"))
    (tmp_path / "names.txt").write_text("dog\tHund\ncat\tKatze\n")
    data = load(listed(lines(ROWS)), "train", class_names=str(tmp_path / "names.txt"))
    assert data.class_names == ["Hund", "Katze"] and data.labels().tolist() == [0, 1, 0]


@pytest.mark.parametrize("column", ["splitt", "Split", "SPLITS", "spilt"])
def test_a_misspelled_column_of_splits_is_refused(listed, tmp_path, column):
    with pytest.raises(UserError, match=rf"list\.csv: column '{column}'; did you mean 'split'\? Without 'split' all"):
        load(listed(lines(ROWS, f"path,label,{column}")), "train")
    pyarrow.parquet.write_table(
        pyarrow.table({"path": ["3.png"], "label": [1], column: ["val"]}), tmp_path / "a.parquet"
    )
    with pytest.raises(UserError, match=rf"column '{column}'; did you mean 'split'"):
        load(f"list:{tmp_path}/a.parquet", "train")


def test_columns_that_are_not_used_are_named(listed):
    for header in ("path,label,site", "path,label,slide"):
        data = load(listed(lines(ROWS, header)), "train")
        assert data.num_examples == 4 and data.account[-1] == f"columns not used: '{header.split(',')[2]}'"
    name = listed(lines([(*row, "x") for row in ROWS], "path,label,split,splits"))
    assert load(name, "val").account[-1] == "columns not used: 'splits'"
    assert not any("not used" in line for line in load(listed(lines(ROWS)), "train").account)


@pytest.mark.parametrize(
    ("name", "separator", "message"),
    [
        ("list.csv", ";", r"semicolons \(';'\) between the columns; commas are needed"),
        ("list.csv", "\t", r"tabs \('\\t'\) between the columns; commas are needed"),
        ("list.tsv", ",", r"commas \(','\) between the columns; tabs are needed"),
    ],
)
def test_other_separators_are_named(listed, name, separator, message):
    for header in ("path,label,split", '"path","label","split"'):
        with pytest.raises(UserError, match=rf"{name}: its header has {message} \(.csv: commas, .tsv: tabs\)"):
            load(listed(lines(ROWS, header).replace(",", separator), name), "train")


def test_a_label_that_may_be_a_typing_error_is_noted(listed, tmp_path):
    many = [(f"a/{i}.png", "dog", "train") for i in range(1, 11)]
    for number in range(1, 11):
        (tmp_path / "a" / f"{number}.png").write_bytes(b"")
    rows = [*many, ("3.png", "DGO", "train"), ("list.csv", "dog", "val")]
    guard = "; a wrong name becomes a class: data.class_names=FILE names those that are allowed"
    name = listed(lines(rows))
    account = load(name, "train").account
    assert f"class 'DGO' has 1 image, and its name is near to that of 'dog' with 10{guard}" in account
    assert f"val has no images of 'DGO'{guard}" in account
    text = recipe.check_data(*load_splits(name, ["train", "val"])).text  # of `doctor`
    assert "val has no images of 'DGO'" in text and "near to that of 'dog'" in text and guard in text
    (tmp_path / "names.txt").write_text("dog\nDGO\n")
    account = load(name, "train", class_names=str(tmp_path / "names.txt")).account
    assert "val has no images of 'DGO'" in account and not any("near" in line for line in account)
    for other, usual in (("horse", "dog"), ("class 1", "class 2"), ("10", "11")):
        rows[10] = ("3.png", other, "train")
        account = load(
            listed(lines([(path, usual if label == "dog" else label, s) for path, label, s in rows])), "train"
        )
        assert not any("near" in line for line in account.account), other


def test_other_columns(listed):
    name = listed(lines([("x", *row) for row in ROWS], "id,file,kind,split"))
    data = load(name, "train", image_key="file", label_key="kind")
    np.testing.assert_array_equal(data.labels(), [1, 0, 1])
    with pytest.raises(
        UserError, match=r"no column 'path'; its columns are 'id', 'file', 'kind', 'split'; .*image_key="
    ):
        load(name, "train")
    with pytest.raises(UserError, match=r"no column 'kid'; did you mean 'kind'.*label_key="):
        load(name, "train", image_key="file", label_key="kid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,label\n", "no rows; a row per image is needed"),
        (lines([*ROWS, ("a/5.png", "dog", "train")]), r"line 6: /.*a/5\.png: no such file$"),
        (lines([*ROWS, ("5", "dog", "train"), ("6", "cat", "train")]), r"line 6: .*\(2 of 5 files are missing\)"),
        (lines([*ROWS, ("a/1.png", "cat", "train")]), r"line 6: 'a/1\.png' has another label in line 2"),
        (lines([*ROWS, ("./a/../a/1.png", "cat", "train")]), r"'\./a/\.\./a/1\.png' has another label in line 2"),
        (lines([("a/1.png", "dog")]), "line 2: 2 values; the header has 3 columns"),
        (lines([("a/1.png", "", "train")]), "line 2: label ''; a name or an integer"),
        (lines([("", "cat", "train")]), "line 2: path ''; a text"),
        (lines([("a/1.png", -1, "train")]), "line 2: label -1; integer labels are 0 to 999,999"),
        ("path,label,label\na,b,c\n", "'label' twice"),
        ('path,label\n"a,b\n', "cannot be read as text with columns: .*; correct it"),
    ],
)
def test_what_is_wrong_is_named(listed, text, message):
    name = listed(text)
    with pytest.raises(UserError, match=message) as caught:
        load(name, "train")
    assert "list.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_another_encoding_is_named(listed):
    name = listed(lines(ROWS))
    file = Path(name.removeprefix("list:"))
    file.write_bytes(file.read_bytes() + "1.png,caf\xe9,train\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"list.csv: not UTF-8 \(byte 0xe9\); save it as UTF-8"):
        load(name, "train")
    file.write_bytes(lines(ROWS).encode("utf-16"))  # "Unicode text" of a spreadsheet
    with pytest.raises(UserError, match=r"iconv -f UTF-16 -t UTF-8\)"):
        load(name, "train")
    names, name = file.with_name("names.txt"), listed(lines(ROWS))
    names.write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"data.class_names: cannot read .*names.txt: not UTF-8 .*; save it as UTF-8"):
        load(name, "train", class_names=str(names))


def test_a_file_or_a_folder_without_its_kind(listed, tmp_path):
    name = listed(lines(ROWS)).removeprefix("list:")
    with pytest.raises(UserError, match=rf"'{name}': a list of images is named with its kind: list:{name}$"):
        load(name, "train")
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / "a.tar").touch()
    with pytest.raises(UserError, match=rf"a folder of tars; name it webdataset:{tmp_path}/tars/\*\.tar$"):
        load(str(tmp_path / "tars"), "train")


def test_a_label_of_no_class_concerns_only_its_split(listed):
    name = listed(lines([*ROWS[:2], ("3.png", "cow", "val")]))
    assert load(name, "train").num_examples == 2
    with pytest.raises(UserError, match=r"line 4: label 'cow' is not among the 2 of .*list\.csv .train.\]?$"):
        load(name, "val")  # and no advice to hold out a part of train
    with pytest.raises(UserError, match=r"unknown split 'tran' .*; did you mean 'train'\?; splits: train .2.$"):
        load(listed(lines(ROWS[:2])), "tran")


def test_a_file_of_classes_names_integers_by_value(listed, tmp_path):
    name = listed(lines([(path, 1 + 2 * (label == "dog"), split) for path, label, split in ROWS]))
    for text, class_names, labels in (
        ("3\n0\n1\n", ["3", "0", "1"], [0, 2, 0]),
        ("1\n2\n3\n", ["1", "2", "3"], [2, 0, 2]),
        ("3\thund\n1\tkatze\n", ["hund", "katze"], [0, 1, 0]),
        ("none\nkatze\nmaus\nhund\n", ["none", "katze", "maus", "hund"], [3, 1, 3]),
        ("00\n01\n02\n03\n", ["00", "01", "02", "03"], [3, 1, 3]),
    ):
        (tmp_path / "names.txt").write_text(text)
        data = load(name, "train", class_names=str(tmp_path / "names.txt"))
        assert data.class_names == class_names and data.labels().tolist() == labels
    (tmp_path / "names.txt").write_text("1\n2\n")
    with pytest.raises(UserError, match=r"line 2: label '3' is not among the 2 of .*names\.txt"):
        load(name, "train", class_names=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("label", ["1_0", "+3", "007", "-0", "٣"])
def test_labels_that_only_look_like_integers_are_names(listed, label):
    data = load(listed(lines([("a/1.png", "2"), ("a/2.png", label)], "path,label")), "train")
    assert data.class_names == sorted(["2", label])


def test_spaces_around_labels_and_splits_do_not_count(listed):
    data = load(listed(lines([("a/1.png", " cat", "train "), ("a/2.png", "cat ", "train"), *ROWS[3:]])), "train")
    assert data.class_names == ["cat", "dog"] and data.labels().tolist() == [0, 0, 1]


def test_a_null_in_a_column_of_splits_is_an_error(listed, tmp_path):
    listed("")
    table = {"path": [row[0] for row in ROWS], "label": [1, 0, 0, 1], "split": ["train", "train", None, "val"]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    with pytest.raises(UserError, match=r"list\.parquet, row 2: split None; a text"):
        load(f"list:{tmp_path}/list.parquet", "train")
    del table["split"]
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "list.parquet")
    assert load(f"list:{tmp_path}/list.parquet", "train").labels().tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize("spelling", ["train", "training", "Train", "TRAINING"])
def test_the_classes_are_those_of_training_however_it_is_spelled(listed, spelling):
    for labels in ((0, 2, 3), (0, 2, 1), ("0", "2", "cat"), ("0", "2", -1), ("ant", "bee", "cat")):
        rows = [("a/1.png", labels[0], spelling), ("a/2.png", labels[1], spelling), ("3.png", labels[2], "val")]
        name = listed(lines(rows))
        data = load(name, "train")
        assert data.num_examples == 2 and data.class_names == (["ant", "bee"] if labels[0] == "ant" else list("012"))
        assert load(name, spelling).source.digest() == data.source.digest()
        with pytest.raises(UserError, match=rf"line 4: label '{labels[2]}' is not among the 2 of .*\[{spelling}\]"):
            load(name, "validation")


def test_files_that_are_no_list(tmp_path):
    for name, message in (
        ("list:", "list:FILE is needed; is a variable of the shell unset"),
        (f"list:{tmp_path}/none.csv", "none.csv: no such file"),
        (f"list:{tmp_path}/list.txt", "list.txt: a list has the suffix .csv, .tsv or .parquet"),
        ("list:gs://bucket/list.csv", "a list is read from a file system"),
    ):
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            load(name, "train")
    (tmp_path / "list.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match=r"list\.parquet: cannot be read as Parquet"):
        load(f"list:{tmp_path}/list.parquet", "train")


def test_git_ignores_the_indexes_beside_data():
    ignored = (Path(__file__).parents[2] / ".gitignore").read_text().splitlines()
    assert {f"{file_index.FOLDER}/", folder_files.INDEX} <= set(ignored)
