"""`convert` there and back: a small network as a publisher's file, imported, asked, and written out again."""

import argparse
import csv
import dataclasses
import functools
import json
import shutil

import cv2
import jax
import ml_dtypes
import numpy as np
import pytest

from inception_jax import command_line, compare, convert, evaluate, extract, predict, weight_files
from inception_jax.config import Config
from inception_jax.data import crops, datasets
from inception_jax.errors import UserError
from inception_jax.evaluation import results_table, split_evaluation
from inception_jax.evaluation import trained_network as network_module
from inception_jax.evaluation.split_evaluation import NamedWeights
from inception_jax.models.initialization import init_variables
from inception_jax.pretrained import (
    catalog,
    exporting,
    hub,
    importing,
    loading,
    networks,
    preprocessing,
    workdir,
)
from inception_jax.pretrained.publishers import registry
from inception_jax.training import network_setup
from inception_jax.training.preprocess import get_normalization, preprocess
from inception_jax.training.warm_start import WarmStart

SOURCE, MODEL = "torchvision", "inception_v1_bn"
SMALL = {"width_multiplier": 0.125, "num_classes": 10}
SIZE = 64
EXAMPLES = 20
SET = ("--set=width_multiplier=0.125", f"--image_size={SIZE}", "--data=digits")


@pytest.fixture(scope="module")
def network():
    """torchvision's GoogLeNet, an eighth as wide, for ten classes: (model, variables with statistics of their own)."""
    model = registry.get_variant(MODEL, SOURCE).create(aux_heads=False, **SMALL)
    variables = init_variables(model, jax.random.key(0), SIZE)
    random = np.random.default_rng(0)
    # Logits far enough apart that no rounding reorders the classes.
    variables["params"]["classifier"]["kernel"] = random.normal(
        size=variables["params"]["classifier"]["kernel"].shape
    ).astype(np.float32)
    return model, jax.tree.map(np.asarray, variables)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    """The network's weights as torchvision names them."""
    path = tmp_path_factory.mktemp("file") / "mine.npz"
    np.savez(path, **exporting.export_weights(MODEL, network[1], source=SOURCE, **SMALL))
    return path


@pytest.fixture(scope="module")
def converted(file, tmp_path_factory):
    """The workdir that `convert` makes of the file."""
    directory = tmp_path_factory.mktemp("converted") / "run"
    flags = [f"--weights={file}", f"--model={MODEL}", f"--source={SOURCE}", f"--output={directory}", *SET]
    assert convert.main(flags) == 0
    return directory


@pytest.fixture(scope="module")
def image_files(tmp_path_factory):
    """Three digits of other sizes as files: (paths, arrays)."""
    folder, digits = tmp_path_factory.mktemp("images"), datasets.load("digits", "test[:3]")
    paths, arrays = [], []
    for index in range(3):
        image, _ = digits.record(index)
        arrays.append(cv2.resize(np.asarray(image), (90 + 30 * index, 80)))
        paths.append(folder / f"{index}.png")
        cv2.imwrite(str(paths[-1]), arrays[-1][..., ::-1])
    return paths, arrays


@pytest.fixture
def fails(capsys):
    """Runs a command that fails, and gives its error, the last line; those before say what it was doing."""

    def run(main, *arguments):
        with pytest.raises(SystemExit) as stop, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["command", *map(str, arguments)])
            command_line.run(main)
        captured = capsys.readouterr()
        *reports, error = captured.err.splitlines()
        assert stop.value.code == 2 and error.startswith("error: ") and not any("error" in line for line in reports)
        return error

    return run


@pytest.fixture(scope="module")
def forward(network):
    """The model itself: logits of images, compiled for one number of them."""
    model, variables = network
    return jax.jit(lambda images: model.apply(variables, images, train=False).logits)


