"""A user's mistakes: one clear line on stderr, an exit code that is not 0, and nothing written."""

import importlib
import re

import pytest

from inception_jax import load_run
from inception_jax.errors import UserError

MISTAKES = {
    "unknown model": (["--config.model.name=inception_v5"], r"config.model.name: unknown model 'inception_v5'; did"),
    "unknown data set": (["--config.data.name=digit"], r"unknown data set 'digit'; did you mean 'digits'"),
    "unknown split": (["--config.data.eval_split=tset"], r"unknown split 'tset'"),
    "unknown field": (["--config.optimizer.learning_rat=1"], r"did you mean 'learning_rate'"),
    "unread field": (["--config.optimizer.b1=0.5"], r"config.optimizer.b1 = 0.5: nothing reads it"),
    "switch of another kind": (
        ["--config.model.options.module=naif"],
        r"config\.model\.options\.module = 'naif': it must be one of",
    ),
    "switch without effect": (
        ["--config.model.options.bn_momentum=0.5"],
        r"config\.model\.options\.bn_momentum: 0\.5 has no effect",
    ),
    "option of another model": (
        ["--config.model.options.last_pool=max"],
        r"config\.model\.options: unknown option 'last_pool' of inception_v1",
    ),
    "field of the model": (
        ["--config.model.aux_heads=False", "--config.model.aux_dropout_rate=0.3"],
        r"config\.model\.aux_dropout_rate: 0\.3 has no effect: there are no auxiliary heads",
    ),
    "small image": (["--config.data.image_size=16"], r"config.data.image_size = 16: inception_v1 needs at least 32"),
    "class count": (["--config.model.num_classes=11"], r"config.model.num_classes = 11: the data set 'digits' has 10"),
    "out of range": (["--config.optimizer.momentum=2.0"], r"config.optimizer.momentum = 2.0: it must be"),
    "batch of parts": (["--config.optimizer.accumulation=7"], r"config.batch_size = \d+ does not divide"),
    "batch norm": (["--config.parallel.batch_norm=global"], r"inception_v1 has no batch norm"),
    "aux weights": (["--config.loss.aux_weights=(0.3,)"], r"config.loss.aux_weights = \(0.3,\): inception_v1 has 2"),
    "protocol": (
        ["--config.evaluation.protocol=13-crop"],
        r"evaluation protocol '13-crop': it must be one of 'single'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_config_is_one_line(mistake, tmp_path, monkeypatch, capsys):
    """In this process, for speed: what the command prints and how it ends is `command_line.run`'s."""
    from inception_jax import command_line, train

    flags, message = MISTAKES[mistake]
    workdir = tmp_path / "run"
    monkeypatch.setattr(
        "sys.argv",
        ["train", "--config=configs/digits.py", f"--workdir={workdir}", "--config.parallel.devices=1", *flags],
    )
    with pytest.raises(SystemExit) as stop:
        command_line.run(train.main)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert captured.out == ""
    assert not workdir.exists()
    assert re.search(message, captured.err), captured.err


def test_a_workdir_that_is_a_file(run_command, small_arguments, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = run_command("train", *small_arguments, f"--workdir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "is a file" in err
    assert (tmp_path / "file").read_text() == "in the way"


def test_images_that_are_none(small_run, run_command, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    torn, absent, names = tmp_path / "torn.jpg", tmp_path / "absent.jpg", tmp_path / "names.txt"
    names.write_text(str(absent))
    code, out, err = run_command("predict", f"--workdir={small_run}", f"--files={names}", torn)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"warning: skipped {torn}: not a readable image (17 bytes): truncated, or of an unknown format",
        f"warning: skipped {absent}: No such file or directory",
        f"error: 2 of 2 images were skipped: {torn}, {absent}",
    ]
    code, out, err = run_command("predict", f"--workdir={small_run}", torn, absent)
    assert (code, out, err) == (2, "", f"error: {absent}: No such file or directory\n")


def test_a_workdir_without_a_run(run_command, tmp_path):
    code, out, err = run_command("evaluate", f"--workdir={tmp_path}")
    assert (code, out) == (2, "")
    assert err == f"error: --workdir={tmp_path}: holds no runs; the workdir of a run of train or convert is needed\n"


# {verb: its arguments for a workdir, the flag that names it in the error}
READERS = {
    "evaluate": (lambda path: [f"--workdir={path}"], "--workdir="),
    "evaluate --ensemble": (lambda path: [f"--ensemble={path},{path}_2"], "--ensemble="),
    "predict": (lambda path: [f"--workdir={path}", __file__], "--workdir="),
    "extract": (lambda path: [f"--workdir={path}", f"--output={path}.npz"], "--workdir="),
    "export": (lambda path: [f"--workdir={path}", "--to=onnx"], "--workdir="),
    "export --to=timm": (lambda path: [f"--workdir={path}", "--to=timm"], "--workdir="),
    "convert": (lambda path: [f"--workdir={path}", "--to=timm", f"--output={path}.safetensors"], "--workdir="),
    "score": (lambda path: [f"--network={path}", *2 * ["dataset:digits#test[:2]"]], "--network="),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """{a path that is no run: what is said of it}."""
    root = tmp_path_factory.mktemp("places")
    for name in ("empty", "photos/cat", "runs/digits", "begun"):
        (root / name).mkdir(parents=True)
    (root / "file").write_text("no run")
    (root / "runs" / "digits" / "manifest.json").write_text("{}")
    (root / "begun" / "train.log").write_text("")
    (root / "begun" / "manifest.json").write_text("{}")
    needed = "; the workdir of a run of train or convert is needed"
    return {
        root / "empty": "holds no runs" + needed,
        root / "photos": "holds no runs" + needed,
        root / "runs": f"not a run, but a folder of runs: {root}/runs/digits{needed}",
        root / "runs" / "digist": "there is no such directory; did you mean 'digits'?" + needed,
        root / "runs" / "digits" / "checkpoints2": "there is no such directory" + needed,
        root / "file": "a file; a run is a directory" + needed,
        root / "begun": "no config.json in it" + needed,
    }


@pytest.mark.parametrize("reader", READERS)
def test_a_path_that_is_no_run_is_told_as_what_it_is(reader, places):
    arguments, flag = READERS[reader]
    main = importlib.import_module(f"inception_jax.{reader.split()[0]}").main
    for path, message in places.items():
        if reader == "score" and not path.is_dir():
            continue  # a file of weights, or the name of a published one
        with pytest.raises(UserError) as caught:
            main(arguments(path))
        assert str(caught.value) == f"{flag}{path}: {message}"


def test_a_run_that_is_given_as_a_file_of_weights(places):
    path = next(path for path in places if path.name == "begun")
    with pytest.raises(UserError, match=rf"--weights={path}: the workdir of a run; name it by --workdir$"):
        importlib.import_module("inception_jax.predict").main([f"--weights={path}", __file__])


def test_a_path_that_is_no_run_from_python_and_among_many(places, capsys):
    path, message = next(iter(places.items()))
    with pytest.raises(UserError) as caught:
        load_run(path)
    assert str(caught.value) == f"{path}: {message}"
    evaluate = importlib.import_module("inception_jax.evaluate")
    with pytest.raises(UserError, match="1 of 1 could not be evaluated"):
        evaluate.main(["--all", str(path)])
    assert f"{path}: {message}" in capsys.readouterr().err
