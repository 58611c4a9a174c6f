"""Class folders as people have them: what is a split, a class, an image, and what the scan says about the rest."""

import json
import os
import re

import cv2
import numpy as np
import pytest

from inception_jax.config import Config, ConfigError
from inception_jax.config import default as default_config
from inception_jax.data import folder_files, folder_index, folder_walk, folders, images, index_files, split_names
from inception_jax.data.datasets import load, load_splits
from inception_jax.errors import UserError
from inception_jax.training import network_setup

PNG = cv2.imencode(".png", np.zeros((2, 3, 3), np.uint8))[1].tobytes()


@pytest.fixture
def tree(tmp_path):
    """A function that makes files below a folder, and links {path: target}; returns the name of the data set."""

    def make(*files, **links):
        for name in files:
            path = os.path.join(tmp_path, "data", name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(PNG)
        for link, target in links.pop("links", {}).items():
            os.symlink(target, tmp_path / "data" / link)
        return f"folder:{tmp_path / 'data'}"

    return make


def _packed(*names):
    return np.frombuffer("".join(f"{name}\0" for name in names).encode(), np.uint8)


def keys(data):
    return sorted(os.path.relpath(data.source.path(i), data.source.folder) for i in range(data.num_examples))


@pytest.mark.parametrize(
    ("folder", "split"),
    [("train", "train"), ("Train", "train"), ("Training", "train"), ("TRAIN", "train"),
     ("val", "val"), ("VAL", "val"), ("valid", "validation"), ("Validation", "validation"), ("dev", "validation"),
     ("Test", "test"), ("Testing", "test"), ("eval", "test"), ("evaluation", "test")],
)  # fmt: skip
def test_split_names_in_every_usual_spelling(folder, split, tree):
    other = "test" if split == "train" else "train"
    name = tree(f"{folder}/cat/1.png", f"{folder}/dog/2.png", f"{other}/cat/3.png", f"{other}/dog/4.png")
    found = folders.scan(name.removeprefix("folder:"))
    assert set(found.splits) == {split, other} and found.class_names == ["cat", "dog"]
    kind = next(kind for kind, spellings in folders.SPELLINGS.items() if folder.lower() in spellings)
    for spelling in folders.SPELLINGS[kind]:  # whatever the folder is called, the config may use any of them
        assert load(name, spelling).num_examples == 2
        assert load(name, f"{spelling}[:50%]+{other}").num_examples == 3


def test_splits_of_one_kind_side_by_side(tree):
    name = tree("train/a/1.png", "train/b/1.png", "test/a/2.png", "eval/b/3.png", "val/a/4.png", "validation/b/5.png")
    assert [load(name, split).num_examples for split in ("test", "eval", "val", "validation")] == [1, 1, 1, 1]
    with pytest.raises(
        UserError, match=r"unknown split 'dev'.*splits: train .2., val .1., validation .1., eval .1., test"
    ):
        load(name, "dev")
    name = tree("Training/a/1.png")
    with pytest.raises(UserError, match="Training and train are names of one split; rename one"):
        load(name, "train")


def test_a_single_class_is_no_data_to_learn_from(tree):
    data = load(tree("archive/animals/cat/1.png", "archive/animals/dog/1.png"), "train")
    with pytest.raises(
        ConfigError, match=r"a single class, 'archive'; .* one level too high\? .*/animals holds cat, dog"
    ):
        network_setup.count_classes(Config(default_config()), data)
    with pytest.raises(ConfigError, match=r"'synthetic:1': a single class, '0'; two or more are needed$"):
        network_setup.count_classes(Config(default_config()), load("synthetic:1", "train"))


def test_a_single_class_in_a_split_folder(tree):
    data = load(tree("train/train/cat/1.png", "train/train/dog/1.png"), "train")
    with pytest.raises(
        ConfigError, match=r"/train/train holds cat, dog: if these are the classes, move them to .*/train$"
    ):
        network_setup.count_classes(Config(default_config()), data)


def test_links_lead_to_every_real_folder_once(tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "3.png").write_bytes(PNG)
    links = {"cat/up": "..", "cat/self": ".", "ant/dogs": "../dog", "dog/more": str(outside), "dog/again": str(outside)}
    data = load(tree("ant/0.png", "cat/1.png", "dog/2.png", links=links), "train")
    assert keys(data) == ["ant/0.png", "cat/1.png", "dog/2.png", "dog/again/3.png"]
    assert any("ant/dogs, cat/self, cat/up, dog/more: 4 links to what counts already" in line for line in data.account)


@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"cat/2.png": "../dog/1.png"}, "cat/2.png: a link to the same image as .*dog/1.png, in another class"),
        ({"dog/gone.png": "nowhere"}, "dog/gone.png: a link to a file that is not there"),
        ({"dog/self.png": "self.png"}, "dog/self.png: a link to a file that is not there"),
        ({"kitty": "cat"}, "kitty: the same folder as .*/cat, by a link"),
        ({"cat/x": "../../out", "dog/x": "../../out"}, "dog/x: a link to a folder to which a link in another class"),
    ],
)
def test_links_that_leave_a_label_open_are_refused(links, message, tree, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=message):
        load(tree("cat/1.png", "dog/1.png", links=links), "train")


