"""The verb `export`: every target of one run, each read again by what it is for."""

import dataclasses
import itertools
import json
import re
import shutil
from types import SimpleNamespace

import cv2
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from inception_jax import export, load_pretrained, load_run
from inception_jax.data.crops import EvalCrop, center_crop
from inception_jax.errors import UserError
from inception_jax.exports import from_run
from inception_jax.pretrained import hub
from inception_jax.weight_files import read_weights
from inception_jax.weight_files.safetensors_writer import load_safetensors

from ..conftest import ROOT

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def network(small_run):
    return load_run(small_run)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)


@pytest.fixture
def exported(small_run, tmp_path, capsys):
    """Exports the run; returns the path, and the JSON that was printed."""

    def run(to, output, *flags):
        path = tmp_path / output
        assert export.main([f"--workdir={small_run}", f"--to={to}", f"--output={path}", "--json", *flags]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["output"], said["to"], said["model"]) == (str(path), to, "inception_v1")
        return path, said

    return run


def assert_same(first, second):
    """The same leaves; a collection without any may be there or not."""
    first, second = flatten_dict(first), flatten_dict(second)
    assert first.keys() == second.keys()
    assert all(np.array_equal(leaf, second[path]) for path, leaf in first.items())


def test_a_folder_for_a_hub_is_loaded_again(network, exported, images):
    folder, said = exported("hub", "mine")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    other = load_pretrained(folder)
    assert other.model == network.model and other.class_names == network.class_names and other.crop == network.crop
    assert (other.step, other.weights) == (network.step, network.weights) == (said["step"], said["weights"])
    assert_same(other.variables, network.variables)
    about = json.loads((folder / "config.json").read_text())
    assert about["preprocessing"] == json.loads(json.dumps(hub.describe_input(network))) == said["preprocessing"]
    card = (folder / "README.md").read_text()
    assert "outputs are logits; the probabilities are their softmax" in card
    metadata, _, text = card.removeprefix("---\n").partition("\n---\n\n")
    accuracy = metadata.rpartition("value: ")[2].rstrip("}]")
    assert metadata.startswith("library_name: inception_jax\npipeline_tag: image-classification\n")
    assert f"{100 * float(accuracy):.2f} %" in text and "10 classes: 0, 1, 2, 3" in text
    assert text.startswith("# inception_v1 on digits\n") and said["input"] in text
    with pytest.raises(UserError, match="num_classes: not read for a folder of an export"):
        load_pretrained(folder, num_classes=3)
    config = network.config.to_dict() | {"extensions": ["mine.py"]}
    extended = dataclasses.replace(network, config=SimpleNamespace(**config))
    with pytest.raises(UserError, match=r"its recipe has extensions \(mine\.py\), which a hub's folder does not hold"):
        hub.write(folder.with_name("other"), extended, folder)
    (folder / "config.json").write_text('{"library_name": "inception_jax"}')
    with pytest.raises(UserError, match=r"config\.json: no 'config'"):
        load_pretrained(folder)


def test_programs_compute_what_the_network_computes(network, exported, images):
    wanted = network.features(images, ["logits", "inception_4e"], batch_size=8)
    normalization = network.input.normalization
    pixels = np.stack([center_crop(image, network.image_size, network.crop) for image in images]).astype(np.float32)
    inputs = (pixels - np.float32(normalization.mean)) * np.float32(normalization.scale)
    path, _ = exported("stablehlo", "a.stablehlo", "--endpoints=inception_4e")
    found = jax.export.deserialize(bytearray(path.read_bytes())).call(inputs)
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-4 * np.abs(array).max())
    onnxruntime = pytest.importorskip("onnxruntime", reason="runs the exported graph")
    path, _ = exported("onnx", "a.onnx", "--endpoints=inception_4e")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, array in zip(("logits", "inception_4e"), session.run(None, {"images": inputs}), strict=True):
        np.testing.assert_allclose(array, wanted[name], rtol=1e-4, atol=1e-4 * np.abs(array).max())
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == network.class_names and "scale 1" in about["input"]


@pytest.fixture
def snippet(exported, tmp_path, monkeypatch, capsys):
    """Runs the README's program for an image; returns its names, and what it printed."""
    (code,) = [
        block for block in FENCE.findall((ROOT / "inception_jax/exports/README.md").read_text()) if "argv" in block
    ]

    def run(path, image):
        cv2.imwrite(file := str(tmp_path / "image.png"), image[..., ::-1])
        monkeypatch.setattr("sys.argv", ["snippet", str(path), file])
        exec(code, names := {})
        return names, json.loads(capsys.readouterr().out)

    return run