def expected(forward, image_files):
    """Probabilities by the model itself, with torchvision's images made by hand: 64 of 256 * 64 / 224 pixels."""
    crop = crops.EvalCrop("torchvision", interpolation="pil_bilinear", resize=73)
    batch = np.stack([crops.center_crop(image, SIZE, crop) for image in image_files])
    images = preprocess(batch, normalization=get_normalization("inception"), dtype=np.float32)
    rows = np.zeros((EXAMPLES, *images.shape[1:]), np.float32)
    rows[: len(images)] = images
    return jax.nn.softmax(forward(rows))[: len(images)]


def test_the_workdir_holds_the_very_weights(network, converted):
    from inception_jax.checkpoints.reading import load_record, load_variables

    found = load_variables(converted)
    assert load_record(converted)["step"] == 0
    jax.tree.map(np.testing.assert_array_equal, found, network[1])


def test_the_workdir_says_what_it_is(converted, file):
    config = json.loads((converted / "config.json").read_text())
    assert config["model"]["name"] == MODEL and config["model"]["num_classes"] == 10
    assert config["model"]["options"]["five_by_five"] == 3 and config["model"]["width_multiplier"] == 0.125
    assert not config["model"]["aux_heads"]
    assert config["data"]["image_size"] == 64 and config["data"]["normalization"] == "inception"
    evaluation = config["evaluation"]
    assert (evaluation["crop"], evaluation["interpolation"]) == ("torchvision", "pil_bilinear")
    assert evaluation["resize"] == 73
    said = json.loads((converted / workdir.FILE).read_text())
    assert said["file"] == "mine.npz" and said["sha256"] == weight_files.read_weights(file).sha256
    assert said["source"] == SOURCE and said["record"] is None and said["background"] == "keep"
    assert json.loads((converted / "classes.json").read_text())["names"][3] == "class 3"