def test_a_linked_image_counts_once_and_links_to_other_places_are_followed(tree, tmp_path):
    (tmp_path / "store.png").write_bytes(PNG)
    links = {"dog/same.png": "1.png", "dog/store.png": "../../store.png"}
    assert keys(load(tree("cat/1.png", "dog/1.png", links=links), "train")) == [
        "cat/1.png",
        "dog/1.png",
        "dog/store.png",
    ]


def test_a_test_split_that_is_the_training_split_is_told(tree, tmp_path):
    data = load(tree("train/a/1.png", "train/b/1.png", "test/a/2.png", links={"test/b": "../train/b"}), "test")
    assert "test/b is the same folder as train/b, by a link" in data.account


def test_hidden_and_system_entries_are_left_out_and_said(tree):
    data = load(
        tree(
            "cat/1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", "cat/._1.png", "cat/@eaDir/1.png", "cat/Thumbs.db",
            "dog/2.png", "dog/.DS_Store", "__MACOSX/cat/._1.png", ".git/x/1.png", "dog/notes.txt", "dog/photo.HEIC",
        ),
        "train",
    )  # fmt: skip
    assert data.class_names == ["cat", "dog"] and keys(data) == ["cat/1.png", "dog/2.png"]
    account = "\n".join(data.account)
    for entry in ("1 .ipynb_checkpoints", "1 ._*", "1 @eaDir", "1 __MACOSX"):
        assert entry in account or "more: hidden or of the system" in account
    assert "1 .heic: images that cannot be decoded here" in account and "1 .txt, 1 .db: no image" not in account
    assert "left out: 1 .txt: no image" in account


@pytest.mark.parametrize("suffix", folder_files.SUFFIXES)
def test_every_suffix_that_is_taken_is_decoded(suffix):
    written = {".jfif": ".jpg"}.get(suffix, suffix)
    image = np.random.default_rng(0).integers(0, 256, (64, 80) if suffix in (".pgm", ".pbm") else (64, 80, 3), np.uint8)
    assert images.decode(cv2.imencode(written, image)[1].tobytes()).shape == (64, 80, 3)


def test_suffixes_in_any_case(tree):
    data = load(tree("a/1.JPEG", "a/2.Tif", "a/3.jfif", "a/4.ppm", "b/5.AVIF", "b/6", "b/7.jxl"), "train")
    assert keys(data) == ["a/1.JPEG", "a/2.Tif", "a/3.jfif", "a/4.ppm", "b/5.AVIF"]
    assert "left out: 1 without a suffix: no image" in data.account


def test_names_that_are_no_unicode(tree, tmp_path, run):
    """A Latin-1 file name, as old archives have them."""
    data = load(tree("cat/caf\udce9.png", "cat/1.png", "d\udce9/2.png"), "train")
    assert data.class_names == ["cat", r"d\xe9"]
    names = [data.record_name(i) for i in range(3)]
    assert any(name.endswith(r"cat/caf\xe9.png") for name in names) and "\n".join(names).encode()
    assert {data.record(i)[1] for i in range(3)} == {0, 1} and len(data.source.digest()) == 64
    assert run("folder", "--name=old", f"--source={tmp_path / 'data'}", f"--data_dir={tmp_path / 'tfds'}") == 0
    prepared = load("old", "train", str(tmp_path / "tfds"))
    assert [prepared.record(i) for i in range(3)] == [data.record(i) for i in range(3)]