def test_the_program_of_the_page_gives_the_probabilities(network, exported, images, snippet):
    pytest.importorskip("onnxruntime", reason="runs the exported graph")
    path, said = exported("onnx", "a.onnx")
    for image in images:
        names, printed = snippet(path, image)
        found = network.predict(image, top_k=10)
        wanted = {
            network.class_names[k]: p for k, p in zip(found["classes"][0], found["probabilities"][0], strict=True)
        }
        assert printed.keys() == wanted.keys() and all(abs(printed[name] - wanted[name]) < 1e-5 for name in wanted)
    assert names["about"] == said["preprocessing"] == hub.describe_input(network) and said["activation"] == "softmax"
    for rule, sides in itertools.product(("center", "torchvision", "squash"), ({"resize": 19}, {"fraction": 0.8}, {})):
        for interpolation in ("bilinear", "area", "pil_bicubic"):
            assert_the_same_pixels(names["crop"], network, EvalCrop(rule, interpolation=interpolation, **sides))
    assert_the_same_pixels(names["crop"], network, EvalCrop("central_fraction", 0.7, "cubic"))


def assert_the_same_pixels(crop, network, rule):
    """A program's crop by what the metadata say of a rule, beside ours, for images of odd and even sides."""
    about = hub.describe_input(SimpleNamespace(crop=rule, image_size=16, input=network.input))
    for height, width in ((23, 41), (50, 36), (16, 16)):
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        np.testing.assert_array_equal(crop(image, about), center_crop(image, 16, rule), err_msg=rule.summary(16))


def test_weights_under_our_names_and_a_publishers(network, exported, small_run):
    path, said = exported("safetensors", "a.safetensors", "--weights=raw")
    assert said["weights"] == "raw"
    variables = load_run(small_run, weights="raw").variables
    assert_same(load_safetensors(path), variables)
    path, _ = exported("caffe", "b.npz")
    bias = read_weights(path).arrays["loss3/classifier/1"]
    np.testing.assert_array_equal(bias, network.variables["params"]["classifier"]["bias"])


def test_a_run_that_evaluates_with_other_statistics_is_named(small_run, tmp_path, capsys):
    """Its network has here what the checkpoint has: other numbers than its evaluations."""
    run = shutil.copytree(small_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["evaluation"]["batch_norm_images"] = 20
    (run / "config.json").write_text(json.dumps(config))
    warning = "warning: config.evaluation.batch_norm_images = 20 is for evaluations only"
    for to in ("safetensors", "caffe"):
        assert export.main([f"--workdir={run}", f"--to={to}", f"--output={tmp_path / to}.safetensors"]) == 0
        assert capsys.readouterr().err.count(warning) == 1


def test_how_the_run_computed_its_convolutions_refuses_no_publisher(small_run, tmp_path):
    """As a version without the field did: "exact". All other tests export a run with "fast"."""
    run = shutil.copytree(small_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    assert config["model"].pop("convolution") == "fast"
    (run / "config.json").write_text(json.dumps(config))
    assert export.main([f"--workdir={run}", "--to=caffe", f"--output={tmp_path}/a.npz"]) == 0


def test_where_and_what_is_refused(small_run, tmp_path, monkeypatch):
    assert from_run._default_name("onnx", "inception_v1") == "inception_v1.onnx"
    assert from_run._default_name("caffe", "inception_v1") == "inception_v1-caffe.safetensors"
    (tmp_path / "there").write_text("")
    for flags, message in (
        (["--workdir=a"], "--to is missing; targets: onnx, "),
        (["--to=onnx"], "--workdir is missing"),
        (["--workdir=a", "--to=onxx"], r"--to=onxx: it must be one of 'onnx', 'stablehlo', .*; did you mean 'onnx'\?"),
        (["--workdir=a", "--to=hub", "--endpoints=conv1"], "--endpoints: only with --to=onnx or stablehlo"),
        ([f"--workdir={small_run}", "--to=hub", f"--output={tmp_path}/there"], "exists already"),
        ([f"--workdir={small_run}", "--to=hub", f"--output={tmp_path}/there/a/b"], "cannot write"),
        ([f"--workdir={small_run}", "--to=keras", f"--output={tmp_path}/new/a.npz"], "keras has no inception_v1"),
        ([f"--workdir={small_run}", "--to=onnx", "--endpoints=x", f"--output={tmp_path}/new/a"], "no endpoint 'x'"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            export.main(flags)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