def test_predict_gives_the_probabilities_of_the_model_itself(forward, converted, image_files, capsys, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    paths, arrays = image_files
    probabilities = expected(forward, arrays)
    assert predict.main([f"--workdir={converted}", "--json", "--top=10", *map(str, paths)]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, theirs in zip(rows, probabilities, strict=True):
        found = {said["name"]: said["probability"] for said in row["classes"]}
        np.testing.assert_allclose([found[f"class {k}"] for k in range(10)], theirs, rtol=2e-5)


def test_predict_of_a_file_asks_the_network_of_the_workdir(converted, file, monkeypatch):
    """Compared without compiling it again: definition, weights and images are the same."""
    options = {"width_multiplier": 0.125}
    monkeypatch.setattr(loading, "load_weights", functools.partial(loading.load_weights, options=options))
    monkeypatch.setattr(workdir, "config_of", functools.partial(workdir.config_of, image_size=SIZE))
    given = {"weights": str(file), "model": MODEL, "source": SOURCE, "record": None, "mode": "pmap", "devices": 2}
    flags = argparse.Namespace(**given, batch_size=64)
    ours = predict._of_file(flags)
    assert (ours.devices.mode, ours.devices.count) == ("pmap", 2)
    theirs = network_module.load(
        network_module.load_config(converted), converted, network_module.load_class_names(converted)
    )
    assert ours.model == theirs.model and ours.crop == theirs.crop and ours.image_size == theirs.image_size
    assert ours.class_names == theirs.class_names and (ours.weights, ours.step) == (theirs.weights, theirs.step)
    assert ours.config.data.normalization == theirs.config.data.normalization
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


def test_evaluate_and_compare_take_it(forward, converted, capsys, tmp_path):
    run = shutil.copytree(converted, tmp_path / "run")
    flags = ["--split=test[:20]", "--batch_size=20", "--devices=1", "--json"]
    assert evaluate.main([f"--workdir={run}", *flags]) == 0
    out = capsys.readouterr().out
    digits = datasets.load("digits", "test[:20]")
    probabilities = expected(forward, [np.asarray(digits.record(i)[0]) for i in range(EXAMPLES)])
    hits = sum(int(np.argmax(row)) == digits.record(i)[1] for i, row in enumerate(probabilities))
    assert json.loads(out)["top1"] == hits / 20 and json.loads(out)["step"] == 0
    assert compare.main(["--list", str(run)]) == 0
    out = capsys.readouterr().out
    assert "imported" in out and "preempted" not in out, out
    assert compare.main([str(run)]) == 0
    assert capsys.readouterr().out.startswith("Result")


def test_a_table_takes_the_workdir_the_file_and_the_published_name(converted, file, capsys, tmp_path, monkeypatch):
    """`evaluate --all`: each with its record's preprocessing; one of three networks is preprocessed in another way."""
    real = loading.load_weights
    monkeypatch.setattr(  # the file is an eighth as wide as the published one
        loading, "load_weights", lambda path, **given: real(path, **given, source=SOURCE, options=SMALL)
    )
    record = dataclasses.replace(catalog.get_record("torchvision/googlenet"), file=file.name, digest=None)
    other = dataclasses.replace(
        record, name="torchvision/other", preprocessing=dataclasses.replace(preprocessing.timm(341), image_size=224)
    )
    monkeypatch.setattr(catalog, "PUBLISHED", (record, other))
    monkeypatch.setenv(networks.CACHE_VARIABLE, str(tmp_path))
    cached = tmp_path / other.name / file.name
    cached.parent.mkdir(parents=True)
    shutil.copy(file, cached)
    wrong = {
        "inception_v9=a.npz": "'inception_v9' is neither a network nor the name of a published file; did you mean",
        "nowhere": "nowhere: neither a run (there is no such directory), nor a file of weights, nor the name of a pub",
        f"{MODEL}=nowhere.npz": "nowhere.npz",
    }
    entries = [str(converted), f"{record.name}={file}", other.name, *wrong]
    flags = [f"--split=test[:{EXAMPLES}]", "--data=digits", f"--image_size={SIZE}", "--devices=1", "--batch_size=20"]
    with pytest.raises(UserError, match=r"3 of 6 could not be evaluated: inception_v9=a\.npz, nowhere, incep"):
        evaluate.main(["--all", *entries, *flags, f"--output={tmp_path / 'table.csv'}"])
    rows = {row["workdir"]: row for row in csv.DictReader((tmp_path / "table.csv").read_text().splitlines())}
    for entry, message in wrong.items():
        assert message in rows[entry]["error"] and not rows[entry]["top1"]
    run, same, changed = (rows[entry] for entry in entries[:3])
    assert (run["record"], same["record"], changed["record"]) == ("", record.name, other.name)
    assert all(same[name] == run[name] for name in results_table.COLUMNS[:16])
    assert (run["interpolation"], changed["interpolation"]) == ("pil_bilinear", "pil_bicubic")
    assert (run["img_size"], changed["img_size"], changed["count"]) == (str(SIZE), str(SIZE), str(EXAMPLES))
    assert float(changed["crop_pct"]) == pytest.approx(224 / 341, abs=0.01) != float(run["crop_pct"])
    assert "nowhere: neither a run (" in capsys.readouterr().err
    # The classes of ImageNet are known, and those of the data must be the same.
    names = NamedWeights("a", "", workdir.config_of(real(file, record=record.name, options=SMALL)), {}, ["x"], False)
    names.recipe.data.eval_split = "test"
    with pytest.raises(UserError, match=r"data digits: the weights are of 'x'; the data has 10 classes.*--data"):
        split_evaluation.evaluate_weights(names, split_evaluation.Request())


@pytest.mark.slow
def test_fine_tuning_takes_it(converted, run_command, tmp_path):
    code, _, err = run_command(
        "train", "--config=configs/digits.py", f"--workdir={tmp_path / 'tuned'}",
        f"--config.initialize.checkpoint={converted}",
        f"--config.model.name={MODEL}", "--config.model.width_multiplier=0.125", "--config.model.aux_heads=False",
        "--config.model.options.five_by_five=3", "--config.model.options.pool4_window=2", "--config.num_steps=1",
        "--config.data.image_size=64", "--config.batch_size=8", "--config.data.eval_split=test[:8]",
        "--config.data.train_split=train[:8]", "--config.logging.pictures=False", "--config.ema.decay=0.0",
        "--config.data.normalization=inception",
    )  # fmt: skip
    assert code == 0, err
    taken = json.loads((tmp_path / "tuned" / "initialization.json").read_text())
    assert taken["new"] == {} and taken["left"] == [] and taken["network"] == MODEL


def test_a_second_time_is_fine_and_something_else_is_not(converted, file, fails, capsys, tmp_path):
    flags = [f"--weights={file}", f"--model={MODEL}", f"--source={SOURCE}", f"--output={converted}", *SET]
    before = {path: path.read_bytes() for path in converted.rglob("*") if path.is_file()}
    assert convert.main(flags) == 0
    assert "was there already" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in converted.rglob("*") if path.is_file()}
    config = json.loads(before[converted / "config.json"])
    del config["model"]["convolution"]  # a version that did not have this field wrote it
    (converted / "config.json").write_text(json.dumps(config))
    assert convert.main(flags) == 0
    (converted / "config.json").write_bytes(before[converted / "config.json"])
    err = fails(convert.main, *(flag.replace("image_size=64", "image_size=96") for flag in flags))
    assert "holds weights imported with data.image_size = 64 (config.json), now it is 96; name a new directory" in err
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    err = fails(convert.main, *flags[:3], f"--output={other}", *SET)
    assert "exists and is not a workdir of imported weights; name a new directory" in err and [
        p.name for p in other.iterdir()
    ] == ["thesis.tex"]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]  # nothing half made beside it