def test_only_the_split_that_is_asked_for_is_judged(tree, tmp_path):
    name = tree("train/cat/1.png", "train/dog/1.png", "test/1.png", "test/2.png", "val/cow/1.png")
    (tmp_path / "data" / "val" / "cat").mkdir()
    data = load(name, "train")
    assert data.class_names == ["cat", "dog"] and keys(data) == ["cat/1.png", "dog/1.png"]
    assert any(
        "split 'test' cannot be used: " in line and "2 images without class folders" in line for line in data.account
    )
    hint = r"train_split='train\[:90%\]' --config.data.eval_split='train\[90%:\]'"
    with pytest.raises(UserError, match=rf"test: 2 images without class folders: they have no labels; .*{hint}"):
        load(name, "test")
    with pytest.raises(UserError, match=r"val/cat: a class folder without images|val/cow: class 'cow' is not in"):
        load(name, "train+val")
    with pytest.raises(UserError, match=hint):
        load(name, "testing")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["cat/1.png", "dog/1.png", "test/1.png"], "test has the name of a split, but no class folders, and 'cat' is"),
        (["train/1.png", "test/1.png"], "test and train without class folders; test/CLASS/IMAGE.jpg is needed"),
        (["1.png"], "no class folders; .* do you mean the folder above it"),
        (["cat/1.txt", "dog/1.png"], "cat: a class folder without images"),
    ],
)
def test_layouts_that_leave_the_labels_open(files, message, tree):
    with pytest.raises(UserError, match=message):
        load(tree(*files), "train")


def test_a_class_with_the_name_of_a_split(tree, tmp_path):
    """ "training" is also something that people do; "test" has to be listed."""
    assert load(tree("training/1.png", "walking/2.png"), "train").class_names == ["training", "walking"]
    (tmp_path / "order.txt").write_text("walking\ntraining\ntest\n")
    data = load(tree("test/1.png"), "train", class_names=str(tmp_path / "order.txt"))
    assert data.class_names == ["walking", "training", "test"]


def test_the_account(tree, tmp_path):
    name = tree(
        *(f"train/a/{i}.png" for i in range(9)), *(f"train/b/{i}.png" for i in range(3)), "test/a/1.png", "x/1.png"
    )
    assert load(name, "train").account == (
        "  class  train  test",
        "  a          9     1",
        "  b          3     0",
        "train is imbalanced: 9 images of 'a', 3 of 'b'",
        "test has no images of 'b'",
        "left out: x: beside the split folders, or empty",
    )
    for label in range(30):
        tree(f"train/c{label:02}/1.png")
    assert "train: 42 images of 32 classes, 1 (c00) to 9 (a) each" in load(name, "train").account


def test_the_account_is_of_the_parts_that_are_used(tree):
    name = tree(*(f"train/{label}/{i}.png" for label in "ab" for i in range(10)), "test/a/1.png", "test/b/1.png")
    train, held_out = load_splits(name, ["train[:75%]", "train[75%:]"])
    counts = train.class_counts(), held_out.class_counts()
    assert [*counts[0] + counts[1]] == [10, 10] and train.account == held_out.account
    assert train.account[:3] == (
        "  class  test  train[:75%]  train[75%:]",
        f"  a         1  {counts[0][0]:>11}  {counts[1][0]:>11}",
        f"  b         1  {counts[0][1]:>11}  {counts[1][1]:>11}",
    )
    assert load_splits(name, ["train", "train[:2]"])[0].account[0] == "  class  test  train[:2]"
    assert load(name, "train+test").account == load(name, "train").account


def test_a_class_that_may_be_a_typing_error_is_noted(tree):
    """As in lists; and one that only another split has names the nearest of training."""
    name = tree(*(f"train/dog/{i}.png" for i in range(9)), "train/dgo/1.png", "test/dog/1.png", "val/Dog/1.png")
    guard = "; a wrong name becomes a class: data.class_names=FILE names those that are allowed"
    account = load(name, "train").account
    assert f"class 'dgo' has 1 image, and its name is near to that of 'dog' with 9{guard}" in account
    assert f"test has no images of 'dgo'{guard}" in account
    with pytest.raises(UserError, match=r"/val/Dog: class 'Dog' is not in .*/train; did you mean 'dog'\?"):
        load(name, "val")


