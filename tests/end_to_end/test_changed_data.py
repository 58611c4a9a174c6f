"""A folder that changes under a run: every command says so in words of classes and examples."""

import json
import shutil

import cv2
import numpy as np
import pytest

from inception_jax.data import datasets

FIELDS = ("num_steps=1", "augmentation.rule=area_aspect", "logging.pictures=False", "logging.tensorboard=False",
          "data.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_command, own_recipe):
    """A run on cats and dogs: (folder of the images, workdir, arguments)."""
    root, digits = tmp_path_factory.mktemp("data") / "pets", datasets.load("digits", "train[:60]")
    for index in range(48):
        folder = root / ("Training" if index // 2 % 4 else "Testing") / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{index}.png"), np.asarray(digits.record(index)[0]))
    workdir = root.parent / "run"
    fields = [*FIELDS, f"data.name=folder:{root}"]
    arguments = [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0, err
    return root, workdir, arguments


@pytest.fixture
def data(trained, tmp_path):
    """The same folder and workdir, to be changed; what the folder was is put back."""
    root, workdir, arguments = trained
    kept = shutil.copytree(root, tmp_path / "kept", copy_function=shutil.copy2)
    yield root, shutil.copytree(workdir, tmp_path / "run"), arguments
    shutil.rmtree(root)
    shutil.copytree(kept, root)


def other_classes(root):
    for split in ("Training", "Testing"):
        (root / split / "dog").rename(root / split / "ant")


def longer(arguments):
    return [argument.replace("num_steps=1", "num_steps=2") for argument in arguments]


def one_line(code, out, err):
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
    assert "opt_state" not in err and "params/" not in err
    return err


def test_the_log_accounts_for_the_folder(trained):
    _, workdir, _ = trained
    log = (workdir / "train.log").read_text()
    assert "36 training and 12 evaluation examples, 2 classes" in log and "class  train  test" in log
    record = json.loads((workdir / "data.json").read_text())
    assert record["train_split"]["class_counts"] == [18, 18] and record["eval_split"]["examples"] == 12


def test_other_classes(data, run_command, tmp_path):
    root, workdir, arguments = data
    other_classes(root)
    words = "the run was trained on 'cat', 'dog'; the data has 'ant', 'cat'; "
    before = (workdir / "classes.json").read_text()
    err = one_line(*run_command("train", *longer(arguments), f"--workdir={workdir}"))
    assert words + "put the data back as it was, or choose another workdir" in err
    assert (workdir / "classes.json").read_text() == before
    err = one_line(*run_command("evaluate", f"--workdir={workdir}"))
    assert words + "evaluate on data with the same classes in the same order" in err
    extract = ["--json", f"--workdir={workdir}", f"--output={tmp_path / 'a.npz'}", "--endpoints=logits"]
    err = one_line(*run_command("extract", *extract))
    assert words + f"--data=folder:{root} extracts the features of the new classes nevertheless" in err
    start = [*arguments, f"--config.initialize.checkpoint={workdir}", f"--workdir={tmp_path / 'new'}"]
    err = one_line(*run_command("train", *start))
    assert words in err and 'config.initialize.new = ("(^|/)classifier/",) initializes it at random' in err
    code, out, err = run_command("extract", *extract, f"--data=folder:{root}")
    assert code == 0 and json.loads(out)["examples"] == 12, err


def test_other_examples(data, run_command):
    root, workdir, arguments = data
    for name in ("98.png", "99.png"):
        shutil.copy(root / "Testing" / "cat" / "0.png", root / "Testing" / "cat" / name)
    err = one_line(*run_command("train", *longer(arguments), f"--workdir={workdir}"))
    assert "evaluation split 'test': 14 examples, and 12 when the run began ('cat' 8, was 6)" in err
    code, out, err = run_command("evaluate", "--json", f"--workdir={workdir}")  # on purpose: the classes are the same
    assert code == 0 and json.loads(out)["count"] == 14, err
    assert "note: evaluation split 'test' of the run: 14 examples, and 12 when the run began" in err