def test_a_write_that_fails_leaves_nothing(file, fails, tmp_path, monkeypatch):
    def broken(path, text):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(workdir.manifest, "replace_text", broken)
    flags = [f"--weights={file}", f"--model={MODEL}", f"--source={SOURCE}", f"--output={tmp_path / 'run'}", *SET]
    fails(convert.main, *flags)
    assert not list(tmp_path.iterdir())


def test_back_to_the_publisher_bit_for_bit(converted, file, tmp_path):
    for suffix in (".npz", ".safetensors"):
        output = tmp_path / f"back{suffix}"
        if suffix == ".safetensors":
            pytest.importorskip("safetensors", reason="writes these files")
        assert convert.main([f"--workdir={converted}", f"--to={SOURCE}", f"--output={output}"]) == 0
        before, after = weight_files.read_weights(file).arrays, weight_files.read_weights(output).arrays
        assert set(before) == set(after)
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_the_card_of_imported_weights_says_where_they_are_from(converted, network, tmp_path):
    hub.write(tmp_path / "hub", network_module.load_run(converted), converted)
    card = (tmp_path / "hub" / "README.md").read_text()
    origin = json.loads((converted / workdir.FILE).read_text())
    assert f"Imported from `mine.npz` (sha256 {origin['sha256']}), torchvision's inception_v1_bn." in card
    assert (
        "model-index" not in card
        and (
            "64 x 64 pixels: shorter side resized to 73 pixels (Pillow's BILINEAR, the longer one rounded down), "
            "center crop of 64 (half pixels rounded to the even pixel); (pixel - mean)"
        )
        in card
    )
    loaded = hub.load(tmp_path / "hub")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network[1])
    (tmp_path / "hub" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: there is no such file"):
        hub.load(tmp_path / "hub")


@pytest.mark.parametrize("suffix", exporting.SUFFIXES)
def test_a_run_in_bfloat16_is_published_without_loss(suffix, tmp_path):
    if suffix != ".npz":
        pytest.importorskip({".pth": "torch", ".safetensors": "safetensors"}[suffix], reason="writes these files")
    arrays = {"a": np.arange(6).reshape(2, 3).astype(ml_dtypes.bfloat16), "b": np.ones((), np.float32)}
    exporting._write(tmp_path / f"a{suffix}", arrays, {"step": 1})
    found = weight_files.read_weights(tmp_path / f"a{suffix}").arrays
    assert found["a"].dtype == (np.float32 if suffix == ".npz" else ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found["a"].astype(np.float32), arrays["a"].astype(np.float32))
    assert found["b"].dtype == np.float32 and found["b"] == 1


def test_a_run_with_other_switches_is_not_the_publishers(converted, fails, tmp_path):
    run = shutil.copytree(converted, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["model"]["options"]["five_by_five"] = 5
    (run / "config.json").write_text(json.dumps(config))
    err = fails(convert.main, f"--workdir={run}", f"--to={SOURCE}", f"--output={tmp_path / 'a.npz'}")
    assert "five_by_five = 5 (publisher: 3)" in err and not (tmp_path / "a.npz").exists()
    err = fails(convert.main, f"--workdir={run}", "--to=keras", f"--output={tmp_path / 'a.npz'}")
    assert f"keras has no {MODEL}" in err


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (convert.main, [], "--weights is missing"),
        (convert.main, ["--weights=a.npz"], "--output is missing"),
        (convert.main, ["--to=timm", "--output=a.npz"], "--workdir is missing"),
        (
            convert.main,
            ["--to=timm", "--output=a.h5", "--workdir=b"],
            "--output=a.h5: the suffix must be .safetensors, .npz, .pth",
        ),
        (convert.main, ["--list", "--weights=a"], "--weights: has no effect with --list"),
        (convert.main, ["--weights=a", "--output=b", "--step=3"], "--step: an import does not read it; leave it out"),
        (convert.main, ["--weights=a", "--output=b", "--set=min_width=4"], "--set: needs --model and --source"),
        (convert.main, ["--weights=none.pth", "--output=b"], "none.pth"),
        (
            convert.main,
            ["--verify", "--write_ledger=page.md"],
            "--write_ledger=page.md: cannot be read (No such file or directory); give it inception_jax/parity/",
        ),
        (
            convert.main,
            ["--weights=a", "--output=b", "--record=timm/inception_v3.tf_in2k"],
            "did you mean 'timm/inception_v3.tf_in1k'",
        ),
        (
            convert.main,
            ["--weights=a", "--output=b", "--record=torchvision/googlenet_fbgemm"],
            "cannot be used: quantized",
        ),
        (
            convert.main,
            ["--weights=a", "--output=b", "--record=torchvision/googlenet", "--source=timm"],
            "--source=timm: torchvision/googlenet is torchvision",
        ),
        (convert.main, ["--record=onnx/inception_v2"], "onnx/inception_v2 cannot be used: neither the order of its"),
        (convert.main, ["--list", "--model=inception_v5"], "unknown model 'inception_v5'"),
        (convert.main, ["--list", "--source=torchvison"], "did you mean 'torchvision'"),
        (convert.main, ["--download=slim/inception_v1_2016_08_28"], "--output is missing"),
        (evaluate.main, ["--workdir=a", "--weights=b.pth"], "becomes a run, with its crops and classes, by: python -m"),
        (predict.main, ["a.png"], "--workdir (a run) or --weights (a file of published weights) is missing"),
        (predict.main, ["--weights=ema", "a.png"], "--weights=ema: --workdir, the run, is missing"),
        (predict.main, ["--workdir=a", "--weights=b.pth", "a.png"], "use a file of weights without --workdir"),
        (predict.main, ["--workdir=a", "--source=timm", "a.png"], "--source: only with a file of published weights"),
        (predict.main, ["--weights=b.pth", "--step=best", "a.png"], "--step: only with --workdir"),
    ],
)
def test_mistakes_are_one_line(main, flags, message, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(main, *flags)
    assert not list(tmp_path.iterdir())


def test_list_is_readable_and_json_is_whole(capsys):
    assert convert.main(["--list", "--model=inception_v4", "--source=cadene"]) == 0
    out = capsys.readouterr().out
    assert "cadene/inceptionv4" in out and "sha256 8e4777a0… of inceptionv4-8e4777a0.pth" in out
    assert "1001, class 0 is the background" in out and "BSD-3-Clause (not checked)" in out
    assert "torchvision" not in out.split("\n\n")[0]
    assert convert.main(["--list", "--json", "--model=inception_v4"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {record["source"] for record in said} >= {"slim", "timm", "cadene", "pytorchcv"}
    assert next(r for r in said if r["name"] == "timm/inception_v4.tf_in1k")["preprocessing"]["crop"]["resize"] == 341


def test_only_convert_can_drop_the_background():
    """Whoever imports by hand says so; a workdir for ImageNet's labels drops it by itself."""
    variant = registry.get_variant("inception_v4", "cadene")
    shape = variant.source_array("params/classifier/kernel", (1536, 1001)).layout.shape((1536, 1001))
    arrays = {"last_linear.weight": np.zeros(shape, np.float32)}
    assert loading._default_background(variant, arrays) == "drop"
    assert loading._default_background(variant, {"last_linear.weight": np.zeros((1000, 1536), np.float32)}) == "keep"
    assert loading._default_background(registry.get_variant("inception_v4", "timm"), arrays) == "keep"
    assert importing.import_weights.__kwdefaults__["background"] == "keep"


# --- Weights without a classifier -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headless(network, file, tmp_path_factory):
    """The workdir of the same weights, without the classifier that the file has."""
    directory = tmp_path_factory.mktemp("headless") / "run"
    flags = [f"--weights={file}", f"--model={MODEL}", f"--source={SOURCE}", f"--output={directory}", *SET]
    assert convert.main([*flags, "--set=num_classes=0"]) == 0
    return directory


def test_features_of_weights_without_a_classifier(network, forward, headless, image_files, tmp_path):
    _, variables = network
    paths, arrays = image_files
    flags = [f"--workdir={headless}", "--endpoints=logits,pool5", f"--output={tmp_path / 'features.npz'}"]
    assert extract.main([*flags, *map(str, paths)]) == 0
    with np.load(tmp_path / "features.npz") as found:
        np.testing.assert_array_equal(found["logits"], found["pool5"])
        kernel, bias = (variables["params"]["classifier"][name] for name in ("kernel", "bias"))
        np.testing.assert_allclose(
            jax.nn.softmax(found["logits"] @ kernel + bias), expected(forward, arrays), rtol=2e-5, atol=1e-7
        )


def test_what_needs_a_classifier_says_so(headless, image_files, fails):
    for message in (
        fails(predict.main, f"--workdir={headless}", image_files[0][0]),
        fails(evaluate.main, f"--workdir={headless}"),
    ):
        assert "has no classifier (num_classes = 0): `extract` gives its features" in message


def test_weights_without_a_classifier_begin_a_run(network, headless):
    """The trunk is restored, the classifier is new, and the recipe has to say so."""
    recipe = network_module.load_config(headless)
    with pytest.raises(UserError, match="num_classes = 0: there is no classifier to train"):
        network_setup.count_classes(Config(recipe), datasets.load("digits", "train[:5]"))
    start = WarmStart(str(headless), new=["^classifier/"])
    begun = start.restore_into(network[1])
    assert set(start.report.new) == {"classifier/kernel", "classifier/bias"}
    np.testing.assert_array_equal(begun["params"]["conv1"]["kernel"], network[1]["params"]["conv1"]["kernel"])
    with pytest.raises(UserError, match=r'has no classifier/.*initialize.new = \("\^classifier/",\)'):
        WarmStart(str(headless)).restore_into(network[1])


def test_it_goes_out_as_it_came_in(headless, file, tmp_path):
    output = tmp_path / "trunk.npz"
    assert convert.main([f"--workdir={headless}", f"--to={SOURCE}", f"--output={output}"]) == 0
    with np.load(output) as found, np.load(file) as given:
        assert set(given) - set(found) == {"fc.weight", "fc.bias"}
        assert all((found[name] == given[name]).all() for name in found)