def test_classes_that_look_the_same_are_noted(tree):
    """A file name of macOS is decomposed: é is two characters (NFD)."""
    one, two = "caf\xe9", "cafe\u0301"
    name = tree(*(f"train/{label}/{i}.png" for label in (one, two, "a") for i in range(9)), f"test/{one} /1.png")
    account = load(name, "train").account
    note = r"classes 'cafe\u0301' and 'caf\xe9' look the same (spaces, Unicode), and are two classes"
    assert any(line.startswith(note) for line in account)
    message = r"class 'café ' is not in .*; did you mean 'caf.*'\? It looks the same as 'caf\\xe9 ' \(spaces, Unicode\)"
    with pytest.raises(UserError, match=message):
        load(name, "test")


def test_the_account_has_a_line_for_each_class(tree):
    name = tree("train/a\nb/1.png", "train/c\x1b[31m/1.png")
    assert load(name, "train").account[1:3] == (r"  a\nb           1", r"  c\x1b[31m      1")


def test_a_relative_path_says_where_it_begins(tree, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = f"photos: no such folder; it is looked for in {tmp_path}, the current folder"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        load("folder:photos", "train")


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["training_set", "test_set"], "are the folders 'test_set', 'training_set' the splits 'test', 'train'? Then"),
        (["seg-train", "Tset"], "are the folders 'Tset', 'seg-train' the splits 'test', 'train'? Then rename them"),
        (["train", "tset"], "is the folder 'tset' the split 'test'? Then rename it"),
    ],
)
def test_folders_that_may_be_splits_are_named(folders, message, tree):
    name = tree(*(f"{folder}/{label}/{i}.png" for folder in folders for label in ("cat", "dog") for i in range(2)))
    with pytest.raises(UserError) as caught:
        load(name, "test")
    assert message in str(caught.value) and "hold out" not in str(caught.value)
    how = "is left out" if "train" in folders else "is a class, and its images are in folders"
    account = load(name, "train").account
    assert f"{folders[-1]!r} {how}: is it the split 'test'? Then rename it" in account


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("train", "trian tran trains traning trainning training_set"),
        ("test", "tset tets testt tes Test_2 tesing evalution eval-set"),
        ("validation", "vaild validtion valadation vaildation my_val"),
        ("", "latest tent text best rest west trail trait brain rain strain oval evil valet trailing resting vacation"),
        ("", "contest evolution train_test a  cats"),
    ],
)
def test_the_split_that_a_name_may_mean(kind, names):
    assert {name: split_names.kind_of(name) for name in names.split(" ")} == dict.fromkeys(names.split(" "), kind)


def test_names_like_those_of_splits_are_classes_where_they_hold_images(tree):
    name = tree("test_set/1.png", "trian/2.png", "rest/long/3.png", "rest/4.png", "eval one/5.png")
    assert not any("Then rename" in line for line in load(name, "train").account)


def test_a_path_that_is_not_there_names_the_nearest(tree, tmp_path):
    name = tree("train/a/1.png", "train/b/1.png").removeprefix("folder:")
    (tmp_path / "list.csv").write_text("path,label\n")
    for wrong, message in (
        (f"folder:{tmp_path}/daat", f"/daat: no such folder; did you mean 'data'? (in {tmp_path})"),
        (f"folder:{tmp_path}/daat/train", f"no such folder; did you mean 'data'? (in {tmp_path})"),
        (f"folder:{name}/trian", f"no such folder; did you mean 'train'? (in {name})"),
        (f"folder:{name}/train/a/1.png", "1.png: a file, not a folder"),
        (f"folder:{tmp_path}/zzzzzz", "zzzzzz: no such folder"),
        (f"list:{tmp_path}/lsit.csv", f"no such file; did you mean 'list.csv'? (in {tmp_path})"),
        (f"webdataset:{tmp_path}/daat/*.tar", f"no such files; did you mean 'data'? (in {tmp_path}); *, ?"),
    ):
        with pytest.raises(UserError) as caught:
            load(wrong, "train")
        assert message in str(caught.value) and "\n" not in str(caught.value), wrong


def test_classes_from_a_file(tree, tmp_path, run):
    name, file = tree("ant/1.png", "cat/1.png", "dog/1.png"), tmp_path / "classes.txt"
    file.write_text("dog\tDog (Canis familiaris)\n\nant\ncat\tCat\n")
    data = load(name, "train", class_names=str(file))
    assert data.class_names == ["Dog (Canis familiaris)", "ant", "Cat"]
    plain = load(name, "train")
    assert [plain.class_names[plain.record(i)[1]] for i in range(3)] == [
        {"Dog (Canis familiaris)": "dog", "ant": "ant", "Cat": "cat"}[data.class_names[data.record(i)[1]]]
        for i in range(3)
    ]
    assert data.source.digest() != plain.source.digest()
    out = tmp_path / "tfds"
    assert (
        run("folder", "--name=pets", f"--source={tmp_path / 'data'}", f"--data_dir={out}", f"--class_names={file}") == 0
    )
    assert load("pets", "train", str(out)).class_names == data.class_names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\nant\n", "the class folder 'dog' is not in"),
        ("cat\nant\ndog\ncow\n", "has 'cow', but there is no such class folder"),
        ("cat\ndog\ncat\n", "has 'cat' twice"),
        ("cat\tx\nant\tx\ndog\n", "twice"),
        ("\n", "is empty"),
    ],
)
def test_a_class_file_that_does_not_fit(text, message, tree, tmp_path):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=rf"data\.class_names: .*{message}"):
        load(tree("ant/1.png", "cat/1.png", "dog/1.png"), "train", class_names=str(tmp_path / "classes.txt"))


def test_a_class_file_is_for_class_folders(tmp_path):
    with pytest.raises(UserError, match="digits has its own class names and order"):
        load("digits", "train", class_names=str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"data\.class_names: cannot read"):
        (tmp_path / "a").mkdir()
        load(f"folder:{tmp_path}", "train", class_names=str(tmp_path / "x"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder:", "folder:PATH is needed; is a variable of the shell unset"),
        ("/usr", "a folder; class folders are named with their kind: folder:/usr"),
        ("./nowhere", "is not there; class folders are named folder:PATH"),
        ("imagenet", "did you mean 'imagenet2012'"),
        ("ImageNet-1k", "did you mean 'imagenet2012'"),
        ("fashion-mnist", "did you mean 'fashion_mnist'"),
    ],
)
def test_what_people_write_for_a_data_set(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(name, "train", str(tmp_path))


def test_a_folder_that_cannot_be_read_is_named(tree, tmp_path, monkeypatch):
    name = tree("cat/1.png", "dog/1.png")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match="/dog: Permission denied"):
        load(name, "train")


def test_both_splits_of_a_run_are_one_scan(tree, monkeypatch):
    calls = []
    scan = folders.scan
    monkeypatch.setattr(folders, "scan", lambda *given, **options: calls.append(1) or scan(*given, **options))
    train, test = load_splits(tree("train/a/1.png", "train/b/2.png", "test/a/3.png"), ["train", "test"])
    assert (train.num_examples, test.num_examples, len(calls)) == (2, 1, 1)


@pytest.fixture
def indexed(tree, tmp_path, monkeypatch):
    """A folder that is old and large enough for an index: (its name, a function that counts the folders listed)."""
    monkeypatch.setattr(folder_index, "MIN_IMAGES", 4)
    monkeypatch.setattr(index_files, "_SETTLED_SECONDS", -3600.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = tree("train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/caf\udce9.png", "test/a/1.png", "x/1.png")
    listed = []
    walk = folder_walk.FolderWalker.read
    monkeypatch.setattr(folder_walk.FolderWalker, "read", lambda self, path: listed.append(path) or walk(self, path))

    def count():
        number = len(listed)
        listed.clear()
        return number

    return name, count


def test_the_index_gives_the_same_without_listing_a_folder(indexed, tmp_path):
    name, listed = indexed
    first = load(name, "train")
    assert listed() > 0 and (tmp_path / "data" / folder_files.INDEX).is_file()
    again = load(name, "train")
    assert listed() == 0
    assert again.account == first.account and again.class_names == first.class_names
    assert keys(again) == keys(first) and again.source.digest() == first.source.digest()
    assert [again.record(i) for i in range(4)] == [first.record(i) for i in range(4)]


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "class", "root", "overwritten", "damaged"])
def test_the_index_is_used_only_while_nothing_has_changed(change, indexed, tmp_path):
    name, listed = indexed
    before = load(name, "train").source.digest()
    listed()
    data = tmp_path / "data"
    if change == "added":
        (data / "train" / "a" / "3.png").write_bytes(PNG)
    elif change == "removed":
        (data / "train" / "a" / "2.png").unlink()
    elif change == "renamed":
        (data / "train" / "a" / "2.png").rename(data / "train" / "a" / "4.png")
    elif change == "class":
        (data / "train" / "c").mkdir()
        (data / "train" / "c" / "1.png").write_bytes(PNG)
    elif change == "root":
        (data / "val").mkdir()
    elif change == "overwritten":
        (data / "train" / "a" / "2.png").write_bytes(PNG + b"\0")
    else:
        index = data / folder_files.INDEX
        index.write_bytes(index.read_bytes()[:-40])
    now = load(name, "train").source.digest()
    assert listed() > 0 and (now == before) == (change in ("root", "damaged"))
    load(name, "train")
    assert listed() == 0  # written anew


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, content: {"compressed": True},
        lambda arrays, content: {"labels0": np.array([0, 0, 1, 2], np.int32)},
        lambda arrays, content: {"labels0": np.array([0, 0, 1, -1], np.int32)},
        lambda arrays, content: {"labels0": arrays["labels0"][:3]},
        lambda arrays, content: {"labels0": arrays["labels0"].astype(np.float32)},
        lambda arrays, content: {"labels0": np.array([{}] * 4, object)},
        lambda arrays, content: {"sizes0": arrays["sizes0"].reshape(2, 2)},
        lambda arrays, content: {"keys0": arrays["keys0"][:-1]},
        lambda arrays, content: {"keys0": _packed("a/1.png", "a/2.png", "b/1.png", "../x/1.png")},
        lambda arrays, content: {"keys0": _packed("/a/1.png", "a/2.png", "b/1.png", "b/c.png")},
        lambda arrays, content: content["splits"][0].update(folder=".."),
        lambda arrays, content: content["splits"][0].update(classes=["a", 2]),
        lambda arrays, content: content["splits"][0].update(unknown=1),
        lambda arrays, content: content.update(stamps=[]),
        lambda arrays, content: content.update(splits={}),
        lambda arrays, content: {"content": np.frombuffer(b"[" * 100_000, np.uint8)},
    ],
)
def test_an_index_that_was_not_written_here_is_not_used(change, indexed, tmp_path):
    """The file may have come with the folder: nothing in it is believed that this package would not have written."""
    name, listed = indexed
    before = load(name, "train")
    index = tmp_path / "data" / folder_files.INDEX
    with np.load(index) as file:
        arrays = dict(file)
    content = json.loads(arrays["content"].tobytes())
    changed = change(arrays, content) or {}
    save = np.savez_compressed if changed.pop("compressed", False) else np.savez
    save(index, **{**arrays, "content": np.frombuffer(json.dumps(content).encode(), np.uint8), **changed})
    listed()
    again = load(name, "train")
    assert listed() > 0 and keys(again) == keys(before) and again.source.digest() == before.source.digest()


def test_an_index_that_declares_more_than_it_holds_is_not_used(indexed, tmp_path):
    name, listed = indexed
    load(name, "train")
    index = tmp_path / "data" / folder_files.INDEX
    content = index.read_bytes()
    assert content.count(b"(4,), }") == 2  # labels and sizes of train
    index.write_bytes(content.replace(b"(4,), }            ", b"(400000000000,), } "))
    listed()
    assert load(name, "train").num_examples == 4 and listed() > 0


def test_an_index_is_not_written_for_a_small_folder_or_one_that_just_changed(indexed, tmp_path, monkeypatch):
    name, _ = indexed
    for module, setting, value in ((folder_index, "MIN_IMAGES", 10_000), (index_files, "_SETTLED_SECONDS", 3600.0)):
        with monkeypatch.context() as patch:
            patch.setattr(module, setting, value)
            load(name, "train")
        assert os.listdir(tmp_path) == ["data"] and not (tmp_path / "data" / folder_files.INDEX).exists()


def test_the_index_of_a_read_only_folder_is_in_the_cache(indexed, tmp_path, monkeypatch):
    name, listed = indexed
    data = tmp_path / "data"
    replace = os.replace

    def read_only(source, target):
        if str(target).startswith(str(data)):
            raise OSError(30, "Read-only file system", str(target))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", read_only)
    load(name, "train")
    listed()
    assert [path.suffix for path in (tmp_path / "cache" / "inception_jax" / "folders").iterdir()] == [".npz"]
    assert sorted(os.listdir(data)) == ["test", "train", "x"]
    load(name, "train")
    assert listed() == 0


def test_an_old_file_system_without_times_gets_no_index(indexed, tmp_path, monkeypatch):
    name, _ = indexed
    monkeypatch.setattr(folder_walk, "stamp", lambda path: (0, 0, 1))
    load(name, "train")
    assert not (tmp_path / "data" / folder_files.INDEX).exists()
